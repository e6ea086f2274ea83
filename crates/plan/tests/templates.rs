//! Which machines are clones of a template, and what that template is.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use kata_bundle::Bundle;
use kata_config::{Config, Internetworking, RootfsType, SharedFs};
use kata_machine::{Channel, Device, MachineSpec, Root};
use kata_netlink::{Interface, Network};
use kata_plan::{Facts, PodPlan};
use serde_json::{Value, json};

fn enabled(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.factory.enable_template = true;
    change(&mut config);
    config
}

fn bundle() -> Bundle {
    support::bundle(&support::small_spec())
}

/// With a limit of 300 MiB.
fn limited() -> Bundle {
    let mut spec = support::small_spec();
    spec["linux"]["resources"] = json!({"memory": {"limit": 300 << 20}});
    support::bundle(&spec)
}

fn links(count: u8) -> Facts {
    let interface = |number: u8| Interface {
        name: format!("eth{number}"),
        kind: "veth".into(),
        mac: format!("02:42:00:00:00:{number:02x}").parse().unwrap(),
        mtu: 1500,
        ipv6_disabled: false,
        addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
    };
    Facts {
        network: Some(Network {
            interfaces: (0..count).map(interface).collect(),
            left_out: Vec::new(),
        }),
        ..support::facts()
    }
}

fn plan(bundle: &Bundle, config: &Config, facts: &Facts) -> PodPlan {
    kata_plan::pod("p1", bundle, config, facts).unwrap()
}

fn nics(machine: &MachineSpec) -> usize {
    let is_nic = |device: &&Device| matches!(device, Device::Nic { .. });
    machine.devices.iter().filter(is_nic).count()
}

#[test]
fn without_a_wish_there_is_none() {
    let plan = plan(&bundle(), &Config::default(), &links(1));
    assert_eq!(plan.template, None);
    assert_eq!(nics(&plan.machine), 1);
    assert!(!plan.notes.iter().any(|note| note.starts_with("start:")));
}

#[test]
fn what_pods_ask_for_makes_no_difference_to_the_template() {
    let config = enabled(|_| {});
    let template = kata_plan::template(&config, &support::facts()).unwrap();
    for (pod, bundle, facts) in [
        ("no links yet", bundle(), links(0)),
        ("one link", bundle(), links(1)),
        ("two links", bundle(), links(2)),
        ("a limit", limited(), links(1)),
    ] {
        let plan = plan(&bundle, &config, &facts);
        assert_eq!(plan.template.as_ref(), Some(&template), "{pod}");
        let (machine, own) = (&plan.machine, &template.machine);
        assert_eq!(
            (machine.vcpus, machine.memory_mib),
            (own.vcpus, own.memory_mib),
            "{pod}"
        );
        assert_eq!(nics(machine), 2, "{pod}");
        assert_eq!(
            plan.notes.last().unwrap(),
            "start: a clone of a template (configured)",
            "{pod}"
        );
    }
    let plan = plan(&limited(), &config, &links(1));
    let container = kata_plan::container("p1", &limited(), &config, &links(1)).unwrap();
    assert_eq!(
        plan.sizing.size([container.demand]).memory_mib,
        556,
        "it grows when the container comes"
    );
}

#[test]
fn an_image_is_an_ingredient_and_as_configured() {
    let facts = kata_plan::Facts {
        root: kata_plan::RootFile::Image {
            path: "/assets/image".into(),
            bytes: 2 << 20,
            loader: Some("/assets/image.initrd".into()),
        },
        ..support::facts()
    };
    for (disable_image_nvdimm, rootfs_type, file_system) in
        [(false, RootfsType::Erofs, "erofs"), (true, RootfsType::Ext4, "ext4")]
    {
        let config = enabled(|config| {
            config.qemu.disable_image_nvdimm = disable_image_nvdimm;
            config.qemu.rootfs_type = rootfs_type;
        });
        let template = kata_plan::template(&config, &facts).unwrap();
        let Root::Image(image) = &template.machine.boot.root else {
            panic!("{:?}", template.machine.boot)
        };
        assert_eq!(
            (image.dax, image.file_system.as_str()),
            (!disable_image_nvdimm, file_system)
        );
        for file in ["/assets/image", "/assets/image.initrd"] {
            assert!(template.made_of.contains(&file.into()), "{file}");
        }
    }
}

#[test]
fn a_template_is_complete_and_lies_where_it_is_made() {
    let config = enabled(|config| config.qemu.kernel_params = vec!["mine".into()]);
    let template = kata_plan::template(&config, &support::facts()).unwrap();
    let machine = &template.machine;
    assert_eq!(machine.run_dir.to_str(), Some("/run/vc/vm/template/.new"));
    let Channel::Serial { socket, .. } = &machine.channel else {
        panic!("{machine:?}")
    };
    assert_eq!(socket.to_str(), Some("/run/vc/vm/template/.new/agent.sock"));
    assert_eq!(machine.boot.parameters, ["kata.load=virtiofs,virtio_net", "mine"]);
    let made_of: Vec<_> = template.made_of.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        made_of,
        [
            "/usr/bin/qemu-system-x86_64",
            "/assets/vmlinux",
            "/assets/initrd.img",
            "/usr/libexec/virtiofsd"
        ]
    );

    let config = enabled(|config| {
        config.qemu.shared_fs = Some(SharedFs::Virtio9p);
        config.qemu.firmware = Some("/firmware".into());
        config.runtime.internetworking_model = Internetworking::None;
    });
    let template = kata_plan::template(&config, &support::facts()).unwrap();
    assert_eq!(template.machine.boot.parameters, ["kata.load=9pnet_virtio,9p"]);
    assert_eq!(nics(&template.machine), 0);
    assert_eq!(template.made_of.last().unwrap().to_str(), Some("/firmware"));
    let text = serde_json::to_string(&template).unwrap();
    assert_eq!(
        serde_json::from_str::<kata_plan::TemplatePlan>(&text).unwrap(),
        template
    );
}

#[test]
fn a_template_rehearses_with_an_ordinary_container() {
    let template = kata_plan::template(&enabled(|_| {}), &support::facts()).unwrap();
    let rehearsal = template.rehearsal;
    let names = |paths: &[std::path::PathBuf]| -> Vec<_> {
        let below = paths
            .iter()
            .map(|path| path.strip_prefix(&rehearsal.directory).unwrap());
        below.map(|path| path.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(rehearsal.directory.to_str(), Some("/run/vc/vm/template/.new/bundle"));
    assert_eq!(
        names(&rehearsal.directories),
        [
            "rootfs",
            "rootfs/bin",
            "rootfs/etc",
            "rootfs/dev",
            "rootfs/proc",
            "rootfs/sys"
        ]
    );
    assert_eq!(names(&rehearsal.files), ["hosts", "rootfs/etc/hosts"]);
    let (sources, targets): (Vec<_>, Vec<_>) = rehearsal.binds.iter().cloned().unzip();
    assert_eq!(names(&sources), ["rootfs", "hosts"]);
    assert_eq!(targets[0].to_str(), Some("rehearsal/rootfs"));
    assert_eq!(targets[1].to_str(), Some("rehearsal/volumes/7-hosts"));
    let spec: Value = serde_json::from_str(&rehearsal.spec_json).unwrap();
    assert_eq!(spec["root"]["path"], "/run/kata/shared/rehearsal/rootfs");
    assert_eq!(
        spec["mounts"][7]["source"],
        "/run/kata/shared/rehearsal/volumes/7-hosts"
    );
    let programs = [rehearsal.program.clone(), rehearsal.link.clone()];
    assert_eq!(names(&programs), ["rootfs/bin/rehearsal", "rootfs/bin/rehearse"]);
    assert_eq!(spec["process"]["args"], json!(["/bin/rehearse"]));
    let exec: Value = serde_json::from_str(&rehearsal.exec_json).unwrap();
    assert_eq!(exec["args"], json!(["/bin/rehearse", "copy"]));
    assert_eq!(exec["capabilities"], spec["process"]["capabilities"]);
    assert!(!rehearsal.seccomp_filter.is_empty() && rehearsal.seccomp_filter.len().is_multiple_of(8));

    let without = enabled(|config| config.runtime.disable_guest_seccomp = true);
    let template = kata_plan::template(&without, &support::facts()).unwrap();
    assert!(template.rehearsal.seccomp_filter.is_empty(), "as its pods");
}

#[test]
fn what_cannot_be_a_clone_boots_and_says_why() {
    let microvm = enabled(|config| config.qemu.machine_type = "microvm".into());
    let fixed = enabled(|config| config.runtime.static_sandbox_resource_mgmt = true);
    let macvtap = enabled(|config| config.runtime.internetworking_model = Internetworking::Macvtap);
    for (config, bundle, facts, why) in [
        (enabled(|_| {}), bundle(), links(3), "network interfaces"),
        (macvtap.clone(), bundle(), links(1), "network interfaces"),
        (
            microvm.clone(),
            limited(),
            links(1),
            "1 CPUs and 556 MiB from the start, and the template has 1 and 256",
        ),
        (fixed.clone(), limited(), links(1), "MiB from the start"),
    ] {
        let plan = plan(&bundle, &config, &facts);
        assert_eq!(plan.template, None, "{why}");
        let note = plan.notes.last().unwrap();
        assert!(
            note.starts_with("start: a boot, without a template: ") && note.contains(why),
            "{note}"
        );
    }
    for (config, facts) in [(macvtap, links(0)), (microvm, links(1)), (fixed, links(1))] {
        assert!(
            plan(&bundle(), &config, &facts).template.is_some(),
            "{:?}",
            config.qemu.machine_type
        );
    }
}

#[test]
fn a_pod_is_planned_as_the_machine_that_waits_for_it() {
    let config = Config::default();
    let waiting = Facts {
        has_spare: true,
        ..links(1)
    };
    let pod = plan(&limited(), &config, &waiting);
    let expected = kata_plan::template(&config, &waiting).unwrap();
    assert_eq!(pod.template, Some(expected));
    assert!(
        pod.notes
            .contains(&"start: the machine that waits (configured)".to_owned())
    );

    let pod = plan(&limited(), &config, &links(1));
    assert_eq!(pod.template, None, "others boot as ever");
    let many = Facts {
        has_spare: true,
        ..links(3)
    };
    let pod = plan(&limited(), &config, &many);
    let why = "start: a boot, without the machine that waits: its network interfaces are not those of the template";
    assert!(
        pod.template.is_none() && pod.notes.contains(&why.to_owned()),
        "{:?}",
        pod.notes
    );
}
