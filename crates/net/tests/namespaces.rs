//! Real network namespaces, made by the tests (so these need root, and `ip` and `tc` to look from outside).

use std::process::Command;

use kata_net::{namespace, scan, tap, tc};
use kata_netlink::{Network, Socket};

/// Runs a test on a thread in a namespace of its own, which ends with it.
fn in_namespace(test: impl FnOnce(&Socket) + Send) {
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            namespace::enter_new().expect("these tests need root");
            test(&Socket::open().expect("netlink"));
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command line, words split at blanks; answers what it printed.
#[track_caller]
fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `eth0`, with an end that stands for the outside.
fn make_pair() {
    run("ip link add outside type veth peer name eth0 address 02:00:00:00:11:11");
    run("ip link set eth0 mtu 1400 up");
}

fn scanned(socket: &Socket) -> Network {
    scan::scan(socket).expect("scan")
}

#[test]
fn a_tap_is_carried_over_with_who_holds_it() {
    in_namespace(|there| {
        tap::make(there, "tap0_kata", 1, 1500).expect("make");
        let holder = kata_sys::tun::open_tap("tap0_kata", false).expect("open");
        let left = namespace::own().expect("the namespace");
        namespace::enter_new().expect("another namespace");
        let here = &Socket::open().expect("netlink");
        tap::carry(here, "tap0_kata", 1400, &left).expect("carry");
        let links = here.links().expect("links");
        let tap = links.iter().find(|link| link.name == "tap0_kata");
        let tap = tap.expect("it is here");
        assert!(tap.up && tap.carrier, "its holder has come along: {tap:?}");
        assert_eq!(tap.mtu, 1400);
        let links = there.links().expect("links");
        assert!(links.iter().all(|link| link.name != "tap0_kata"));
        tap::carry(here, "tap0_kata", 1400, &left).expect_err("it has gone already");
        drop(holder);
    });
}

#[test]
fn an_empty_namespace_has_nothing_to_carry() {
    in_namespace(|socket| {
        assert_eq!(scanned(socket), Network::default());
        let lo = socket.links().expect("links");
        assert!(lo.iter().all(|link| link.loopback && link.up));
    });
}

#[test]
fn an_interface_is_read_with_all_that_is_its_own() {
    in_namespace(|socket| {
        make_pair();
        run("ip link set outside up");
        run("ip addr add 10.1.2.3/24 brd + dev eth0");
        run("ip addr add fd00:1::3/64 dev eth0 nodad");
        run("ip route add default via 10.1.2.1 metric 5");
        run("ip route add 10.9.0.0/16 via 10.1.2.2 dev eth0 src 10.1.2.3 mtu 1300");
        run("ip route add 172.16.0.1/32 dev eth0 scope link");
        run("ip route add default via 172.16.0.9 dev eth0 onlink metric 70");
        run("ip route add blackhole 10.66.0.0/16");
        run("ip route add 10.67.0.0/16 via 10.1.2.1 table 100");
        run("ip -6 route add default via fd00:1::1");
        run("ip neigh add 10.1.2.9 lladdr 02:00:00:00:22:22 dev eth0 nud permanent");
        run("ip neigh add 10.1.2.8 lladdr 02:00:00:00:22:23 dev eth0 nud stale");

        let network = scanned(socket);

        let names: Vec<&str> = network.interfaces.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["eth0", "outside"]);
        let eth0 = &network.interfaces[0];
        assert_eq!((eth0.kind.as_str(), eth0.mtu), ("veth", 1400));
        assert_eq!(eth0.mac.to_string(), "02:00:00:00:11:11");
        let addresses: Vec<String> = eth0.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.2.3/24", "fd00:1::3/64"]);
        assert_eq!(
            eth0.addresses[0].broadcast.map(|ip| ip.to_string()).as_deref(),
            Some("10.1.2.255")
        );
        let mut routes: Vec<String> = eth0.routes.iter().map(|r| format!("{r} {}", r.metric)).collect();
        routes.sort();
        assert_eq!(
            routes,
            [
                "0.0.0.0/0 via 10.1.2.1 5",
                "0.0.0.0/0 via 172.16.0.9 70",
                "10.1.2.0/24 0",
                "10.9.0.0/16 via 10.1.2.2 0",
                "172.16.0.1/32 0",
                "::/0 via fd00:1::1 1024",
                "fd00:1::/64 256",
            ]
        );
        let with_source = eth0.routes.iter().find(|route| route.mtu == 1300).expect("the route");
        assert_eq!(with_source.source.map(|ip| ip.to_string()).as_deref(), Some("10.1.2.3"));
        assert!(eth0.routes.iter().any(|route| route.on_link && route.metric == 70));
        let neighbours: Vec<String> = eth0.neighbours.iter().map(ToString::to_string).collect();
        assert_eq!(neighbours, ["10.1.2.9 at 02:00:00:00:22:22"]);
    });
}

#[test]
fn what_is_down_a_port_ours_or_no_ethernet_is_not_carried() {
    in_namespace(|socket| {
        make_pair();
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        run("ip link set eth0 master br0");
        tap::make(socket, "tap0_kata", 1, 1500).expect("tap");
        run("ip tuntap add mode tun name tun9");
        run("ip link set tun9 up");

        let network = scanned(socket);

        let names: Vec<&str> = network.interfaces.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["br0"]);
        assert_eq!(network.left_out.len(), 1, "{:?}", network.left_out);
        assert!(network.left_out[0].starts_with("tun9: it is no Ethernet"));
    });
}

#[test]
fn links_are_joined_and_parted_without_a_trace() {
    in_namespace(|socket| {
        make_pair();
        let before = run("tc qdisc show dev eth0");
        tap::make(socket, "tap0_kata", 2, 1400).expect("tap");
        assert!(run("ip -details link show tap0_kata").contains("multi_queue"));

        tc::join(socket, "eth0", "tap0_kata").expect("join");

        for (from, to) in [("eth0", "tap0_kata"), ("tap0_kata", "eth0")] {
            let filters = run(&format!("tc filter show dev {from} ingress"));
            assert!(
                filters.contains(&format!("Egress Redirect to device {to}")),
                "{filters}"
            );
        }
        let again = tc::join(socket, "eth0", "tap0_kata").expect_err("taken").to_string();
        assert!(again.contains("eth0 has an ingress qdisc already"), "{again}");
        assert!(
            run("tc filter show dev eth0 ingress").contains("Redirect"),
            "the first stays"
        );

        tc::part(socket, "eth0", "tap0_kata").expect("part");
        tc::part(socket, "eth0", "tap0_kata").expect("there is nothing to part");
        socket.remove_link("tap0_kata").expect("remove");
        socket.remove_link("tap0_kata").expect("there is nothing to remove");

        assert_eq!(run("tc qdisc show dev eth0"), before);
        assert!(!run("ip link show").contains("kata"));
        let gone = tc::join(socket, "eth0", "tap0_kata").expect_err("no tap").to_string();
        assert!(gone.contains("no link tap0_kata"), "{gone}");
        assert_eq!(run("tc qdisc show dev eth0"), before);
    });
}

#[test]
fn another_namespace_is_read_from_here() {
    let file = std::env::temp_dir().join(format!("kata-net-{}", std::process::id()));
    std::fs::write(&file, "").expect("file");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root");
            let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    namespace::enter_new().expect("root");
                    make_pair();
                    let own = Some("/proc/thread-self/ns/net");
                    let bind = nix::mount::MsFlags::MS_BIND;
                    nix::mount::mount(own, &file, None::<&str>, bind, None::<&str>).expect("bind");
                });
            });
            let here = namespace::Identity::own().expect("own");
            let socket = Socket::open_in(&file).expect("open");
            assert_eq!(namespace::Identity::own().expect("own"), here, "back again");
            assert_ne!(namespace::Identity::of(&file).expect("its"), here);
            assert_eq!(scanned(&socket).interfaces.len(), 1);
            nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH).expect("umount");
        });
    });
    std::fs::remove_file(&file).expect("remove");
    let error = Socket::open_in(&file).expect_err("gone").to_string();
    assert!(error.contains("cannot enter the network namespace"), "{error}");
}
