//! A sandbox with a fake machine and a fake agent, and real steps on the host: mounts (so these tests need root), fifos,
//! records.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kata_config::{Config, SharedFs};
use kata_sandbox::lifecycle::Phase;
use kata_sandbox::outside::Outside;
use kata_sandbox::record::{Home, Record};
use kata_sandbox::stdio::{Output, Stdio};
use kata_sandbox::step::Faults;
use kata_sandbox::{
    Event, MACHINE_LOST, NewContainer, Process, Sandbox, SandboxError, Surroundings, describe, network,
};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_testkit::agent::ECHO_PORT;
use kata_testkit::machine::FakeVmm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A pod's surroundings in a directory of its own.
struct Lab {
    dir: tempfile::TempDir,
    vmm: FakeVmm,
    faults: Faults,
    events: mpsc::UnboundedReceiver<Event>,
    sandbox: Sandbox,
    /// A socket of the host that the container gets, and its number.
    service: (UnixListener, u32),
}

impl Lab {
    fn new(vmm: FakeVmm, faults: Faults) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let bundle = dir.path().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).expect("mkdir");
        std::fs::create_dir_all(dir.path().join("volume")).expect("mkdir");
        for asset in ["vmlinux", "initrd.img"] {
            std::fs::write(dir.path().join(asset), "x").expect("write");
        }
        let mut spec = serde_json::to_value(kata_bundle::default_spec()).expect("json");
        spec["process"]["terminal"] = false.into();
        let volume = serde_json::json!({
            "destination": "/data", "type": "bind", "source": dir.path().join("volume"), "options": ["rbind", "ro"],
        });
        let service = dir.path().join("service");
        let listener = UnixListener::bind(&service).expect("bind");
        listener.set_nonblocking(true).expect("set");
        let socket = serde_json::json!({"destination": "/s", "type": "bind", "source": service, "options": ["bind"]});
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        let number = u32::try_from(mounts.len() + 1).expect("few");
        mounts.extend([volume, socket]);
        std::fs::write(bundle.join("config.json"), spec.to_string()).expect("write");

        let loaded = kata_bundle::Bundle::load(&bundle).expect("bundle");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let record = Record::new("c".into(), "test".into(), bundle);
        home.write(&record).expect("record");
        let mut config = Config::default();
        config.qemu.kernel = Some(dir.path().join("vmlinux"));
        config.qemu.initrd = Some(dir.path().join("initrd.img"));
        config.qemu.shared_fs = Some(SharedFs::Virtio9p);
        config.agent.dial_timeout = Duration::from_millis(500);
        let network = network::enter(&loaded, &config).expect("a network namespace");
        let (sender, events) = mpsc::unbounded_channel();
        let sandbox = Sandbox::new(Surroundings {
            home,
            record,
            config: Arc::new(config),
            vmm: Arc::new(vmm.clone()),
            outside: Outside::here().expect("namespaces"),
            network,
            origin: Arc::new(Origin::here().expect("origin")),
            events: sender,
            faults: faults.clone(),
        });
        Self {
            dir,
            vmm,
            faults,
            events,
            sandbox,
            service: (listener, number),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        path
    }

    async fn create(&self) -> Result<(), SandboxError> {
        self.sandbox.create(self.container(Stdio::default())).await
    }

    fn container(&self, stdio: Stdio) -> NewContainer {
        NewContainer {
            id: "c".into(),
            bundle: self.path("bundle"),
            rootfs: Vec::new(),
            stdio,
        }
    }

    fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let prefix = self.dir.path().to_str().expect("UTF-8");
        let points = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        points.filter(|point| point.starts_with(prefix)).collect()
    }

    fn events(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            words.push(match event {
                Event::Created { container, .. } => format!("created {container}"),
                Event::ExecAdded(process) => format!("exec-added {}", process.exec),
                Event::Started(process) => format!("started {}{}", process.container, process.exec),
                Event::Exited(process, status) => {
                    format!("exited {}{} {}", process.container, process.exec, status.code)
                }
                Event::Deleted(process, status) => {
                    format!("deleted {}{} {}", process.container, process.exec, status.code)
                }
                other => format!("{other:?}"),
            });
        }
        words
    }
}

fn init() -> Process {
    Process {
        container: "c".into(),
        exec: String::new(),
    }
}

fn exec(id: &str) -> Process {
    Process {
        container: "c".into(),
        exec: id.into(),
    }
}

/// Runs a test on a thread with its own mount and network namespaces and its own small runtime.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            namespace::enter().expect("these tests need root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(30), test())
                    .await
                    .expect("the test hangs");
            });
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn process_json() -> kata_bundle::oci::Process {
    kata_bundle::parse_process(br#"{"args": ["true"], "cwd": "/"}"#).expect("process")
}

#[test]
fn a_container_lives_through_and_leaves_nothing() {
    run(|| async {
        let mut lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        assert_eq!(
            lab.mounts().len(),
            3,
            "share, root file system, volume: {:?}",
            lab.mounts()
        );
        assert!(
            std::fs::write(lab.path("home/share/c/volumes").join("x"), "").is_ok(),
            "the share itself is the host's"
        );
        lab.sandbox.start(&init()).await.expect("start");
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), Stdio::default())
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start the exec");
        lab.vmm.agent.end("c", "e", 3);
        assert_eq!(lab.sandbox.wait(&exec("e")).await.expect("wait").code, 3);
        lab.sandbox.delete(&exec("e")).await.expect("delete the exec");
        lab.vmm.agent.end("c", "", 7);
        assert_eq!(lab.sandbox.wait(&init()).await.expect("wait").code, 7);
        assert_eq!(lab.sandbox.delete(&init()).await.expect("delete").code, 7);
        assert_eq!(
            lab.events(),
            [
                "created c",
                "started c",
                "exec-added e",
                "started ce",
                "exited ce 3",
                "deleted ce 3",
                "exited c 7",
                "deleted c 7",
            ]
        );
        assert!(lab.mounts().is_empty(), "{:?}", lab.mounts());
        assert_eq!(lab.vmm.running(), 0);
    });
}

#[test]
fn whichever_step_fails_nothing_is_left_and_the_id_is_free() {
    run(|| async {
        let steps = {
            let lab = Lab::new(FakeVmm::default(), Faults::none());
            lab.create().await.expect("create");
            lab.sandbox.shut_down().await;
            lab.faults.asked()
        };
        assert!(
            steps >= 8,
            "share, machine, agent, localhost, root file system, volume, socket, container: {steps}"
        );
        for step in 0..steps {
            let mut lab = Lab::new(FakeVmm::default(), Faults::at(step));
            let error = lab.create().await.expect_err("a step was made to fail");
            assert!(
                error.to_string().contains("was made to fail"),
                "step {step}: {}",
                describe(&error)
            );
            assert!(lab.mounts().is_empty(), "step {step} left {:?}", lab.mounts());
            assert_eq!(lab.vmm.running(), 0, "step {step} left a machine");
            assert!(lab.events().is_empty(), "step {step}");
            assert!(lab.sandbox.state(&init()).await.is_err(), "step {step}");
            lab.create()
                .await
                .unwrap_or_else(|error| panic!("again after step {step}: {}", describe(&error)));
            lab.sandbox.shut_down().await;
            assert!(lab.mounts().is_empty(), "shutdown left {:?}", lab.mounts());
        }
    });
}

#[test]
fn what_the_agent_refuses_is_told_and_undone() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.vmm.agent.fail(
            "create_container",
            ttrpc::Code::NOT_FOUND,
            "exec: \"x\": executable file not found in $PATH",
        );
        let error = lab.create().await.expect_err("refused");
        assert_eq!(describe(&error), "exec: \"x\": executable file not found in $PATH");
        assert!(lab.mounts().is_empty());
        assert_eq!(lab.vmm.running(), 0);
    });
}

#[test]
fn a_silent_guest_is_given_up_in_time_with_its_console() {
    run(|| async {
        let lab = Lab::new(FakeVmm::mute(), Faults::none());
        let error = describe(&lab.create().await.expect_err("silent"));
        assert!(
            error.contains("the fake console") && error.contains("did not answer within 500ms"),
            "{error}"
        );
        assert_eq!(lab.vmm.running(), 0);
        assert!(lab.mounts().is_empty());
    });
}

#[test]
fn the_end_of_the_machine_ends_every_process_once() {
    run(|| async {
        let mut lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.sandbox.start(&init()).await.expect("start");
        lab.sandbox
            .add_exec(&exec("e"), &process_json(), Stdio::default())
            .await
            .expect("exec");
        lab.sandbox.start(&exec("e")).await.expect("start");
        lab.vmm.kill_all();
        assert_eq!(lab.sandbox.wait(&init()).await.expect("wait").code, MACHINE_LOST);
        assert_eq!(lab.sandbox.wait(&exec("e")).await.expect("wait").code, MACHINE_LOST);
        let mut told = lab.events().split_off(4);
        told.sort();
        assert_eq!(told, ["exited c 255", "exited ce 255"]);
        assert!(matches!(
            lab.sandbox.state(&init()).await.expect("state").phase,
            Phase::Stopped(_)
        ));
        assert!(lab.sandbox.signal(&init(), 9, false).await.is_err(), "it is over");
        lab.sandbox.delete(&init()).await.expect("delete");
        assert!(lab.mounts().is_empty());
    });
}

#[test]
fn a_start_that_fails_is_an_exit() {
    run(|| async {
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        lab.create().await.expect("create");
        lab.vmm
            .agent
            .fail("start_container", ttrpc::Code::INTERNAL, "exec format error");
        let error = lab.sandbox.start(&init()).await.expect_err("refused");
        assert_eq!(error.to_string(), "exec format error");
        assert!(matches!(
            lab.sandbox.state(&init()).await.expect("state").phase,
            Phase::Stopped(_)
        ));
        lab.sandbox.delete(&init()).await.expect("delete");
    });
}

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
fn bad_bundles_are_refused_before_anything_is_booted() {
    run(|| async {
        for (file, text, expected) in [
            ("bundle/config.json", "{", "config.json"),
            ("bundle/config.json", "{\"ociVersion\": \"1.0.2\"}", "process"),
        ] {
            let lab = Lab::new(FakeVmm::default(), Faults::none());
            std::fs::write(lab.path(file), text).expect("write");
            let error = describe(&lab.create().await.expect_err("bad bundle"));
            assert!(error.contains(expected), "{error}");
            assert_eq!(lab.faults.asked(), 0, "nothing was begun");
        }
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        std::fs::remove_dir(lab.path("bundle/rootfs")).expect("rmdir");
        let error = describe(&lab.create().await.expect_err("no root file system"));
        assert!(error.contains("rootfs"), "{error}");
        let lab = Lab::new(FakeVmm::default(), Faults::none());
        std::fs::remove_file(lab.path("vmlinux")).expect("rm");
        let error = describe(&lab.create().await.expect_err("no kernel"));
        assert!(error.contains("vmlinux") && error.contains("image build"), "{error}");
        let stdio = Stdio {
            stdout: Some(Output::fifo(&lab.path("initrd.img"))),
            ..Stdio::default()
        };
        let error = describe(&lab.sandbox.create(lab.container(stdio)).await.expect_err("no fifo"));
        assert!(error.contains("as the process's stdout"), "{error}");
    });
}
