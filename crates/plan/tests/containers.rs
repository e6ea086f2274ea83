//! What becomes of the parts of a specification on their way into the guest.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;

use kata_config::Config;
use kata_plan::{
    ContainerPlan, DiskPlan, DiskRootfs, DiskSource, Facts, HugePages, MemoryFacts, MemoryKind, PlanError, RootfsPlan,
    SocketPlan, SourceKind,
};
use serde_json::{Value, json};

fn plan(spec: &Value) -> ContainerPlan {
    let bundle = support::bundle(spec);
    kata_plan::container("c1", &bundle, &Config::default(), &support::facts_for(&bundle)).unwrap()
}

fn plan_with(spec: &Value, source: &str, kind: SourceKind) -> Result<ContainerPlan, PlanError> {
    let facts = Facts {
        source_kinds: [(PathBuf::from(source), kind)].into(),
        ..support::facts()
    };
    kata_plan::container("c1", &support::bundle(spec), &Config::default(), &facts)
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    support::spec_with_mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}))
}

#[test]
fn mounts_of_the_host_become_mounts_of_the_guest() {
    // source, destination, options | type and source in the guest
    for (source, destination, options, wanted) in [
        (
            "/srv",
            "/data",
            &["rbind"][..],
            ("bind", "/run/kata/shared/c1/volumes/0-data"),
        ),
        ("/srv/", "/", &[], ("bind", "/run/kata/shared/c1/volumes/0-root")),
        ("srv", "/a b/ü", &["bind"], ("bind", "/run/kata/shared/c1/volumes/0-_")),
        ("/proc", "/proc", &["rbind"], ("proc", "proc")),
        ("/sys", "/sys", &["rbind", "ro"], ("sysfs", "sysfs")),
        ("/sys/fs/cgroup", "/sys/fs/cgroup", &["rbind"], ("cgroup", "cgroup")),
        ("/sys/kernel", "/k", &["bind"], ("bind", "/sys/kernel")),
        ("/srv/../proc/1", "/p", &["bind"], ("bind", "/proc/1")),
        ("/dev", "/dev", &["rbind"], ("bind", "/dev")),
        (
            "/host/shm",
            "/dev/shm",
            &["bind"],
            ("bind", "/run/kata/memory/a2ef1f26eb6ce469-shm"),
        ),
    ] {
        let guest = support::guest_spec(&plan(&bind(source, destination, options)));
        let mount = &guest["mounts"][0];
        let got = (mount["type"].as_str().unwrap(), mount["source"].as_str().unwrap());
        assert_eq!(got, wanted, "{source} at {destination}");
        assert_eq!(mount["destination"], destination);
        let mut its_options = mount["options"].as_array().into_iter().flatten();
        let binds = its_options.any(|option| option == "bind" || option == "rbind");
        assert_eq!(binds, wanted.0 == "bind", "{source} at {destination}");
    }
}

#[test]
fn volumes_know_how_they_are_bound() {
    for (options, read_only, recursive) in [
        (&["rbind", "ro"][..], true, true),
        (&["bind", "ro", "rw"], false, false),
        (&["bind", "rw", "rro"], true, false),
        (&[], false, false),
    ] {
        let volume = plan(&bind("/srv", "/data", options)).volumes.remove(0);
        assert_eq!(
            (volume.read_only, volume.recursive),
            (read_only, recursive),
            "{options:?}"
        );
        assert_eq!(volume.source, PathBuf::from("/srv"));
        assert_eq!(volume.share_path, PathBuf::from("c1/volumes/0-data"));
    }
}

fn in_memory(kind: MemoryKind, bytes: u64) -> MemoryFacts {
    MemoryFacts {
        kind,
        bytes,
        mode: 0o2777,
        uid: 0,
        gid: 1000,
    }
}

#[test]
fn shared_memory_is_as_large_as_on_the_host_and_the_same_for_all_who_bind_it() {
    let spec = bind("/containers/shm", "/dev/shm", &["bind", "nosuid"]);
    let bundle = support::bundle(&spec);
    assert_eq!(
        kata_plan::memory_sources(bundle.spec()),
        [PathBuf::from("/containers/shm")]
    );
    assert!(kata_plan::bind_sources(bundle.spec()).is_empty());
    let mut names = Vec::new();
    for (host, size) in [(Some(1 << 30), "size=1073741824"), (None, "size=67108864")] {
        let known = host.map(|bytes| (PathBuf::from("/containers/shm"), in_memory(MemoryKind::Tmpfs, bytes)));
        let facts = Facts {
            memory: known.into_iter().collect(),
            ..support::facts()
        };
        let plan = kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap();
        let memory = &plan.memories[0];
        assert_eq!(
            (memory.fs_type.as_str(), &memory.options[..2]),
            ("tmpfs", &["mode=1777".to_owned(), size.into()][..])
        );
        let mount = support::guest_spec(&plan)["mounts"][0].clone();
        assert_eq!(mount["options"], json!(["bind", "nosuid"]));
        names.push(mount["source"].as_str().unwrap().to_owned());
    }
    assert!(
        names[0] == names[1] && names[0].starts_with("/run/kata/memory/"),
        "{names:?}"
    );
}

#[test]
fn an_empty_dir_in_memory_is_the_guests_and_one_on_disk_the_hosts() {
    let source = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache";
    let spec = bind(source, "/cache", &["rbind"]);
    let plan = |memory: Option<MemoryKind>, disabled| {
        let facts = Facts {
            source_kinds: [(PathBuf::from(source), SourceKind::Directory)].into(),
            memory: memory
                .map(|kind| (source.into(), in_memory(kind, 4096)))
                .into_iter()
                .collect(),
            ..support::facts()
        };
        let mut config = Config::default();
        config.runtime.disable_guest_empty_dir = disabled;
        kata_plan::container("c1", &support::bundle(&spec), &config, &facts).unwrap()
    };
    let in_memory = plan(Some(MemoryKind::Tmpfs), false);
    assert_eq!(
        in_memory.memories[0].options,
        ["mode=2777", "size=4096", "uid=0", "gid=1000"]
    );
    assert!(in_memory.volumes.is_empty());
    let huge = plan(Some(MemoryKind::HugePages { page_kib: 2048 }), true);
    assert_eq!(huge.memories[0].fs_type, "hugetlbfs");
    assert!(huge.memories[0].options.contains(&"pagesize=2048K".into()));
    for shared in [plan(None, false), plan(Some(MemoryKind::Tmpfs), true)] {
        assert!(shared.memories.is_empty() && shared.volumes.len() == 1);
    }
}

#[test]
fn small_volumes_of_values_are_copied() {
    let source = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~configmap/settings";
    for (small, options, copied) in [
        (true, &["rbind", "ro"][..], true),
        (true, &["rbind"], false),
        (false, &["rbind", "ro"], false),
    ] {
        let bundle = support::bundle(&bind(source, "/etc/settings", options));
        assert_eq!(kata_plan::tree_sources(bundle.spec()), [PathBuf::from(source)]);
        let facts = Facts {
            small_trees: small.then(|| source.into()).into_iter().collect(),
            ..support::facts_for(&bundle)
        };
        let plan = kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap();
        assert_eq!(
            (plan.trees.len(), plan.volumes.len()),
            if copied { (1, 0) } else { (0, 1) }
        );
        let source = support::guest_spec(&plan)["mounts"][0]["source"].clone();
        assert_eq!(source == "/run/kata/trees/c1/0-settings", copied, "{source}");
    }
}

#[test]
fn huge_pages_are_those_of_the_limits() {
    let mut spec = support::small_spec();
    spec["linux"]["resources"] = json!({"hugepageLimits": [
        {"pageSize": "2MB", "limit": 5 << 20}, {"pageSize": "1GB", "limit": 0},
    ]});
    let plan = plan(&spec);
    assert_eq!(
        plan.huge_pages,
        [HugePages {
            page_kib: 2048,
            pages: 3
        }]
    );
    let limits = support::guest_spec(&plan)["linux"]["resources"]["hugepageLimits"].clone();
    assert_eq!(limits, json!([{"pageSize": "2MB", "limit": 5 << 20}]));
    spec["linux"]["resources"]["hugepageLimits"][0]["pageSize"] = "2 apples".into();
    let error = plan_with(&spec, "/", SourceKind::Directory).unwrap_err().to_string();
    assert!(error.contains("\"2 apples\" is not the size of a page"), "{error}");
}

#[test]
fn mounts_of_the_host_may_spread_into_a_container_and_not_back() {
    let volume = |options: &[&str]| plan(&bind("/srv", "/data", options)).volumes.remove(0);
    assert!(volume(&["rbind", "rslave"]).follows && volume(&["rbind", "slave"]).follows);
    assert!(!volume(&["rbind", "rprivate"]).follows && !volume(&["rbind"]).follows);
    let error = plan_with(
        &bind("/srv", "/data", &["rbind", "rshared"]),
        "/srv",
        SourceKind::Directory,
    )
    .unwrap_err();
    assert!(error.to_string().contains("cannot mount /srv at /data") && error.to_string().contains("rshared"));
}

#[test]
fn what_cannot_be_mounted_is_refused_by_name() {
    let spec = bind("/srv/x", "/x", &["bind"]);
    for (kind, words) in [
        (
            SourceKind::Missing,
            "cannot mount /srv/x at /x: no such file or directory",
        ),
        (SourceKind::DatagramSocket, "it is a datagram socket"),
        (SourceKind::Fifo, "it is a named pipe"),
        (SourceKind::CharDevice, "it is a character device"),
    ] {
        let error = plan_with(&spec, "/srv/x", kind).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let device = plan_with(
        &bind("/dev/fuse", "/dev/fuse", &["bind"]),
        "/dev/fuse",
        SourceKind::CharDevice,
    )
    .unwrap();
    assert_eq!(support::guest_spec(&device)["mounts"][0]["source"], "/dev/fuse");
    assert!(device.volumes.is_empty());

    let bundle = support::bundle(&support::spec_with_mount(
        json!({"destination": "/m", "type": "ext4", "source": "/dev/sda"}),
    ));
    let error = kata_plan::container("c1", &bundle, &Config::default(), &support::facts())
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"ext4\" at /m is not supported yet"), "{error}");
    let unseen = kata_plan::container("c1", &support::bundle(&spec), &Config::default(), &support::facts());
    assert!(matches!(unseen, Err(PlanError::Unsurveyed { .. })));
}

#[test]
fn a_socket_of_the_host_is_one_of_the_guest() {
    let plan = plan_with(
        &bind("/run/x.sock", "/run/docker.sock", &["rbind", "ro"]),
        "/run/x.sock",
        SourceKind::Socket,
    )
    .unwrap();
    let wanted = SocketPlan {
        number: 0,
        source: "/run/x.sock".into(),
        guest_path: "/run/kata/sockets/c1/0".into(),
        destination: "/run/docker.sock".into(),
    };
    assert_eq!(plan.sockets, [wanted]);
    assert!(plan.volumes.is_empty());
    assert_eq!(
        support::guest_spec(&plan)["mounts"][0],
        json!({
            "destination": "/run/docker.sock",
            "type": "bind",
            "source": "/run/kata/sockets/c1/0",
            "options": ["rbind", "ro"],
        })
    );
}

#[test]
fn block_devices_become_disks_and_their_rules_stay() {
    let mut spec = bind("/dev/loop1", "/dev/xvdb", &["bind", "ro"]);
    spec["linux"]["devices"] = json!([
        {"path": "/dev/xvda", "type": "b", "major": 7, "minor": 0},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
    ]);
    spec["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"},
    ]});
    let facts = Facts {
        source_kinds: [(PathBuf::from("/dev/loop1"), SourceKind::BlockDevice)].into(),
        block_devices: [(PathBuf::from("/dev/loop1"), (7, 1))].into(),
        ..support::facts()
    };
    let plan = kata_plan::container("c1", &support::bundle(&spec), &Config::default(), &facts).unwrap();

    let disk = |name: &str, minor| DiskPlan {
        name: name.into(),
        source: DiskSource::Device { major: 7, minor },
        read_only: true,
        mount: None,
    };
    assert_eq!(plan.disks, [disk("device-0", 0), disk("mount-0", 1)]);
    let guest = support::guest_spec(&plan);
    assert_eq!(guest["mounts"][0]["source"], "/run/kata/disks/c1/mount-0");
    assert_eq!(guest["linux"]["devices"].as_array().unwrap().len(), 2);
    let rules = guest["linux"]["resources"]["devices"].as_array().unwrap();
    let majors: Vec<Option<i64>> = rules.iter().map(|rule| rule["major"].as_i64()).collect();
    assert_eq!(
        majors,
        [None, Some(7), Some(10), None],
        "8:0 may be another's disk in the guest"
    );
}

#[test]
fn devices_that_no_guest_has_are_refused_unless_all_of_the_host_are_given() {
    let mut spec = support::small_spec();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/ttyS0", "type": "c", "major": 4, "minor": 64},
        {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
    ]);
    let bundle = support::bundle(&spec);
    let error = kata_plan::container("c1", &bundle, &Config::default(), &support::facts()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the device /dev/ttyS0 (c 4:64) cannot be given to a guest"
    );
    spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let plan = plan(&spec);
    assert!(plan.disks.is_empty());
    let devices = support::guest_spec(&plan)["linux"]["devices"].clone();
    assert_eq!(devices.as_array().unwrap().len(), 1);
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("2 of the host's are left out"))
    );
}

#[test]
fn a_root_file_system_on_a_disk_is_mounted_by_the_guest_if_it_can() {
    let plan = |fs_type: &str, options: &[&str], disabled| {
        let facts = Facts {
            disk_rootfs: Some(DiskRootfs {
                source: DiskSource::Device { major: 253, minor: 3 },
                fs_type: fs_type.into(),
                options: options.iter().map(ToString::to_string).collect(),
            }),
            ..support::facts()
        };
        let mut config = Config::default();
        config.qemu.disable_block_device_use = disabled;
        kata_plan::container("c1", &support::bundle(&support::small_spec()), &config, &facts).unwrap()
    };
    let on_disk = plan("ext4", &["ro", "noatime", "loop"], false);
    assert_eq!(on_disk.rootfs, RootfsPlan::Disk);
    let mount = on_disk.disks[0].mount.clone().unwrap();
    assert_eq!(mount.options, ["ro", "noatime"]);
    assert_eq!(
        support::guest_spec(&on_disk)["root"]["path"],
        mount.mount_point.as_str()
    );
    assert!(on_disk.disks[0].read_only);
    for shared in [plan("xfs", &[], false), plan("ext4", &[], true)] {
        assert!(matches!(shared.rootfs, RootfsPlan::Shared { .. }) && shared.disks.is_empty());
    }
}

#[test]
fn cgroup_paths_are_absolute_and_stay_below_the_root() {
    for (wanted, path) in [
        (json!("/machine.slice/libpod-1.scope"), "/machine.slice/libpod-1.scope"),
        (json!("default/c1"), "/default/c1"),
        (json!("system.slice:docker:abc"), "/system.slice/docker-abc.scope"),
        (json!("system.slice::abc"), "/system.slice/abc.scope"),
        (json!("machine.slice:x:pod.slice"), "/machine.slice/pod.slice"),
        (json!("../../up"), "/up"),
        (json!(""), "/c1"),
        (json!(".."), "/c1"),
        (Value::Null, "/c1"),
    ] {
        let mut spec = support::small_spec();
        spec["linux"]["cgroupsPath"] = wanted.clone();
        let guest = support::guest_spec(&plan(&spec));
        assert_eq!(guest["linux"]["cgroupsPath"], path, "{wanted}");
    }
}

#[test]
fn resources_lose_what_only_the_host_has() {
    let mut spec = support::small_spec();
    spec["linux"]["resources"] = json!({
        "cpu": {"shares": 512, "quota": 50000, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 1048576},
        "pids": {"limit": 10},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "network": {"classID": 1},
        "rdma": {"mlx": {"hcaHandles": 1}},
        "unified": {"memory.high": "1M", "cpuset.cpus": "0", "io.max": "8:0 rbps=1"},
    });
    let plan = plan(&spec);
    let resources = support::guest_spec(&plan)["linux"]["resources"].clone();
    assert_eq!(
        resources,
        json!({
            "cpu": {"shares": 512, "quota": 50000},
            "memory": {"limit": 1048576},
            "pids": {"limit": 10},
            "blockIO": {"weight": 100},
            "unified": {"memory.high": "1M"},
        })
    );
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("CPU and memory node numbers")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn only_hooks_of_the_container_stay() {
    let mut spec = support::small_spec();
    let hook = json!([{"path": "/bin/hook"}]);
    spec["hooks"] = json!({"prestart": hook, "createRuntime": hook, "startContainer": hook, "poststop": hook});
    let plan = plan(&spec);
    assert_eq!(support::guest_spec(&plan)["hooks"], json!({"startContainer": hook}));
}

#[test]
fn user_namespaces_of_others_and_idmapped_mounts_are_refused() {
    let mut spec = support::small_spec();
    spec["linux"]["namespaces"] = json!([{"type": "user", "path": "/proc/7/ns/user"}]);
    let error = plan_with(&spec, "/", SourceKind::Directory).unwrap_err().to_string();
    assert!(
        error.contains("joining the user namespace /proc/7/ns/user is not supported yet"),
        "{error}"
    );
    let error = plan_with(&bind("/srv", "/d", &["bind", "idmap"]), "/srv", SourceKind::Directory).unwrap_err();
    assert!(error.to_string().contains("an idmapped mount (at /d)"), "{error}");
}

#[test]
fn processes_lose_what_means_nothing_in_the_guest() {
    let process = json!({
        "user": {"uid": 1, "gid": 2},
        "args": ["id"],
        "cwd": "/",
        "apparmorProfile": "docker-default",
        "selinuxLabel": "system_u:system_r:container_t:s0",
        "execCPUAffinity": {"initial": "0", "final": "1"},
        "oomScoreAdj": 100,
    });
    let parsed = serde_json::from_value(process).unwrap();
    let sent: Value = serde_json::from_slice(&kata_plan::exec_process("e", &parsed).unwrap()).unwrap();
    assert_eq!(
        sent,
        json!({"user": {"uid": 1, "gid": 2}, "args": ["id"], "cwd": "/", "oomScoreAdj": 100})
    );
    let relative = serde_json::from_value(json!({"user": {}, "args": ["id"], "cwd": "tmp"})).unwrap();
    assert!(matches!(
        kata_plan::exec_process("e", &relative),
        Err(PlanError::Process(_))
    ));
    for id in ["", "..", "a/b"] {
        let refused = kata_plan::exec_process(id, &parsed);
        assert!(matches!(refused, Err(PlanError::Id { .. })), "{id}");
    }
}

#[test]
fn a_printout_shows_both_plans() {
    let spec = bind("/srv/a", "/data", &["ro"]);
    let bundle = support::bundle(&spec);
    let facts = support::facts_for(&bundle);
    let pod = kata_plan::pod("c1", &bundle, &Config::default(), &facts).unwrap();
    let container = kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap();
    let command_line = ["/usr/bin/qemu", "-append", "quiet panic=-1", "-nodefaults"].map(String::from);
    let printout = kata_plan::Printout {
        pod: &pod,
        container: &container,
        command_line: &command_line,
    };
    let page = printout.to_string();
    assert!(page.contains("volume: /srv/a at /data (read-only)"), "{page}");
    assert!(
        page.contains("\\\n      -append 'quiet panic=-1' \\\n      -nodefaults\n"),
        "{page}"
    );
    let json: Value = serde_json::from_str(&printout.to_json().unwrap()).unwrap();
    assert_eq!(json["container"]["guest"]["spec"]["process"]["args"], json!(["sh"]));
}

#[test]
fn an_update_reaches_the_guest_without_what_is_settled_or_the_hosts() {
    let given = json!({
        "cpu": {"quota": 5000, "cpus": "0-1", "mems": "0", "realtimeRuntime": 9},
        "memory": {"limit": 1048576, "kernel": 5, "swappiness": 10, "disableOOMKiller": true},
        "devices": [{"allow": false, "access": "rwm"}],
        "hugepageLimits": [{"pageSize": "2MB", "limit": 7}],
        "pids": {"limit": 9},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
        "unified": {"io.max": "8:0 rbps=1", "memory.high": "5"},
    });
    let update = kata_plan::update(given.to_string().as_bytes()).unwrap();
    let guest: Value = serde_json::from_slice(&update.guest_json).unwrap();
    assert_eq!(guest["cpu"], json!({"quota": 5000, "realtimeRuntime": 9}));
    assert_eq!(guest["memory"]["limit"], 1_048_576);
    assert_eq!(guest["blockIO"], json!({"weight": 100}));
    assert_eq!(
        (&guest["pids"], &guest["unified"]),
        (&json!({"limit": 9}), &json!({"memory.high": "5"}))
    );
    assert!(
        guest.get("devices").is_none() && guest.get("hugepageLimits").is_none(),
        "{guest}"
    );
    for word in [
        "numbers are the host's",
        "real-time",
        "kernel memory",
        "swappiness",
        "killer",
        "I/O limits of devices",
    ] {
        assert!(
            update.notes.iter().any(|note| note.contains(word)),
            "{word}: {:?}",
            update.notes
        );
    }
    let error = kata_plan::update(b"[").unwrap_err().to_string();
    assert!(error.contains("linux.resources"), "{error}");
}

#[test]
fn labels_of_the_host_mean_something_to_the_vmm_or_nothing() {
    let mut spec = support::small_spec();
    spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_kvm_t:s0");
    spec["process"]["apparmorProfile"] = json!("docker-default");
    let bundle = support::bundle(&spec);
    let label = |selinux, disable_selinux| {
        let facts = Facts {
            selinux,
            ..support::facts()
        };
        let mut config = Config::default();
        config.qemu.disable_selinux = disable_selinux;
        kata_plan::pod("c1", &bundle, &config, &facts).unwrap().vmm_label
    };
    assert_eq!(
        label(true, false).as_deref(),
        Some("system_u:system_r:container_kvm_t:s0")
    );
    assert_eq!((label(false, false), label(true, true)), (None, None));
    let container = kata_plan::container("c1", &bundle, &Config::default(), &support::facts()).unwrap();
    assert!(
        container
            .notes
            .iter()
            .any(|note| note.contains("AppArmor profile docker-default")),
        "{:?}",
        container.notes
    );
    let guest = String::from_utf8(container.guest.spec_json).unwrap();
    assert!(
        !guest.contains("container_kvm_t") && !guest.contains("docker-default"),
        "{guest}"
    );
}
