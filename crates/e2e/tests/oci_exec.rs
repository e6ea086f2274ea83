//! `exec`: more processes in one running container, which all tests of this file share.

use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::terminal::{ConsoleSocket, Terminal};
use kata_e2e::{against_both, wait};
use serde_json::json;

against_both!(
    output_and_exit_code_pass_through,
    stdin_passes_through_to_the_last_byte,
    environment_directory_and_user_are_set,
    capabilities_and_no_new_privs_are_set,
    a_process_file_says_it_all,
    a_detached_process_lives_on,
    a_detached_process_can_be_waited_for_by_its_pid,
    a_killed_process_ends_with_its_signal,
    two_processes_run_at_once,
    a_missing_program_is_told,
    an_interactive_process_has_a_terminal,
    a_console_socket_gets_the_terminal_of_a_process,
);

const ID: &str = "exec-target";

fn runtime(kind: Kind) -> Runtime<'static> {
    static RUNC: Shared<Lab> = Shared::new();
    static KATA: Shared<Lab> = Shared::new();
    let cell = if kind == Kind::Kata { &KATA } else { &RUNC };
    let lab = cell.get(|| {
        let lab = Lab::open();
        let bundle = Bundle::args(&lab, ID, &["sleep", "100000"]);
        Runtime::new(kind, &lab).begin(&bundle, ID);
        lab
    });
    Runtime::new(kind, lab)
}

/// `exec FLAGS ID sh -c SCRIPT`.
fn exec(kind: Kind, flags: &[&str], script: &str) -> Cmd {
    runtime(kind).verb("exec").args(flags).args([ID, "sh", "-c", script])
}

/// Runs something that returns while its process lives on, whose output goes nowhere.
fn detached(kind: Kind, command: &Cmd, name: &str) -> kata_e2e::command::Outcome {
    let file = |suffix: &str| runtime(kind).lab().scratch().join(format!("{name}.{suffix}"));
    command.run_into(&file("out"), &file("err"))
}

fn output_and_exit_code_pass_through(kind: Kind) {
    let script = "echo to stdout; echo to stderr >&2; exit 42";
    exec(kind, &[], script)
        .run()
        .exit(42)
        .stdout("to stdout\n")
        .stderr("to stderr\n");
    exec(kind, &[], "true").run().ok().stdout("").stderr("");
}

fn stdin_passes_through_to_the_last_byte(kind: Kind) {
    let bytes: Vec<u8> = (0..2u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let outcome = exec(kind, &[], "cat; echo end >&2").stdin(bytes.clone()).run().ok();
    assert!(
        outcome.stdout == bytes,
        "2 MiB went in, {} other bytes came out",
        outcome.stdout.len()
    );
    outcome.stderr("end\n");
}

fn environment_directory_and_user_are_set(kind: Kind) {
    let flags = [
        "--env",
        "ONE=1",
        "--env",
        "TWO=a b",
        "--cwd",
        "/home/worker",
        "--user",
        "1000:2000",
    ];
    let script = r#"echo "$ONE|$TWO|$PATH"; pwd; id -u; id -g"#;
    exec(kind, &flags, script)
        .run()
        .ok()
        .stdout("1|a b|/bin\n/home/worker\n1000\n2000\n");
}

fn capabilities_and_no_new_privs_are_set(kind: Kind) {
    let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    exec(kind, &["--cap", "CAP_SYS_CHROOT", "--no-new-privs"], script)
        .run()
        .ok()
        .says("NoNewPrivs:\t1")
        .says("CapEff:\t0000000020040420");
}

fn a_process_file_says_it_all(kind: Kind) {
    let file = runtime(kind).lab().scratch().join("process.json");
    let process = json!({
        "args": ["sh", "-c", "id -u; id -G; pwd; echo $FROM; ulimit -Hn; exit 9"],
        "cwd": "/tmp", "env": ["PATH=/bin", "FROM=file"],
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [2000]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
    });
    std::fs::write(&file, process.to_string()).expect("process file");
    let outcome = runtime(kind).verb("exec").arg("--process").arg(&file).arg(ID).run();
    outcome.exit(9).stdout("1000\n1000 2000\n/tmp\nfile\n88\n");
}

fn a_detached_process_lives_on(kind: Kind) {
    let pid_file = runtime(kind).lab().scratch().join("exec.pid");
    let flags = ["--detach", "--pid-file", pid_file.to_str().expect("text")];

    detached(
        kind,
        &exec(kind, &flags, "echo $$ >/tmp/detached; exec sleep 4000"),
        "detached",
    )
    .ok();

    let pid: u32 = std::fs::read_to_string(&pid_file)
        .expect("the pid file")
        .parse()
        .expect("a pid");
    let stat = runtime(kind).lab().outside(format!("/proc/{pid}/stat"));
    assert!(stat.exists(), "pid {pid} is of the host");
    let kill = "until [ -s /tmp/detached ]; do sleep 0.1; done; kill -9 $(cat /tmp/detached)";
    exec(kind, &[], kill).run().ok();
    let ended = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    wait::until("the pid ends with the process", Duration::from_secs(15), ended);
}

/// Engines wait for the pid of the pid file as their child: it must not linger in anybody else's hands.
fn a_detached_process_can_be_waited_for_by_its_pid(kind: Kind) {
    let lab = runtime(kind).lab();
    let pid_file = lab.scratch().join("waited.pid");
    let flags = ["--detach", "--pid-file", pid_file.to_str().expect("text")];
    detached(kind, &exec(kind, &flags, "exit 5"), "waited").ok();
    let pid: u32 = std::fs::read_to_string(&pid_file)
        .expect("the pid file")
        .parse()
        .expect("a pid");
    let gone = || !lab.outside(format!("/proc/{pid}")).exists();
    wait::until(
        "the process of the pid file is reaped by who inherits it",
        Duration::from_secs(15),
        gone,
    );
}

fn a_killed_process_ends_with_its_signal(kind: Kind) {
    exec(kind, &[], "kill -9 $$").run().exit(137);
    exec(kind, &[], "kill -TERM $$").run().exit(143);
}

fn two_processes_run_at_once(kind: Kind) {
    let mut first = exec(kind, &[], "echo first; read -r line; echo \"$line\"").start();
    first.read_until("first");
    exec(kind, &[], "echo second").run().ok().stdout("second\n");
    first.write(b"still here\n");
    first.finish().ok().stdout("still here\n");
}

fn a_missing_program_is_told(kind: Kind) {
    let missing = |program: &str| runtime(kind).verb("exec").args([ID, program]).run().failed();
    missing("no-such-program").complains("executable file not found in $PATH");
    missing("/no/such/program").complains("no such file or directory");
    missing("/etc/passwd").complains("permission denied");
    exec(kind, &[], "echo the container still answers").run().ok();
}

fn an_interactive_process_has_a_terminal(kind: Kind) {
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(33, 99);
    let running = runtime(kind).verb("exec").args(["--tty", ID, "sh"]).start_on(&end);
    drop(end);

    terminal.expect_size(33, 99);
    terminal.type_in("tty\n");
    terminal.expect("/dev/pts/");
    terminal.resize(44, 111);
    terminal.expect_size(44, 111);
    terminal.interrupt_a_program();
    terminal.type_in("exit 6\n");

    running.finish().exit(6);
}

fn a_console_socket_gets_the_terminal_of_a_process(kind: Kind) {
    let socket = ConsoleSocket::listen(runtime(kind).lab(), "exec-console");
    let path = socket.path().to_str().expect("text");
    let flags = ["--tty", "--detach", "--console-socket", path];

    let started = detached(
        kind,
        &exec(kind, &flags, "echo on; read -r line; echo \"<$line>\"; sleep 1"),
        "console",
    );
    started.ok();

    let mut terminal = socket.receive();
    terminal.expect("on");
    terminal.type_in("word\n");
    terminal.expect("<word>");
}
