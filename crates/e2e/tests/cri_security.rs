//! What containers may do and may not, as CRI asks for it: users, capabilities, privileges, seccomp, masked paths.

use kata_e2e::against_nodes;
use kata_e2e::cri::{Container, Node};
use serde_json::{Value, json};

against_nodes!(
    users_and_groups_are_as_asked_for,
    capabilities_are_as_asked_for,
    a_privileged_container_may_what_others_may_not,
    no_new_privileges_holds,
    seccomp_profiles_are_applied,
    paths_are_masked_and_read_only,
);

/// A container of the shared pod that sleeps, with these changes of its security context.
fn sleeper(node: Node, name: &str, context: &Value) -> Container<'static> {
    node.shared_pod()
        .run_container(name, &["sleep", "1000"], |config| merge(config, context))
}

fn merge(config: &mut Value, context: &Value) {
    for (key, value) in context.as_object().expect("an object") {
        config["linux"]["security_context"][key] = value.clone();
    }
}

fn users_and_groups_are_as_asked_for(node: Node) {
    for (name, context, ids) in [
        ("user-root", json!({}), "0 0 0"),
        (
            "user-id",
            json!({"run_as_user": {"value": 1000}}),
            "1000 1000 1000 2000",
        ),
        ("user-unknown", json!({"run_as_user": {"value": 4321}}), "4321 0 0"),
        ("user-name", json!({"run_as_username": "worker"}), "1000 1000 1000 2000"),
        (
            "user-group",
            json!({"run_as_user": {"value": 4321}, "run_as_group": {"value": 77}}),
            "4321 77 77",
        ),
        (
            "user-more",
            json!({"run_as_user": {"value": 4321}, "supplemental_groups": [1234, 5678]}),
            "4321 0 0 1234 5678",
        ),
    ] {
        let container = sleeper(node, name, &context);
        let own = container.sh("echo $(id -u) $(id -g) $(id -G)").ok();
        assert_eq!(own.text().trim(), ids, "{name}: {context}");
        // The first process is who the commands are.
        let first = container
            .sh("grep -E '^(Uid|Gid):' /proc/1/status | tr -s '\\t\\n' ' '")
            .ok()
            .text();
        let words: Vec<_> = ids.split(' ').collect();
        assert!(first.starts_with(&format!("Uid: {} ", words[0])), "{name}: {first}");
        container.sh("touch /tmp/mine && echo $HOME").ok();
        container.remove();
    }
    for (name, context) in [
        ("user-none", json!({"run_as_username": "nobody-knows"})),
        ("user-group-only", json!({"run_as_group": {"value": 77}})),
    ] {
        let pod = node.shared_pod();
        pod.try_container(name, &["true"], |config| merge(config, &context))
            .map(|_| ())
            .expect_err(name);
    }
}

/// The effective capabilities of the first process, as bits.
fn capabilities(container: &Container) -> u64 {
    let line = container.sh("grep CapEff /proc/1/status").ok().text();
    u64::from_str_radix(line.trim_start_matches("CapEff:").trim(), 16).unwrap_or_else(|_| panic!("{line}"))
}

fn capabilities_are_as_asked_for(node: Node) {
    const CHOWN: u64 = 1;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let usual = sleeper(node, "caps-usual", &json!({}));
    let bits = capabilities(&usual);
    assert_eq!(bits, 0xa804_25fb, "{bits:#x}");
    usual.sh("ip link set lo down").failed();
    usual.remove();

    let more = sleeper(
        node,
        "caps-more",
        &json!({"capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CHOWN"]}}),
    );
    let bits = capabilities(&more);
    assert_eq!(bits & (CHOWN | NET_ADMIN | NET_RAW), NET_ADMIN | NET_RAW, "{bits:#x}");
    more.sh("chown 1000 /tmp").failed();
    more.sh("ip link set lo mtu 60000").ok();
    more.remove();

    let none = sleeper(
        node,
        "caps-none",
        &json!({"capabilities": {"drop_capabilities": ["ALL"]}}),
    );
    assert_eq!(capabilities(&none), 0);
    none.remove();
}

fn a_privileged_container_may_what_others_may_not(node: Node) {
    // Only a privileged pod takes privileged containers.
    let pod = node.pod("privileged", |config| {
        config["linux"]["security_context"]["privileged"] = json!(true)
    });
    let script = "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m";
    let privileged = pod.run_container("privileged", &["sleep", "1000"], |config| {
        merge(config, &json!({"privileged": true}))
    });
    privileged.sh(script).ok();
    privileged
        .sh("grep -c ' /sys/fs/cgroup.* cgroup2* rw' /proc/mounts")
        .ok();
    privileged
        .sh("echo 0 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv4/ip_forward")
        .ok();
    privileged
        .sh("ip link add name e2e0 type veth peer name e2e1 2>/dev/null || ip link set lo mtu 60000")
        .ok();
    assert_eq!(capabilities(&privileged) & 1 << 21, 1 << 21, "CAP_SYS_ADMIN");

    let plain = pod.run_container("plain", &["sleep", "1000"], |_| ());
    plain.sh(script).failed();
    plain
        .sh("grep -c ' /sys/fs/cgroup.* cgroup2* rw' /proc/mounts")
        .exit(1)
        .stdout("0\n");
    pod.remove();
    let refused = node.shared_pod().try_container("too-much", &["true"], |config| {
        merge(config, &json!({"privileged": true}))
    });
    refused.map(|_| ()).expect_err("the pod is not privileged");
}

fn no_new_privileges_holds(node: Node) {
    for (name, asked) in [("nnp-on", true), ("nnp-off", false)] {
        let container = sleeper(node, name, &json!({"no_new_privs": asked}));
        let expected = format!("NoNewPrivs:\t{}\n", u8::from(asked));
        container.sh("grep NoNewPrivs /proc/1/status").ok().stdout(&expected);
        container.sh("grep NoNewPrivs /proc/self/status").ok().stdout(&expected);
        container.remove();
    }
}

fn seccomp_profiles_are_applied(node: Node) {
    let file = node.lab().scratch().join(node.named("profile.json"));
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"});
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]});
    std::fs::write(&file, profile.to_string()).expect("the profile");
    for (name, profile, mode, may) in [
        ("seccomp-default", json!({"profile_type": "RuntimeDefault"}), 2, true),
        ("seccomp-none", json!({"profile_type": "Unconfined"}), 0, true),
        (
            "seccomp-own",
            json!({"profile_type": "Localhost", "localhost_ref": file}),
            2,
            false,
        ),
    ] {
        let container = sleeper(node, name, &json!({"seccomp": profile}));
        let status = container.sh("grep Seccomp: /proc/self/status").ok();
        status.stdout(&format!("Seccomp:\t{mode}\n"));
        let code = container.sh("mkdir /tmp/made").code();
        assert_eq!(code == 0, may, "{name}");
        container.remove();
    }
    let missing = json!({"seccomp": {"profile_type": "Localhost", "localhost_ref": "/no/such/profile"}});
    let refused = node
        .shared_pod()
        .try_container("seccomp-missing", &["true"], |config| merge(config, &missing));
    let refusal = refused.map(|_| ()).expect_err("there is no such profile");
    assert!(refusal.message.contains("/no/such/profile"), "{refusal}");
}

fn paths_are_masked_and_read_only(node: Node) {
    let context =
        json!({"readonly_rootfs": true, "masked_paths": ["/etc/passwd", "/home"], "readonly_paths": ["/proc/sys"]});
    let strict = sleeper(node, "paths-strict", &context);
    strict.sh("cat /etc/passwd; ls /home").ok().stdout("");
    strict.sh("touch /tmp/no").failed().complains("read-only");
    strict
        .sh("echo 1 >/proc/sys/net/ipv4/ip_forward")
        .failed()
        .complains("read-only");
    strict.sh("touch /dev/shm/yes").ok();
    strict.remove();

    let usual = sleeper(node, "paths-usual", &json!({}));
    usual.sh("touch /yes; grep -c root /etc/passwd").ok();
    usual.sh("echo 1 >/proc/sys/vm/swappiness").failed();
    usual.sh("echo 1 >/sys/kernel/profiling").failed();
    usual.sh("ls -A /sys/firmware").ok().stdout("");
    usual.remove();
}
