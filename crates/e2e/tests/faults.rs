//! Parts that die under containerd: what is told, what is logged, what is left.

use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Running;
use kata_e2e::containerd::Containerd;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::{against_both, wait};

against_both!(tasks_outlive_containerd);

const SOON: Duration = Duration::from_secs(15);

/// containerd crashes and comes back: one task runs through, one ends meanwhile.
fn tasks_outlive_containerd(kind: Kind) {
    let lab = Lab::open();
    let mut containerd = Containerd::start(&lab);
    let shared = lab.scratch().join("shared");
    std::fs::create_dir(&shared).expect("a volume");
    let volume = format!("type=bind,src={},dst=/shared,options=rbind:rw", shared.display());
    let script = "until test -e /shared/go; do sleep 0.1; done; exit 9";
    containerd.run(kind, &["-d"], "stays", &["sleep", "1000"]).run().ok();
    containerd
        .run(kind, &["-d", "--mount", &volume], "ends", &["sh", "-c", script])
        .run()
        .ok();
    let shims = || ["stays", "ends"].map(|id| pids::of_part(&lab, id, Part::Shim));
    let before = shims();

    containerd.crash();
    assert_eq!(shims(), before, "only containerd has gone");
    std::fs::write(shared.join("go"), "").expect("go");
    containerd.start_again();

    containerd.await_status("ends", "STOPPED", SOON);
    let deleted = containerd.ctr(["task", "delete", "ends"]).run();
    deleted.ok().complains("exit code 9");
    containerd.await_status("stays", "RUNNING", SOON);
    let mut events = containerd.events();
    let exec = containerd.ctr(["task", "exec", "--exec-id", "e", "stays", "echo", "still here"]);
    exec.run().ok().stdout("still here\n");
    events.read_until("/tasks/exec-started");
    containerd
        .ctr(["task", "kill", "--signal", "SIGKILL", "stays"])
        .run()
        .ok();
    expect_exit(&mut events, "stays", 137);
    containerd.ctr(["task", "delete", "stays"]).run().ok().complains("137");
    for id in ["ends", "stays"] {
        containerd.ctr(["container", "delete", id]).run().ok();
    }
}

/// Reads events until the task's exit, which must have this code.
#[track_caller]
fn expect_exit(events: &mut Running, id: &str, code: u32) {
    let exit = format!(r#"/tasks/exit {{"container_id":"{id}","id":"{id}""#);
    let mut said = events.read_until(&exit);
    if !said.ends_with('\n') {
        said.push_str(&events.read_until("\n"));
    }
    let line = said.lines().find(|line| line.contains(&exit)).unwrap_or_default();
    assert!(line.contains(&format!(r#""exit_status":{code},"#)), "{line}");
}

/// Each part of a pod dies in turn; the others' deaths, the exit event, the log and the remains are looked at.
#[test]
fn whatever_dies_the_exit_is_told_and_the_reason_logged_and_nothing_left() {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    containerd.run(Kind::Kata, &["--rm"], "first", &["true"]).run().ok();
    let before = Snapshot::take(&lab);
    let panic: fn(&Containerd<'_>) = |containerd| {
        let exec = containerd.ctr(["task", "exec", "--exec-id", "panic", "victim"]);
        exec.args(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100"])
            .run()
            .failed();
    };
    type Killing = fn(&Containerd<'_>);
    let cases: [(&str, Killing, u32, &[&str]); 4] = [
        (
            "the VMM",
            |containerd| pids::kill_part(containerd.lab(), "victim", Part::Vmm),
            255,
            &["the machine has ended by itself"],
        ),
        (
            "the file server",
            |containerd| {
                let daemons = pids::of_part(containerd.lab(), "victim", Part::Virtiofsd);
                assert!(!daemons.is_empty(), "this machine has virtiofsd");
                for pid in daemons {
                    containerd.lab().kill(pid);
                }
            },
            255,
            &["the machine cannot go on without it"],
        ),
        (
            "the guest's kernel",
            panic,
            255,
            &["the machine has ended by itself", "Kernel panic", "sysrq"],
        ),
        (
            "the sandbox process",
            |containerd| pids::kill_part(containerd.lab(), "victim", Part::Shim),
            137,
            &["cleaning up after shim disconnected"],
        ),
    ];
    for (what, kill, code, reasons) in cases {
        eprintln!("{what} dies");
        let logged = containerd.log().len();
        let mut events = containerd.events();
        containerd
            .run(Kind::Kata, &["-d", "--privileged"], "victim", &["sleep", "1000"])
            .run()
            .ok();
        events.read_until("/tasks/start");

        kill(&containerd);

        expect_exit(&mut events, "victim", code);
        let said = || containerd.log()[logged..].to_owned();
        for reason in reasons {
            wait::until(&format!("{what}: {reason:?} is logged"), SOON, || {
                said().contains(reason)
            });
        }
        wait::until(&format!("{what}: the task is over"), SOON, || {
            matches!(containerd.status("victim").as_str(), "" | "STOPPED")
        });
        // The record of a shim that died is gone already.
        containerd.ctr(["task", "delete", "victim"]).run();
        containerd.ctr(["container", "delete", "victim"]).run().ok();
        drop(events);
        // ctr removes its fifos only with a task.
        before.expect_nothing_more_but(&lab, what, &["/run/containerd/fifo/"]);
    }
}

/// A container's last process leaves files behind that the file server has not closed yet. Where its mounts are taken down
/// before that, the guest's kernel falls over them, and the container's end is never told.
#[test]
fn a_container_ends_while_the_file_server_is_held_up() {
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    let bundle = Bundle::args(&lab, "held-up", &["sleep", "1000"]);
    runtime.begin(&bundle, "held-up");
    let servers = pids::of_part(&lab, "held-up", Part::Virtiofsd);
    assert!(!servers.is_empty(), "this machine has virtiofsd");
    let signal = |name: &str| {
        for pid in &servers {
            lab.command("kill").args([name, &pid.to_string()]).run().ok();
        }
    };
    signal("-STOP");
    runtime.kill("held-up", "KILL").ok();
    std::thread::sleep(Duration::from_secs(1));
    signal("-CONT");
    runtime.await_status("held-up", "stopped");
    runtime.delete("held-up").ok();
}
