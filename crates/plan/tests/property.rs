//! Whatever a specification says, nothing of the host reaches the guest.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use kata_config::Config;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Every path of the host begins so, and nothing else does.
const HOST: &str = "/HOST";

fn host_path() -> impl Strategy<Value = String> {
    "[a-z.]{1,8}".prop_map(|name| format!("{HOST}/{name}"))
}

fn mount() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec![
        "bind", "none", "tmpfs", "proc", "sysfs", "cgroup", "mqueue", "devpts",
    ]);
    let option = prop::sample::select(vec![
        "rbind",
        "ro",
        "rw",
        "nosuid",
        "rprivate",
        "context=\"/HOST\"",
        "size=1k",
    ]);
    let destination = prop_oneof!["/[a-z]{1,6}(/[a-zA-Z0-9 .]{1,6})?", Just("/dev/shm".to_owned())];
    (kind, destination, host_path(), prop::collection::vec(option, 0..4)).prop_map(|(kind, to, from, options)| {
        let mut options: Vec<_> = options.into_iter().map(str::to_owned).collect();
        if kind == "none" {
            options.push("bind".into());
        }
        json!({"destination": to, "type": kind, "source": from, "options": options})
    })
}

fn namespace() -> impl Strategy<Value = Vec<Value>> {
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    prop::sample::subsequence(kinds.to_vec(), 0..=kinds.len()).prop_flat_map(|kinds| {
        let with_paths = kinds.into_iter().map(|kind| {
            prop::option::of(host_path()).prop_map(move |path| match path {
                Some(path) => json!({"type": kind, "path": path}),
                None => json!({"type": kind}),
            })
        });
        with_paths.collect::<Vec<_>>()
    })
}

prop_compose! {
    fn spec()(
        mounts in prop::collection::vec(mount(), 0..6),
        namespaces in namespace(),
        hook in host_path(),
        annotation in host_path(),
        label in host_path(),
        cgroup in "[a-zA-Z0-9./:_-]{0,30}",
    ) -> Value {
        let hooks = json!([{"path": hook}]);
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
                "apparmorProfile": label, "selinuxLabel": label,
            },
            "root": {"path": format!("{HOST}/rootfs")},
            "mounts": mounts,
            "hooks": {
                "prestart": hooks, "createRuntime": hooks, "createContainer": hooks,
                "poststart": hooks, "poststop": hooks,
            },
            "annotations": {"where": annotation},
            "linux": {
                "namespaces": namespaces, "cgroupsPath": cgroup, "mountLabel": label,
                "intelRdt": {"closID": label}, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            },
        })
    }
}

proptest! {
    #[test]
    fn the_guest_learns_nothing_of_the_host(spec in spec()) {
        let bundle = support::bundle(&spec);
        let facts = support::facts_for(&bundle);
        let plan = kata_plan::container("c1", &bundle, &Config::default(), &facts).unwrap();
        let text = String::from_utf8(plan.guest.spec_json.clone()).unwrap();
        prop_assert!(!text.contains(HOST), "{}", text);

        let guest = support::guest_spec(&plan);
        for namespace in guest["linux"]["namespaces"].as_array().unwrap() {
            prop_assert!(namespace.get("path").is_none() && namespace["type"] != "network");
        }
        prop_assert!(guest.get("hooks").is_none());
        let cgroup = guest["linux"]["cgroupsPath"].as_str().unwrap();
        prop_assert!(cgroup.starts_with('/') && cgroup.len() > 1 && !cgroup.split('/').any(|part| part == ".."));

        let mut places: Vec<_> = plan.volumes.iter().map(|volume| &volume.share_path).collect();
        places.sort();
        places.dedup();
        prop_assert_eq!(places.len(), plan.volumes.len());
        for volume in &plan.volumes {
            prop_assert!(volume.share_path.starts_with("c1/volumes") && volume.share_path.components().count() == 3);
        }
    }
}
