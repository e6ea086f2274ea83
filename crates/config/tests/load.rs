//! Configuration files and what is made of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_config::{Config, ConfigError, CpuCount, RootAsset, RootfsType, SharedFs, VirtioFsCache, Warning};
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../configuration.toml");

fn load(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    let (dir, file) = written(text);
    let loaded = Config::load(Some(&file), None, &[]);
    drop(dir);
    loaded
}

fn written(text: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("configuration.toml");
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

/// Without the names of the files it came from.
fn values((config, _): (Config, Vec<Warning>)) -> Config {
    Config {
        files: Vec::new(),
        ..config
    }
}

/// Line and words of each warning.
fn told(warnings: &[Warning]) -> Vec<String> {
    let text = |warning: &Warning| {
        let text = warning.to_string();
        text.split_once("configuration.toml:").unwrap().1.to_owned()
    };
    warnings.iter().map(text).collect()
}

#[test]
fn the_example_says_what_is_default_anyway() {
    let loaded = load(EXAMPLE).unwrap();
    assert_eq!(told(&loaded.1), [""; 0]);
    assert_eq!(values(loaded), Config::default());
}

#[test]
fn the_example_knows_every_key_and_its_comments_are_values() {
    let spelled_out: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|letter: char| letter.is_ascii_lowercase()) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let (config, warnings) = load(&spelled_out).unwrap();
    assert_eq!(told(&warnings), [""; 0]);
    let shown = config.to_toml();
    assert!(
        !shown.contains("decided from the host"),
        "the example lacks a key:\n{shown}"
    );
}

#[test]
fn no_file_is_needed() {
    let nowhere = [
        PathBuf::from("/nonexistent/a.toml"),
        PathBuf::from("/nonexistent/b.toml"),
    ];
    let (config, warnings) = Config::load(None, None, &nowhere).unwrap();
    assert_eq!(config, Config::default());
    assert!(warnings.is_empty() && config.base_file().is_none());
}

#[test]
fn the_first_file_counts_in_the_order_of_the_ways_to_name_it() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, vcpus: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("[hypervisor.qemu]\ndefault_vcpus = {vcpus}\n")).unwrap();
        path
    };
    let (explicit, env, found) = (file("explicit", 1), file("env", 2), file("found", 3));
    let search = [dir.path().join("missing"), found.clone(), env.clone()];
    for (explicit, env, wanted) in [
        (Some(explicit.as_path()), Some(env.as_path()), 1),
        (None, Some(env.as_path()), 2),
        (None, None, 3),
    ] {
        let (config, _) = Config::load(explicit, env, &search).unwrap();
        assert_eq!(config.qemu.default_vcpus, CpuCount::Exactly(wanted));
    }
    assert_eq!(
        Config::load(None, None, &search).unwrap().0.base_file(),
        Some(found.as_path())
    );
}

#[test]
fn a_named_file_must_be_there() {
    let missing = Path::new("/nonexistent/k.toml");
    for (explicit, env, by) in [
        (Some(missing), None, "(asked for by --kata-config)"),
        (None, Some(missing), "(asked for by KATA_CONF_FILE)"),
    ] {
        let error = Config::load(explicit, env, &[]).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read the configuration /nonexistent/k.toml {by}"));
    }
    assert!(Config::load(Some(Path::new("/dev/null")), None, &[]).is_err());
}

#[test]
fn drop_ins_are_laid_over_the_base_in_the_order_of_their_names() {
    let (dir, file) = written("[hypervisor.qemu]\ndefault_vcpus = 1\ndefault_memory = 100\nmsize_9p = 8192\n");
    let drop_ins = dir.path().join("config.d");
    std::fs::create_dir(&drop_ins).unwrap();
    for (name, text) in [
        ("20-later.toml", "[hypervisor.qemu]\ndefault_vcpus = 20\n"),
        (
            "10-first.toml",
            "[hypervisor.qemu]\ndefault_vcpus = 10\ndefault_memory = 200\n",
        ),
        ("99-ignored.conf", "not toml at all"),
    ] {
        std::fs::write(drop_ins.join(name), text).unwrap();
    }
    let (config, _) = Config::load(Some(&file), None, &[]).unwrap();
    assert_eq!(config.qemu.default_vcpus, CpuCount::Exactly(20));
    assert_eq!(config.qemu.default_memory, Some(200));
    assert_eq!(config.qemu.msize_9p, 8192);
    assert_eq!(
        config.files,
        [file, drop_ins.join("10-first.toml"), drop_ins.join("20-later.toml")]
    );

    std::fs::write(drop_ins.join("30-wrong.toml"), "\n[runtime]\nenable_debug = 1\n").unwrap();
    let error = Config::load(config.base_file(), None, &[]).unwrap_err().to_string();
    assert!(
        error.contains("config.d/30-wrong.toml:3: runtime.enable_debug is 1; it must be true or false"),
        "{error}"
    );
}

#[test]
fn an_image_takes_the_place_of_an_initramfs() {
    let (config, warnings) =
        load("[hypervisor.qemu]\nimage = \"/i\"\nrootfs_type = \"ext4\"\ndisable_image_nvdimm = true\n").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        (config.qemu.rootfs_type, config.qemu.disable_image_nvdimm),
        (RootfsType::Ext4, true)
    );
    let roots: Vec<_> = config
        .asset_candidates()
        .into_iter()
        .map(|assets| assets.root)
        .collect();
    assert_eq!(roots, [RootAsset::Image("/i".into()), RootAsset::Image("/i".into())]);

    let both = load("[hypervisor.qemu]\nimage = \"/i\"\ninitrd = \"/r\"\n")
        .unwrap_err()
        .to_string();
    assert!(both.contains("image is /i and initrd is /r"), "{both}");
    load("[hypervisor.qemu]\nimage = \"/i\"\ninitrd = \"\"\n").unwrap();
}

#[test]
fn values_mean_what_kata_means_by_them() {
    let (config, warnings) = load(
        r#"
[hypervisor.qemu]
path = "/opt/qemu"
kernel = "/k"
initrd = ""
kernel_params = "a  b=c"
default_vcpus = -1
default_maxvcpus = 0
shared_fs = "virtio-9p"
virtio_fs_cache = "none"
virtio_fs_extra_args = ["--thread-pool-size=1"]
cpu_features = ""
use_vsock = true

[agent.kata]
dial_timeout = 7
"#,
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.qemu.path, PathBuf::from("/opt/qemu"));
    assert_eq!(
        (config.qemu.kernel.as_deref(), config.qemu.initrd.as_deref()),
        (Some(Path::new("/k")), None)
    );
    assert_eq!(config.qemu.kernel_params, ["a", "b=c"]);
    assert_eq!(config.qemu.default_vcpus, CpuCount::Host);
    assert_eq!(config.qemu.default_maxvcpus, CpuCount::Host);
    assert_eq!(config.qemu.shared_fs, Some(SharedFs::Virtio9p));
    assert_eq!(config.qemu.virtio_fs_cache, VirtioFsCache::Never);
    assert_eq!(config.qemu.cpu_features.as_deref(), Some(""));
    assert_eq!(config.qemu.use_vsock, Some(true));
    assert_eq!(config.agent_answer_limit(), Duration::from_secs(7));
    let kernels: Vec<_> = config
        .asset_candidates()
        .into_iter()
        .map(|assets| assets.kernel)
        .collect();
    assert_eq!(kernels, [PathBuf::from("/k"), PathBuf::from("/k")]);

    let vcpus = |text: &str| {
        load(&format!("[hypervisor.qemu]\ndefault_vcpus = {text}"))
            .unwrap()
            .0
            .qemu
            .default_vcpus
    };
    assert_eq!(vcpus("0"), CpuCount::Exactly(1));
    assert_eq!(vcpus("1.5"), CpuCount::Exactly(2));
    assert_eq!(vcpus("8"), CpuCount::Exactly(8));
}

#[test]
fn wrong_values_are_errors_that_say_where_and_what_is_allowed() {
    for (section, line, words) in [
        (
            "hypervisor.qemu",
            "path = 5",
            "hypervisor.qemu.path is 5; it must be an absolute path in quotes",
        ),
        ("hypervisor.qemu", "path = \"\"", "is \"\"; it must be an absolute path"),
        (
            "hypervisor.qemu",
            "kernel = \"vmlinux\"",
            "is \"vmlinux\"; it must be an absolute path",
        ),
        (
            "hypervisor.qemu",
            "default_vcpus = \"2\"",
            "must be a number of CPUs, or -1 for all of the host",
        ),
        (
            "hypervisor.qemu",
            "default_maxvcpus = -1",
            "must be a whole number of CPUs, or 0",
        ),
        (
            "hypervisor.qemu",
            "default_memory = 63",
            "is 63; it must be a whole number of MiB, at least 64",
        ),
        (
            "hypervisor.qemu",
            "default_memory = \"2G\"",
            "is \"2G\"; it must be a whole number of MiB",
        ),
        (
            "hypervisor.qemu",
            "default_memory = 99999999999999999999",
            "is 99999999999999999999; it must be",
        ),
        (
            "hypervisor.qemu",
            "shared_fs = \"nfs\"",
            "one of \"virtio-fs\", \"virtio-9p\", \"none\"",
        ),
        (
            "runtime",
            "internetworking_model = \"bridged\"",
            "one of \"tcfilter\", \"macvtap\", \"none\"",
        ),
        (
            "hypervisor.qemu",
            "network_queues = 0",
            "a whole number of queues from 1 to 256",
        ),
        (
            "hypervisor.qemu",
            "virtio_fs_cache = \"all\"",
            "\"never\", \"metadata\", \"auto\", \"always\"",
        ),
        (
            "hypervisor.qemu",
            "virtio_fs_queue_size = 1000",
            "a power of two from 2 to 1024",
        ),
        (
            "hypervisor.qemu",
            "virtio_fs_extra_args = \"-d\"",
            "a list of texts in quotes",
        ),
        (
            "hypervisor.qemu",
            "virtio_fs_extra_args = [\"-d\", 1]",
            "is [\"-d\", 1]; it must be a list",
        ),
        (
            "hypervisor.qemu",
            "msize_9p = 1",
            "a whole number of bytes from 4096 to 16777216",
        ),
        ("hypervisor.qemu", "machine_type = \"\"", "a machine type in quotes"),
        (
            "hypervisor.qemu",
            "use_vsock = 1979-05-27",
            "is 1979-05-27; it must be true or false",
        ),
        (
            "agent.kata",
            "dial_timeout = 0",
            "agent.kata.dial_timeout is 0; it must be a whole number of seconds",
        ),
        (
            "runtime",
            "disable_guest_seccomp = \"yes\"",
            "runtime.disable_guest_seccomp is \"yes\"; it must be true",
        ),
    ] {
        let error = load(&format!("# one\n[{section}]\n# three\n{line}\n"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("configuration.toml:4: ") && error.contains(words),
            "{line}: {error}"
        );
    }
}

#[test]
fn what_is_not_toml_is_an_error_with_its_line() {
    for (text, line) in [
        ("[runtime]\nenable_debug\n", 2),
        ("\n\n[runtime\n", 3),
        ("a = 1\na = 2\n", 2),
    ] {
        let error = load(text).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("configuration.toml:{line}: ")),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn what_has_no_effect_is_a_warning_with_its_line() {
    let (config, warnings) = load(
        r#"stray = 1
[hypervisor.qemu]
defualt_vcpus = 4
memory_slots = 10
firmware_volume = "/volume"
enable_hugepages = true
enable_iommu = false
color = "blue"
[hypervisor.clh]
path = "/clh"
default_vcpus = 2
[factory]
vm_cache_nubmer = 3
[agent.kata.mem_agent]
mem_agent_enable = true
[weather]
rain = true
"#,
    )
    .unwrap();
    assert_eq!(
        told(&warnings),
        [
            "1: unknown key stray, ignored",
            "3: unknown key hypervisor.qemu.defualt_vcpus, ignored; is default_vcpus meant?",
            "5: hypervisor.qemu.firmware_volume is known to Kata, but not supported yet, ignored",
            "6: hypervisor.qemu.enable_hugepages is known to Kata, but not supported yet, ignored",
            "8: unknown key hypervisor.qemu.color, ignored",
            "9: section [hypervisor.clh] is known to Kata, but not supported yet, ignored",
            "13: unknown key factory.vm_cache_nubmer, ignored; is vm_cache_number meant?",
            "14: section [agent.kata.mem_agent] is known to Kata, but not supported yet, ignored",
            "16: unknown section [weather], ignored",
        ]
    );
    assert_eq!(config.qemu, Config::default().qemu);
}

#[test]
fn the_configuration_in_force_can_be_read_again() {
    let text = r#"
[hypervisor.qemu]
kernel_params = "quiet \"x\""
default_vcpus = -1
default_maxvcpus = 4
default_memory = 300
shared_fs = "none"
virtio_fs_extra_args = ["--xattr", "-o a=b"]
network_queues = 3
disable_vhost_net = true
[runtime]
create_container_timeout = 90
internetworking_model = "none"
disable_new_netns = true
"#;
    for config in [Config::default(), values(load(text).unwrap())] {
        let again = load(&config.to_toml()).unwrap();
        assert!(again.1.is_empty(), "{:?}", again.1);
        assert_eq!(values(again), config);
    }
}
