//! The pod's network: what its namespace has is in the guest, and after the pod nothing of ours is in the namespace.

use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::json;

/// A lab with two bridges, whose addresses do not follow those of their ports, a web server that serves `download`, and
/// pods' namespaces beside it.
fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(|| {
        let lab = Lab::open();
        let www = lab.scratch().join("www");
        std::fs::create_dir(&www).expect("www");
        std::fs::write(www.join("download"), contents()).expect("download");
        let script = format!(
            "set -e
            for n in 1 2; do
                ip link add br$n address 02:99:00:00:00:0$n type bridge
                ip addr add 10.99.$n.1/24 dev br$n
                ip addr add fd99:$n::1/64 dev br$n nodad
                ip link set br$n up
            done
            busybox httpd -p 8000 -h {}",
            www.display()
        );
        sh(&lab, &script);
        lab
    })
}

/// 3 MB that no two pieces of are the same.
fn contents() -> String {
    (0..400_000).map(|number| format!("{number:07}\n")).collect()
}

#[track_caller]
fn sh(lab: &Lab, script: &str) -> String {
    lab.command("sh").args(["-c", script]).run().ok().text()
}

fn runtime() -> Runtime<'static> {
    Runtime::new(Kind::Kata, lab())
}

/// A namespace with loopback up and `links` interfaces: eth0 on br1 with address .NUMBER, net1 on br2 likewise.
fn namespace(name: &str, number: u32, links: usize) -> PathBuf {
    let mut script = format!("set -e; ip netns add {name}; ip -n {name} link set lo up\n");
    for (bridge, link) in [(1, "eth0"), (2, "net1")].into_iter().take(links) {
        script.push_str(&format!(
            "ip link add {name}{bridge} type veth peer name {link} netns {name}
            ip link set {name}{bridge} master br{bridge} up
            ip -n {name} link set {link} mtu {} up
            ip -n {name} addr add 10.99.{bridge}.{number}/24 brd + dev {link}
            ip -n {name} addr add fd99:{bridge}::{number}/64 dev {link} nodad\n",
            1500 - 50 * bridge
        ));
    }
    if links > 0 {
        script.push_str(&format!(
            "ip -n {name} route add default via 10.99.1.1; ip -n {name} -6 route add default via fd99:1::1"
        ));
    }
    sh(lab(), &script);
    PathBuf::from(format!("/run/netns/{name}"))
}

/// A container in the namespace at `path`, or in a new one.
fn bundle(lab: &Lab, name: &str, path: Option<&PathBuf>, script: &str) -> Bundle {
    Bundle::script(lab, name, script).edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        let network = namespaces.iter_mut().find(|one| one["type"] == "network");
        if let Some(path) = path {
            network.expect("one")["path"] = json!(path);
        }
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_KILL"]);
        }
    })
}

fn begin(runtime: &Runtime, bundle: &Bundle, id: &str, configuration: &str) {
    runtime.create_with(bundle, id, configuration).ok();
    runtime.start(id).ok();
}

#[track_caller]
fn inside(runtime: &Runtime, id: &str, script: &str) -> String {
    runtime.exec(id, script).run().ok().text()
}

/// Of several packets one is answered: the first may be lost while addresses are resolved.
#[track_caller]
fn ping(runtime: &Runtime, id: &str, address: &str) {
    let tries = format!("for i in 1 2 3 4 5 6; do ping -c 1 -W 5 {address} && break; done");
    inside(runtime, id, &tries);
}

/// Links, queueing and filters of a namespace, and what hangs on its links: all that a sandbox might leave there.
fn traces(name: &str) -> String {
    sh(
        lab(),
        &format!(
            "ip -n {name} -o link | sed 's/ state .*//'; tc -n {name} qdisc show
            for dev in $(ip -n {name} -o link | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/'); do
                tc -n {name} filter show dev $dev ingress
            done"
        ),
    )
}

/// The digest of what a pod serves on port 8080. A static busybox cannot fetch it on a host with name services.
#[track_caller]
fn fetch(address: &str, file: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/8080; printf 'GET /{file} HTTP/1.0\\r\\n\\r\\n' >&3
        sed '1,/^\r$/d' <&3 | md5sum"
    );
    lab().command("bash").args(["-c", &script]).run().ok().text()
}

const KEEPS_RUNNING: &str = "while :; do sleep 1; done";

#[test]
fn a_pod_has_the_network_of_its_namespace() {
    let runtime = runtime();
    let id = "whole";
    let path = namespace(id, 10, 2);
    sh(
        lab(),
        "set -e
        ip -n whole addr add 10.99.1.110/32 dev eth0
        ip -n whole route add 10.50.0.0/16 via 10.99.2.1 dev net1 src 10.99.2.10 metric 7
        ip -n whole route add 10.51.0.1/32 dev eth0 scope link
        ip -n whole route add 10.52.0.0/16 via 10.51.0.1 dev eth0 onlink
        ip -n whole neigh add 10.99.1.77 lladdr 02:00:00:00:77:77 dev eth0 nud permanent",
    );
    let before = traces(id);
    // The same program looks at the namespace and at the guest.
    let looks = "for dev in eth0 net1; do cat /sys/class/net/$dev/address /sys/class/net/$dev/mtu; done
        ip -4 addr | grep -o 'inet [^ ]*\\( brd [^ ]*\\)*'; ip -6 addr | grep -o 'inet6 [^ ]*'
        ip route | sed 's/ *$//'; ip -6 route | grep -v ^multicast | sort | sed 's/ *$//'";
    let outside = sh(
        lab(),
        &format!(
            "ip netns exec {id} busybox sh -c '{}'",
            looks.replace('\'', "'\\''").replace("ip ", "busybox ip ")
        ),
    );
    let bundle = bundle(
        lab(),
        id,
        Some(&path),
        "busybox httpd -p 8080 -h /tmp; while :; do sleep 1; done",
    )
    .edit(|spec| {
        spec["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 4000"});
    });
    std::fs::write(bundle.rootfs().join("tmp/upload"), contents()).expect("upload");

    begin(&runtime, &bundle, id, "[hypervisor.qemu]\ndefault_vcpus = 2\n");

    assert_eq!(inside(&runtime, id, looks), outside);
    assert!(
        inside(&runtime, id, "ip neigh show nud permanent").contains("10.99.1.77 dev eth0 lladdr 02:00:00:00:77:77")
    );
    assert_eq!(
        inside(&runtime, id, "cat /proc/sys/net/ipv4/ping_group_range").trim(),
        "0\t4000"
    );
    assert_eq!(
        inside(&runtime, id, "ls -d /sys/class/net/eth0/queues/rx-* | wc -l").trim(),
        "2"
    );
    let pid = runtime.state(id)["pid"].to_string();
    assert_eq!(
        sh(lab(), &format!("stat -L -c %i /proc/{pid}/ns/net")),
        sh(lab(), &format!("stat -L -c %i {}", path.display())),
        "engines find the namespace by the pid"
    );

    for address in ["10.99.1.1", "10.99.2.1", "fd99:1::1", "fd99:2::1"] {
        ping(&runtime, id, address);
    }
    let digest = sh(lab(), &format!("md5sum <{}/www/download", lab().scratch().display()));
    let down = inside(&runtime, id, "wget -q -O - http://10.99.1.1:8000/download | md5sum");
    assert_eq!(down, digest, "host to pod");
    for address in ["10.99.1.10", "10.99.2.10", "10.99.1.110", "fd99:1::10"] {
        assert_eq!(fetch(address, "upload"), digest, "pod to host over {address}");
    }
    let events = runtime.verb("events").args(["--stats", id]).run().ok().json();
    let interfaces = events["data"]["network_interfaces"].as_array().expect("interfaces");
    let names: Vec<&str> = interfaces.iter().filter_map(|one| one["Name"].as_str()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    assert!(interfaces[0]["RxBytes"].as_u64() > Some(3_000_000) && interfaces[0]["TxBytes"].as_u64() > Some(3_000_000));

    runtime.delete_force(id).ok();
    assert_eq!(traces(id), before);
}

#[test]
fn killed_sandboxes_leave_nothing_in_the_namespace() {
    let runtime = runtime();
    for (id, number, model) in [("killed-tc", 20, "tcfilter"), ("killed-mv", 21, "macvtap")] {
        let path = namespace(id, number, 1);
        let before = traces(id);
        let bundle = bundle(lab(), id, Some(&path), KEEPS_RUNNING);
        let configuration = format!("[runtime]\ninternetworking_model = {model:?}\n");
        runtime.create_with(&bundle, id, &configuration).ok();
        assert_ne!(traces(id), before);

        pids::kill_part(lab(), id, Part::Shim);
        runtime.delete_force(id).ok();

        assert_eq!(traces(id), before, "{model}");
    }
}

#[test]
fn a_pod_in_a_microvm_reaches_the_world_over_macvtaps() {
    let runtime = runtime();
    let id = "macvtap";
    let path = namespace(id, 30, 1);
    let before = traces(id);
    let mac = sh(lab(), "ip netns exec macvtap cat /sys/class/net/eth0/address");
    let bundle = bundle(lab(), id, Some(&path), KEEPS_RUNNING);

    begin(
        &runtime,
        &bundle,
        id,
        "[hypervisor.qemu]\nmachine_type = \"microvm\"\nnetwork_queues = 2\n[runtime]\ninternetworking_model = \"macvtap\"\n",
    );

    assert_eq!(inside(&runtime, id, "cat /sys/class/net/eth0/address"), mac);
    for address in ["10.99.1.1", "fd99:1::1"] {
        ping(&runtime, id, address);
    }
    let size = inside(&runtime, id, "wget -q -O - http://10.99.1.1:8000/download | wc -c");
    assert_eq!(size.trim(), "3200000");
    runtime.delete_force(id).ok();
    assert_eq!(traces(id), before);
}

#[test]
fn links_that_come_between_create_and_start_are_found() {
    let runtime = runtime();
    let id = "late";
    let bundle = bundle(lab(), id, None, KEEPS_RUNNING);
    // Somebody else's macvtaps have the numbers that this pod's taps will have, and with them the nodes in /dev.
    sh(
        lab(),
        "set -e
        ip netns add foreign
        ip -n foreign link add veth0 index 20 type veth peer name veth1 index 21
        for n in 2 3; do ip -n foreign link add link veth0 name macvtap$n index $n type macvtap; done
        test -c /dev/tap2 -a -c /dev/tap3",
    );
    runtime.create_with(&bundle, id, "").ok();
    let pid = runtime.state(id)["pid"].to_string();
    let own = sh(lab(), "stat -L -c %i /proc/self/ns/net");
    assert_ne!(sh(lab(), &format!("stat -L -c %i /proc/{pid}/ns/net")), own);

    // As Docker does it: by the pid, and with names of its own at first.
    sh(
        lab(),
        &format!(
            "set -e
            for n in 1 2; do
                ip link add late$n type veth peer name tmp$n
                ip link set late$n master br$n up
                ip link set tmp$n netns {pid}
                nsenter -t {pid} -n sh -c \"
                    ip link set tmp$n name eth$n; ip link set eth$n mtu 1480 up; ip addr add 10.99.$n.40/24 dev eth$n\"
            done
            nsenter -t {pid} -n ip route add default via 10.99.1.1"
        ),
    );
    runtime.start(id).ok();

    assert!(inside(&runtime, id, "ip -4 addr show dev eth2").contains("mtu 1480"));
    for address in ["10.99.1.1", "10.99.2.1"] {
        ping(&runtime, id, address);
    }
    assert!(inside(&runtime, id, "ip route").contains("default via 10.99.1.1 dev eth1"));
    runtime.delete_force(id).ok();
    sh(lab(), "ip netns del foreign");
}

#[test]
fn the_hosts_network_is_refused_before_anything_is_touched() {
    // Of its own: what others do with their links is not to be seen in it.
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    let before = Snapshot::take(&lab);
    let links = sh(&lab, "ip -o link; ip addr; tc qdisc show");
    let own = PathBuf::from("/proc/1/ns/net");
    let without = bundle(&lab, "host-a", None, "true").edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|one| one["type"] != "network");
    });
    for (id, bundle) in [
        ("host-a", without),
        ("host-b", bundle(&lab, "host-b", Some(&own), "true")),
    ] {
        let refused = runtime.create(&bundle, id).failed();
        let refused = refused.complains("the host's network is asked for");
        refused.complains("a virtual machine cannot share it");
        assert!(pids::of_sandbox(&lab, id).is_empty());
    }
    let missing = PathBuf::from("/run/netns/is-not-there");
    let refused = runtime
        .create(&bundle(&lab, "host-c", Some(&missing), "true"), "host-c")
        .failed();
    refused.complains("/run/netns/is-not-there");

    assert_eq!(sh(&lab, "ip -o link; ip addr; tc qdisc show"), links);
    before.expect_nothing_more(&lab, "three refusals");
}

/// Containers that ask for the host's network run, if the configuration says that they get none.
#[test]
fn without_a_network_there_is_loopback() {
    // Of its own: what others do with their links is not to be seen in it.
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    let id = "networkless";
    let links = sh(&lab, "ip -o link");
    let bundle = bundle(&lab, id, None, KEEPS_RUNNING).edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|one| one["type"] != "network");
    });

    begin(
        &runtime,
        &bundle,
        id,
        "[runtime]\ninternetworking_model = \"none\"\ndisable_new_netns = true\n",
    );

    assert_eq!(inside(&runtime, id, "ls /sys/class/net"), "lo\n");
    ping(&runtime, id, "127.0.0.1");
    assert_eq!(sh(&lab, "ip -o link"), links);
    runtime.delete_force(id).ok();
    wait::until("the pod is gone", Duration::from_secs(30), || {
        pids::of_sandbox(&lab, id).is_empty()
    });
}
