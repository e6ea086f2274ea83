//! The shim's own command line, as the generations of containerd call it. No machine is booted.

use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::{Cmd, Outcome};
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::{places, wait};

/// The shim in a bundle, which is its working directory.
fn shim(lab: &Lab, bundle: &Bundle, id: &str, flags: &[&str]) -> Cmd {
    let script = r#"cd "$1" && shift && exec "$@""#;
    lab.command("sh")
        .args(["-c", script, "sh"])
        .arg(bundle.dir())
        .arg(places::ours("containerd-shim-kata-v2"))
        .args([
            "-namespace",
            "ns",
            "-address",
            "/run/c.sock",
            "-publish-binary",
            "/bin/true",
            "-id",
            id,
        ])
        .args(flags)
}

/// A protobuf message of texts, by their numbers.
fn message(texts: &[(u8, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, text) in texts {
        bytes.extend([number << 3 | 2, u8::try_from(text.len()).expect("short")]);
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn delete(lab: &Lab, bundle: &Bundle, id: &str) -> Outcome {
    let dir = bundle.dir().display().to_string();
    shim(lab, bundle, id, &["-bundle", &dir, "delete"]).run().ok()
}

#[test]
fn every_generation_of_containerd_gets_its_answer() {
    let lab = &Lab::open();
    // What the first run of anything leaves for good.
    let bundle = Bundle::args(lab, "first", &["true"]);
    shim(lab, &bundle, "first", &["start"]).run().ok();
    delete(lab, &bundle, "first");
    let before = Snapshot::take(lab);
    let params = message(&[(1, "start"), (2, "ns"), (4, "2.3.0"), (5, "/run/c.sock.ttrpc")]);
    let options = message(&[(1, "runtimeoptions.v1.Options")]);
    let bundle = Bundle::args(lab, "start", &["true"]);
    for (stdin, max_version) in [(vec![], "2"), (options, "2"), (vec![], "3"), (params, "2")] {
        let modern = stdin.windows(5).any(|word| word == b"2.3.0");
        let started = shim(lab, &bundle, "start", &["start"])
            .stdin(stdin)
            .env("MAX_SHIM_VERSION", max_version);
        let answer = started.run().ok().stdout;
        let address = std::fs::read_to_string(bundle.dir().join("address")).expect("the file address");
        assert!(address.starts_with("unix:///run/kata/"), "{address}");
        let expected = match (modern, max_version) {
            // version (1, a number), address (2), protocol (3).
            (true, _) => [vec![1 << 3, 3], message(&[(2, &address), (3, "ttrpc")])].concat(),
            (false, "2") => address.clone().into_bytes(),
            (false, _) => {
                let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
                let json = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"});
                assert_eq!(answer, json);
                answer.to_string().into_bytes()
            }
        };
        assert_eq!(String::from_utf8_lossy(&answer), String::from_utf8_lossy(&expected));
        let socket = lab.outside(address.trim_start_matches("unix://"));
        assert!(socket.exists(), "{}", socket.display());
        delete(lab, &bundle, "start");
        wait::until("the socket goes", Duration::from_secs(30), || !socket.exists());
    }

    before.expect_nothing_more(lab, "start and delete");
}

#[test]
fn what_cannot_be_started_is_said_and_leaves_nothing() {
    let lab = &Lab::open();
    let bundle = Bundle::args(lab, "bad", &["true"]);
    let before = Snapshot::take(lab);
    let nonsense = shim(lab, &bundle, "bad", &["start"]).stdin(vec![0xff; 20]).run();
    nonsense.failed().complains("neither bootstrap parameters");
    let member = bundle.edit(|spec| {
        spec["annotations"] = serde_json::json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "no-such-pod",
        });
    });
    let orphan = shim(lab, &member, "bad", &["start"]).run();
    orphan.failed().complains("no-such-pod");
    before.expect_nothing_more(lab, "starts that fail");
}

#[test]
fn the_runtime_says_what_it_can() {
    let lab = &Lab::open();
    let program = places::ours("containerd-shim-kata-v2");
    let info = lab.command(&program).arg("-info").run().ok();
    let said = String::from_utf8_lossy(&info.stdout).into_owned();
    for word in [
        "io.containerd.kata.v2",
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features",
        "\"ociVersionMax\"",
    ] {
        assert!(said.contains(word), "{said}");
    }
    lab.command(&program)
        .arg("--version")
        .run()
        .ok()
        .says("containerd-shim-kata-v2");
    lab.command(&program).arg("-v").run().ok();
}
