//! What becomes of the parts of a specification on their way into the guest.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;

use kata_config::Config;
use kata_plan::{ContainerPlan, Facts, PlanError, SocketPlan, SourceKind};
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
        ("/host/shm", "/dev/shm", &["bind"], ("tmpfs", "tmpfs")),
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

#[test]
fn shared_memory_is_as_large_as_on_the_host() {
    let spec = bind("/containers/shm", "/dev/shm", &["bind", "nosuid"]);
    let bundle = support::bundle(&spec);
    assert_eq!(kata_plan::shm_source(bundle.spec()), Some("/containers/shm".into()));
    assert!(kata_plan::bind_sources(bundle.spec()).is_empty());
    for (host, size) in [(Some(1 << 30), "size=1073741824"), (None, "size=67108864")] {
        let facts = Facts {
            shm_bytes: host,
            ..support::facts()
        };
        let plan = kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap();
        let options = support::guest_spec(&plan)["mounts"][0]["options"].clone();
        assert_eq!(options, json!(["nosuid", "mode=1777", size]));
    }
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
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
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
