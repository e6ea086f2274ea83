//! What pods may say by annotation, and what is made of it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use kata_config::{Config, ConfigError, CpuCount, SharedFs, Warning};

const HYPERVISOR: &str = "io.katacontainers.config.hypervisor.";
const RUNTIME: &str = "io.katacontainers.config.runtime.";
const AGENT: &str = "io.katacontainers.config.agent.";

fn permissive() -> Config {
    let mut config = Config::default();
    config.qemu.enable_annotations = vec![".*".into()];
    config
}

fn annotate(config: &Config, names: &[(&str, &str, &str)]) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut config = config.clone();
    let names: Vec<_> = names
        .iter()
        .map(|(kind, name, text)| (format!("{kind}{name}"), *text))
        .collect();
    let warnings = config.annotate(names.iter().map(|(name, text)| (name.as_str(), *text)))?;
    Ok((config, warnings))
}

#[test]
fn values_are_read_as_those_of_the_files() {
    let (config, warnings) = annotate(
        &permissive(),
        &[
            (HYPERVISOR, "default_vcpus", "2"),
            (HYPERVISOR, "default_max_vcpus", "3"),
            (HYPERVISOR, "default_memory", "512"),
            (HYPERVISOR, "memory_slots", "4"),
            (HYPERVISOR, "machine_type", "microvm"),
            (HYPERVISOR, "cpu_features", ""),
            (HYPERVISOR, "shared_fs", "virtio-9p"),
            (HYPERVISOR, "entropy_source", "/dev/random"),
            (HYPERVISOR, "virtio_fs_extra_args", "[\"--xattr\", \"-o a=b\"]"),
            (RUNTIME, "sandbox_cgroup_only", "true"),
            (RUNTIME, "experimental", "one two"),
            (RUNTIME, "create_container_timeout", "90"),
        ],
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.qemu.default_vcpus, CpuCount::Exactly(2));
    assert_eq!(config.qemu.default_maxvcpus, CpuCount::Exactly(3));
    assert_eq!(config.qemu.default_memory, Some(512));
    assert_eq!(config.qemu.memory_slots, 4);
    assert_eq!(config.qemu.machine_type, "microvm");
    assert_eq!(config.qemu.cpu_features.as_deref(), Some(""));
    assert_eq!(config.qemu.shared_fs, Some(SharedFs::Virtio9p));
    assert_eq!(config.qemu.entropy_source, Path::new("/dev/random"));
    assert_eq!(config.qemu.virtio_fs_extra_args, ["--xattr", "-o a=b"]);
    assert!(config.runtime.sandbox_cgroup_only);
    assert_eq!(config.runtime.experimental, ["one", "two"]);
    assert_eq!(config.runtime.create_container_timeout.as_secs(), 90);
}

#[test]
fn kernel_parameters_are_added_and_others_annotations_passed_over() {
    let mut config = Config::default();
    config.qemu.kernel_params = vec!["a=1".into()];
    let (config, _) = annotate(
        &config,
        &[
            (HYPERVISOR, "kernel_params", "b c=2"),
            ("", "io.katacontainers.config_path", "/x"),
            ("", "io.kubernetes.cri.sandbox-id", "s"),
            ("", "io.katacontainers.pkg.oci.container_type", "pod_sandbox"),
        ],
    )
    .unwrap();
    assert_eq!(config.qemu.kernel_params, ["a=1", "b", "c=2"]);
}

#[test]
fn a_hypervisors_annotation_needs_an_expression_that_matches_all_of_its_name() {
    for (expressions, name, allowed) in [
        (&["default_vcpus"][..], "default_vcpus", true),
        (&["default_.*"], "default_vcpus", true),
        (&["default"], "default_vcpus", false),
        (&["vcpus"], "default_vcpus", false),
        (&["memory_slots|default_vcpus"], "default_vcpus", true),
        (&["^default_vcpus$"], "default_vcpus", true),
        (&[".*"], "memory_slots", true),
        (&[], "default_vcpus", false),
        (&["default_memory", "memory_slots"], "memory_slots", true),
    ] {
        let mut config = Config::default();
        config.qemu.enable_annotations = expressions.iter().map(|text| (*text).to_owned()).collect();
        let outcome = annotate(&config, &[(HYPERVISOR, name, "2")]);
        assert_eq!(outcome.is_ok(), allowed, "{expressions:?} {name}");
    }
    let error = annotate(&Config::default(), &[(HYPERVISOR, "memory_slots", "2")])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "annotation io.katacontainers.config.hypervisor.memory_slots is refused: no expression of \
         hypervisor.qemu.enable_annotations matches \"memory_slots\""
    );
}

#[test]
fn paths_need_a_pattern_that_covers_them() {
    let mut config = permissive();
    config.qemu.valid_hypervisor_paths = vec!["/opt/*/qemu".into()];
    config.qemu.valid_virtio_fs_daemon_paths = vec![String::new()];
    for (name, text, refused) in [
        ("path", "/opt/kata/qemu", None),
        ("path", "/opt/../tmp/qemu", Some("valid_hypervisor_paths")),
        ("path", "/tmp/qemu", Some("valid_hypervisor_paths")),
        (
            "virtio_fs_daemon",
            "/usr/libexec/virtiofsd",
            Some("valid_virtio_fs_daemon_paths"),
        ),
        ("entropy_source", "/dev/sda", Some("valid_entropy_sources")),
    ] {
        match (annotate(&config, &[(HYPERVISOR, name, text)]), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(list)) => assert!(error.to_string().contains(list), "{error}"),
            (outcome, _) => panic!("{name}={text}: {outcome:?}"),
        }
    }
}

#[test]
fn what_is_unknown_or_wrong_is_refused_by_name() {
    for (kind, name, text, words) in [
        (
            HYPERVISOR,
            "color",
            "blue",
            "hypervisor.color is refused: nobody knows it",
        ),
        // Keys that are the administrator's alone.
        (
            HYPERVISOR,
            "enable_annotations",
            "[\".*\"]",
            "is refused: nobody knows it",
        ),
        (
            HYPERVISOR,
            "valid_hypervisor_paths",
            "[\"/*\"]",
            "is refused: nobody knows it",
        ),
        (HYPERVISOR, "kernel_hash", "00", "is refused: nobody knows it"),
        (
            RUNTIME,
            "enable_debug",
            "true",
            "runtime.enable_debug is refused: nobody knows it",
        ),
        (
            "io.katacontainers.config.",
            "proxy.path",
            "/x",
            "is refused: nobody knows it",
        ),
        (
            HYPERVISOR,
            "default_memory",
            "63",
            "default_memory is 63; it must be a whole number of MiB, at least 64",
        ),
        (
            HYPERVISOR,
            "default_memory",
            "1\ndefault_vcpus = 2",
            "it must be a whole number of MiB",
        ),
        (HYPERVISOR, "kernel", "vmlinux", "it must be an absolute path"),
        (RUNTIME, "sandbox_cgroup_only", "yes", "it must be true or false"),
    ] {
        let error = annotate(&permissive(), &[(kind, name, text)]).unwrap_err().to_string();
        assert!(
            error.starts_with("annotation ") && error.contains(words),
            "{name}: {error}"
        );
    }
}

#[test]
fn what_kata_knows_and_we_do_not_use_is_a_warning() {
    let (config, warnings) = annotate(
        &permissive(),
        &[
            (HYPERVISOR, "enable_hugepages", "true"),
            (HYPERVISOR, "enable_iommu", "false"),
            (HYPERVISOR, "block_device_queue_size", "7"),
            (AGENT, "enable_tracing", "true"),
        ],
    )
    .unwrap();
    let told: Vec<_> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(
        told[1],
        "annotation io.katacontainers.config.hypervisor.block_device_queue_size: hypervisor.qemu.queue_size is known to \
         Kata, but not supported yet, ignored"
    );
    assert_eq!(config, permissive());
}

/// One must not open the door for another.
#[test]
fn the_files_alone_decide_what_is_allowed() {
    let mut config = Config::default();
    config.qemu.enable_annotations = vec!["path".into()];
    assert!(annotate(&config, &[(HYPERVISOR, "path", "/usr/bin/qemu-system-x86_64")]).is_err());
}

#[test]
fn an_image_of_a_pod_needs_the_files_initramfs_to_go() {
    let mut config = permissive();
    config.qemu.initrd = Some("/r".into());
    let error = annotate(&config, &[(HYPERVISOR, "image", "/i")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("image is /i and initrd is /r"), "{error}");
    let (config, _) = annotate(&config, &[(HYPERVISOR, "image", "/i"), (HYPERVISOR, "initrd", "")]).unwrap();
    assert_eq!((config.qemu.image, config.qemu.initrd), (Some("/i".into()), None));
}
