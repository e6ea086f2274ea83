//! Podman's networks and pods: containers that are reached, that reach each other, that share a pod, and those without any
//! network.

use std::net::SocketAddr;
use std::time::Duration;

use kata_e2e::against_both;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::podman::Podman;
use kata_e2e::runtime::Kind;
use kata_e2e::wait;

against_both!(
    a_container_on_the_bridge_is_reached,
    containers_of_a_pod_share_its_network,
    a_pod_is_stopped_and_started_again,
    without_a_network_there_is_only_loopback,
    the_network_of_the_host_is_given_or_refused,
    nothing_is_left_of_networks_and_pods,
);

fn podman(kind: Kind) -> &'static Podman<'static> {
    static LABS: [Shared<Lab>; 2] = [const { Shared::new() }; 2];
    static PODMEN: [Shared<Podman>; 2] = [const { Shared::new() }; 2];
    let index = usize::from(kind == Kind::Kata);
    PODMEN[index].get(|| Podman::start(LABS[index].get(Lab::open), kind))
}

/// A command that serves the page `page` on port 80.
fn server(page: &str) -> [String; 3] {
    let script = format!("echo {page} >/tmp/page; exec httpd -f -p 80 -h /tmp");
    ["sh".to_owned(), "-c".to_owned(), script]
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Fetches until there is an answer.
#[track_caller]
fn fetched(lab: &Lab, address: SocketAddr) -> String {
    let page = wait::eventually(Duration::from_secs(20), || lab.fetch(address, "page").ok());
    page.unwrap_or_else(|| panic!("{address}: {:?}", lab.fetch(address, "page")))
}

fn a_container_on_the_bridge_is_reached(kind: Kind) {
    let podman = podman(kind);
    podman
        .run_on_network(&["-d", "--name", "web", "-p", "18080:80"], &[])
        .args(server("web"))
        .run()
        .ok();
    let inspect = ["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web"];
    let ip = podman.podman(inspect).run().ok().text().trim().to_owned();
    let address = SocketAddr::new(ip.parse().expect("an address"), 80);

    assert_eq!(fetched(podman.lab(), address), "web\n");
    assert_eq!(fetched(podman.lab(), local(18080)), "web\n");
    podman
        .podman(["port", "web"])
        .run()
        .ok()
        .says("80/tcp -> 0.0.0.0:18080");
    let script =
        format!("wget -qO- http://{address}/page; ip -o address show dev eth0; ip route; cat /etc/hosts; hostname");
    let other = podman.run_on_network(&["--rm", "--hostname", "other"], &["sh", "-c", &script]);
    other
        .run()
        .ok()
        .says("web\n")
        .says("inet 10.88.0.")
        .says("default via 10.88.0.1")
        .says("\nother\n");

    podman.podman(["rm", "--force", "--time", "0", "web"]).run().ok();
    podman
        .lab()
        .fetch(local(18080), "page")
        .expect_err("the port is free again");
}

fn containers_of_a_pod_share_its_network(kind: Kind) {
    let podman = podman(kind);
    podman
        .pod(&["--name", "shared", "-p", "18081:80", "--hostname", "of-the-pod"])
        .run()
        .ok();
    let run = |flags: &[&str], command: &[&str]| {
        let flags = [&["--pod", "shared"], flags].concat();
        podman.run_on_network(&flags, command)
    };
    run(&["-d", "--name", "serving"], &[]).args(server("shared")).run().ok();

    assert_eq!(fetched(podman.lab(), local(18081)), "shared\n");
    let script = "wget -qO- http://127.0.0.1/page; hostname; echo note >/dev/shm/note";
    run(&["--rm"], &["sh", "-c", script])
        .run()
        .ok()
        .stdout("shared\nof-the-pod\n");
    podman
        .podman(["exec", "serving", "cat", "/dev/shm/note"])
        .run()
        .ok()
        .stdout("note\n");
    podman
        .podman(["exec", "serving", "hostname"])
        .run()
        .ok()
        .stdout("of-the-pod\n");
    let listed = podman.podman(["pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}"]);
    listed.run().ok().says("shared Running 2");
    let top = podman.podman(["pod", "top", "shared"]).run().ok();
    if kind == Kind::Runc {
        top.says("httpd");
    }

    // A container of the pod may come and go; the pod stays.
    run(&["-d", "--name", "guest"], &["sleep", "1000"]).run().ok();
    podman.podman(["rm", "--force", "--time", "0", "guest"]).run().ok();
    assert_eq!(fetched(podman.lab(), local(18081)), "shared\n");
    podman
        .podman(["pod", "rm", "--force", "--time", "0", "shared"])
        .run()
        .ok();
    podman.podman(["ps", "--all", "--quiet"]).run().ok().says_not("serving");
}

fn a_pod_is_stopped_and_started_again(kind: Kind) {
    let podman = podman(kind);
    podman.pod(&["--name", "cycle", "--network", "none"]).run().ok();
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
    podman
        .run_on_network(&["-d", "--pod", "cycle", "--name", "in-cycle"], &["sh", "-c", script])
        .run()
        .ok();
    let status = || {
        podman
            .podman(["pod", "inspect", "--format", "{{.State}}", "cycle"])
            .run()
            .ok()
            .text()
    };

    podman.podman(["pod", "pause", "cycle"]).run().ok();
    podman.podman(["pod", "unpause", "cycle"]).run().ok();
    podman.podman(["exec", "in-cycle", "true"]).run().ok();
    podman.podman(["pod", "stop", "--time", "20", "cycle"]).run().ok();
    assert_eq!(status(), "Exited\n");
    podman.podman(["pod", "start", "cycle"]).run().ok();
    assert_eq!(status(), "Running\n");
    let twice = || podman.podman(["logs", "in-cycle"]).run().text().matches("up").count() == 2;
    wait::until("the container is up again", Duration::from_secs(30), twice);
    podman
        .podman(["pod", "rm", "--force", "--time", "0", "cycle"])
        .run()
        .ok();
}

fn without_a_network_there_is_only_loopback(kind: Kind) {
    let script = "ip -o link | wc -l; ping -c 1 127.0.0.1 >/dev/null && echo loops; ip route";
    podman(kind)
        .run(&["--rm"], &["sh", "-c", script])
        .run()
        .ok()
        .stdout("1\nloops\n");
}

fn the_network_of_the_host_is_given_or_refused(kind: Kind) {
    let lab = Lab::open();
    let podman = Podman::start(&lab, kind);
    let mark = ["link", "add", "name", "mark0", "type", "bridge"];
    lab.command("ip").args(mark).run().ok();
    let run = || {
        podman
            .run_on_network(&["--rm", "--network", "host"], &["ip", "link"])
            .run()
    };
    match kind {
        Kind::Runc => drop(run().ok().says("mark0")),
        Kind::Kata => {
            let refused = || run().failed().complains("host's network");
            refused();
            let before = Snapshot::take(&lab);
            refused();
            before.expect_nothing_more_but(&lab, "a container that is refused", &[&podman.own_mount()]);
        }
    }
}

fn nothing_is_left_of_networks_and_pods(kind: Kind) {
    let lab = Lab::open();
    let podman = Podman::start(&lab, kind);
    let round = |name: &str| {
        podman.pod(&["--name", name, "-p", "18090:80"]).run().ok();
        for number in ["1", "2"] {
            podman
                .run_on_network(&["-d", "--pod", name], &["sleep", "1000"])
                .arg(number)
                .run()
                .ok();
        }
        podman.podman(["pod", "rm", "--force", "--time", "0", name]).run().ok();
        podman.run_on_network(&["--rm", "-p", "18091:80"], &["true"]).run().ok();
    };
    round("first");
    let before = Snapshot::take(&lab);
    round("second");
    // The pod's own cgroup in the hierarchy without a controller is Podman's, which forgets it.
    let own_mount = podman.own_mount();
    let others = ["cgroup /sys/fs/cgroup/systemd/libpod_parent/", &own_mount];
    let after = "a pod of two containers, and a container with a published port";
    before.expect_nothing_more_but(&lab, after, &others);
}
