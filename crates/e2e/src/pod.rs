//! A pod of several containers on a network of its own, as the command line makes it.

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::lab::Lab;
use crate::runtime::{Kind, Runtime};

/// The pod's first container, with the name `the-pod`, on a bridge of its own: 10.98.0.2, and the lab is 10.98.0.1.
///
/// # Panics
/// When there is such a bridge already.
#[track_caller]
pub fn on_a_bridge(lab: &Lab, name: &str) -> Bundle {
    let script = format!(
        "set -e
        ip link add br0 type bridge; ip addr add 10.98.0.1/24 dev br0; ip link set br0 up
        ip netns add {name}; ip -n {name} link set lo up
        ip link add veth0 type veth peer name eth0 netns {name}; ip link set veth0 master br0 up
        ip -n {name} link set eth0 address 02:98:00:00:00:02 mtu 1400 up
        ip -n {name} addr add 10.98.0.2/24 dev eth0; ip -n {name} route add default via 10.98.0.1"
    );
    lab.command("sh").args(["-c", &script]).run().ok();
    Bundle::script(lab, name, "trap exit TERM; sleep 1000 & wait").edit(|spec| {
        spec["hostname"] = json!("the-pod");
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.SandboxID": name,
        });
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        let network = namespaces.iter_mut().find(|one| one["type"] == "network");
        network.expect("one")["path"] = json!(format!("/run/netns/{name}"));
    })
}

/// A member of the pod with a limit, so that the machine has to grow for it.
///
/// # Panics
/// When the pod does not run.
#[track_caller]
pub fn member(lab: &Lab, name: &str, pod: &str, script: &str) -> Bundle {
    let pid = Runtime::new(Kind::Kata, lab).state(pod)["pid"].clone();
    let joined = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    Bundle::script(lab, name, script).edit(|spec| {
        spec["linux"]["namespaces"] =
            json!([joined("network", "net"), joined("uts", "uts"), joined("ipc", "ipc"), {"type": "mount"}, {"type": "pid"}]);
        spec["linux"]["resources"]["memory"] = json!({"limit": 200 << 20});
        spec["hostname"] = Value::Null;
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": pod,
        });
    })
}
