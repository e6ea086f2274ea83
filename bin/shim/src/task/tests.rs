//! The Task API over its socket, before a fake machine with a fake agent: every call in every state, and what containerd
//! is told meanwhile.

use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as messages;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use kata_sandbox::record::{Home, Record};
use kata_storage::namespace;
use kata_testkit::machine::FakeVmm;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::context::{self, Context};

use super::*;
use crate::{event, serve};

/// A sandbox process's services in this process, and a client of them.
struct Door {
    dir: tempfile::TempDir,
    vmm: FakeVmm,
    client: TaskClient,
    told: Told,
    closing: Arc<Notify>,
    _servers: [Server; 2],
}

/// What containerd was told, one line an event.
#[derive(Clone, Default)]
struct Told(Arc<StdMutex<Vec<String>>>);

#[async_trait]
impl Events for Told {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = envelope.event.unwrap_or_default();
        let line = match event.type_url.as_str() {
            "containerd.events.TaskExit" => {
                let exit = messages::TaskExit::parse_from_bytes(&event.value).expect("an exit");
                format!("{} {} {}", envelope.topic, exit.id, exit.exit_status)
            }
            "containerd.events.TaskExecAdded" => {
                let exec = messages::TaskExecAdded::parse_from_bytes(&event.value).expect("an exec");
                format!("{} {}", envelope.topic, exec.exec_id)
            }
            "containerd.events.TaskExecStarted" => {
                let exec = messages::TaskExecStarted::parse_from_bytes(&event.value).expect("an exec");
                format!("{} {}", envelope.topic, exec.exec_id)
            }
            _ => envelope.topic,
        };
        self.lines().push(line);
        Ok(api::Empty::new())
    }
}

impl Told {
    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call, or one thing that happens in the guest.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create(&'static str),
    Start(&'static str, &'static str),
    Delete(&'static str, &'static str),
    Exec(&'static str, &'static str),
    /// An exec whose process is no process.
    BadExec(&'static str, &'static str),
    Kill(&'static str, &'static str, u32),
    KillAll(&'static str),
    Resize(&'static str, &'static str),
    CloseIo(&'static str, &'static str),
    Update(&'static str),
    Pause(&'static str),
    Resume(&'static str),
    Wait(&'static str, &'static str),
    State(&'static str, &'static str),
    Stats(&'static str),
    Pids(&'static str),
    Connect(&'static str),
    Checkpoint(&'static str),
    Shutdown,
    /// The process ends in the guest, and the sandbox has heard of it.
    Ends(&'static str, &'static str),
    /// Likewise, for want of memory.
    EndsForMemory(&'static str, &'static str),
}

use Call::*;

const DONE: Code = Code::OK;

impl Door {
    async fn open(test: impl FnOnce(&mut serde_json::Value)) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let vmm = FakeVmm::default();
        for asset in ["vmlinux", "initrd.img"] {
            std::fs::write(dir.path().join(asset), "x").expect("asset");
        }
        let config = format!(
            "[hypervisor.qemu]\nkernel = {:?}\ninitrd = {:?}\nshared_fs = \"virtio-9p\"\n",
            dir.path().join("vmlinux"),
            dir.path().join("initrd.img")
        );
        std::fs::write(dir.path().join("configuration.toml"), config).expect("configuration");
        let mut spec = serde_json::to_value(kata_bundle::default_spec()).expect("a spec");
        spec["process"]["terminal"] = false.into();
        test(&mut spec);
        for id in ["c", "d"] {
            let bundle = dir.path().join(id);
            std::fs::create_dir_all(bundle.join("rootfs")).expect("bundle");
            std::fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        }
        let home = Home::at(dir.path().join("home"));
        let record = Record::new("c".into(), "ns".into(), dir.path().join("c"));
        home.create(&record).expect("record");

        let (told, containerd) = (Told::default(), dir.path().join("containerd.sock"));
        let (events, happened) = mpsc::unbounded_channel();
        let publisher = event::publish(happened, Some(containerd.display().to_string()), "ns".into());
        tokio::spawn(publisher);
        let closing = Arc::new(Notify::new());
        let driver = vmm.clone();
        let opening = Opening {
            home: home.clone(),
            config: Some(dir.path().join("configuration.toml")),
            events,
            driver: Box::new(move |_| Arc::new(driver.clone())),
        };
        let tasks = Arc::new(TaskService::new(opening, closing.clone()));
        let servers = [
            listen(&containerd, create_events(Arc::new(told.clone()))).await,
            listen(&home.task_socket(), serve::services(&tasks)).await,
        ];
        let address = format!("unix://{}", home.task_socket().display());
        let client = Client::connect(&address).await.expect("connect");
        Self {
            dir,
            vmm,
            client: TaskClient::new(client),
            told,
            closing,
            _servers: servers,
        }
    }

    /// Makes each call and compares the code of its answer.
    async fn walk(&self, calls: &[(Call, Code)]) {
        for (number, (call, expected)) in calls.iter().enumerate() {
            let (code, message) = match self.make(*call).await {
                Ok(()) => (Code::OK, String::new()),
                Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
                Err(error) => panic!("call {number}, {call:?}: {error}"),
            };
            assert_eq!(code, *expected, "call {number}, {call:?}: {message:?}");
            assert_eq!(code == Code::OK, message.is_empty(), "call {number}, {call:?}");
        }
    }

    async fn make(&self, call: Call) -> ttrpc::Result<()> {
        let limit = bounded();
        let task = &self.client;
        match call {
            Create(id) => {
                let request = api::CreateTaskRequest {
                    id: id.into(),
                    bundle: self.dir.path().join(id).display().to_string(),
                    ..Default::default()
                };
                task.create(limit, &request).await.map(drop)
            }
            Start(id, exec) => {
                let request = api::StartRequest {
                    id: id.into(),
                    exec_id: exec.into(),
                    ..Default::default()
                };
                task.start(limit, &request).await.map(drop)
            }
            Delete(id, exec) => {
                let request = api::DeleteRequest {
                    id: id.into(),
                    exec_id: exec.into(),
                    ..Default::default()
                };
                task.delete(limit, &request).await.map(drop)
            }
            Exec(id, exec) => task.exec(limit, &exec_request(id, exec, GOOD)).await.map(drop),
            BadExec(id, exec) => task.exec(limit, &exec_request(id, exec, BAD)).await.map(drop),
            Kill(id, exec, signal) => task.kill(limit, &kill(id, exec, signal, false)).await.map(drop),
            KillAll(id) => task.kill(limit, &kill(id, "", 9, true)).await.map(drop),
            Resize(id, exec) => {
                let request = api::ResizePtyRequest {
                    id: id.into(),
                    exec_id: exec.into(),
                    width: 80,
                    height: 25,
                    ..Default::default()
                };
                task.resize_pty(limit, &request).await.map(drop)
            }
            CloseIo(id, exec) => {
                let request = api::CloseIORequest {
                    id: id.into(),
                    exec_id: exec.into(),
                    stdin: true,
                    ..Default::default()
                };
                task.close_io(limit, &request).await.map(drop)
            }
            Wait(id, exec) => task.wait(limit, &wait(id, exec)).await.map(drop),
            State(id, exec) => {
                let request = api::StateRequest {
                    id: id.into(),
                    exec_id: exec.into(),
                    ..Default::default()
                };
                task.state(limit, &request).await.map(drop)
            }
            other => self.make_of_container(other).await,
        }
    }

    /// The calls that are about a container as a whole.
    async fn make_of_container(&self, call: Call) -> ttrpc::Result<()> {
        macro_rules! ask {
            ($method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
                let request = api::$request { $($field: $value.into(),)* ..Default::default() };
                self.client.$method(bounded(), &request).await.map(drop)
            }};
        }
        match call {
            Update(id) => ask!(update, UpdateTaskRequest { id: id }),
            Pause(id) => ask!(pause, PauseRequest { id: id }),
            Resume(id) => ask!(resume, ResumeRequest { id: id }),
            Stats(id) => ask!(stats, StatsRequest { id: id }),
            Pids(id) => ask!(pids, PidsRequest { id: id }),
            Connect(id) => ask!(connect, ConnectRequest { id: id }),
            Checkpoint(id) => ask!(checkpoint, CheckpointTaskRequest { id: id }),
            Shutdown => ask!(shutdown, ShutdownRequest {}),
            Ends(id, exec) => {
                self.vmm.agent.end(id, exec, 7);
                self.client.wait(bounded(), &wait(id, exec)).await.map(drop)
            }
            EndsForMemory(id, exec) => {
                self.vmm.agent.end_for_memory(id, exec);
                self.client.wait(bounded(), &wait(id, exec)).await.map(drop)
            }
            other => unreachable!("{other:?} is about a process"),
        }
    }

    /// Waits until containerd was told `count` events; answers them.
    async fn told(&self, count: usize) -> Vec<String> {
        while self.told.lines().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.told.lines().clone()
    }
}

async fn listen(path: &Path, services: std::collections::HashMap<String, ttrpc::asynchronous::Service>) -> Server {
    let listener = UnixListener::bind(path).expect("listen");
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(services);
    server.start().await.expect("serve");
    server
}

const GOOD: &str = r#"{"args": ["true"], "cwd": "/"}"#;
const BAD: &str = r#"{"args": [], "cwd": "not absolute"}"#;

fn exec_request(id: &str, exec: &str, process: &str) -> api::ExecProcessRequest {
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process.into(),
        ..Default::default()
    };
    api::ExecProcessRequest {
        id: id.into(),
        exec_id: exec.into(),
        spec: MessageField::some(spec),
        ..Default::default()
    }
}

fn kill(id: &str, exec: &str, signal: u32, all: bool) -> api::KillRequest {
    api::KillRequest {
        id: id.into(),
        exec_id: exec.into(),
        signal,
        all,
        ..Default::default()
    }
}

fn wait(id: &str, exec: &str) -> api::WaitRequest {
    api::WaitRequest {
        id: id.into(),
        exec_id: exec.into(),
        ..Default::default()
    }
}

fn bounded() -> Context {
    context::with_timeout(20_000_000_000)
}

/// Runs a test on a thread with its own mount namespace and its own small runtime.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            namespace::enter().expect("these tests need root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(60), test())
                    .await
                    .expect("the test hangs");
            });
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn before_the_first_create_nothing_is_there() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Start("c", ""), Code::NOT_FOUND),
            (State("c", ""), Code::NOT_FOUND),
            (Delete("c", ""), Code::NOT_FOUND),
            (Exec("c", "e"), Code::NOT_FOUND),
            (Kill("c", "", 9), Code::NOT_FOUND),
            (Stats("c"), Code::NOT_FOUND),
            (Connect("c"), DONE),
        ])
        .await;
    });
}

#[test]
fn a_container_answers_in_every_state() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            // Created.
            (Create("c"), DONE),
            (Create("c"), Code::ALREADY_EXISTS),
            (State("c", ""), DONE),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (Update("c"), DONE),
            (Stats("c"), DONE),
            (Pids("c"), DONE),
            (Kill("c", "", 10), DONE),
            (Resize("c", ""), DONE),
            (Exec("c", "early"), DONE),
            (Start("c", "early"), Code::FAILED_PRECONDITION),
            (Delete("c", "early"), DONE),
            // Running.
            (Start("c", ""), DONE),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Create("c"), Code::ALREADY_EXISTS),
            (Delete("c", ""), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (CloseIo("c", ""), DONE),
            (CloseIo("c", ""), DONE),
            (Update("c"), DONE),
            (Checkpoint("c"), Code::UNIMPLEMENTED),
            // Paused.
            (Pause("c"), DONE),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Delete("c", ""), Code::FAILED_PRECONDITION),
            (Exec("c", "paused"), Code::FAILED_PRECONDITION),
            (Stats("c"), DONE),
            (Update("c"), DONE),
            (Resume("c"), DONE),
            (Resume("c"), Code::FAILED_PRECONDITION),
            // Stopped.
            (Ends("c", ""), DONE),
            (Wait("c", ""), DONE),
            (State("c", ""), DONE),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Exec("c", "late"), Code::FAILED_PRECONDITION),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (Update("c"), Code::FAILED_PRECONDITION),
            (Resize("c", ""), Code::FAILED_PRECONDITION),
            (Kill("c", "", 9), DONE),
            (Kill("c", "", 15), DONE),
            (Kill("c", "", 10), Code::NOT_FOUND),
            (KillAll("c"), DONE),
            (CloseIo("c", ""), DONE),
            (Stats("c"), Code::NOT_FOUND),
            (Pids("c"), Code::NOT_FOUND),
            (Shutdown, DONE),
            (Create("c"), Code::ALREADY_EXISTS),
            // Deleted.
            (Delete("c", ""), DONE),
            (Delete("c", ""), Code::NOT_FOUND),
            (State("c", ""), Code::NOT_FOUND),
            (Wait("c", ""), Code::NOT_FOUND),
            (Start("c", ""), Code::NOT_FOUND),
            (Kill("c", "", 9), Code::NOT_FOUND),
            (Pause("c"), Code::NOT_FOUND),
            (Update("c"), Code::NOT_FOUND),
            (CloseIo("c", ""), Code::NOT_FOUND),
            (Resize("c", ""), Code::NOT_FOUND),
        ])
        .await;
        assert_eq!(door.vmm.running(), 0);
    });
}

#[test]
fn an_exec_answers_in_every_state() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (Start("c", "e"), Code::NOT_FOUND),
            (Resize("c", "e"), Code::NOT_FOUND),
            (Kill("c", "e", 9), Code::NOT_FOUND),
            (Wait("c", "e"), Code::NOT_FOUND),
            (State("c", "e"), Code::NOT_FOUND),
            (CloseIo("c", "e"), Code::NOT_FOUND),
            (Delete("c", "e"), Code::NOT_FOUND),
            (Exec("x", "e"), Code::NOT_FOUND),
            (BadExec("c", "e"), Code::INVALID_ARGUMENT),
            (Exec("c", ""), Code::INVALID_ARGUMENT),
            (Exec("c", "../e"), Code::INVALID_ARGUMENT),
            // Added.
            (Exec("c", "e"), DONE),
            (Exec("c", "e"), Code::ALREADY_EXISTS),
            (State("c", "e"), DONE),
            (Kill("c", "e", 9), Code::FAILED_PRECONDITION),
            (CloseIo("c", "e"), DONE),
            (Resize("c", "e"), DONE),
            // Running.
            (Start("c", "e"), DONE),
            (Start("c", "e"), Code::FAILED_PRECONDITION),
            (Exec("c", "e"), Code::ALREADY_EXISTS),
            (Delete("c", "e"), Code::FAILED_PRECONDITION),
            (Kill("c", "e", 10), DONE),
            // Ended.
            (Kill("c", "e", 9), DONE),
            (Wait("c", "e"), DONE),
            (State("c", "e"), DONE),
            (Start("c", "e"), Code::FAILED_PRECONDITION),
            (Kill("c", "e", 9), DONE),
            (Kill("c", "e", 1), Code::NOT_FOUND),
            (Resize("c", "e"), Code::FAILED_PRECONDITION),
            (CloseIo("c", "e"), DONE),
            (Delete("c", "e"), DONE),
            (Delete("c", "e"), Code::NOT_FOUND),
            (Wait("c", "e"), Code::NOT_FOUND),
            (Exec("c", "e"), DONE),
        ])
        .await;
        let asked = door.vmm.agent.requests();
        let at = |word: &str| asked.iter().position(|request| request.starts_with(word));
        assert!(
            at("exec c e") < at("resize_terminal c e 80x25"),
            "the size is told after the start: {asked:?}"
        );
    });
}

#[test]
fn containerd_is_told_what_happens_in_its_order() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (Exec("c", "e"), DONE),
            (Start("c", "e"), DONE),
            (Pause("c"), DONE),
            (Resume("c"), DONE),
            (Ends("c", "e"), DONE),
            (Delete("c", "e"), DONE),
            (EndsForMemory("c", ""), DONE),
            (Delete("c", ""), DONE),
        ])
        .await;
        assert_eq!(
            door.told(10).await,
            [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exec-added e",
                "/tasks/exec-started e",
                "/tasks/paused",
                "/tasks/resumed",
                "/tasks/exit e 7",
                "/tasks/oom",
                "/tasks/exit c 137",
                "/tasks/delete",
            ]
        );
        assert!(!door.dir.path().join("c/oom").exists(), "containerd has its event");
    });
}

#[test]
fn cri_o_finds_a_file_where_memory_was_wanting() {
    run(|| async {
        let annotation = |spec: &mut serde_json::Value| {
            spec["annotations"] = serde_json::json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
        };
        let door = Door::open(annotation).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (EndsForMemory("c", ""), DONE),
        ])
        .await;
        assert!(door.dir.path().join("c/oom").exists());
    });
}

#[test]
fn the_process_ends_on_demand_but_not_under_a_container() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let ends = || tokio::time::timeout(Duration::from_millis(50), door.closing.notified());
        door.walk(&[(Create("c"), DONE), (Shutdown, DONE)]).await;
        assert!(ends().await.is_err(), "a container remains");
        door.walk(&[(Delete("c", ""), DONE), (Shutdown, DONE)]).await;
        assert!(ends().await.is_ok());
    });
}

#[test]
fn a_client_that_vanishes_leaves_nothing_half_done() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let address = format!("unix://{}", door.dir.path().join("home/task.sock").display());
        let impatient = TaskClient::new(Client::connect(&address).await.expect("connect"));
        let request = api::CreateTaskRequest {
            id: "c".into(),
            bundle: door.dir.path().join("c").display().to_string(),
            ..Default::default()
        };
        let gone = tokio::time::timeout(Duration::from_millis(1), impatient.create(bounded(), &request)).await;
        drop((gone, impatient));
        // Created completely or not at all, and told so.
        for _ in 0..1000 {
            if door.make(State("c", "")).await.is_ok() && !door.told.lines().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        door.walk(&[
            (Start("c", ""), DONE),
            (KillAll("c"), DONE),
            (Wait("c", ""), DONE),
            (Delete("c", ""), DONE),
        ])
        .await;
        assert_eq!(door.vmm.running(), 0);
    });
}

#[test]
fn the_configuration_named_by_containerd_is_found() {
    // type_url (1) and config_path (2), both strings.
    let mut value = vec![1 << 3 | 2, 3, b'f', b'o', b'o', 2 << 3 | 2, 7];
    value.extend_from_slice(b"/c.toml");
    let any = Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value,
        ..Default::default()
    };
    assert_eq!(config_path(Some(&any)), Some("/c.toml".into()));
    let foreign = Any {
        type_url: "containerd.runc.v1.Options".into(),
        ..any
    };
    assert_eq!(config_path(Some(&foreign)), None);
    assert_eq!(config_path(None), None);
}
