//! The operator's verbs: assets that are the same bytes each time, and a host that is described as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::{Cmd, Outcome};
use kata_e2e::fixture::Shared;
use kata_e2e::image::hex;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::places;
use sha2::{Digest, Sha256};

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

/// In the lab there is no network, and assets come from a package: they are built outside.
fn build(out: &Path) -> Outcome {
    let build = Cmd::new(places::ours("kata-runtime"))
        .args(["image", "build", "--json", "--out"])
        .arg(out);
    build.limit(Duration::from_secs(300)).run().ok()
}

/// The bytes of the set in use, as hashes.
fn hashes(out: &Path) -> Vec<(String, String)> {
    let current = out.join("current");
    let entries = fs::read_dir(&current).unwrap_or_else(|error| panic!("{}: {error}", current.display()));
    let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hash = |path: &Path| hex(&Sha256::digest(fs::read(path).expect("an asset")));
    let mut all: Vec<_> = paths.iter().map(|path| (name(path), hash(path))).collect();
    all.sort();
    all
}

#[test]
fn the_same_input_makes_the_same_bytes() {
    let (one, two) = (lab().scratch().join("one"), lab().scratch().join("two"));

    build(&one);
    build(&two);

    let names: Vec<String> = hashes(&one).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["initrd.img", "manifest.json", "vmlinux"]);
    assert_eq!(hashes(&one), hashes(&two));

    let again = build(&one);
    assert!(
        again.took < Duration::from_secs(2),
        "nothing was to be done, yet it took {:?}",
        again.took
    );
    assert_eq!(again.json()["made"], false);
    assert_eq!(hashes(&one), hashes(&two));
}

#[test]
fn check_tells_the_truth() {
    let check = |flags: &[&str]| lab().command(places::ours("kata-runtime")).args(flags).run();

    let good = check(&["check", "--json"]).ok();
    let text = good.json().to_string();
    assert!(text.contains("\"ok\"") && !text.contains("\"missing\""), "{good}");
    assert!(
        text.to_lowercase().contains("kvm") || text.to_lowercase().contains("tcg"),
        "which accelerator: {good}"
    );

    let config = lab().scratch().join("no-vmm.toml");
    fs::write(&config, "[hypervisor.qemu]\npath = \"/no/such/qemu\"\n").expect("configuration");
    let flags = ["--kata-config", config.to_str().expect("text"), "check"];
    let bad = check(&[&flags[..], &["--json"]].concat()).failed();
    assert!(bad.json().to_string().contains("\"missing\""), "{bad}");
    check(&flags).failed().says("/no/such/qemu").says("missing");
}

#[test]
fn env_describes_what_runs() {
    let env = |flags: &[&str]| {
        lab()
            .command(places::ours("kata-runtime"))
            .arg("env")
            .args(flags)
            .run()
            .ok()
    };

    let json = env(&["--json"]).json();
    for path in [
        "/Meta/Version",
        "/Runtime/Version/Version/Semver",
        "/Hypervisor/Path",
        "/Hypervisor/SharedFS",
    ] {
        assert!(
            json.pointer(path)
                .is_some_and(|value| value.as_str().is_some_and(|t| !t.is_empty())),
            "{path}: {json}"
        );
    }
    let release = Cmd::new("uname").arg("-r").run().ok().text();
    assert_eq!(
        json.pointer("/Host/Kernel").and_then(|value| value.as_str()),
        Some(release.trim())
    );
    env(&[]).says("[Meta]").says("[Hypervisor]");
}

#[test]
fn a_plan_starts_nothing() {
    let bundle = Bundle::args(lab(), "planned", &["sleep", "1000"]);
    let plan = || {
        lab()
            .command(places::ours("kata-runtime"))
            .args(["plan", "--bundle"])
            .arg(bundle.dir())
            .run()
    };
    let before = Snapshot::take(lab());

    plan()
        .ok()
        .says("qemu-system-x86_64")
        .says(bundle.rootfs().to_str().expect("text"));

    before.expect_nothing_more(lab(), "plan");
}

#[test]
fn configuration_paths_are_listed() {
    let listed = lab()
        .command(places::ours("kata-runtime"))
        .arg("--kata-show-default-config-paths")
        .run()
        .ok();
    let text = listed.text();
    let paths: Vec<&str> = text.lines().collect();
    assert_eq!(paths.first(), Some(&"/etc/kata-containers/configuration.toml"));
    assert!(
        paths.contains(&"/usr/share/defaults/kata-containers/configuration.toml"),
        "{paths:?}"
    );
}
