//! Podman drives the runtime: what a person does with it, and what is left when it is done.

use std::time::Duration;

use kata_e2e::against_both;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::podman::Podman;
use kata_e2e::runtime::Kind;
use kata_e2e::terminal::Terminal;
use kata_e2e::wait;

against_both!(
    a_foreground_run_passes_everything_through,
    a_missing_command_is_127,
    a_run_on_a_terminal_is_interactive,
    a_detached_container_is_looked_after,
    a_container_is_stopped_killed_and_started_again,
    volumes_users_and_limits_are_honoured,
    nothing_is_left_after_rm,
);

fn podman(kind: Kind) -> &'static Podman<'static> {
    static LABS: [Shared<Lab>; 2] = [const { Shared::new() }; 2];
    static PODMEN: [Shared<Podman>; 2] = [const { Shared::new() }; 2];
    let index = usize::from(kind == Kind::Kata);
    PODMEN[index].get(|| Podman::start(LABS[index].get(Lab::open), kind))
}

fn a_foreground_run_passes_everything_through(kind: Kind) {
    let script = "read -r line; echo \"<$line>\"; echo to stderr >&2; exit 7";
    let outcome = podman(kind)
        .run(&["--rm", "-i"], &["sh", "-c", script])
        .stdin("a line\n")
        .run();
    outcome.exit(7).stdout("<a line>\n").complains("to stderr");
}

fn a_missing_command_is_127(kind: Kind) {
    podman(kind)
        .run(&["--rm"], &["no-such-program"])
        .run()
        .exit(127)
        .complains("not found");
    podman(kind).run(&["--rm"], &["/etc/passwd"]).run().exit(126);
}

fn a_run_on_a_terminal_is_interactive(kind: Kind) {
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(31, 91);
    let running = podman(kind).run(&["--rm", "-it"], &["sh"]).start_on(&end);
    drop(end);
    terminal.expect("#");
    terminal.expect_size(31, 91);
    terminal.interrupt_a_program();
    terminal.type_in("exit 5\n");
    running.finish().exit(5);
}

fn a_detached_container_is_looked_after(kind: Kind) {
    let podman = podman(kind);
    let script = "echo begun; while [ ! -e /tmp/stop ]; do sleep 0.1; done; echo ended >&2; exit 9";
    podman
        .run(&["-d", "--name", "looked-after"], &["sh", "-c", script])
        .run()
        .ok();

    podman
        .podman(["ps", "--format", "{{.Names}} {{.Status}}"])
        .run()
        .ok()
        .says("looked-after Up");
    podman
        .podman(["inspect", "--format", "{{.State.Status}}", "looked-after"])
        .run()
        .ok()
        .stdout("running\n");
    wait::until("it says that it has begun", Duration::from_secs(30), || {
        podman.podman(["logs", "looked-after"]).run().ok().text() == "begun\n"
    });
    let exec = |args: &[&str]| podman.podman(["exec"]).args(args);
    exec(&["-i", "looked-after", "cat"])
        .stdin("through exec")
        .run()
        .ok()
        .stdout("through exec");
    exec(&[
        "-e",
        "A=1",
        "-w",
        "/home",
        "-u",
        "1000:1000",
        "looked-after",
        "sh",
        "-c",
        "echo $A; pwd; id -u; exit 3",
    ])
    .run()
    .exit(3)
    .stdout("1\n/home\n1000\n");
    exec(&["looked-after", "no-such-program"]).run().exit(127);

    exec(&["-d", "looked-after", "touch", "/tmp/stop"]).run().ok();
    podman.podman(["wait", "looked-after"]).run().ok().stdout("9\n");
    podman
        .podman(["logs", "looked-after"])
        .run()
        .ok()
        .stdout("begun\n")
        .complains("ended");
    podman
        .podman(["inspect", "--format", "{{.State.ExitCode}}", "looked-after"])
        .run()
        .ok()
        .stdout("9\n");
    podman.podman(["rm", "looked-after"]).run().ok();
}

fn a_container_is_stopped_killed_and_started_again(kind: Kind) {
    let podman = podman(kind);
    let code = || {
        podman
            .podman(["inspect", "--format", "{{.State.ExitCode}}", "stopped"])
            .run()
            .ok()
    };
    let script = "trap 'echo told to stop; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    podman
        .run(&["-d", "--name", "stopped"], &["sh", "-c", script])
        .run()
        .ok();
    let up = |times: usize| {
        kata_e2e::wait::until("the container is up", Duration::from_secs(30), || {
            podman.podman(["logs", "stopped"]).run().text().matches("up").count() == times
        });
    };

    up(1);
    podman.podman(["stop", "--time", "20", "stopped"]).run().ok();
    code().stdout("0\n");
    podman.podman(["logs", "stopped"]).run().ok().says("told to stop");

    podman.podman(["start", "stopped"]).run().ok();
    up(2);
    podman.podman(["pause", "stopped"]).run().ok();
    podman
        .podman(["inspect", "--format", "{{.State.Status}}", "stopped"])
        .run()
        .ok()
        .stdout("paused\n");
    podman.podman(["unpause", "stopped"]).run().ok();
    podman.podman(["kill", "--signal", "KILL", "stopped"]).run().ok();
    podman.podman(["wait", "stopped"]).run().ok().stdout("137\n");
    podman.podman(["rm", "--force", "stopped"]).run().ok();
}

fn volumes_users_and_limits_are_honoured(kind: Kind) {
    let podman = podman(kind);
    let data = podman.lab().scratch().join(format!("volume-{kind:?}"));
    std::fs::create_dir_all(&data).expect("volume");
    std::fs::write(data.join("in"), "from outside\n").expect("file");
    let volume = format!("{}:/volume", data.display());
    let flags = [
        "--rm",
        "--read-only",
        "--tmpfs",
        "/scratch:size=2m",
        "-v",
        &volume,
        "--hostname",
        "named",
        "--cap-drop",
        "all",
    ];
    let script = "cat /volume/in; echo answer >/volume/out; touch /file 2>/dev/null && echo writable; echo x >/scratch/x \
                  && hostname; grep CapEff /proc/self/status";

    let outcome = podman.run(&flags, &["sh", "-c", script]).run();

    outcome.ok().stdout("from outside\nnamed\nCapEff:\t0000000000000000\n");
    assert_eq!(std::fs::read_to_string(data.join("out")).expect("answer"), "answer\n");
}

fn nothing_is_left_after_rm(kind: Kind) {
    let lab = Lab::open();
    let podman = Podman::start(&lab, kind);
    podman.run(&["--rm"], &["true"]).run().ok();
    let before = Snapshot::take(&lab);

    podman.run(&["--rm"], &["false"]).run().exit(1);
    podman.run(&["-d", "--name", "one"], &["sleep", "1000"]).run().ok();
    podman.podman(["exec", "one", "true"]).run().ok();
    podman.podman(["rm", "--force", "--time", "0", "one"]).run().ok();

    before.expect_nothing_more_but(&lab, "podman run, exec and rm", &[&podman.own_mount()]);
}
