//! The Sandbox API: a pod without a first container, from its creation to its end.

use std::fs::File;
use std::os::fd::AsRawFd;

use containerd_shim_protos::sandbox_api as sandbox;
use containerd_shim_protos::sandbox_async::SandboxClient;
use serde_json::{Value, json};

use super::*;

/// CRI's configuration of a pod: hostname (2) and an annotation (7).
fn config(hostname: &str) -> Any {
    let mut value = vec![2 << 3 | 2, u8::try_from(hostname.len()).expect("short")];
    value.extend(hostname.as_bytes());
    let annotation = [&[1 << 3 | 2, 4][..], b"note", &[2 << 3 | 2, 4], b"kept"].concat();
    value.extend([7 << 3 | 2, u8::try_from(annotation.len()).expect("short")]);
    value.extend(annotation);
    Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value,
        ..Default::default()
    }
}

/// The Sandbox API of a door whose sandbox is `c`.
struct Pod {
    door: Door,
    /// The network namespace of the pod.
    network: File,
    client: SandboxClient,
}

impl Pod {
    async fn open() -> Self {
        let door = Door::open(|spec| {
            spec["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "c",
            });
        })
        .await;
        std::fs::remove_file(door.dir.path().join("c/config.json")).expect("a pod has none");
        let address = format!("unix://{}", door.dir.path().join("home/task.sock").display());
        let client = SandboxClient::new(Client::connect(&address).await.expect("connect"));
        let made = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        let network = made.join().expect("join");
        Self { door, network, client }
    }

    fn request(&self) -> sandbox::CreateSandboxRequest {
        sandbox::CreateSandboxRequest {
            sandbox_id: "c".into(),
            bundle_path: self.door.dir.path().join("c").display().to_string(),
            options: MessageField::some(config("the-pod")),
            netns_path: format!("/proc/self/fd/{}", self.network.as_raw_fd()),
            ..Default::default()
        }
    }

    async fn create(&self) -> ttrpc::Result<()> {
        self.client.create_sandbox(bounded(), &self.request()).await.map(drop)
    }

    async fn start(&self) -> ttrpc::Result<()> {
        let request = sandbox::StartSandboxRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        self.client.start_sandbox(bounded(), &request).await.map(drop)
    }

    async fn stop(&self) -> ttrpc::Result<()> {
        let request = sandbox::StopSandboxRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        self.client.stop_sandbox(bounded(), &request).await.map(drop)
    }

    async fn ping(&self) -> ttrpc::Result<()> {
        let request = sandbox::PingRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        self.client.ping_sandbox(bounded(), &request).await.map(drop)
    }

    async fn state(&self) -> String {
        let request = sandbox::SandboxStatusRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        self.client
            .sandbox_status(bounded(), &request)
            .await
            .expect("status")
            .state
    }

    async fn wait(&self) -> u32 {
        let request = sandbox::WaitSandboxRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        self.client
            .wait_sandbox(bounded(), &request)
            .await
            .expect("wait")
            .exit_status
    }
}

fn code(result: ttrpc::Result<()>) -> Code {
    match result {
        Ok(()) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_pod_lives_before_and_after_its_containers() {
    run(|| async {
        let pod = Pod::open().await;
        assert_eq!(code(pod.start().await), Code::NOT_FOUND);
        assert_eq!(code(pod.create().await), Code::OK);
        assert_eq!(code(pod.create().await), Code::ALREADY_EXISTS);
        assert_eq!(pod.state().await, "SANDBOX_NOTREADY");
        pod.door.walk(&[(Call::Create("d"), Code::FAILED_PRECONDITION)]).await;
        assert_eq!(pod.door.vmm.running(), 0);
        assert_eq!(code(pod.ping().await), Code::UNAVAILABLE);

        assert_eq!(code(pod.start().await), Code::OK);
        assert_eq!(code(pod.start().await), Code::FAILED_PRECONDITION);
        assert_eq!(
            (pod.state().await.as_str(), pod.door.vmm.running()),
            ("SANDBOX_READY", 1)
        );
        assert_eq!(code(pod.ping().await), Code::OK);
        for _ in 0..2 {
            pod.door
                .walk(&[
                    (Call::Create("d"), DONE),
                    (Call::Start("d", ""), DONE),
                    (Call::Ends("d", ""), DONE),
                    (Call::Delete("d", ""), DONE),
                    (Call::Shutdown, DONE),
                ])
                .await;
            assert_eq!(
                (pod.state().await.as_str(), pod.door.vmm.running()),
                ("SANDBOX_READY", 1)
            );
        }
        pod.door
            .walk(&[(Call::Create("d"), DONE), (Call::Start("d", ""), DONE)])
            .await;
        let used = sandbox::SandboxMetricsRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        let used = pod.client.sandbox_metrics(bounded(), &used).await.expect("metrics");
        assert_eq!(used.metrics.id, "c");

        assert_eq!(code(pod.stop().await), Code::OK);
        assert_eq!(pod.wait().await, 0);
        assert_eq!(code(pod.stop().await), Code::OK, "again");
        assert_eq!(
            (pod.state().await.as_str(), pod.door.vmm.running()),
            ("SANDBOX_NOTREADY", 0)
        );
        pod.door
            .walk(&[(Call::Wait("d", ""), DONE), (Call::Delete("d", ""), DONE)])
            .await;
        let told = pod.door.told(10).await;
        assert!(
            !told.iter().any(|line| line.contains(" c ")),
            "of the containers only: {told:?}"
        );
        assert_eq!(told.last().map(String::as_str), Some("/tasks/delete"));

        let request = sandbox::ShutdownSandboxRequest {
            sandbox_id: "c".into(),
            ..Default::default()
        };
        let asked = std::time::Instant::now();
        pod.client
            .shutdown_sandbox(bounded(), &request)
            .await
            .expect("shutdown");
        pod.door.closing.notified().await;
        // Who has heard it may not have understood it at once.
        assert!(asked.elapsed() > Duration::from_millis(50));
    });
}

#[test]
fn a_machine_that_ends_by_itself_is_the_end_of_the_pod() {
    run(|| async {
        let pod = Pod::open().await;
        pod.create().await.expect("create");
        pod.start().await.expect("start");
        pod.door
            .walk(&[(Call::Create("d"), DONE), (Call::Start("d", ""), DONE)])
            .await;
        pod.door.vmm.kill_all();
        assert_eq!(pod.wait().await, 255);
        assert_eq!(pod.state().await, "SANDBOX_NOTREADY");
        assert_eq!(code(pod.ping().await), Code::UNAVAILABLE);
        assert!(pod.door.told(3).await.contains(&"/tasks/exit d 255".to_owned()));
    });
}

#[test]
fn a_machine_that_does_not_boot_leaves_nothing() {
    run(|| async {
        let pod = Pod::open().await;
        pod.create().await.expect("create");
        std::fs::remove_file(pod.door.dir.path().join("vmlinux")).expect("rm");
        assert_eq!(code(pod.start().await), Code::INTERNAL);
        assert_eq!((pod.wait().await, pod.door.vmm.running()), (255, 0));
    });
}

#[test]
fn what_a_pod_cannot_have_is_named() {
    run(|| async {
        let pod = Pod::open().await;
        let other = Any {
            type_url: "x.Y".into(),
            ..Default::default()
        };
        // linux (8), sysctls (3), name (1) and value (2).
        let sysctl = Any {
            value: vec![8 << 3 | 2, 8, 3 << 3 | 2, 6, 1 << 3 | 2, 1, b'a', 2 << 3 | 2, 1, b'1'],
            ..config("")
        };
        let broken = Any {
            value: vec![0xff; 4],
            ..config("")
        };
        for (request, reason) in [
            (with(&pod, |request| request.options = MessageField::some(other)), "x.Y"),
            (
                with(&pod, |request| request.options = MessageField::some(sysctl)),
                "sysctl \"a\"",
            ),
            (
                with(&pod, |request| request.options = MessageField::some(broken)),
                "configuration",
            ),
            (
                with(&pod, |request| request.sandbox_id = "other".into()),
                "sandbox \"c\"",
            ),
        ] {
            match pod.client.create_sandbox(bounded(), &request).await {
                Err(ttrpc::Error::RpcStatus(status)) => {
                    assert_eq!(status.code(), Code::INVALID_ARGUMENT);
                    assert!(status.message.contains(reason), "{}", status.message);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

fn with(pod: &Pod, change: impl FnOnce(&mut sandbox::CreateSandboxRequest)) -> sandbox::CreateSandboxRequest {
    let mut request = pod.request();
    change(&mut request);
    request
}

#[test]
fn the_pod_is_what_cri_says_of_it() {
    let mut request = sandbox::CreateSandboxRequest {
        sandbox_id: "c".into(),
        bundle_path: "/nowhere".into(),
        options: MessageField::some(config("the-pod")),
        netns_path: "/run/netns/x".into(),
        ..Default::default()
    };
    request.annotations.insert("own".into(), "too".into());
    let dir = tempfile::tempdir().expect("tempdir");
    request.bundle_path = dir.path().display().to_string();
    let bundle = crate::pod::bundle_of(&request).expect("a bundle");
    assert_eq!(bundle.role(), &kata_bundle::Role::Pod);
    let spec: Value = serde_json::to_value(bundle.spec()).expect("JSON");
    assert_eq!(spec["hostname"], "the-pod");
    assert_eq!(
        (&spec["annotations"]["note"], &spec["annotations"]["own"]),
        (&json!("kept"), &json!("too"))
    );
    let network = json!({"type": "network", "path": "/run/netns/x"});
    assert!(
        spec["linux"]["namespaces"]
            .as_array()
            .expect("namespaces")
            .contains(&network)
    );
}
