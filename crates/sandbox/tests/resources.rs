//! The size of a pod's machine, and its cgroups on the host, while its containers live and change.

mod support;

use kata_sandbox::describe;
use kata_sandbox::step::Faults;
use kata_testkit::machine::FakeVmm;
use support::{Lab, init, run};

const LIMIT: &[u8] = br#"{"memory": {"limit": 104857600}, "devices": [{"allow": false}]}"#;

#[test]
fn the_machine_follows_what_a_container_may_use() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        assert!(lab.vmm.sizes().is_empty(), "it has booted with what it needs");
        lab.sandbox.update("c", LIMIT).await.expect("update");
        let [grown] = lab.vmm.sizes()[..] else {
            panic!("{:?}", lab.vmm.sizes())
        };
        lab.sandbox.update("c", LIMIT).await.expect("the same again");
        assert_eq!(lab.vmm.sizes().len(), 1, "nothing to do");

        let more = br#"{"memory": {"limit": 209715200}}"#;
        lab.vmm
            .agent
            .fail("update", ttrpc::Code::INTERNAL, "the guest's cgroup refuses");
        let error = lab.sandbox.update("c", more).await.expect_err("refused");
        assert!(
            describe(&error).contains("the guest's cgroup refuses"),
            "{}",
            describe(&error)
        );
        let sizes = lab.vmm.sizes();
        assert_eq!(sizes.len(), 3, "room is made before it is used: {sizes:?}");
        assert_eq!(sizes[1].memory_mib - grown.memory_mib, 100);
        assert_eq!(sizes[2], grown, "and given back if it is not");

        lab.sandbox.update("c", b"7").await.expect_err("no limits");
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn cgroups_are_made_for_the_pod_and_go_with_it() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        let mut made = lab.cgroups();
        made.sort();
        // Nothing but CPUs is split in version 1: here the pod has one cgroup, and the overhead none.
        assert_eq!(made, ["kata"]);
        assert!(lab.path("cgroup/kata/c").exists());
        lab.vmm.agent.end("c", "", 0);
        lab.sandbox.wait(&init()).await.expect("wait");
        lab.sandbox.delete(&init()).await.expect("delete");
        assert!(lab.cgroups().is_empty(), "{:?}", lab.cgroups());
    });
}
