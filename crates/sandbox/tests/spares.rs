//! Machines that wait, with a fake VMM: every step of taking one can fail, one that does not fit or is no good is given up for a boot,
//! and one that nobody needed is ended.

mod support;

use kata_sandbox::step::Faults;
use kata_sandbox::{Process, describe};
use kata_testkit::machine::FakeVmm;
use support::{Lab, run};

#[test]
fn a_machine_that_waits_is_taken_or_leaves_nothing() {
    run(|| async {
        let whole = Lab::waiting(FakeVmm::default(), Faults::none(), |_| {}).await;
        assert_eq!(whole.vmm.running(), 1, "it waits");
        whole.create().await.expect("create");
        assert_eq!((whole.vmm.running(), whole.vmm.started()), (1, 1), "it is the pod's");
        assert_eq!(whole.links(), ["lo", "tap0_kata", "tap1_kata"]);
        whole.sandbox.shut_down().await;
        whole.expect_no_traces("the end of the pod");
        assert_eq!(whole.links(), ["lo"]);
        for step in 0..whole.faults.asked() {
            let lab = Lab::waiting(FakeVmm::default(), Faults::at(step), |_| {}).await;
            let error = lab.create().await.expect_err("a step was made to fail");
            assert!(
                error.to_string().contains("was made to fail"),
                "step {step}: {}",
                describe(&error)
            );
            // It waits on if the pod has failed before it was its turn.
            lab.sandbox.shut_down().await;
            lab.expect_no_traces(&format!("step {step}"));
            assert_eq!(lab.links(), ["lo"], "step {step}");
            assert!(lab.sandbox.state(&Process::init("c")).await.is_err(), "step {step}");
            lab.create().await.expect("again");
            lab.sandbox.shut_down().await;
        }
    });
}

#[test]
fn one_that_does_not_fit_or_has_fallen_is_given_up_for_a_boot() {
    run(|| async {
        let other = Lab::waiting(FakeVmm::default(), Faults::none(), |config| config.qemu.msize_9p = 4096).await;
        other.create().await.expect("a boot");
        assert_eq!((other.vmm.running(), other.vmm.started()), (1, 2), "another machine");
        other.sandbox.shut_down().await;
        other.expect_no_traces("a machine that did not fit");

        let fallen = Lab::waiting(FakeVmm::default(), Faults::none(), |_| {}).await;
        fallen.vmm.kill_all();
        fallen.create().await.expect("a boot");
        assert_eq!((fallen.vmm.running(), fallen.vmm.started()), (1, 2), "another machine");
        fallen.sandbox.shut_down().await;
        fallen.expect_no_traces("a machine that had fallen");

        let unused = Lab::waiting(FakeVmm::default(), Faults::none(), |_| {}).await;
        unused.sandbox.shut_down().await;
        unused.expect_no_traces("a machine that was not needed");
    });
}
