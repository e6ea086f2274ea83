//! Machines of a template, with a fake VMM: every step of such a start can fail, and what is no good is given up for a boot.

mod support;

use std::path::Path;
use std::time::Duration;

use kata_config::Config;
use kata_sandbox::step::Faults;
use kata_sandbox::template::{self, Made, Occasion};
use kata_sandbox::{Process, SandboxError, describe, survey};
use kata_testkit::machine::FakeVmm;
use support::{Lab, run};
use ttrpc::Code;

/// A lab whose templates lie in `store`.
fn lab(vmm: FakeVmm, faults: Faults, store: &Path) -> Lab {
    Lab::configured(vmm, faults, |config| with_templates(config, store))
}

fn with_templates(config: &mut Config, store: &Path) {
    config.factory.enable_template = true;
    config.factory.template_path = store.to_owned();
}

/// Makes the template that the lab's pod needs.
async fn make(lab: &Lab) -> Made {
    let made = try_to_make(lab).await;
    made.unwrap_or_else(|error| panic!("{}", describe(&error)))
}

async fn try_to_make(lab: &Lab) -> Result<Made, SandboxError> {
    let facts = survey::host(&lab.config).expect("facts");
    let plan = kata_plan::template(&lab.config, &facts).expect("plan");
    let made = template::make(&plan, &lab.vmm, Duration::from_secs(30), Occasion::Operator).await;
    // It has gone where the template's taps are.
    kata_net::namespace::enter_new().expect("another network namespace");
    made
}

fn count(store: &Path) -> usize {
    std::fs::read_dir(store).into_iter().flatten().count()
}

#[test]
fn a_clone_comes_up_or_leaves_nothing() {
    run(|| async {
        let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = place.path().join("templates");
        let whole = lab(FakeVmm::default(), Faults::none(), &store);
        assert_eq!((make(&whole).await, make(&whole).await), (Made::Now, Made::Before));
        whole.create().await.expect("create");
        assert_eq!(whole.vmm.restored(), 1);
        whole.sandbox.shut_down().await;
        assert_eq!(whole.vmm.running(), 0);
        let steps = whole.faults.asked();
        for step in 0..steps {
            let lab = lab(FakeVmm::default(), Faults::at(step), &store);
            make(&lab).await;
            let error = lab.create().await.expect_err("a step was made to fail");
            assert!(
                error.to_string().contains("was made to fail"),
                "step {step}: {}",
                describe(&error)
            );
            lab.expect_no_traces(&format!("step {step}"));
            assert!(lab.sandbox.state(&Process::init("c")).await.is_err(), "step {step}");
            lab.create().await.expect("again");
            assert!(lab.vmm.restored() >= 1, "the template is not to blame");
            lab.sandbox.shut_down().await;
        }
    });
}

#[test]
fn a_template_has_rehearsed() {
    run(|| async {
        let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = place.path().join("templates");
        let lab = lab(FakeVmm::default(), Faults::none(), &store);
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
        let before = mounts();
        assert_eq!(make(&lab).await, Made::Now);
        let all = [
            "setup rehearsal",
            "create_container rehearsal",
            "start_container rehearsal",
            "exec rehearsal copy",
            "delete_process rehearsal copy",
            "signal rehearsal  9",
            "delete_container rehearsal",
            "reset",
        ];
        assert_eq!(lab.vmm.rehearsing.requests(), all);
        assert_eq!(lab.vmm.rehearsing.network().interfaces.len(), 1);
        assert_eq!(mounts(), before);
        let template = std::fs::read_dir(&store).expect("store").flatten().next();
        let mut files: Vec<_> = std::fs::read_dir(template.expect("one").path())
            .expect("its files")
            .map(|file| file.expect("file").file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["manifest.json", "memory", "state"]);
    });
}

#[test]
fn what_fails_in_the_rehearsal_makes_no_template() {
    run(|| async {
        for request in ["setup", "create_container", "exec", "delete_container", "reset"] {
            let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
            let store = place.path().join("templates");
            let lab = lab(FakeVmm::default(), Faults::none(), &store);
            let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
            let before = mounts();
            lab.vmm.rehearsing.fail(request, Code::INTERNAL, "not today");
            let error = try_to_make(&lab).await.expect_err(request);
            let expected = "the rehearsal of a pod in the template's machine failed: not today";
            assert_eq!(describe(&error), expected, "{request}");
            let left: Vec<_> = std::fs::read_dir(&store)
                .expect("store")
                .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
                .collect();
            let [left] = &left[..] else {
                panic!("{request} left {left:?}")
            };
            assert!(left.ends_with(".failed"), "{request} left {left}");
            assert_eq!(mounts(), before, "{request}");
        }
    });
}

#[test]
fn a_template_of_silent_machines_is_discarded_for_a_boot() {
    run(|| async {
        let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = place.path().join("templates");
        let lab = Lab::configured(FakeVmm::mute(), Faults::none(), |config| {
            with_templates(config, &store);
            config.agent.dial_timeout = Duration::from_millis(500);
        });
        make(&lab).await;
        assert_eq!(count(&store), 1);
        let error = lab.create().await.expect_err("a boot is as silent");
        assert!(
            error.to_string().starts_with("no agent in the guest"),
            "{}",
            describe(&error)
        );
        assert_eq!((lab.vmm.restored(), lab.vmm.running(), count(&store)), (1, 0, 0));
        assert!(lab.mounts().is_empty());
        // And nobody is there to make another.
        lab.create().await.expect_err("silent");
        assert_eq!(lab.vmm.restored(), 1);
    });
}

#[test]
fn a_template_is_not_to_blame_for_a_machine_that_was_killed() {
    run(|| async {
        let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = place.path().join("templates");
        let lab = lab(FakeVmm::mute(), Faults::none(), &store);
        make(&lab).await;
        let killed = async {
            while lab.vmm.running() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            lab.vmm.kill_all();
        };
        let (created, ()) = tokio::join!(lab.create(), killed);
        let error = created.expect_err("it was killed").to_string();
        assert!(
            error.starts_with("the machine ended by signal 9 (so the kernel"),
            "{error}"
        );
        assert_eq!((lab.vmm.restored(), lab.vmm.running(), count(&store)), (1, 0, 1));
        lab.expect_no_traces("a machine that was killed");
    });
}
