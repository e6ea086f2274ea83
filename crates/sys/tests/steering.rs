//! Steering of connections, in a network namespace of the test's own (so this needs root).

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use kata_sys::loopback;
use kata_sys::steering::Steering;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// Runs a test on a thread that has a network namespace of its own, with loopback.
fn alone(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            loopback::up().expect("loopback");
            test();
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn listen(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).expect("bind");
    listener.set_nonblocking(true).expect("set");
    listener
}

fn begin(v4: &TcpListener, v6: Option<&TcpListener>) -> Steering {
    let netns = File::open("/proc/thread-self/ns/net").expect("netns");
    Steering::begin(netns.as_fd(), v4.as_fd(), v6.map(AsFd::as_fd)).expect("steer")
}

/// Accepts a connection, which may be there only some time after its client has it.
#[track_caller]
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => std::thread::yield_now(),
            accepted => return accepted.expect("accept"),
        }
    }
}

/// Connects, and answers which address the listener sees as its own.
fn reach(listener: &TcpListener, address: &str) -> SocketAddr {
    let client = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    let (served, peer) = accept(listener);
    assert_eq!(peer, client.local_addr().expect("address"));
    served.local_addr().expect("address")
}

fn refused(address: &str) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn every_port_of_loopback_leads_to_us_while_it_lasts() {
    alone(|| {
        let (v4, v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        assert!(refused("127.0.0.1:8080"));
        let steering = begin(&v4, Some(&v6));
        for address in ["127.0.0.1:8080", "127.0.0.1:1", "127.1.2.3:65535"] {
            assert_eq!(reach(&v4, address), address.parse().expect("address"));
        }
        assert_eq!(reach(&v6, "[::1]:81"), "[::1]:81".parse().expect("address"));
        drop(steering);
        assert!(refused("127.0.0.1:8080") && refused("[::1]:81"));
    });
}

#[test]
fn other_traffic_takes_its_way() {
    alone(|| {
        let add = Command::new("ip")
            .args(["addr", "add", "10.9.9.9/32", "dev", "lo"])
            .status();
        assert!(add.expect("ip").success());
        let (v4, other) = (listen("127.0.0.1:0"), listen("10.9.9.9:80"));
        let _steering = begin(&v4, None);
        assert_eq!(reach(&other, "10.9.9.9:80").port(), 80);
        assert!(refused("10.9.9.9:81"), "not a loopback address");
        assert!(refused("[::1]:80"), "no listener for it");
        let (one, two) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
        let (one, two) = (one.expect("bind"), two.expect("bind"));
        one.send_to(b"x", two.local_addr().expect("address")).expect("send");
        assert_eq!(two.recv(&mut [0; 8]).expect("receive"), 1);
    });
}

#[test]
fn exempt_ports_reach_who_listens_there() {
    alone(|| {
        let (v4, other) = (listen("127.0.0.1:0"), listen("127.0.0.1:7777"));
        let steering = begin(&v4, None);
        assert_eq!(reach(&v4, "127.0.0.1:7777").port(), 7777, "steered as any other");
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        let own = TcpListener::bind("127.0.0.1:0")
            .expect("bind")
            .local_addr()
            .expect("address")
            .port();
        let number = std::os::fd::AsRawFd::as_raw_fd(&client);
        bind(number, &SockaddrIn::new(127, 0, 0, 1, own)).expect("bind");
        steering.exempt(own).expect("exempt");
        connect(number, &SockaddrIn::new(127, 0, 0, 1, 7777)).expect("connect");
        let (_, peer) = accept(&other);
        assert_eq!(peer.port(), own);
        steering.steer_again(own).expect("steer again");
        assert_eq!(reach(&v4, "127.0.0.1:7777").port(), 7777);
    });
}
