//! Connections that cross the machine's wall, and stdio in bulk: one container a runtime has a network namespace that
//! others enter, a socket of the host, and runs whatever is asked of it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::program::compile;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::terminal::Terminal;
use kata_e2e::{against_both, pids, wait};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

against_both!(
    a_web_server_is_reached_at_localhost_of_the_namespace,
    a_port_that_nobody_listens_on_is_refused,
    megabytes_cross_both_ways_at_once,
    fifty_connections_do_not_mix,
    who_listens_in_the_namespace_itself_is_reached,
    a_socket_of_the_host_answers_in_the_container,
    a_socket_keeps_its_mode_and_owner,
    a_megabyte_through_each_of_many_connections_to_a_socket,
    output_that_nobody_reads_stops_only_its_process,
    a_process_whose_reader_ends_finds_its_pipe_broken,
    megabytes_of_output_arrive,
    a_terminal_whose_client_vanishes_hangs_up,
    two_hundred_processes_at_once,
);

const ID: &str = "crossing";

/// `dial PATH`: sends stdin to a socket, and what comes back to stdout. `hold PATH COUNT`: opens that many connections.
/// `echo PORT`: sends back whatever comes, on as many connections as come.
const CROSSING: &str = r#"
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static int copy(int from, int to) {
    static char block[65536];
    ssize_t length;
    while ((length = read(from, block, sizeof block)) > 0)
        for (ssize_t done = 0, part; done < length; done += part)
            if ((part = write(to, block + done, length - done)) < 0) return 1;
    return length < 0;
}
static int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(sock, (void *)&address, sizeof address)) { perror("connect"); exit(7); }
    return sock;
}
static int echo(int port) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int sock = socket(AF_INET6, SOCK_STREAM, 0);
    if (bind(sock, (void *)&address, sizeof address) || listen(sock, 128)) { perror("listen"); return 1; }
    signal(SIGCHLD, SIG_IGN);
    for (int served; (served = accept(sock, 0, 0)) >= 0; close(served))
        if (!fork()) _exit(copy(served, served));
    return 1;
}
int main(int argc, char **argv) {
    if (!strcmp(argv[1], "echo")) return echo(atoi(argv[2]));
    if (!strcmp(argv[1], "hold")) {
        for (int left = atoi(argv[3]); left; left--) dial(argv[2]);
        puts("held");
        fflush(stdout);
        return pause();
    }
    int sock = dial(argv[2]);
    if (!fork()) {
        int failed = copy(0, sock);
        shutdown(sock, SHUT_WR);
        _exit(failed);
    }
    return copy(sock, 1);
}
"#;

/// What the container runs: a web server, one that sends back what it gets, and one that is asked by `exec`.
const SERVERS: &str = "mkdir /www; echo a page >/www/index.html
httpd -p 8080 -h /www; crossing echo 7000 & exec sleep 100000";

struct Place {
    lab: Lab,
    /// Echoes whatever comes, on as many connections as come.
    socket: PathBuf,
    /// How many there are.
    connections: Arc<AtomicUsize>,
}

fn place(kind: Kind) -> &'static Place {
    static RUNC: Shared<Place> = Shared::new();
    static KATA: Shared<Place> = Shared::new();
    let cell = if kind == Kind::Kata { &KATA } else { &RUNC };
    cell.get(|| {
        let lab = Lab::open();
        lab.command("ip").args(["netns", "add", "pod"]).run().ok();
        lab.command("ip")
            .args(["-n", "pod", "link", "set", "lo", "up"])
            .run()
            .ok();
        let socket = lab.scratch().join("service.sock");
        let connections = echo_on(UnixListener::bind(&socket).expect("bind"));
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o606)).expect("mode");
        std::os::unix::fs::chown(&socket, Some(1000), Some(2000)).expect("owner");
        let bundle = Bundle::script(&lab, ID, SERVERS)
            .mount("/run/service.sock", "bind", &socket, &["bind", "ro"])
            .edit(|spec| {
                spec["linux"]["namespaces"] = json!([
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network", "path": "/run/netns/pod"},
                ]);
            });
        compile(CROSSING, &bundle.rootfs().join("bin/crossing"));
        Runtime::new(kind, &lab).begin(&bundle, ID);
        let place = Place {
            lab,
            socket,
            connections,
        };
        wait::until("the servers listen", Duration::from_secs(15), || {
            exec_in(
                &place,
                kind,
                "netstat -ltn | grep -q :8080 && netstat -ltn | grep -q :7000",
            )
            .run()
            .code()
                == 0
        });
        place
    })
}

fn exec_in(place: &Place, kind: Kind, script: &str) -> Cmd {
    Runtime::new(kind, &place.lab).exec(ID, script)
}

fn exec(kind: Kind, script: &str) -> Cmd {
    exec_in(place(kind), kind, script)
}

/// Answers how many connections there are.
fn echo_on(listener: UnixListener) -> Arc<AtomicUsize> {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            counted.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let (mut input, mut output) = (&connection, &connection);
                let _ = std::io::copy(&mut input, &mut output);
                let _ = connection.shutdown(Shutdown::Write);
                counted.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    connections
}

/// Does something in the pod's network namespace on the host.
fn in_namespace<T: Send>(kind: Kind, act: impl FnOnce() -> T + Send) -> T {
    let namespace = place(kind).lab.outside("/run/netns/pod");
    std::thread::scope(|scope| {
        let done = scope.spawn(move || {
            let namespace = File::open(namespace).expect("the namespace");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter it");
            act()
        });
        done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sends and receives at once, to the end of both.
fn exchange(mut connection: TcpStream, sent: Vec<u8>) -> Vec<u8> {
    let mut writer = connection.try_clone().expect("dup");
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("write");
        writer.shutdown(Shutdown::Write).expect("half close");
    });
    let mut got = Vec::new();
    connection.read_to_end(&mut got).expect("read");
    writing.join().expect("writer");
    got
}

/// Bytes that are the same nowhere.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let words = (0..).map(|n: u32| n.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503));
    words.flat_map(u32::to_le_bytes).take(length).collect()
}

fn a_web_server_is_reached_at_localhost_of_the_namespace(kind: Kind) {
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        in_namespace(kind, || {
            let mut connection = TcpStream::connect(address).expect("connect");
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
            let mut answer = String::new();
            connection.read_to_string(&mut answer).expect("answer");
            assert!(answer.ends_with("a page\n"), "{address}: {answer}");
        });
    }
    let busybox = [
        "netns",
        "exec",
        "pod",
        "busybox",
        "wget",
        "-qO-",
        "http://127.0.0.1:8080/",
    ];
    place(kind)
        .lab
        .command("ip")
        .args(busybox)
        .run()
        .ok()
        .stdout("a page\n");
}

fn a_port_that_nobody_listens_on_is_refused(kind: Kind) {
    for address in ["127.0.0.1:9", "[::1]:9", "127.0.0.1:65535"] {
        let error = in_namespace(kind, || {
            // Whoever accepts before it is known that nobody listens can only break what it has accepted.
            TcpStream::connect(address)
                .and_then(|mut connection| connection.read(&mut [0; 8]))
                .expect_err(address)
        });
        assert!(
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
            "{address}: {error}"
        );
    }
}

fn megabytes_cross_both_ways_at_once(kind: Kind) {
    let sent = bytes(1, 16 << 20);
    let begun = Instant::now();
    let got = in_namespace(kind, || {
        exchange(TcpStream::connect("127.0.0.1:7000").expect("connect"), sent.clone())
    });
    println!("{kind:?}: 16 MiB each way in {:?}", begun.elapsed());
    assert!(got == sent, "{} bytes of {} came back", got.len(), sent.len());
}

fn fifty_connections_do_not_mix(kind: Kind) {
    in_namespace(kind, || {
        let connections: Vec<TcpStream> = (0..50)
            .map(|_| TcpStream::connect("127.0.0.1:7000").expect("connect"))
            .collect();
        let exchanges = connections.into_iter().zip(0..).map(|(connection, number)| {
            let sent = bytes(number, 100_000);
            std::thread::spawn(move || {
                let got = exchange(connection, sent.clone());
                assert!(got == sent, "{number}: {} bytes of {} came back", got.len(), sent.len());
            })
        });
        let exchanges: Vec<_> = exchanges.collect();
        for exchanged in exchanges {
            exchanged.join().expect("exchange");
        }
    });
}

fn who_listens_in_the_namespace_itself_is_reached(kind: Kind) {
    in_namespace(kind, || {
        let listener = TcpListener::bind("127.0.0.1:5353").expect("listen");
        let mut client = TcpStream::connect("127.0.0.1:5353").expect("connect");
        client.write_all(b"near").expect("write");
        client.shutdown(Shutdown::Write).expect("half close");
        let (mut served, _) = listener.accept().expect("accept");
        let mut got = String::new();
        served.read_to_string(&mut got).expect("read");
        assert_eq!(got, "near");
    });
}

fn a_socket_of_the_host_answers_in_the_container(kind: Kind) {
    exec(
        kind,
        "echo hello | crossing dial /run/service.sock; echo again | crossing dial /run/service.sock",
    )
    .run()
    .ok()
    .stdout("hello\nagain\n");
}

fn a_socket_keeps_its_mode_and_owner(kind: Kind) {
    let there = fs::metadata(&place(kind).socket).expect("metadata");
    let expected = format!("socket {:o} {}:{}\n", there.mode() & 0o7777, there.uid(), there.gid());
    exec(kind, "stat -c '%F %a %u:%g' /run/service.sock")
        .run()
        .ok()
        .stdout(&expected);
}

fn a_megabyte_through_each_of_many_connections_to_a_socket(kind: Kind) {
    let script = "
        head -c 1000000 /dev/urandom >/tmp/sent
        for n in $(seq 8); do crossing dial /run/service.sock </tmp/sent >/tmp/got.$n & done
        wait
        for n in $(seq 8); do cmp /tmp/sent /tmp/got.$n || exit 1; rm /tmp/got.$n; done
        echo all the same";
    let outcome = exec(kind, script).run().ok().stdout("all the same\n");
    println!("{kind:?}: 8 MB each way in {:?}", outcome.took);
}

/// `exec`'s words for a shell of the lab.
fn exec_line(kind: Kind, flags: &str, command: &str) -> String {
    let program = kind.program();
    format!("{} --root /run/e2e-oci exec {flags} {ID} {command}", program.display())
}

/// Runs a line in a shell of the lab.
fn shell(kind: Kind, line: &str) -> Cmd {
    place(kind).lab.command("bash").args(["-c", line])
}

fn runs_in_container(kind: Kind, command: &str) -> bool {
    let processes = exec(kind, "ps -o args").run().ok().text();
    processes.lines().any(|line| line.contains(command))
}

fn output_that_nobody_reads_stops_only_its_process(kind: Kind) {
    let unread = shell(
        kind,
        &format!("{} | sleep 1000", exec_line(kind, "", "sh -c 'yes unread'")),
    )
    .start();
    wait::until("it runs", Duration::from_secs(15), || {
        runs_in_container(kind, "yes unread")
    });
    let sent = "x".repeat(500_000);
    exec(kind, "cat").stdin(sent.as_bytes()).run().ok().stdout(&sent);
    assert!(runs_in_container(kind, "yes unread"), "it waits for its reader");
    drop(unread);
    exec(kind, "killall -KILL yes; true").run().ok();
}

fn a_process_whose_reader_ends_finds_its_pipe_broken(kind: Kind) {
    let line = format!("{} | head -n 1", exec_line(kind, "", "sh -c 'yes broken'"));
    shell(kind, &line).run().ok().stdout("broken\n");
    wait::until("it has ended", Duration::from_secs(15), || {
        !runs_in_container(kind, "yes broken")
    });
}

fn megabytes_of_output_arrive(kind: Kind) {
    const BLOCKS: u64 = 1024;
    let command = format!("dd if=/dev/zero bs=65536 count={BLOCKS}");
    let line = format!("{} 2>/dev/null | sha256sum", exec_line(kind, "", &command));
    let outcome = shell(kind, &line).run().ok();
    println!("{kind:?}: 64 MiB of output in {:?}", outcome.took);
    let zeroes = shell(kind, &format!("head -c {} /dev/zero | sha256sum", BLOCKS << 16))
        .run()
        .ok();
    outcome.stdout(&zeroes.text());
}

fn a_terminal_whose_client_vanishes_hangs_up(kind: Kind) {
    let (terminal, end) = Terminal::pair();
    let client = Runtime::new(kind, &place(kind).lab)
        .verb("exec")
        .args(["--tty", ID, "sh", "-c", "sleep 4321"])
        .start_on(&end);
    drop(end);
    wait::until("it runs", Duration::from_secs(15), || {
        runs_in_container(kind, "sleep 4321")
    });
    let program = kind.program().display().to_string();
    let is_client =
        |process: &&pids::Process| process.line.starts_with(&program) && process.line.ends_with("sleep 4321");
    let lab = &place(kind).lab;
    for process in pids::all(lab).iter().filter(is_client) {
        lab.kill(process.pid);
    }
    wait::until("it has ended", Duration::from_secs(15), || {
        !runs_in_container(kind, "sleep 4321")
    });
    drop((client, terminal));
}

fn two_hundred_processes_at_once(kind: Kind) {
    let each = exec_line(kind, "", "sh -c 'echo out; echo err >&2; exit 3'");
    let line = format!(
        "for n in $(seq 200); do ({each} >$n.out 2>$n.err; echo $? >$n.code) & done; wait
         cat $(seq -f %g.code 200) | sort | uniq -c; cat $(seq -f %g.out 200) | wc -l; cat $(seq -f %g.err 200) | sort | uniq -c"
    );
    let outcome = shell(kind, &line).limit(Duration::from_secs(180)).run().ok();
    println!("{kind:?}: 200 processes in {:?}", outcome.took);
    outcome.stdout("    200 3\n200\n    200 err\n");
}

#[test]
fn a_container_that_hoards_connections_keeps_the_host_from_nothing() {
    const MOST: usize = 128;
    let place = place(Kind::Kata);
    let open = || place.connections.load(Ordering::SeqCst);
    let mut hoarder = exec(Kind::Kata, "exec crossing hold /run/service.sock 300").start();
    hoarder.read_until("held");
    wait::until("as many as may be are there", Duration::from_secs(30), || {
        open() == MOST
    });
    exec(Kind::Kata, "echo alive").run().ok().stdout("alive\n");
    wait::until("the others wait in the guest", Duration::from_secs(30), || {
        open() == MOST
    });
    exec(
        Kind::Kata,
        "kill -9 $(ps -o pid,args | awk '/crossing hold/ && !/awk/ {print $1}')",
    )
    .run()
    .ok();
    hoarder.finish().exit(137);
    wait::until("all are closed", Duration::from_secs(30), || open() == 0);
    exec(Kind::Kata, "echo again | crossing dial /run/service.sock")
        .run()
        .ok()
        .stdout("again\n");
}
