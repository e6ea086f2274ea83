//! The life of a pod, and what is left when a part of it fails.

mod support;

use std::time::Duration;

use kata_sandbox::lifecycle::Phase;
use kata_sandbox::stdio::{Output, Stdio};
use kata_sandbox::step::Faults;
use kata_sandbox::{MACHINE_LOST, NewContainer, describe};
use kata_storage::mount::EngineMount;
use kata_testkit::machine::FakeVmm;
use support::{Lab, exec, init, process_json, run};

#[test]
fn a_container_lives_through_and_leaves_nothing() {
    run(|| async {
        let mut lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        assert_eq!(
            lab.mounts().len(),
            3,
            "share, root file system, volume: {:?}",
            lab.mounts()
        );
        assert!(
            std::fs::write(lab.path("home/share/c/volumes").join("x"), "").is_ok(),
            "the share itself is the host's"
        );
        lab.sandbox.start(&init()).await.expect("start");
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), Stdio::default())
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start the exec");
        lab.vmm.agent.end("c", "e", 3);
        assert_eq!(lab.sandbox.wait(&exec("e")).await.expect("wait").code, 3);
        lab.sandbox.delete(&exec("e")).await.expect("delete the exec");
        lab.vmm.agent.end("c", "", 7);
        assert_eq!(lab.sandbox.wait(&init()).await.expect("wait").code, 7);
        assert_eq!(lab.sandbox.delete(&init()).await.expect("delete").code, 7);
        assert_eq!(
            lab.events(),
            [
                "created c",
                "started c",
                "exec-added e",
                "started ce",
                "exited ce 3",
                "deleted ce 3",
                "exited c 7",
                "deleted c 7",
            ]
        );
        assert!(lab.mounts().is_empty(), "{:?}", lab.mounts());
        assert_eq!(lab.vmm.running(), 0);
    });
}

#[test]
fn whichever_step_fails_nothing_is_left_and_the_id_is_free() {
    run(|| async {
        let steps = {
            let lab = Lab::new(FakeVmm::default(), Faults::none());
            lab.create().await.expect("create");
            lab.sandbox.shut_down().await;
            lab.faults.asked()
        };
        assert!(
            steps >= 8,
            "share, machine, agent, localhost, root file system, volume, socket, container: {steps}"
        );
        for step in 0..steps {
            let mut lab = Lab::new(FakeVmm::default(), Faults::at(step));
            let error = lab.create().await.expect_err("a step was made to fail");
            assert!(
                error.to_string().contains("was made to fail"),
                "step {step}: {}",
                describe(&error)
            );
            lab.expect_no_traces(&format!("step {step}"));
            assert!(lab.events().is_empty(), "step {step}");
            assert!(lab.sandbox.state(&init()).await.is_err(), "step {step}");
            lab.create()
                .await
                .unwrap_or_else(|error| panic!("again after step {step}: {}", describe(&error)));
            lab.sandbox.shut_down().await;
            lab.expect_no_traces("shutdown");
        }
    });
}

#[test]
fn a_root_file_system_on_a_disk_is_attached_and_detached() {
    run(|| async {
        let image = |lab: &Lab| {
            let path = lab.path("image");
            std::fs::write(&path, [0; 4096]).expect("write");
            let rootfs = EngineMount {
                fs_type: "ext4".into(),
                source: path.display().to_string(),
                options: vec!["loop".into()],
            };
            NewContainer {
                rootfs: vec![rootfs],
                ..lab.container(Stdio::default())
            }
        };
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.sandbox.create(image(&lab)).await.expect("create");
        assert_eq!(
            (lab.vmm.disks(), lab.mounts().len()),
            (1, 2),
            "share and volume: {:?}",
            lab.mounts()
        );
        lab.sandbox.start(&init()).await.expect("start");
        lab.vmm.agent.end("c", "", 0);
        lab.sandbox.wait(&init()).await.expect("wait");
        lab.sandbox.delete(&init()).await.expect("delete");
        assert_eq!(lab.vmm.disks(), 0);
        for step in 0..lab.faults.asked() {
            let lab = Lab::new(FakeVmm::default(), Faults::at(step));
            lab.sandbox.create(image(&lab)).await.expect_err("made to fail");
            assert_eq!(lab.vmm.disks(), 0, "step {step} left a disk");
        }
    });
}

#[test]
fn what_the_agent_refuses_is_told_and_undone() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.vmm.agent.fail(
            "create_container",
            ttrpc::Code::NOT_FOUND,
            "exec: \"x\": executable file not found in $PATH",
        );
        let error = lab.create().await.expect_err("refused");
        assert_eq!(describe(&error), "exec: \"x\": executable file not found in $PATH");
        assert!(lab.mounts().is_empty());
        assert_eq!(lab.vmm.running(), 0);
    });
}

#[test]
fn a_silent_guest_is_given_up_in_time_with_its_console() {
    run(|| async {
        let soon = Duration::from_millis(500);
        let lab = Lab::configured(FakeVmm::mute(), Faults::none(), |config| {
            config.agent.dial_timeout = soon
        });
        let error = describe(&lab.create().await.expect_err("silent"));
        assert!(
            error.contains("the fake console") && error.contains("did not answer within 500ms"),
            "{error}"
        );
        assert_eq!(lab.vmm.running(), 0);
        assert!(lab.mounts().is_empty());
    });
}

#[test]
fn the_end_of_the_machine_ends_every_process_once() {
    run(|| async {
        let mut lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), Stdio::default())
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start");
        lab.vmm.kill_all();
        assert_eq!(lab.sandbox.wait(&init()).await.expect("wait").code, MACHINE_LOST);
        assert_eq!(lab.sandbox.wait(&exec("e")).await.expect("wait").code, MACHINE_LOST);
        let mut told = lab.events().split_off(4);
        told.sort();
        assert_eq!(told, ["exited c 255", "exited ce 255"]);
        assert!(matches!(
            lab.sandbox.state(&init()).await.expect("state").phase,
            Phase::Stopped(_)
        ));
        assert!(lab.sandbox.signal(&init(), 9, false).await.is_err(), "it is over");
        lab.sandbox.delete(&init()).await.expect("delete");
        assert!(lab.mounts().is_empty());
    });
}

#[test]
fn a_start_that_fails_is_an_exit() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.vmm
            .agent
            .fail("start_container", ttrpc::Code::INTERNAL, "exec format error");
        let error = lab.sandbox.start(&init()).await.expect_err("refused");
        assert_eq!(error.to_string(), "exec format error");
        assert!(matches!(
            lab.sandbox.state(&init()).await.expect("state").phase,
            Phase::Stopped(_)
        ));
        lab.sandbox.delete(&init()).await.expect("delete");
    });
}

#[test]
fn bad_bundles_are_refused_before_anything_is_booted() {
    run(|| async {
        for (file, text, expected) in [
            ("bundle/config.json", "{", "config.json"),
            ("bundle/config.json", "{\"ociVersion\": \"1.0.2\"}", "process"),
        ] {
            let lab = Lab::new(FakeVmm::default(), Faults::none());
            std::fs::write(lab.path(file), text).expect("write");
            let error = describe(&lab.create().await.expect_err("bad bundle"));
            assert!(error.contains(expected), "{error}");
            assert_eq!(lab.faults.asked(), 0, "nothing was begun");
        }
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        std::fs::remove_dir(lab.path("bundle/rootfs")).expect("rmdir");
        let error = describe(&lab.create().await.expect_err("no root file system"));
        assert!(error.contains("rootfs"), "{error}");
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        std::fs::remove_file(lab.path("vmlinux")).expect("rm");
        let error = describe(&lab.create().await.expect_err("no kernel"));
        assert!(error.contains("vmlinux") && error.contains("image build"), "{error}");
        let stdio = Stdio {
            stdout: Some(Output::fifo(&lab.path("initrd.img"))),
            ..Stdio::default()
        };
        let error = describe(&lab.sandbox.create(lab.container(stdio)).await.expect_err("no fifo"));
        assert!(error.contains("as the process's stdout"), "{error}");
    });
}
