//! The OCI command line: a container from `create` to `delete`, and what goes through `run`'s three descriptors.

use std::path::Path;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::{against_both, wait};

against_both!(
    output_and_exit_code_pass_through,
    stdin_passes_through_to_the_last_byte,
    a_foreground_run_answers_while_stdin_is_open,
    a_foreground_run_ends_when_its_container_is_killed,
    a_container_lives_from_create_to_delete,
    signals_go_by_name_and_by_number,
    a_running_container_is_deleted_by_force,
    a_container_that_was_never_started_is_deleted,
    a_container_is_paused_and_resumed,
    containers_and_processes_are_listed,
    a_detached_run_returns_while_the_container_runs,
    a_spec_is_written_once,
    features_and_version_are_told,
    an_error_goes_to_the_log_as_engines_read_it,
);

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

fn runtime(kind: Kind) -> Runtime<'static> {
    Runtime::new(kind, lab())
}

fn name(kind: Kind, what: &str) -> String {
    format!("cli-{kind:?}-{what}").to_lowercase()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn output_and_exit_code_pass_through(kind: Kind) {
    let id = name(kind, "output");
    let bundle = Bundle::script(lab(), &id, "echo to stdout; echo to stderr >&2; exit 7");

    let outcome = runtime(kind).run(&bundle, &id).run();

    outcome.exit(7).stdout("to stdout\n").stderr("to stderr\n");
    runtime(kind).verb("state").arg(&id).run().failed();
}

fn stdin_passes_through_to_the_last_byte(kind: Kind) {
    let id = name(kind, "stdin");
    let bundle = Bundle::script(lab(), &id, "cat; echo stdin has ended >&2");
    let mut bytes = vec![0; 8 << 20];
    let mut random = std::fs::File::open("/dev/urandom").expect("random");
    std::io::Read::read_exact(&mut random, &mut bytes).expect("8 MiB of random bytes");

    let outcome = runtime(kind).run(&bundle, &id).stdin(bytes.clone()).run().ok();

    assert!(
        outcome.stdout == bytes,
        "8 MiB went in, {} other bytes came out",
        outcome.stdout.len()
    );
    outcome.stderr("stdin has ended\n");
}

fn a_foreground_run_answers_while_stdin_is_open(kind: Kind) {
    let id = name(kind, "dialogue");
    let bundle = Bundle::script(lab(), &id, "while read -r line; do echo \"<$line>\"; done; echo bye");

    let mut running = runtime(kind).run(&bundle, &id).start();
    running.write(b"one\n");
    running.read_until("<one>");
    running.write(b"two\n");
    running.read_until("<two>");

    running.finish().ok().stdout("bye\n");
}

fn a_foreground_run_ends_when_its_container_is_killed(kind: Kind) {
    let id = name(kind, "killed");
    let bundle = Bundle::script(lab(), &id, "echo up; sleep 1000");
    let mut running = runtime(kind).run(&bundle, &id).start();
    running.read_until("up");

    runtime(kind).kill(&id, "KILL").ok();

    running.finish().exit(137);
}

fn a_container_lives_from_create_to_delete(kind: Kind) {
    let id = name(kind, "life");
    let runtime = runtime(kind);
    let annotate = |spec: &mut serde_json::Value| spec["annotations"] = serde_json::json!({"org.example.owner": "e2e"});
    let script = "trap 'echo leaving; exit 3' TERM; echo running; while :; do sleep 0.1; done";
    let bundle = Bundle::script(lab(), &id, script).edit(annotate);
    let pid_file = bundle.dir().join("pid");
    let output = bundle.dir().join("stdout");

    let create = runtime
        .verb("create")
        .arg("--bundle")
        .arg(bundle.dir())
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(&id);
    create.run_into(&output, &bundle.dir().join("stderr")).ok();
    let state = runtime.state(&id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], id.as_str());
    assert_eq!(state["bundle"], bundle.dir().to_str().expect("text"));
    assert_eq!(state["annotations"]["org.example.owner"], "e2e");
    assert!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    let pid = state["pid"].as_u64().expect("a pid");
    assert_eq!(read(&pid_file), pid.to_string());
    assert!(
        lab().outside(format!("/proc/{pid}")).exists(),
        "the pid {pid} is of the host"
    );
    assert_eq!(read(&output), "", "nothing ran before start");

    runtime.start(&id).ok();
    wait::until("the container says it runs", Duration::from_secs(15), || {
        read(&output) == "running\n"
    });
    assert_eq!(runtime.status(&id), "running");

    runtime.kill(&id, "TERM").ok();
    runtime.await_status(&id, "stopped");
    wait::until("its last words", Duration::from_secs(15), || {
        read(&output) == "running\nleaving\n"
    });

    runtime.delete(&id).ok();
    runtime.verb("state").arg(&id).run().failed();
    runtime.delete(&id).failed();
}

fn signals_go_by_name_and_by_number(kind: Kind) {
    let id = name(kind, "signals");
    let script = "for s in USR1 USR2 HUP; do trap \"echo $s\" $s; done; trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let bundle = Bundle::script(lab(), &id, script);
    let output = bundle.dir().join("stdout");
    let heard = |what: &str| {
        wait::until(&format!("the container hears {what}"), Duration::from_secs(15), || {
            read(&output).contains(what)
        });
    };
    runtime(kind).begin(&bundle, &id);
    heard("ready");

    for (signal, heard_as) in [("USR1", "USR1"), ("12", "USR2"), ("SIGHUP", "HUP")] {
        runtime(kind).kill(&id, signal).ok();
        heard(heard_as);
    }
    runtime(kind).kill(&id, "15").ok();
    runtime(kind).await_status(&id, "stopped");
    runtime(kind).delete(&id).ok();
}

fn a_running_container_is_deleted_by_force(kind: Kind) {
    let id = name(kind, "force");
    let bundle = Bundle::args(lab(), &id, &["sleep", "1000"]);
    runtime(kind).begin(&bundle, &id);

    runtime(kind).delete(&id).failed();
    runtime(kind).delete_force(&id).ok();

    runtime(kind).verb("state").arg(&id).run().failed();
    runtime(kind).delete_force(&id).ok();
}

fn a_container_that_was_never_started_is_deleted(kind: Kind) {
    let id = name(kind, "unstarted");
    let bundle = Bundle::args(lab(), &id, &["sleep", "1000"]);
    runtime(kind).create(&bundle, &id).ok();
    assert_eq!(runtime(kind).status(&id), "created");

    runtime(kind).delete(&id).ok();

    runtime(kind).verb("state").arg(&id).run().failed();
}

fn a_container_is_paused_and_resumed(kind: Kind) {
    let id = name(kind, "pause");
    let bundle = Bundle::script(lab(), &id, "while :; do echo tick; sleep 0.1; done");
    let output = bundle.dir().join("stdout");
    let ticks = || read(&output).len();
    runtime(kind).begin(&bundle, &id);
    wait::until("it ticks", Duration::from_secs(15), || ticks() > 0);

    runtime(kind).verb("pause").arg(&id).run().ok();
    assert_eq!(runtime(kind).status(&id), "paused");
    // First what was under way when it froze.
    wait::until("it stands still", Duration::from_secs(30), || {
        let before = ticks();
        std::thread::sleep(Duration::from_secs(1));
        ticks() == before
    });
    let frozen = ticks();

    runtime(kind).verb("resume").arg(&id).run().ok();
    assert_eq!(runtime(kind).status(&id), "running");
    wait::until("it ticks again", Duration::from_secs(15), || ticks() > frozen);
    runtime(kind).delete_force(&id).ok();
}

fn containers_and_processes_are_listed(kind: Kind) {
    let id = name(kind, "listed");
    let bundle = Bundle::script(lab(), &id, "sleep 4321 & exec sleep 1234");
    let list = |flags: &[&str]| runtime(kind).verb("list").args(flags).run().ok();
    runtime(kind).begin(&bundle, &id);

    let table = list(&[]).text();
    let row = table
        .lines()
        .find(|line| line.starts_with(&id))
        .unwrap_or_else(|| panic!("no {id} in:\n{table}"));
    assert!(table.starts_with("ID"), "no heading in:\n{table}");
    assert!(
        row.contains("running") && row.contains(bundle.dir().to_str().expect("text")),
        "{row}"
    );
    assert!(
        list(&["--quiet"]).text().lines().any(|line| line == id),
        "not in list -q"
    );
    let listed = list(&["--format", "json"]).json();
    let entry = listed
        .as_array()
        .and_then(|all| all.iter().find(|entry| entry["id"] == id.as_str()));
    let entry = entry.unwrap_or_else(|| panic!("no {id} in {listed}"));
    assert_eq!(entry["status"], "running");
    assert_eq!(entry["bundle"], bundle.dir().to_str().expect("text"));
    assert!(
        entry["created"].as_str().is_some_and(|time| time.contains('T')),
        "{entry}"
    );

    let processes = |format: &str| {
        let ps = runtime(kind).verb("ps").args(["--format", format, &id]).run();
        ps.ok()
    };
    // A child about to start its program is a process, too, for a moment one without arguments.
    wait::until("ps shows both programs", Duration::from_secs(15), || {
        let table = processes("table").text();
        ["PID", "sleep 1234", "sleep 4321"]
            .iter()
            .all(|part| table.contains(part))
    });
    let pids = processes("json").json();
    assert!(pids.as_array().is_some_and(|pids| pids.len() == 2), "{pids}");
    runtime(kind).delete_force(&id).ok();
    assert!(!list(&["-q"]).text().lines().any(|line| line == id), "still listed");
}

fn a_detached_run_returns_while_the_container_runs(kind: Kind) {
    let id = name(kind, "detached");
    let bundle = Bundle::args(lab(), &id, &["sleep", "1000"]);
    let pid_file = bundle.dir().join("pid");

    let run = runtime(kind)
        .verb("run")
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file);
    let run = run.arg("--bundle").arg(bundle.dir()).arg(&id);
    run.run_into(&bundle.dir().join("stdout"), &bundle.dir().join("stderr"))
        .ok();

    assert_eq!(runtime(kind).status(&id), "running");
    let pid: u32 = read(&pid_file).parse().expect("a pid in the pid file");
    let process = lab().outside(format!("/proc/{pid}/stat"));
    assert!(process.exists(), "pid {pid} is of the host");
    runtime(kind).kill(&id, "KILL").ok();
    let ended = || std::fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
    wait::until(
        "the process of the pid file ends with the container",
        Duration::from_secs(15),
        ended,
    );
    runtime(kind).delete_force(&id).ok();
}

fn a_spec_is_written_once(kind: Kind) {
    let dir = lab().scratch().join(name(kind, "spec"));
    std::fs::create_dir_all(&dir).expect("folder");
    let spec = || runtime(kind).program().arg("spec").arg("--bundle").arg(&dir).run();

    spec().ok();

    let written: serde_json::Value = serde_json::from_str(&read(&dir.join("config.json"))).expect("JSON");
    assert_eq!(written["process"]["args"], serde_json::json!(["sh"]));
    assert_eq!(written["root"]["path"], "rootfs");
    spec().failed().complains("config.json");
}

fn features_and_version_are_told(kind: Kind) {
    let features = runtime(kind).program().arg("features").run().ok().json();
    assert!(
        features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(),
        "{features}"
    );
    let namespaces = features["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    assert!(namespaces.contains(&"pid".into()), "{features}");

    let word = if kind == Kind::Kata { "kata-runtime" } else { "runc" };
    runtime(kind).program().arg("--version").run().ok().says(word);
    runtime(kind)
        .program()
        .arg("--help")
        .run()
        .ok()
        .says("create")
        .says("delete");
}

fn an_error_goes_to_the_log_as_engines_read_it(kind: Kind) {
    let log = lab().scratch().join(name(kind, "log.json"));

    let program = runtime(kind)
        .program()
        .args(["--log"])
        .arg(&log)
        .args(["--log-format", "json"]);
    program.args(["start", "no-such-container"]).run().failed();

    let text = read(&log);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON lines");
    assert_eq!(last["level"], "error");
    assert!(
        last["msg"]
            .as_str()
            .is_some_and(|message| message.contains("does not exist")),
        "{last}"
    );
    assert!(last["time"].as_str().is_some_and(|time| time.contains('T')), "{last}");
}
