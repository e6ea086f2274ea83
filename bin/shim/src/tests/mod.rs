//! Tests of the doors over their socket, before a fake machine with a fake agent. Here: what they are run with.

mod hooks;
mod sandbox;
mod stdio;
mod task;

use std::path::Path;
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as messages;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use kata_sandbox::record::{Home, Record};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_testkit::machine::FakeVmm;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::context::{self, Context};

use crate::serve::Opening;
use crate::task::TaskService;
use crate::{event, serve};

/// A sandbox process's services in this process, and a client of them.
pub struct Door {
    /// Bundles `c` and `d`, the configuration, the sandbox's directory `home`.
    pub dir: tempfile::TempDir,
    /// The machines and the agent in them.
    pub vmm: FakeVmm,
    /// The Task API.
    pub client: TaskClient,
    /// What containerd was told.
    pub told: Told,
    /// Notified when the process may end.
    pub closing: Arc<Notify>,
    _servers: [Server; 2],
}

/// What containerd was told, one line an event.
#[derive(Clone, Default)]
pub struct Told(Arc<StdMutex<Vec<String>>>);

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
    /// All so far.
    pub fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call, or one thing that happens in the guest.
#[derive(Clone, Copy, Debug)]
pub enum Call {
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

pub const DONE: Code = Code::OK;

impl Door {
    /// Opens the door. `change` may alter the bundles' specification.
    pub async fn open(change: impl FnOnce(&mut serde_json::Value)) -> Self {
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
        change(&mut spec);
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
            options_config: None,
            home: home.clone(),
            origin: ORIGIN.get().expect("set by run").clone(),
            config: Some(dir.path().join("configuration.toml")),
            hierarchies: kata_cgroup::Hierarchies::default,
            events,
            driver: Box::new(move |_| Arc::new(driver.clone())),
            spare: StdMutex::default(),
        };
        let tasks = Arc::new(TaskService::new(opening, closing.clone()));
        let servers = [
            listen(&containerd, create_events(Arc::new(told.clone()))).await,
            listen(&home.task_socket(), serve::services(&tasks, &closing)).await,
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
    pub async fn walk(&self, calls: &[(Call, Code)]) {
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

    /// Makes one call.
    pub async fn make(&self, call: Call) -> ttrpc::Result<()> {
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
    pub async fn told(&self, count: usize) -> Vec<String> {
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

/// A process.
pub const GOOD: &str = r#"{"args": ["true"], "cwd": "/"}"#;
/// None.
pub const BAD: &str = r#"{"args": [], "cwd": "not absolute"}"#;

/// Adds an exec.
pub fn exec_request(id: &str, exec: &str, process: &str) -> api::ExecProcessRequest {
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

/// A limit for a call.
pub fn bounded() -> Context {
    context::with_timeout(20_000_000_000)
}

/// The namespaces of the test program.
static ORIGIN: OnceLock<Arc<Origin>> = OnceLock::new();

/// Runs a test on a thread with its own mount namespace and its own small runtime.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let enter = || {
        ORIGIN.get_or_init(|| Arc::new(Origin::here().expect("namespaces")));
        namespace::enter().expect("these tests need root");
    };
    kata_testkit::thread::run(Duration::from_secs(60), enter, test);
}
