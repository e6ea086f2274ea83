//! What a pod gets from its configuration and its host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use kata_config::{Config, CpuCount, SharedFs};
use kata_machine::{Accelerator, Channel, Device, MemoryBacking};
use kata_plan::{Facts, PlanError, PodPlan, SharePlan};
use serde_json::json;

fn plan(config: &Config, facts: &Facts) -> Result<PodPlan, PlanError> {
    kata_plan::pod("p1", &support::bundle(&support::small_spec()), config, facts)
}

fn configured(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

#[test]
fn machines_are_sized_by_configuration_accelerator_and_host() {
    use Accelerator::{Kvm, Tcg};
    use CpuCount::{Exactly, Host};
    // configured memory, CPUs, most CPUs | accelerator, host's MiB | memory, CPUs, most CPUs
    for (memory, vcpus, most, accelerator, host_mib, wanted) in [
        (None, Exactly(1), Host, Tcg, 8192, (256, 1, 4)),
        (None, Exactly(1), Host, Kvm, 8192, (2048, 1, 4)),
        (None, Exactly(1), Host, Kvm, 1000, (1000, 1, 4)),
        (Some(512), Exactly(2), Exactly(2), Tcg, 8192, (512, 2, 2)),
        (Some(64), Exactly(3), Exactly(2), Tcg, 8192, (64, 3, 3)),
        (None, Exactly(99), Host, Tcg, 8192, (256, 4, 4)),
        (None, Host, Exactly(1), Tcg, 8192, (256, 4, 4)),
        (None, Exactly(1), Exactly(99), Tcg, 8192, (256, 1, 4)),
    ] {
        let config = configured(|config| {
            config.qemu.default_memory = memory;
            config.qemu.default_vcpus = vcpus;
            config.qemu.default_maxvcpus = most;
        });
        let facts = Facts {
            accelerator,
            host_memory_mib: host_mib,
            ..support::facts()
        };
        let machine = plan(&config, &facts).unwrap().machine;
        let got = (machine.memory_mib, machine.vcpus, machine.growth.unwrap().vcpus);
        assert_eq!(got, wanted, "{memory:?} {vcpus:?} {most:?} {accelerator} {host_mib}");
    }
}

#[test]
fn too_little_memory_is_refused() {
    let small = configured(|config| config.qemu.default_memory = Some(63));
    let error = plan(&small, &support::facts()).unwrap_err();
    assert!(
        matches!(
            error,
            PlanError::TooLittleMemory {
                memory_mib: 63,
                least_mib: 64
            }
        ),
        "{error}"
    );
    let poor = Facts {
        host_memory_mib: 50,
        ..support::facts()
    };
    assert!(matches!(
        plan(&Config::default(), &poor),
        Err(PlanError::TooLittleMemory { memory_mib: 50, .. })
    ));
}

#[test]
fn the_share_is_virtio_fs_where_its_daemon_is_and_9p_else() {
    let with = |shared_fs, daemon: bool| {
        let facts = Facts {
            virtiofsd: daemon.then(|| "/virtiofsd".into()),
            ..support::facts()
        };
        plan(&configured(|config| config.qemu.shared_fs = shared_fs), &facts)
    };
    for (wish, daemon, virtio_fs) in [
        (None, true, true),
        (None, false, false),
        (Some(SharedFs::VirtioFs), true, true),
        (Some(SharedFs::Virtio9p), true, false),
        (Some(SharedFs::Virtio9p), false, false),
    ] {
        let pod = with(wish, daemon).unwrap();
        assert_eq!(
            matches!(pod.share, SharePlan::VirtioFs { .. }),
            virtio_fs,
            "{wish:?} {daemon}"
        );
        let shared = pod.machine.memory_backing == MemoryBacking::SharedMemfd;
        assert_eq!(shared, virtio_fs, "{wish:?} {daemon}");
        assert_eq!(
            matches!(pod.machine.devices[0], Device::VirtioFs { .. }),
            virtio_fs,
            "{wish:?} {daemon}"
        );
    }
    assert!(matches!(
        with(Some(SharedFs::VirtioFs), false),
        Err(PlanError::NoVirtioFsDaemon { .. })
    ));
    assert!(matches!(
        with(Some(SharedFs::None), true),
        Err(PlanError::Unsupported { .. })
    ));
}

#[test]
fn arguments_for_the_daemon_replace_ours_of_the_same_name() {
    let config =
        configured(|config| config.qemu.virtio_fs_extra_args = vec!["--cache=always".into(), "--xattr".into()]);
    let SharePlan::VirtioFs { arguments, .. } = plan(&config, &support::facts()).unwrap().share else {
        panic!("no virtio-fs");
    };
    let caches: Vec<_> = arguments
        .iter()
        .filter(|argument| argument.starts_with("--cache"))
        .collect();
    assert_eq!(caches, ["--cache=always"]);
    assert_eq!(arguments.last().unwrap(), "--xattr");
    assert!(arguments.contains(&"--sandbox=namespace".to_owned()));
}

#[test]
fn the_channel_is_a_serial_port_unless_vsock_is_wished_for() {
    let vsock = configured(|config| config.qemu.use_vsock = Some(true));
    let able = Facts {
        vhost_vsock: true,
        vsock_cid: Some(7),
        ..support::facts()
    };
    assert!(matches!(
        plan(&Config::default(), &able).unwrap().machine.channel,
        Channel::Serial { .. }
    ));
    assert!(matches!(
        plan(&vsock, &able).unwrap().machine.channel,
        Channel::Vsock { cid: 7, port: 1024 }
    ));
    assert!(matches!(plan(&vsock, &support::facts()), Err(PlanError::NoVsock)));
}

#[test]
fn machine_options_parameters_and_features_are_put_together() {
    let config = configured(|config| {
        config.qemu.machine_accelerators = "nvdimm=on,usb=off".into();
        config.qemu.kernel_params = vec!["loglevel=7".into()];
        config.agent.enable_debug = true;
    });
    let kvm = Facts {
        accelerator: Accelerator::Kvm,
        ..support::facts()
    };
    let machine = plan(&config, &kvm).unwrap().machine;
    assert_eq!(machine.machine_type, "q35,nvdimm=on,usb=off");
    assert_eq!(machine.boot.parameters, ["kata.log=debug", "loglevel=7"]);
    assert_eq!(machine.cpu_features, "pmu=off");
}

#[test]
fn ids_sockets_and_members_are_checked() {
    let bundle = support::bundle(&support::small_spec());
    let (config, facts) = (Config::default(), support::facts());
    let long = "x".repeat(256);
    for id in ["", ".", "..", "a/b", "a b", "ä", long.as_str()] {
        assert!(
            matches!(kata_plan::pod(id, &bundle, &config, &facts), Err(PlanError::Id { .. })),
            "{id}"
        );
        assert!(
            matches!(
                kata_plan::container(id, &bundle, &config, &facts),
                Err(PlanError::Id { .. })
            ),
            "{id}"
        );
    }
    let deep = Facts {
        run_dir: format!("/run/{}", "d".repeat(100)).into(),
        ..support::facts()
    };
    assert!(matches!(
        plan(&config, &deep),
        Err(PlanError::SocketPath { most: 107, .. })
    ));

    let mut member = support::small_spec();
    member["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "p9",
    });
    let error = kata_plan::pod("c1", &support::bundle(&member), &config, &facts)
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to the pod \"p9\""), "{error}");
}
