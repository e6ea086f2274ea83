//! containerd drives the shim: what `ctr` can ask of a task, and what is left when it is done.

use std::time::Duration;

use kata_e2e::against_both;
use kata_e2e::containerd::Containerd;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::Kind;
use kata_e2e::terminal::Terminal;
use kata_e2e::wait;

against_both!(
    a_foreground_run_passes_everything_through,
    a_run_on_a_terminal_is_interactive,
    a_detached_task_is_looked_after,
    a_task_is_paused_and_resumed,
    a_missing_program_is_told,
    nothing_is_left_after_delete,
    a_killed_sandbox_process_is_cleaned_up_after,
);

fn containerd() -> &'static Containerd<'static> {
    static LAB: Shared<Lab> = Shared::new();
    static CONTAINERD: Shared<Containerd> = Shared::new();
    CONTAINERD.get(|| Containerd::start(LAB.get(Lab::open)))
}

fn name(kind: Kind, what: &str) -> String {
    format!("ctr-{kind:?}-{what}").to_lowercase()
}

fn a_foreground_run_passes_everything_through(kind: Kind) {
    let id = name(kind, "run");
    // ctr 1.6 loses what it has not read yet when the container ends: it closes its own ends then. Hence the time it gets.
    let script = "cat; echo to stderr >&2; sleep 10; exit 7";
    let input: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();

    let outcome = containerd()
        .run(kind, &["--rm"], &id, &["sh", "-c", script])
        .stdin(input.clone())
        .run()
        .exit(7);

    assert!(
        outcome.stdout == input,
        "1 MiB went in, {} other bytes came out",
        outcome.stdout.len()
    );
    outcome.stderr("to stderr\n");
    containerd().ctr(["container", "ls", "-q"]).run().ok().says_not(&id);
}

fn a_run_on_a_terminal_is_interactive(kind: Kind) {
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(35, 95);
    let running = containerd()
        .run(kind, &["--rm", "-t"], &name(kind, "tty"), &["sh"])
        .start_on(&end);
    drop(end);
    terminal.expect("#");
    terminal.expect_size(35, 95);
    terminal.interrupt_a_program();
    terminal.type_in("exit 5\n");
    running.finish().exit(5);
}

fn a_detached_task_is_looked_after(kind: Kind) {
    let id = name(kind, "task");
    let containerd = containerd();
    containerd
        .run(kind, &["-d"], &id, &["sh", "-c", "sleep 4321 & exec sleep 1234"])
        .run()
        .ok();
    containerd.await_status(&id, "RUNNING", Duration::from_secs(15));
    if kind == Kind::Kata {
        let shims = pids::of_part(containerd.lab(), &id, Part::Shim);
        assert_eq!(
            shims.len(),
            1,
            "one sandbox process a pod: {:#?}",
            pids::of_sandbox(containerd.lab(), &id)
        );
    }

    let exec = |exec_id: &str, script: &str| {
        containerd
            .ctr(["task", "exec", "--exec-id", exec_id, &id])
            .args(["sh", "-c", script])
    };
    exec("one", "cat; echo err >&2; exit 3")
        .stdin("through exec")
        .run()
        .exit(3)
        .stdout("through exec")
        .stderr("err\n");
    let listed = || containerd.ctr(["task", "ps", &id]).run().ok().text().lines().count();
    wait::until(
        "two processes and a heading are listed",
        Duration::from_secs(15),
        || listed() == 3,
    );
    containerd
        .ctr(["task", "metrics", &id])
        .run()
        .ok()
        .says("memory")
        .says("pids.current");

    containerd.ctr(["task", "kill", "--signal", "SIGKILL", &id]).run().ok();
    containerd.await_status(&id, "STOPPED", Duration::from_secs(15));
    containerd.ctr(["task", "delete", &id]).run().ok().complains("137");
    containerd.ctr(["container", "delete", &id]).run().ok();
}

fn a_task_is_paused_and_resumed(kind: Kind) {
    let id = name(kind, "pause");
    let containerd = containerd();
    containerd.run(kind, &["-d"], &id, &["sleep", "1000"]).run().ok();
    containerd.ctr(["task", "pause", &id]).run().ok();
    containerd.await_status(&id, "PAUSED", Duration::from_secs(15));
    containerd.ctr(["task", "resume", &id]).run().ok();
    containerd.await_status(&id, "RUNNING", Duration::from_secs(15));
    containerd
        .ctr(["task", "delete", "--force", &id])
        .run()
        .ok()
        .complains("137");
    containerd.ctr(["container", "delete", &id]).run().ok();
}

fn a_missing_program_is_told(kind: Kind) {
    let id = name(kind, "missing");
    containerd()
        .run(kind, &["--rm"], &id, &["no-such-program"])
        .run()
        .failed()
        .complains("executable file not found");
    containerd().ctr(["task", "ls"]).run().ok().says_not(&id);
    containerd().ctr(["container", "delete", &id]).run();
}

fn nothing_is_left_after_delete(kind: Kind) {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    containerd.run(kind, &["--rm"], "first", &["true"]).run().ok();
    let before = Snapshot::take(&lab);

    containerd.run(kind, &["--rm"], "second", &["false"]).run().exit(1);
    containerd.run(kind, &["-d"], "third", &["sleep", "1000"]).run().ok();
    containerd
        .ctr(["task", "exec", "--exec-id", "e", "third", "true"])
        .run()
        .ok();
    containerd.ctr(["task", "delete", "--force", "third"]).run();
    containerd.ctr(["container", "delete", "third"]).run().ok();

    before.expect_nothing_more(&lab, "ctr run, task exec and delete");
}

/// `kill -9` of the sandbox process: containerd calls `shim delete`, which must leave neither VM nor mounts.
fn a_killed_sandbox_process_is_cleaned_up_after(kind: Kind) {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    containerd.run(kind, &["--rm"], "first", &["true"]).run().ok();
    let before = Snapshot::take(&lab);
    containerd.run(kind, &["-d"], "victim", &["sleep", "1000"]).run().ok();

    pids::kill_part(&lab, "victim", Part::Shim);

    let gone = || pids::of_part(&lab, "victim", Part::Vmm).is_empty();
    wait::until("the VMM dies with its sandbox process", Duration::from_secs(30), gone);
    // While the shim is not known to have gone, the state may be listed as unknown.
    let noticed = || matches!(containerd.status("victim").as_str(), "" | "STOPPED");
    wait::until("containerd has noticed", Duration::from_secs(20), noticed);
    containerd.ctr(["task", "delete", "--force", "victim"]).run();
    containerd.ctr(["container", "delete", "victim"]).run().ok();
    // The fifos are ctr's, which removes them only with a task. runc's shim leaves its socket behind, ours does not.
    let others: &[&str] = match kind {
        Kind::Runc => &["/run/containerd/fifo/", "/run/containerd/s/"],
        Kind::Kata => &["/run/containerd/fifo/"],
    };
    before.expect_nothing_more_but(&lab, "kill -9 of the sandbox process", others);
    containerd
        .run(kind, &["--rm"], "victim", &["echo", "the name is free again"])
        .run()
        .ok();
}
