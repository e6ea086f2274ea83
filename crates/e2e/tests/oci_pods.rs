//! Several containers in one pod, put there on the command line as CRI-O and Podman do: the first container is the pod's
//! sandbox, the others say in annotations to whom they belong, and join its namespaces by its pid.

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::runtime::{Kind, Runtime};
use serde_json::{Value, json};

against_both!(members_share_what_a_pod_shares, a_member_may_come_and_go);

/// The parent of the containers' cgroups, and the runtime's `--root`.
const OF_THE_HARNESS: &[&str] = &["/e2e", "/run/e2e-oci"];

/// The pod's first container, which only waits.
fn sandbox(lab: &Lab, name: &str) -> Bundle {
    Bundle::script(lab, name, "trap exit TERM; sleep 1000 & wait").edit(|spec| {
        spec["hostname"] = json!("the-pod");
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.SandboxID": name,
        });
    })
}

/// A member that shares `kinds` of namespaces with the pod beside the network.
fn member(runtime: &Runtime, name: &str, pod: &str, kinds: &[&str], script: &str) -> Bundle {
    let pid = runtime.state(pod)["pid"].clone();
    let joined = |kind: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{}", file_of(kind))});
    let mut namespaces: Vec<Value> = kinds.iter().chain(&["network"]).map(|kind| joined(kind)).collect();
    namespaces.push(json!({"type": "mount"}));
    if !kinds.contains(&"pid") {
        namespaces.push(json!({"type": "pid"}));
    }
    Bundle::script(runtime.lab(), name, script).edit(|spec| {
        spec["linux"]["namespaces"] = json!(namespaces);
        spec["hostname"] = Value::Null;
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": pod,
        });
    })
}

fn file_of(kind: &str) -> &str {
    if kind == "network" { "net" } else { kind }
}

fn members_share_what_a_pod_shares(kind: Kind) {
    let lab = Lab::open();
    let runtime = Runtime::new(kind, &lab);
    // The directory in which sandboxes have theirs stays.
    lab.command("mkdir").args(["-p", "/run/kata"]).run().ok();
    let before = Snapshot::take(&lab);
    runtime.begin(&sandbox(&lab, "pod"), "pod");

    let server = "echo served >/index.html; httpd -f -p 127.0.0.1:8080 -h / & ipcmk -Q >/dev/null 2>&1; sleep 1000";
    let web = member(&runtime, "web", "pod", &["ipc", "uts"], server);
    runtime.begin(&web, "web");
    let side = member(&runtime, "side", "pod", &["ipc", "uts", "pid"], "sleep 1001");
    runtime.begin(&side, "side");

    let fetched = runtime
        .exec(
            "side",
            "until wget -qO- http://127.0.0.1:8080/index.html; do sleep 0.2; done",
        )
        .run();
    assert_eq!(fetched.ok().text().trim(), "served", "localhost is the pod's");
    for id in ["web", "side"] {
        assert_eq!(runtime.exec(id, "hostname").run().ok().text().trim(), "the-pod", "{id}");
    }
    let seen = runtime.exec("side", "ps -o args").run().ok().text();
    assert!(
        seen.contains("sleep 1000"),
        "one pid namespace with the pod's sandbox: {seen}"
    );
    let seen = runtime.exec("web", "ps -o args").run().ok().text();
    assert!(!seen.contains("sleep 1001"), "a pid namespace of its own: {seen}");
    let of = |id: &str, what: &str| {
        let shown = runtime.exec(id, &format!("readlink /proc/self/ns/{what}")).run();
        shown.ok().text().trim().to_owned()
    };
    for what in ["ipc", "uts", "net"] {
        assert_eq!(of("web", what), of("side", what), "{what}");
    }
    for what in ["pid", "mnt"] {
        assert_ne!(of("web", what), of("side", what), "{what}");
    }

    for id in ["web", "side", "pod"] {
        runtime.delete_force(id).ok();
    }
    before.expect_nothing_more_but(&lab, "the pod is gone", OF_THE_HARNESS);
}

fn a_member_may_come_and_go(kind: Kind) {
    let lab = Lab::open();
    let runtime = Runtime::new(kind, &lab);
    // The directory in which sandboxes have theirs stays.
    lab.command("mkdir").args(["-p", "/run/kata"]).run().ok();
    let before = Snapshot::take(&lab);
    runtime.begin(&sandbox(&lab, "pod"), "pod");

    let first = member(&runtime, "first", "pod", &["ipc", "uts"], "echo once; exit 3");
    let ran = runtime.run(&first, "first").run();
    assert_eq!((ran.code(), ran.text().trim()), (3, "once"));

    let again = runtime.run(&first, "first").run();
    assert_eq!(again.code(), 3, "the same id again: {again:?}");

    let long = member(&runtime, "long", "pod", &["ipc", "uts"], "sleep 1000");
    runtime.begin(&long, "long");
    let taken = runtime.create(&long, "long");
    assert!(taken.code() != 0 && taken.errors().contains("exist"), "{taken:?}");
    assert_eq!(runtime.state("long")["status"], "running");
    let listed = runtime.verb("list").arg("--quiet").run().ok().text();
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["long", "pod"]);

    let missing = member(&runtime, "missing", "pod", &["ipc"], "true").edit(|spec| {
        spec["process"]["args"] = json!(["/no/such/program"]);
    });
    let failed = runtime.run(&missing, "missing").run();
    assert!(failed.code() != 0, "{failed:?}");
    let _ = runtime.delete_force("missing");

    runtime.kill("long", "KILL").ok();
    runtime.await_status("long", "stopped");
    runtime.delete("long").ok();
    assert_eq!(runtime.status("pod"), "running", "the others go on");
    runtime.delete_force("pod").ok();
    before.expect_nothing_more_but(&lab, "the pod is gone", OF_THE_HARNESS);
}
