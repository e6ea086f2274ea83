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
use kata_e2e::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    assert_eq!(
        names,
        [
            "image.erofs",
            "image.erofs.initrd",
            "initrd.img",
            "manifest.json",
            "vmlinux"
        ]
    );
    assert_eq!(hashes(&one), hashes(&two));

    assert_eq!(build(&one).json()["made"], false);
    assert_eq!(hashes(&one), hashes(&two));
}

/// As much of a kernel's source as its builder sees: it takes its configuration as it is, and is an entry for VMMs.
/// `CONFIG_SLOW` makes it a compilation that does not end.
fn kernel_source(at: &Path) {
    let makefile = "allnoconfig:\n\tcp $(KCONFIG_ALLCONFIG) $(O)/.config\n\tsed -i /CONFIG_LOST=/d $(O)/.config\n\
        vmlinux:\n\tif grep CONFIG_SLOW=y $(O)/.config; then tail -f $(O)/.config; fi\n\
        \techo compiled >>$(CURDIR)/count\n\tgcc -nostdlib -static -o $(O)/vmlinux kernel.S\n";
    let kernel = ".section .note.Xen, \"a\", @note\n.long 4, 4, 18\n.asciz \"Xen\"\n.long _start\n.text\n.globl _start\n\
        _start: hlt\n.section .rodata, \"a\"\n.asciz \"Linux version 6.99-kata (kata@kata)\"\n";
    let options = "config GOOD\nconfig LOST\nconfig SLOW\n";
    fs::create_dir(at).expect("source");
    for (name, text) in [("Makefile", makefile), ("kernel.S", kernel), ("Kconfig", options)] {
        fs::write(at.join(name), text).expect(name);
    }
}

fn compile(source: &Path, fragment: &str, out: &Path) -> Cmd {
    let file = out.with_extension("config");
    fs::write(&file, fragment).expect("fragment");
    Cmd::new(places::ours("kata-runtime"))
        .args(["image", "build", "--json", "--kernel-source"])
        .arg(source)
        .arg("--kernel-fragment")
        .arg(&file)
        .arg("--out")
        .arg(out)
}

#[test]
fn a_kernel_is_compiled_once_and_as_its_fragments_say() {
    let at = lab().scratch().join("compiled");
    fs::create_dir(&at).expect("place");
    let (source, archive) = (at.join("linux"), at.join("linux.tar"));
    kernel_source(&source);
    let pack = Cmd::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&at);
    pack.arg("linux").run().ok();

    let built = compile(&archive, "CONFIG_GOOD=y\n", &at.join("one")).run().ok().json();
    assert_eq!(built["manifest"]["kernel"]["release"], "6.99-kata");
    assert_eq!(
        built["manifest"]["kernel"]["source"]["fragments"],
        serde_json::json!(["one.config"])
    );
    assert_eq!(built["manifest"]["modules"], serde_json::json!([]));
    compile(&archive, "CONFIG_GOOD=y\n", &at.join("two")).run().ok();
    let kernel = |out: &str| fs::read(at.join(out).join("current/vmlinux")).expect("kernel");
    assert!(kernel("one") == kernel("two"), "two builds are two kernels");

    // From a directory, which can count how often it is asked.
    let from_directory = |fragment| compile(&source, fragment, &at.join("three")).run();
    assert_eq!(from_directory("CONFIG_GOOD=y\n").ok().json()["made"], true);
    let count = fs::read_to_string(source.join("count")).expect("count");
    fs::remove_file(source.join("count")).expect("the source as it was");
    let again = from_directory("# Only a remark.\nCONFIG_GOOD=y\n").ok();
    assert_eq!(
        (again.json()["made"].clone(), count.as_str()),
        (false.into(), "compiled\n")
    );

    let lost = from_directory("CONFIG_GOOD=y\nCONFIG_LOST=y\nCONFIG_TYPO=y\n").failed();
    lost.complains("three.config:2: CONFIG_LOST is to be y and came out as not set")
        .complains("three.config:3: this kernel has no option CONFIG_TYPO");
    assert_eq!(
        from_directory("CONFIG_GOOD=y\n").ok().json()["made"],
        false,
        "the set in use stayed"
    );
}

#[test]
fn a_compilation_that_is_killed_leaves_nothing_that_runs_or_is_used() {
    let at = lab().scratch().join("killed");
    fs::create_dir(&at).expect("place");
    let (source, out) = (at.join("linux"), at.join("out"));
    kernel_source(&source);
    let unfinished = || {
        let entries = fs::read_dir(out.join("kernels")).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'))
            .count()
    };
    let with = |words: String| {
        let told = Cmd::new("pgrep").args(["-f", "--"]).arg(words).run();
        let pids: Vec<i32> = told.text().lines().filter_map(|line| line.parse().ok()).collect();
        pids
    };
    let at_work = || with(format!("{}/kernels", out.display())).len();

    let build = compile(&source, "CONFIG_SLOW=y\n", &out).start();
    wait::until("the compilation", Duration::from_secs(30), || {
        // What the shell has started that `make` has.
        !with(format!("^tail -f {}/kernels", out.display())).is_empty() && unfinished() == 1
    });
    // It alone, not its group, in which the compiler is, too.
    for pid in with(format!("--out {}", out.display())) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    }
    build.finish();

    wait::until("the end of the compiler", Duration::from_secs(30), || at_work() == 0);
    assert!(!out.join("current").exists());
    compile(&source, "CONFIG_GOOD=y\n", &out).run().ok();
    assert_eq!(unfinished(), 0);
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
    let lab = &Lab::open();
    let bundle = Bundle::args(lab, "planned", &["sleep", "1000"]);
    let plan = || {
        lab.command(places::ours("kata-runtime"))
            .args(["plan", "--bundle"])
            .arg(bundle.dir())
            .run()
    };
    let before = Snapshot::take(lab);

    plan()
        .ok()
        .says("qemu-system-x86_64")
        .says(bundle.rootfs().to_str().expect("text"));

    before.expect_nothing_more(lab, "plan");
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
