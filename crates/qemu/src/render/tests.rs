use std::path::PathBuf;

use kata_machine::{Boot, Growth, Image, MemoryGrowth};
use proptest::prelude::*;

use super::*;

fn spec() -> MachineSpec {
    MachineSpec {
        id: "pod1".into(),
        vmm: "/usr/bin/qemu-system-x86_64".into(),
        machine_type: "q35".into(),
        firmware: None,
        accelerator: Accelerator::Tcg,
        cpu_features: String::new(),
        vcpus: 1,
        growth: None,
        memory_mib: 256,
        memory_backing: MemoryBacking::Private,
        boot: Boot {
            kernel: "/k/vmlinux".into(),
            root: Root::Initrd("/k/initrd".into()),
            parameters: vec!["kata.log=info".into()],
        },
        channel: Channel::Serial {
            port: "org.kata.agent.0".into(),
            socket: "/run/pod1/channel".into(),
        },
        devices: vec![],
        run_dir: "/run/pod1".into(),
        seccomp_sandbox: String::new(),
        debug: false,
    }
}

fn growth(vcpus: u32) -> Growth {
    Growth {
        vcpus,
        memory_mib: 1000,
        memory: MemoryGrowth::Virtio,
    }
}

#[test]
fn room_for_memory_is_whole_blocks_of_the_kind_that_the_machine_has() {
    let room = |memory_mib, memory, backing| {
        let spec = MachineSpec {
            growth: Some(Growth {
                vcpus: 1,
                memory_mib,
                memory,
            }),
            memory_backing: backing,
            ..spec()
        };
        rendered(&spec)
    };
    let (slots, none) = (MemoryGrowth::Slots { count: 3 }, MemoryGrowth::Slots { count: 0 });
    let private = MemoryBacking::Private;
    assert!(room(1000, slots, private).contains("-m 256M,slots=3,maxmem=1000M\n"));
    assert!(room(300, slots, private).contains("-m 256M\n"), "less than a block");
    assert!(room(1000, none, private).contains("-m 256M\n"));
    let virtio = room(1000, MemoryGrowth::Virtio, MemoryBacking::SharedMemfd);
    for part in [
        "-m 256M,maxmem=896M\n",
        "-object memory-backend-memfd,id=vmem-ram,size=640M,share=on,reserve=off\n",
        "-device virtio-mem-pci,id=vmem,memdev=vmem-ram,requested-size=0\n",
    ] {
        assert!(virtio.contains(part), "{part} in\n{virtio}");
    }
}

fn with_image(spec: MachineSpec, dax: bool, bytes: u64) -> MachineSpec {
    let image = Image {
        path: "/k/a,b".into(),
        bytes,
        file_system: "erofs".into(),
        dax,
        loader: Some("/k/loader".into()),
    };
    MachineSpec {
        boot: Boot {
            root: Root::Image(image),
            ..spec.boot
        },
        ..spec
    }
}

#[test]
fn an_image_is_persistent_memory_behind_all_other_room() {
    let room = |memory_mib, memory| {
        let growth = Growth {
            vcpus: 1,
            memory_mib,
            memory,
        };
        let spec = MachineSpec {
            growth: Some(growth),
            ..spec()
        };
        rendered(&with_image(spec, true, 8 << 20))
    };
    let slots = MemoryGrowth::Slots { count: 3 };
    for (memory_mib, memory, size, address) in [
        (1000, slots, "256M,slots=3,maxmem=1008M", "0x130000000"),
        (300, slots, "256M,maxmem=264M", "0x100000000"),
        (1000, MemoryGrowth::Virtio, "256M,maxmem=904M", "0x128000000"),
        (300, MemoryGrowth::Virtio, "256M,maxmem=264M", "0x100000000"),
    ] {
        let line = room(memory_mib, memory);
        for part in [
            format!("-m {size}\n"),
            format!("-device virtio-pmem-pci,memdev=image,memaddr={address}\n"),
        ] {
            assert!(line.contains(&part), "{part} in\n{line}");
        }
    }
    let large = MachineSpec {
        memory_mib: 3072,
        ..spec()
    };
    let line = rendered(&with_image(large, true, 8 << 20));
    for part in [
        "-m 3072M,maxmem=3080M\n",
        "memaddr=0x140000000\n",
        "-object memory-backend-file,id=image,size=8388608,mem-path=/k/a,,b,share=on,readonly=on\n",
        "-initrd /k/loader\n",
        " quiet root=/dev/pmem0 rootfstype=erofs rootflags=dax ro init=/init kata.log=info",
    ] {
        assert!(line.contains(part), "{part} in\n{line}");
    }
}

#[test]
fn an_image_is_a_disk_where_it_cannot_be_memory_or_is_not_to_be() {
    let micro = MachineSpec {
        machine_type: "microvm".into(),
        ..spec()
    };
    for spec in [with_image(spec(), false, 512), with_image(micro, true, 512)] {
        let line = rendered(&spec);
        for part in [
            "-m 256M\n",
            "-blockdev driver=raw,node-name=image,read-only=on,file.driver=file,file.filename=/k/a,,b\n",
            "-device virtio-blk-pci,drive=image\n",
            " root=/dev/vda rootfstype=erofs ro init=/init kata.log=info",
        ] {
            assert!(line.contains(part), "{part} in\n{line}");
        }
    }
    let error = command_line(&with_image(spec(), true, 512), Start::Boot, None).expect_err("no whole pieces");
    assert!(error.to_string().contains("/k/a,b has 512 bytes"), "{error}");
}

/// One option a line, as a person would write it.
fn rendered(spec: &MachineSpec) -> String {
    let line = command_line(spec, Start::Boot, Some(2_500_000)).expect("expressible");
    line.join(" ").replace(" -", "\n-")
}

#[test]
fn the_default_machine() {
    assert_eq!(rendered(&spec()), include_str!("golden/q35.txt").trim_end());
}

#[test]
fn a_microvm_with_a_shared_file_system() {
    let spec = MachineSpec {
        machine_type: "microvm".into(),
        memory_backing: MemoryBacking::SharedMemfd,
        seccomp_sandbox: "on,obsolete=deny".into(),
        devices: vec![
            Device::VirtioFs {
                tag: "kataShared".into(),
                socket: "/run/pod1/fs".into(),
                queue_size: 1024,
            },
            Device::DiskController,
            Device::Balloon,
            Device::Rng {
                source: "/dev/urandom".into(),
            },
        ],
        debug: true,
        ..spec()
    };
    assert_eq!(rendered(&spec), include_str!("golden/microvm.txt").trim_end());
}

#[test]
fn hardware_virtualization_with_vsock_and_ninep() {
    let spec = MachineSpec {
        accelerator: Accelerator::Kvm,
        cpu_features: "pmu=off".into(),
        vcpus: 2,
        growth: Some(Growth {
            vcpus: 4,
            memory_mib: 1024,
            memory: MemoryGrowth::Slots { count: 10 },
        }),
        firmware: Some("/f/bios.bin".into()),
        channel: Channel::Vsock { cid: 77, port: 1024 },
        devices: vec![Device::NineP {
            tag: "kataShared".into(),
            source: "/run/pod1/share".into(),
        }],
        ..spec()
    };
    assert_eq!(rendered(&spec), include_str!("golden/kvm.txt").trim_end());
}

#[test]
fn what_cannot_be_expressed_is_named() {
    let long = PathBuf::from(format!("/run/{}", "x".repeat(200)));
    let fs = Device::VirtioFs {
        tag: "t".into(),
        socket: "/s".into(),
        queue_size: 1,
    };
    let cases = [
        (MachineSpec { vcpus: 0, ..spec() }, "at least 1 vCPU"),
        (
            MachineSpec {
                vcpus: 2,
                growth: Some(growth(1)),
                ..spec()
            },
            "2 vCPUs are more than the most, 1",
        ),
        (
            MachineSpec {
                machine_type: "microvm".into(),
                growth: Some(growth(2)),
                ..spec()
            },
            "a microvm takes neither",
        ),
        (
            MachineSpec {
                memory_mib: 0,
                ..spec()
            },
            "at least 1 MiB",
        ),
        (
            MachineSpec {
                machine_type: "pc".into(),
                ..spec()
            },
            "\"pc\"",
        ),
        (
            MachineSpec {
                channel: Channel::Vsock { cid: 2, port: 1 },
                ..spec()
            },
            "context id 2",
        ),
        (
            MachineSpec {
                channel: Channel::Serial {
                    port: "p".into(),
                    socket: long,
                },
                ..spec()
            },
            "205 bytes",
        ),
        (
            MachineSpec {
                devices: vec![fs],
                ..spec()
            },
            "virtio-fs device \"t\" needs memory",
        ),
        (
            MachineSpec {
                vmm: "".into(),
                ..spec()
            },
            "empty path",
        ),
    ];
    for (spec, part) in cases {
        let error = command_line(&spec, Start::Boot, None).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Reads an option list as QEMU does: a comma ends a value, two are one.
fn decode(list: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut value = String::new();
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ',' if rest.next_if_eq(&',').is_none() => values.push(std::mem::take(&mut value)),
            c => value.push(c),
        }
    }
    values.push(value);
    values
}

#[test]
fn network_interfaces_on_every_bus() {
    let tap = || Wire::Tap {
        name: "tap0_kata".into(),
    };
    let macvtap = || Wire::Macvtap {
        node: "/run/p,1".into(),
    };
    for (machine_type, wire, queues, vhost, netdev, device) in [
        (
            "q35",
            tap(),
            1,
            false,
            "tap,id=net0,fd=10,vhost=off",
            "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,status=off,guest_announce=off,romfile=",
        ),
        (
            "q35",
            tap(),
            2,
            true,
            "tap,id=net0,fds=10:11,vhost=on",
            "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,status=off,guest_announce=off,romfile=,mq=on,vectors=6",
        ),
        (
            "microvm,pcie=off",
            tap(),
            2,
            false,
            "tap,id=net0,fds=10:11,vhost=off",
            "virtio-net-device,netdev=net0,mac=02:00:00:00:00:01,status=off,guest_announce=off,mq=on",
        ),
        (
            "microvm",
            macvtap(),
            1,
            false,
            "tap,id=net0,fd=10,vhost=off",
            "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,status=off,guest_announce=off,romfile=",
        ),
        (
            "q35",
            macvtap(),
            3,
            false,
            "tap,id=net0,fds=10:11:12,vhost=off",
            "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,status=off,guest_announce=off,romfile=,mq=on,vectors=8",
        ),
    ] {
        let nic = Device::Nic {
            wire,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            queues,
            vhost,
        };
        let spec = MachineSpec {
            machine_type: machine_type.into(),
            devices: vec![nic],
            ..spec()
        };
        let line = command_line(&spec, Start::Boot, None).expect("expressible");
        let netdev_at = line.iter().position(|word| word == "-netdev").expect("a netdev");
        assert_eq!(line[netdev_at + 1], netdev, "{machine_type}");
        assert_eq!(line[netdev_at + 3], device, "{machine_type}");
    }
}

#[test]
fn every_queue_of_every_interface_has_its_own_number() {
    let nic = |wire: &Wire, queues| Device::Nic {
        wire: wire.clone(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        queues,
        vhost: false,
    };
    let (macvtap, tap) = (Wire::Macvtap { node: "/a".into() }, Wire::Tap { name: "b".into() });
    let spec = MachineSpec {
        devices: vec![nic(&macvtap, 2), nic(&tap, 1)],
        ..spec()
    };
    let node = |wire: &Wire, several, number| Node {
        wire: wire.clone(),
        several,
        number,
    };
    let expected = [
        node(&macvtap, true, 10),
        node(&macvtap, true, 11),
        node(&tap, false, 12),
    ];
    assert_eq!(nodes(&spec), expected);
    let line = command_line(&spec, Start::Boot, None).expect("expressible").join(" ");
    assert!(line.contains("fds=10:11") && line.contains("fd=12"), "{line}");
}

#[test]
fn a_template_and_what_is_made_of_it_have_the_same_devices() {
    let fs = Device::VirtioFs {
        tag: "t".into(),
        socket: "/run/s".into(),
        queue_size: 1024,
    };
    let shared = MachineSpec {
        memory_backing: MemoryBacking::SharedMemfd,
        devices: vec![fs],
        ..spec()
    };
    let line = |spec: &MachineSpec, start| command_line(spec, start, None).expect("expressible");
    for spec in [spec(), shared, with_image(spec(), true, 2 << 20)] {
        let (boot, save, restore) = (
            line(&spec, Start::Boot),
            line(&spec, Start::Save(Path::new("/t/a,b"))),
            line(&spec, Start::Restore),
        );
        let devices = |line: &[String]| -> Vec<String> {
            let pairs = line.windows(2).filter(|pair| pair[0] == "-device");
            pairs.map(|pair| pair[1].clone()).collect()
        };
        assert_eq!(devices(&boot), devices(&save));
        assert_eq!(devices(&boot), devices(&restore));
        let has = |line: &[String], word: &str| line.iter().any(|one| one == word);
        assert!(has(&save, "-S") && has(&save, "/k/vmlinux"), "{save:?}");
        assert!(
            has(&save, "memory-backend-file,id=ram,size=256M,mem-path=/t/a,,b,share=on"),
            "{save:?}"
        );
        assert!(has(&restore, "defer") && !has(&restore, "/k/vmlinux"), "{restore:?}");
        let sharing = match spec.memory_backing {
            MemoryBacking::Private => "share=off,readonly=on,rom=off",
            MemoryBacking::SharedMemfd => "share=on",
        };
        let memory = format!("memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/9,{sharing}");
        assert!(has(&restore, &memory), "{restore:?}");
        let machine = |line: &[String]| line.iter().find(|one| one.starts_with("q35")).cloned();
        assert!(machine(&restore).is_some_and(|machine| machine.ends_with(",memory-backend=ram")));
        assert_eq!(machine(&save), machine(&restore));
    }
}

/// The value of a key in the list after the option that starts with `prefix`.
fn value_of(line: &[String], prefix: &str, key: &str) -> Option<String> {
    let list = line.iter().find(|word| word.starts_with(prefix))?;
    decode(list)
        .into_iter()
        .find_map(|word| word.strip_prefix(&format!("{key}=")).map(str::to_owned))
}

proptest! {
    #[test]
    fn any_text_comes_back_from_the_command_line(
        id in "[^\0]{1,30}", port in "[^\0]{1,20}", tag in "[^\0]{1,20}", path in "/[^\0]{0,24}",
    ) {
        let spec = MachineSpec {
            id: id.clone(),
            memory_backing: MemoryBacking::SharedMemfd,
            channel: Channel::Serial { port: port.clone(), socket: path.clone().into() },
            devices: vec![
                Device::VirtioFs { tag: tag.clone(), socket: path.clone().into(), queue_size: 1 },
                Device::NineP { tag: tag.clone(), source: path.clone().into() },
                Device::Rng { source: path.clone().into() },
            ],
            ..spec()
        };
        let line = command_line(&spec, Start::Boot, None).expect("expressible");
        for (prefix, key, expected) in [
            ("guest=", "guest", &id),
            ("socket,id=channel,", "path", &path),
            ("virtserialport,", "name", &port),
            ("socket,id=fs0,", "path", &path),
            ("vhost-user-fs-pci,", "tag", &tag),
            ("local,id=fs1,", "path", &path),
            ("virtio-9p-pci,", "mount_tag", &tag),
            ("rng-random,", "filename", &path),
        ] {
            let value = value_of(&line, prefix, key);
            prop_assert_eq!(value.as_ref(), Some(expected), "{} in {:?}", key, line);
        }
    }
}
