//! What happens when a part of a sandbox dies: the rest is told at once, and can be deleted.

use std::time::{Duration, Instant};

use kata_e2e::bundle::Bundle;
use kata_e2e::containerd::Containerd;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::json;

/// How soon a death must be told.
const AT_ONCE: Duration = Duration::from_secs(20);

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

fn runtime() -> Runtime<'static> {
    Runtime::new(Kind::Kata, lab())
}

fn running(id: &str) {
    runtime().begin(&Bundle::args(lab(), id, &["sleep", "1000"]), id);
}

#[track_caller]
fn expect_stopped_and_delete(id: &str) {
    wait::until("the container is stopped", AT_ONCE, || {
        runtime().status(id) == "stopped"
    });
    runtime().exec(id, "true").run().exit(255);
    runtime().delete(id).ok();
    let left = || {
        pids::of_sandbox(lab(), id)
            .iter()
            .any(|process| process.part().is_some())
    };
    wait::until("no part of the sandbox is left", AT_ONCE, || !left());
}

#[test]
fn a_dead_vmm_stops_its_container() {
    running("vmm-dies");
    pids::kill_part(lab(), "vmm-dies", Part::Vmm);
    expect_stopped_and_delete("vmm-dies");
}

#[test]
fn a_dead_sandbox_process_takes_its_vmm_along() {
    running("shim-dies");
    pids::kill_part(lab(), "shim-dies", Part::Shim);
    expect_stopped_and_delete("shim-dies");
}

#[test]
fn a_dead_file_server_is_no_hang() {
    running("files-die");
    if pids::of_part(lab(), "files-die", Part::Virtiofsd).is_empty() {
        // The root file system came by 9p, which has no daemon to die.
        runtime().exec("files-die", "true").run().ok();
    } else {
        pids::kill_part(lab(), "files-die", Part::Virtiofsd);
    }
    let begun = Instant::now();
    runtime().delete_force("files-die").ok();
    assert!(
        begun.elapsed() < Duration::from_secs(45),
        "delete took {:?}",
        begun.elapsed()
    );
}

#[test]
fn a_foreground_run_ends_when_its_vmm_dies() {
    let bundle = Bundle::script(lab(), "run-dies", "echo up; sleep 1000");
    let mut running = runtime().run(&bundle, "run-dies").start();
    running.read_until("up");
    let begun = Instant::now();

    pids::kill_part(lab(), "run-dies", Part::Vmm);

    running.finish().failed();
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
    runtime().verb("state").arg("run-dies").run().failed();
}

/// The guest's kernel dies, and the agent with it.
#[test]
fn a_crashed_guest_stops_its_container() {
    let bundle = Bundle::args(lab(), "guest-dies", &["sleep", "1000"]).edit(|spec| {
        spec["linux"]["readonlyPaths"] = json!([]);
        spec["linux"]["maskedPaths"] = json!([]);
    });
    runtime().begin(&bundle, "guest-dies");
    runtime()
        .exec("guest-dies", "echo c >/proc/sysrq-trigger; sleep 100")
        .run()
        .failed();
    expect_stopped_and_delete("guest-dies");
}

#[test]
fn containerd_hears_of_a_dead_vmm() {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    let mut events = containerd.events();
    containerd
        .run(Kind::Kata, &["-d"], "victim", &["sleep", "1000"])
        .run()
        .ok();
    events.read_until("/tasks/start");

    pids::kill_part(&lab, "victim", Part::Vmm);

    containerd.await_status("victim", "STOPPED", AT_ONCE);
    events.read_until("/tasks/exit");
    containerd.ctr(["task", "delete", "victim"]).run();
    containerd.ctr(["container", "delete", "victim"]).run().ok();
}
