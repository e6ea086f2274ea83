//! The pods' network as real CNI plug-ins make it: addresses, published ports, name servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kata_e2e::against_nodes;
use kata_e2e::cri::{Container, Node, Pod};
use kata_e2e::wait;
use serde_json::json;

against_nodes!(
    pods_reach_each_other_and_the_host,
    ports_are_published,
    name_servers_are_as_asked_for
);

/// A container that serves the page `page` on this port.
fn server<'pod>(pod: &'pod Pod<'pod>, port: u16, page: &str) -> Container<'pod> {
    let script = format!("echo {page} >/tmp/page; exec httpd -f -p {port} -h /tmp");
    let server = pod.run_container(&format!("server-{port}"), &["sh", "-c", &script], |_| ());
    let up = || server.sh(&format!("wget -qO- http://127.0.0.1:{port}/page")).code() == 0;
    wait::until("the server is up", Duration::from_secs(20), up);
    server
}

fn pods_reach_each_other_and_the_host(node: Node) {
    let (one, lab) = (node.shared_pod(), node.lab());
    let two = node.pod("second", |_| ());
    let serving = server(one, 8080, "one");
    let client = two.run_container("client", &["sleep", "1000"], |_| ());

    assert_eq!(lab.fetch(one.port(8080), "page").expect("from the host"), "one\n");
    client
        .sh(&format!("wget -qO- http://{}/page", one.port(8080)))
        .ok()
        .stdout("one\n");
    client.sh(&format!("ping -c 1 -W 30 {}", one.ip())).ok();
    client
        .sh(&format!("timeout 5 wget -qO- http://{}/page", one.port(9)))
        .failed();
    let addresses = client.sh("ip -o address show dev eth0").ok();
    addresses.says(&format!("inet {}/16", two.ip()));
    client.sh("ip route").ok().says("default via 10.87.0.1 dev eth0");
    client.sh("ping -c 1 -W 30 10.87.0.1").ok();

    // More than one segment, both ways.
    serving.sh("head -c 5000000 /dev/zero >/tmp/large").ok();
    client
        .sh(&format!("wget -qO- http://{}/large | wc -c", one.port(8080)))
        .ok()
        .stdout("5000000\n");
    let sink = one.run_container("sink", &["nc", "-l", "-p", "8090", "-e", "wc", "-c"], |_| ());
    let push = format!(
        "until head -c 5000000 /dev/zero | nc {} 8090 2>/dev/null; do sleep 0.2; done",
        one.ip()
    );
    client.sh(&push).ok().stdout("5000000\n");
    assert_eq!(sink.await_exit()["exit_code"], 0);

    let address = two.ip();
    two.remove();
    let refused = lab
        .command("ping")
        .args(["-c", "1", "-W", "1"])
        .arg(address.to_string())
        .run();
    refused.failed();
}

fn ports_are_published(node: Node) {
    // By kind and release they differ, since tests of one lab may run at once.
    let host_port = 12000
        + if node.kind == kata_e2e::runtime::Kind::Kata {
            1
        } else {
            0
        };
    let pod = node.pod("published", |config| {
        config["port_mappings"] = json!([
            {"protocol": "TCP", "container_port": 80, "host_port": host_port},
            {"protocol": "TCP", "container_port": 81},
        ]);
    });
    let _published = server(&pod, 80, "published");
    let _plain = server(&pod, 81, "plain");
    let lab = node.lab();
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), host_port);
    let on_bridge = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 87, 0, 1)), host_port);

    assert_eq!(lab.fetch(local, "page").expect("at the host's loopback"), "published\n");
    assert_eq!(
        lab.fetch(on_bridge, "page").expect("at the host's address"),
        "published\n"
    );
    assert_eq!(
        lab.fetch(pod.port(81), "page").expect("at the pod's address"),
        "plain\n"
    );
    pod.remove();
    lab.fetch(local, "page").expect_err("the port is free again");
}

fn name_servers_are_as_asked_for(node: Node) {
    let dns = json!({"servers": ["10.10.10.10", "10.10.10.11"], "searches": ["e2e.test", "svc.e2e.test"], "options": ["ndots:5"]});
    let pod = node.pod("names", |config| {
        config["dns_config"] = dns;
        config["hostname"] = json!("a-host-name");
    });
    let container = pod.run_container("in", &["sleep", "1000"], |_| ());
    container
        .sh("cat /etc/resolv.conf")
        .ok()
        .stdout("search e2e.test svc.e2e.test\nnameserver 10.10.10.10\nnameserver 10.10.10.11\noptions ndots:5\n");
    container
        .sh("hostname; cat /proc/sys/kernel/hostname /etc/hostname")
        .ok()
        .stdout("a-host-name\na-host-name\na-host-name\n");
    container.sh("grep -c localhost /etc/hosts").ok();
    container
        .sh("echo 1.2.3.4 named >>/etc/hosts; ping -c 1 -W 1 named 2>&1 | head -n 1")
        .ok()
        .says("1.2.3.4");
    pod.remove();
}
