//! What flows between the host and the guest: stdio, connections to sockets of the host, connections to the guest.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use kata_sandbox::stdio::{Output, Stdio};
use kata_sandbox::step::Faults;
use kata_testkit::agent::ECHO_PORT;
use kata_testkit::machine::FakeVmm;
use support::{Lab, exec, init, process_json, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[test]
fn stdio_flows_both_ways_until_the_client_closes_it() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        let stdio = Stdio {
            terminal: false,
            stdin: Some(lab.fifo("in")),
            stdout: Some(Output::fifo(&lab.fifo("out"))),
            stderr: None,
        };
        lab.sandbox.create(lab.container(stdio)).await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        let sent: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let (input, output) = (lab.path("in"), lab.path("out"));
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            let mut input = std::fs::OpenOptions::new().write(true).open(input).expect("open");
            input.write_all(&sent).expect("write");
        });
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            std::fs::File::open(output)
                .expect("open")
                .read_to_end(&mut bytes)
                .expect("read");
            bytes
        });
        while !writer.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Without this the sandbox would keep the input open for the next client.
        lab.sandbox.close_stdin(&init()).await.expect("close");
        while !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(reader.join().expect("reader") == expected, "every byte, in order");
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn a_socket_of_the_host_is_reached_until_the_container_goes() {
    run(|| async {
        let mut lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        let (listener, number) = &lab.service;
        let listener = tokio::net::UnixListener::from_std(listener.try_clone().expect("dup")).expect("watch");
        let mut guests = Vec::new();
        let mut hosts = Vec::new();
        for turn in 0..3_u8 {
            let mut guest = lab.vmm.agent.connect_to_socket("c", *number).await;
            let (mut host, _) = listener.accept().await.expect("accept");
            guest.write_all(&[turn; 9]).await.expect("write");
            let mut got = [0; 9];
            host.read_exact(&mut got).await.expect("read");
            assert_eq!(got, [turn; 9], "connections do not mix");
            host.write_all(b"answer").await.expect("write");
            host.shutdown().await.expect("half close");
            let mut answer = Vec::new();
            guest.read_to_end(&mut answer).await.expect("read");
            assert_eq!(answer, b"answer");
            guests.push(guest);
            hosts.push(host);
        }
        lab.sandbox.shut_down().await;
        for mut host in hosts {
            assert_eq!(host.read(&mut [0; 9]).await.expect("read"), 0, "the connection ends");
        }

        lab.create().await.expect("again");
        std::fs::remove_file(lab.path("service")).expect("rm");
        drop(listener);
        let number = lab.service.1;
        lab.service.0 = UnixListener::bind(lab.path("service")).expect("bind another");
        let mut guest = lab.vmm.agent.connect_to_socket("c", number).await;
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.expect("read");
        assert!(got.is_empty() && guest.is_closed(), "nobody listens where it was bound");
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn localhost_of_the_pods_namespace_is_the_guests() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        let other = TcpListener::bind("127.0.0.1:5353").await.expect("bind");
        lab.create().await.expect("create");
        for address in [("127.0.0.1", ECHO_PORT), ("127.9.9.9", ECHO_PORT), ("::1", ECHO_PORT)] {
            let mut client = TcpStream::connect(address).await.expect("connect");
            let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
            let (mut input, mut output) = client.split();
            let mut got = Vec::new();
            let (wrote, read) = tokio::join!(
                async {
                    output.write_all(&sent).await?;
                    output.shutdown().await
                },
                input.read_to_end(&mut got)
            );
            wrote.expect("write");
            read.expect("read");
            assert!(got == sent, "every byte comes back from {address:?}");
        }
        let mut refused = TcpStream::connect("127.0.0.1:8")
            .await
            .expect("it is refused afterwards");
        let error = refused.read(&mut [0; 8]).await.expect_err("no mere end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let mut client = TcpStream::connect("127.0.0.1:5353").await.expect("connect");
        let (mut near, _) = other.accept().await.expect("who listens here is reached");
        client.write_all(b"x").await.expect("write");
        assert_eq!(near.read(&mut [0; 8]).await.expect("read"), 1);

        lab.sandbox.shut_down().await;
        assert!(
            TcpStream::connect(("127.0.0.1", ECHO_PORT)).await.is_err(),
            "it is over"
        );
    });
}

#[test]
fn input_that_ends_before_the_process_is_started_ends_all_the_same() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        let (input, output) = (lab.fifo("in"), lab.fifo("out"));
        let mut client = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&input)
            .expect("open");
        client.write_all(b"all there is").expect("write");
        let reader = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&output)
            .expect("open");
        let stdio = Stdio {
            stdin: Some(input),
            stdout: Some(Output::fifo(&output)),
            ..Stdio::default()
        };
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), stdio)
            .await
            .expect("exec");
        lab.sandbox.close_stdin(&exec("e")).await.expect("close");
        lab.sandbox.start(&exec("e")).await.expect("start");
        drop(client);
        let mut echoed = [0; 12];
        let read = tokio::task::spawn_blocking(move || (&reader).read_exact(&mut echoed).map(|()| echoed));
        assert_eq!(&read.await.expect("join").expect("read"), b"all there is");
        assert!(
            lab.vmm.agent.inputs_ended().await,
            "the process has seen the end of its input"
        );
    });
}

#[test]
fn an_exec_whose_client_vanishes_hangs_up_and_is_forgotten() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        let stdio = Stdio {
            terminal: true,
            stdin: Some(lab.fifo("in")),
            stdout: Some(Output::fifo(&lab.fifo("out"))),
            stderr: None,
        };
        let output = std::fs::File::options()
            .read(true)
            .write(true)
            .open(lab.path("out"))
            .expect("open");
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), stdio)
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start");
        for name in ["in", "out"] {
            std::fs::remove_file(lab.path(name)).expect("the client takes the names away");
        }
        let sandbox = lab.sandbox.clone();
        let waiting = tokio::spawn(async move { sandbox.wait(&exec("e")).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "it runs while its client is there");

        drop(output);

        let asked = |request: &str| lab.vmm.agent.requests().iter().any(|asked| asked == request);
        while !asked("signal c e 1") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.vmm.agent.end("c", "e", 129);
        while !asked("delete_process c e") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        waiting.await.expect("join").expect("wait");
        while lab.sandbox.state(&exec("e")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn a_client_that_comes_again_finds_the_process_running() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        let stdio = Stdio {
            terminal: true,
            stdin: None,
            stdout: Some(Output::fifo(&lab.fifo("out"))),
            stderr: None,
        };
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), stdio)
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start");
        for _ in 0..2 {
            let output = std::fs::File::options()
                .read(true)
                .write(true)
                .open(lab.path("out"))
                .expect("open");
            let waiting = tokio::time::timeout(Duration::from_millis(50), lab.sandbox.wait(&exec("e"))).await;
            assert!(waiting.is_err(), "it runs");
            drop(output);
        }
        assert!(!lab.vmm.agent.requests().iter().any(|asked| asked.starts_with("signal")));
        lab.sandbox.shut_down().await;
    });
}
