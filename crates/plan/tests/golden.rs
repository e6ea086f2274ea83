//! Specifications as engines write them, and the plans made of them, as files. `UPDATE_GOLDEN=1` writes the plans anew;
//! read the difference before you keep it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

use kata_bundle::Bundle;
use kata_config::Config;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn check(engine: &str) {
    let input = std::fs::read(golden(&format!("{engine}.config.json"))).unwrap();
    let bundle = Bundle::from_json(Path::new("/bundle"), &input).unwrap();
    let facts = support::facts_for(&bundle);
    let config = Config::default();
    let pod = kata_plan::pod("c1", &bundle, &config, &facts).unwrap();
    let container = kata_plan::container("c1", &bundle, &config, &facts).unwrap();
    let mut plan = json!({"pod": pod, "container": container});
    // How many there are is the library's business.
    let instructions = &mut plan["container"]["guest"]["seccomp_instructions"];
    *instructions = Value::from(if instructions.as_u64() > Some(0) {
        "some"
    } else {
        "none"
    });

    let path = golden(&format!("{engine}.plan.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&plan).unwrap() + "\n").unwrap();
    }
    let wanted: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(
        plan == wanted,
        "{engine} is now {}",
        serde_json::to_string_pretty(&plan).unwrap()
    );
}

#[test]
fn the_specification_of_podman_becomes_the_plan_on_file() {
    check("podman");
}

#[test]
fn the_specification_of_containerd_becomes_the_plan_on_file() {
    check("ctr");
}

#[test]
fn the_specification_of_runc_becomes_the_plan_on_file() {
    check("runc");
}

#[test]
fn the_same_bundle_gives_the_same_bytes_every_time() {
    let input = std::fs::read(golden("podman.config.json")).unwrap();
    let plan = || {
        let bundle = Bundle::from_json(Path::new("/bundle"), &input).unwrap();
        let facts = support::facts_for(&bundle);
        kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap()
    };
    assert_eq!(plan().guest.spec_json, plan().guest.spec_json);
}
