//! Bad input, one row each: what is done, what the message must name, and the exit code. Afterwards the lab must hold
//! nothing more than before, without anybody having cleaned up. What has a meaning without a VM is asked of runc as well.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use kata_e2e::bundle::Bundle;
use kata_e2e::command::{Cmd, Outcome};
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::runtime::{Kind, Runtime};
use serde_json::{Value, json};

/// One piece of bad input.
struct Row {
    what: &'static str,
    /// Fails; must not leave anything.
    act: fn(&Runtime, &str) -> Outcome,
    code: i32,
    /// The message holds one of these.
    names: &'static [&'static str],
}

const fn row(what: &'static str, names: &'static [&'static str], act: fn(&Runtime, &str) -> Outcome) -> Row {
    Row {
        what,
        act,
        code: 1,
        names,
    }
}

/// What every runtime must refuse.
const FOR_ALL: &[Row] = &[
    row(
        "no bundle directory",
        &["no such file or directory", "does not exist"],
        |runtime, id| runtime.verb("create").args(["--bundle", "/no/such/bundle", id]).run(),
    ),
    row("no config.json", &["config.json"], |runtime, id| {
        let bundle = plain(runtime, id);
        std::fs::remove_file(bundle.dir().join("config.json")).expect("config.json");
        runtime.create(&bundle, id)
    }),
    row("broken JSON", &["invalid character", "config.json"], |runtime, id| {
        let bundle = plain(runtime, id);
        std::fs::write(bundle.dir().join("config.json"), "{\"ociVersion\": \"1.0.2\",\n oops").expect("config.json");
        runtime.create(&bundle, id)
    }),
    row("no process", &["process"], |runtime, id| {
        with(runtime, id, |spec| spec["process"] = Value::Null)
    }),
    row("no arguments", &["args"], |runtime, id| {
        with(runtime, id, |spec| spec["process"]["args"] = json!([]))
    }),
    row("a relative directory", &["cwd", "Cwd"], |runtime, id| {
        with(runtime, id, |spec| spec["process"]["cwd"] = "tmp".into())
    }),
    row(
        "an unknown namespace",
        &["namespace", "unknown variant `nonsense`"],
        |runtime, id| {
            with(runtime, id, |spec| {
                spec["linux"]["namespaces"] = json!([{"type": "nonsense"}])
            })
        },
    ),
    row("no root file system", &["rootfs", "no such file"], |runtime, id| {
        with(runtime, id, |spec| spec["root"]["path"] = "no-such-rootfs".into())
    }),
    row(
        "a missing executable",
        &["executable file not found in $PATH"],
        |runtime, id| with(runtime, id, |spec| spec["process"]["args"] = json!(["no-such-program"])),
    ),
    row(
        "a missing executable by path",
        &["no such file or directory"],
        |runtime, id| {
            with(runtime, id, |spec| {
                spec["process"]["args"] = json!(["/no/such/program"])
            })
        },
    ),
    row(
        "an executable that may not be executed",
        &["permission denied"],
        |runtime, id| with(runtime, id, |spec| spec["process"]["args"] = json!(["/etc/passwd"])),
    ),
    row(
        "a bind mount of nothing",
        &["no such file or directory"],
        |runtime, id| {
            let bundle = plain(runtime, id).mount("/data", "bind", "/no/such/source", &["bind"]);
            runtime.create(&bundle, id)
        },
    ),
    row(
        "an unknown user limit",
        &["RLIMIT_NONSENSE", "rlimit"],
        |runtime, id| {
            let limits = json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]);
            with(runtime, id, |spec| spec["process"]["rlimits"] = limits)
        },
    ),
    row("an id that is a path", &["id"], |runtime, id| {
        runtime.create(&plain(runtime, id), "../outside")
    }),
    row("an empty id", &["id"], |runtime, id| {
        runtime.create(&plain(runtime, id), "")
    }),
    row("state of an unknown id", UNKNOWN, |runtime, id| {
        runtime.verb("state").arg(id).run()
    }),
    row("start of an unknown id", UNKNOWN, |runtime, id| runtime.start(id)),
    row("kill of an unknown id", UNKNOWN, |runtime, id| runtime.kill(id, "TERM")),
    row("delete of an unknown id", UNKNOWN, |runtime, id| runtime.delete(id)),
    row("pause of an unknown id", UNKNOWN, |runtime, id| {
        runtime.verb("pause").arg(id).run()
    }),
    row("resume of an unknown id", UNKNOWN, |runtime, id| {
        runtime.verb("resume").arg(id).run()
    }),
    row("processes of an unknown id", UNKNOWN, |runtime, id| {
        runtime.verb("ps").arg(id).run()
    }),
    Row {
        what: "exec in an unknown id",
        act: |runtime, id| runtime.exec(id, "true").run(),
        code: 255,
        names: UNKNOWN,
    },
    Row {
        what: "an unknown verb",
        act: |runtime, _| runtime.program().arg("nonsense").run(),
        code: ANY_FAILURE,
        names: &["nonsense"],
    },
    row("an unknown flag", &["nonsense"], |runtime, id| {
        runtime.verb("create").args(["--nonsense", id]).run()
    }),
    row("no id at all", &["argument", "required", "id"], |runtime, _| {
        runtime.verb("state").run()
    }),
    row(
        "kill after exit, a second create, start again, exec in a stopped container",
        STOPPED,
        |runtime, id| {
            let bundle = plain(runtime, id);
            runtime.begin(&bundle, id);
            runtime.start(id).failed();
            runtime.create(&bundle, id).exit(1);
            let refusal = std::fs::read_to_string(bundle.dir().join("stderr")).expect("stderr");
            assert!(refusal.contains("exists"), "{refusal}");
            runtime.kill(id, "NONSENSE").exit(1).complains("NONSENSE");
            runtime.kill(id, "KILL").ok();
            runtime.await_status(id, "stopped");
            runtime.exec(id, "true").run().exit(255).complains("stopped");
            let outcome = runtime.kill(id, "TERM");
            runtime.delete(id).ok();
            outcome
        },
    ),
    Row {
        what: "a broken process file",
        act: |runtime, id| {
            runtime.begin(&plain(runtime, id), id);
            let file = runtime.lab().scratch().join("process.json");
            std::fs::write(&file, "{").expect("process file");
            let outcome = runtime.verb("exec").arg("--process").arg(&file).arg(id).run();
            runtime.delete_force(id).ok();
            outcome
        },
        code: 255,
        names: &["unexpected end", "EOF", "process.json"],
    },
];

/// runc itself answers with a code that nobody relies on.
const ANY_FAILURE: i32 = -1;
const UNKNOWN: &[&str] = &["does not exist"];
const STOPPED: &[&str] = &["not running", "already finished", "stopped"];

/// What only a runtime with VMs can meet.
const FOR_KATA: &[Row] = &[
    row("an unreadable kernel", &["/no/such/kernel"], |runtime, id| {
        with_config(runtime, id, "[hypervisor.qemu]\nkernel = \"/no/such/kernel\"\n")
    }),
    row("a kernel that is none", &["kernel"], |runtime, id| {
        with_config(runtime, id, "[hypervisor.qemu]\nkernel = \"/etc/passwd\"\n")
    }),
    row("no VMM binary", &["/no/such/qemu"], |runtime, id| {
        with_config(runtime, id, "[hypervisor.qemu]\npath = \"/no/such/qemu\"\n")
    }),
    row("a VMM that dies at once", &["dead on arrival"], |runtime, id| {
        let vmm = script(runtime, id, "echo dead on arrival >&2; exit 3");
        with_config(runtime, id, &format!("[hypervisor.qemu]\npath = {vmm:?}\n"))
    }),
    row(
        "a VMM that says nothing",
        &["qmp", "did not answer", "timed out", "time"],
        |runtime, id| {
            let vmm = script(runtime, id, "exec sleep 1000");
            with_config(runtime, id, &format!("[hypervisor.qemu]\npath = {vmm:?}\n"))
        },
    ),
    row("more memory than may be had", &["memory"], |runtime, id| {
        let bundle = plain(runtime, id);
        let file = bundle.dir().join("kata.toml");
        std::fs::write(&file, "[hypervisor.qemu]\ndefault_memory = 4096\n").expect("configuration");
        let limited = runtime
            .lab()
            .command("sh")
            .args(["-c", r#"ulimit -v 3000000; exec "$0" "$@""#]);
        let create = limited
            .arg(runtime.kind().program())
            .args(["--root", "/run/e2e-oci", "--kata-config"]);
        create
            .arg(file)
            .args(["create", "--bundle"])
            .arg(bundle.dir())
            .arg(id)
            .run()
    }),
    row("a guest that never answers", &["guest", "agent"], |runtime, id| {
        let never = "[hypervisor.qemu]\nkernel_params = \"rdinit=/no-such-init init=/no-such-init panic=0\"\n";
        with_config(runtime, id, &format!("{never}[agent.kata]\ndial_timeout = 6\n"))
    }),
    row(
        "a wrong value in the configuration",
        &["default_vcpus"],
        |runtime, id| {
            let outcome = with_config(runtime, id, "[hypervisor.qemu]\n\ndefault_vcpus = \"many\"\n");
            assert!(
                outcome.errors().contains("kata.toml:3"),
                "file and line are told: {outcome}"
            );
            outcome
        },
    ),
    row(
        "a configuration that is not there",
        &["/no/such/kata.toml"],
        |runtime, id| {
            let create = runtime
                .program()
                .args(["--root", "/run/e2e-oci", "--kata-config", "/no/such/kata.toml"]);
            create
                .args(["create", "--bundle"])
                .arg(plain(runtime, id).dir())
                .arg(id)
                .run()
        },
    ),
];

/// A container that sleeps.
fn plain(runtime: &Runtime, id: &str) -> Bundle {
    Bundle::args(runtime.lab(), id, &["sleep", "1000"])
}

fn with(runtime: &Runtime, id: &str, change: impl FnOnce(&mut Value)) -> Outcome {
    runtime.create(&plain(runtime, id).edit(change), id)
}

fn with_config(runtime: &Runtime, id: &str, config: &str) -> Outcome {
    let bundle = plain(runtime, id);
    let file = bundle.dir().join("kata.toml");
    std::fs::write(&file, config).expect("configuration");
    let create: Cmd = runtime
        .program()
        .args(["--root", "/run/e2e-oci", "--kata-config"])
        .arg(&file);
    create.args(["create", "--bundle"]).arg(bundle.dir()).arg(id).run()
}

fn script(runtime: &Runtime, id: &str, body: &str) -> PathBuf {
    let path = runtime.lab().scratch().join(format!("{id}-vmm"));
    // By a process of its own: a child that another thread is just starting would have this one's descriptor until its exec,
    // and what is open for writing cannot be run.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#;
    Cmd::new("sh").args(["-c", write]).arg(&path).arg(body).run().ok();
    path
}

/// Takes rows off the table until there is none; answers what went wrong.
fn work(kind: Kind, rows: &[&Row], next: &AtomicUsize) -> Vec<String> {
    let lab = Lab::open();
    let runtime = Runtime::new(kind, &lab);
    // A first good run makes what is made once and stays, such as the state directory.
    let first = Bundle::args(&lab, "first", &["true"]);
    runtime.run(&first, "first").run().ok();
    let mut wrong = Vec::new();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(row) = rows.get(index) else { return wrong };
        let id = format!("bad-{kind:?}-{index}").to_lowercase();
        let check = || {
            let before = Snapshot::take(&lab);
            let outcome = (row.act)(&runtime, &id).failed();
            let outcome = if row.code == ANY_FAILURE {
                outcome
            } else {
                outcome.exit(row.code)
            };
            let text = (outcome.errors() + &outcome.text()).to_lowercase();
            let named = row.names.iter().any(|name| text.contains(&name.to_lowercase()));
            assert!(named, "the message should hold one of {:?}: {outcome}", row.names);
            before.expect_nothing_more(&lab, row.what);
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
            wrong.push(row.what.to_owned());
        }
    }
}

fn check(kind: Kind, rows: &[&Row]) {
    let next = AtomicUsize::new(0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(|| work(kind, rows, &next)));
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a worker"))
            .collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {} rows went wrong: {wrong:#?}",
        wrong.len(),
        rows.len()
    );
}

#[test]
fn runc_refuses_bad_input_and_leaves_nothing() {
    check(Kind::Runc, &FOR_ALL.iter().collect::<Vec<_>>());
}

#[test]
fn kata_refuses_bad_input_and_leaves_nothing() {
    check(Kind::Kata, &FOR_ALL.iter().chain(FOR_KATA).collect::<Vec<_>>());
}
