//! An agent without a guest: speaks the real protocol over any byte stream, runs nothing, and does what a test tells it.
//!
//! A process of it echoes its stdin to its stdout and ends when the test says so, or when it is killed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream;
use kata_wire::handshake::{self, Versions};
use kata_wire::mux::{self, Incoming, Side, Stream};
use kata_wire::proto;
use kata_wire::stream::{CONNECTED, Header, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

type Id = (String, String);
/// Exit code, and whether the guest wanted for memory.
type Exit = watch::Sender<Option<(u32, bool)>>;

#[derive(Default)]
struct State {
    requests: Vec<String>,
    processes: BTreeMap<Id, Exit>,
    failing: Option<(String, Code, String)>,
    input_ended: Arc<Notify>,
    sockets: BTreeMap<(String, u32), Vec<Stream>>,
    socket_waits: Arc<Notify>,
    network: proto::Network,
    ends_with_input: bool,
}

/// The port of its loopback on which somebody listens, and sends back whatever comes.
pub const ECHO_PORT: u16 = 7;

/// The test's hand on the agent.
#[derive(Clone, Default)]
pub struct FakeAgent(Arc<Mutex<State>>);

impl FakeAgent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One whose processes end, with 0, when their input ends.
    pub fn copying() -> Self {
        let agent = Self::default();
        agent.state().ends_with_input = true;
        agent
    }

    /// What was asked so far, one word a request with its ids.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Lets the next request of this name (`create_container`, …) fail.
    pub fn fail(&self, request: &str, code: Code, message: &str) {
        self.state().failing = Some((request.to_owned(), code, message.to_owned()));
    }

    /// Ends a process; of an unknown one, nothing.
    pub fn end(&self, container: &str, exec: &str, code: u32) {
        if let Some(exit) = self.state().processes.get(&(container.to_owned(), exec.to_owned())) {
            exit.send_replace(Some((code, false)));
        }
    }

    /// Ends a process as the guest's kernel does for want of memory; of an unknown one, nothing.
    pub fn end_for_memory(&self, container: &str, exec: &str) {
        if let Some(exit) = self.state().processes.get(&(container.to_owned(), exec.to_owned())) {
            exit.send_replace(Some((137, true)));
        }
    }

    /// Waits, at most half a minute, until a process has seen the end of its input; answers whether one has.
    pub async fn inputs_ended(&self) -> bool {
        let ended = self.state().input_ended.clone();
        tokio::time::timeout(Duration::from_secs(30), ended.notified())
            .await
            .is_ok()
    }

    /// Connects to a socket of a container, as somebody in it would, as soon as the host waits for that.
    pub async fn connect_to_socket(&self, container: &str, socket: u32) -> Stream {
        loop {
            let waits = self.state().socket_waits.clone();
            let waiting = self
                .state()
                .sockets
                .get_mut(&(container.to_owned(), socket))
                .and_then(Vec::pop);
            match waiting {
                Some(mut stream) => {
                    // A host that has gone meanwhile is seen by what follows.
                    let _ = stream.write_all(&[CONNECTED]).await;
                    return stream;
                }
                None => waits.notified().await,
            }
        }
    }

    /// What the guest's network was last said to be.
    pub fn network(&self) -> proto::Network {
        self.state().network.clone()
    }

    /// Ids of the containers and execs there are.
    pub fn processes(&self) -> Vec<Id> {
        self.state().processes.keys().cloned().collect()
    }

    /// Speaks on `channel` until it ends.
    pub async fn serve<T>(self, mut channel: T)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let spoken = handshake::guest(&mut channel, Versions { min: 1, max: 1 }).await;
        if spoken.is_ok() {
            let (_opener, incoming) = mux::start(channel, Side::Guest);
            self.take_streams(incoming).await;
        }
    }

    async fn take_streams(self, mut incoming: Incoming) {
        let (requests, wanted) = mpsc::unbounded_channel::<Stream>();
        let listener = Listener::new(stream::unfold(wanted, |mut wanted| async move {
            let next = wanted.recv().await?;
            Some((Ok(next), wanted))
        }));
        let services = proto::create_agent(Arc::new(self.clone()));
        let mut server = Server::new().add_listener(listener).register_service(services);
        if server.start().await.is_err() {
            return;
        }
        let mut inputs: BTreeMap<Id, Stream> = BTreeMap::new();
        while let Some(mut stream) = incoming.next().await {
            let Ok(header) = Header::receive(&mut stream).await else {
                continue;
            };
            let (kind, id) = match header {
                Header::Requests => {
                    let _ = requests.send(stream);
                    continue;
                }
                Header::Stdio { kind, container, exec } => (kind, (container, exec)),
                Header::Accept { container, socket } => {
                    let mut state = self.state();
                    state.sockets.entry((container, socket)).or_default().push(stream);
                    state.socket_waits.notify_one();
                    continue;
                }
                Header::Connect { port: ECHO_PORT, .. } => {
                    if stream.write_all(&[CONNECTED]).await.is_ok() {
                        tokio::spawn(echo_back(stream));
                    }
                    continue;
                }
                // Nobody listens there.
                Header::Connect { .. } => continue,
            };
            match kind {
                Kind::Stdin => {
                    inputs.insert(id, stream);
                }
                Kind::Stdout => {
                    if let Some(input) = inputs.remove(&id) {
                        tokio::spawn(self.clone().echo(id, input, stream));
                    }
                }
                // Nothing is ever printed there; it ends at once.
                Kind::Stderr => {
                    let _ = stream.shutdown().await;
                }
            }
        }
        let _ = server.shutdown().await;
    }

    fn note(&self, request: &str, ids: &[&str]) -> ttrpc::Result<()> {
        let mut state = self.state();
        state.requests.push(
            std::iter::once(&request)
                .chain(ids)
                .copied()
                .collect::<Vec<_>>()
                .join(" "),
        );
        match state.failing.take() {
            Some((failing, code, message)) if failing == request => {
                Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
            }
            other => {
                state.failing = other;
                Ok(())
            }
        }
    }

    async fn echo(self, id: Id, mut input: Stream, mut output: Stream) {
        let mut block = vec![0; 4096];
        while let Ok(length @ 1..) = input.read(&mut block).await {
            if output.write_all(&block[..length]).await.is_err() || output.flush().await.is_err() {
                return;
            }
        }
        let (ended, ends_with_input) = {
            let state = self.state();
            (state.input_ended.clone(), state.ends_with_input)
        };
        ended.notify_one();
        if ends_with_input {
            self.end(&id.0, &id.1, 0);
        }
        let _ = input.shutdown().await;
        let _ = output.shutdown().await;
        // Both halves stay until the peer is done with them.
        let _ = output.read(&mut block).await;
    }

    fn begin(&self, container: &str, exec: &str) {
        let id = (container.to_owned(), exec.to_owned());
        self.state().processes.insert(id, watch::Sender::new(None));
    }
}

async fn echo_back(stream: Stream) {
    let (mut input, mut output) = tokio::io::split(stream);
    if tokio::io::copy(&mut input, &mut output).await.is_ok() {
        let _ = output.shutdown().await;
    }
}

type Done = ttrpc::Result<proto::Empty>;

#[async_trait]
impl proto::Agent for FakeAgent {
    async fn setup(&self, _: &TtrpcContext, request: proto::SetupRequest) -> ttrpc::Result<proto::SetupResponse> {
        self.note("setup", &[&request.sandbox_id])?;
        self.state().network = request.network.unwrap_or_default();
        Ok(proto::SetupResponse {
            agent_version: "fake".into(),
            kernel_release: "none".into(),
            ..Default::default()
        })
    }

    async fn update_network(&self, _: &TtrpcContext, request: proto::Network) -> Done {
        self.note("update_network", &[])?;
        self.state().network = request;
        Ok(proto::Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: proto::CreateContainerRequest,
    ) -> ttrpc::Result<proto::CreateContainerResponse> {
        self.note("create_container", &[&request.container_id])?;
        self.begin(&request.container_id, "");
        Ok(proto::CreateContainerResponse {
            pid: 42,
            ..Default::default()
        })
    }

    async fn start_container(&self, _: &TtrpcContext, request: proto::ContainerRef) -> Done {
        self.note("start_container", &[&request.container_id])?;
        Ok(proto::Empty::new())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: proto::ContainerRef) -> Done {
        self.note("delete_container", &[&request.container_id])?;
        self.state()
            .processes
            .retain(|(container, _), _| *container != request.container_id);
        Ok(proto::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: proto::ExecRequest) -> ttrpc::Result<proto::ExecResponse> {
        self.note("exec", &[&request.container_id, &request.exec_id])?;
        self.begin(&request.container_id, &request.exec_id);
        Ok(proto::ExecResponse {
            pid: 43,
            ..Default::default()
        })
    }

    async fn delete_process(&self, _: &TtrpcContext, request: proto::ProcessRef) -> Done {
        self.note("delete_process", &[&request.container_id, &request.exec_id])?;
        self.state().processes.remove(&(request.container_id, request.exec_id));
        Ok(proto::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: proto::ProcessRef) -> ttrpc::Result<proto::WaitResponse> {
        let id = (request.container_id, request.exec_id);
        let exit = self.state().processes.get(&id).map(watch::Sender::subscribe);
        let gone = || ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "no such process"));
        let mut exit = exit.ok_or_else(gone)?;
        let (code, oom_killed) = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| gone())?
            .unwrap_or_default();
        Ok(proto::WaitResponse {
            exit_code: code,
            oom_killed,
            exited_at_unix_nanos: 1,
            ..Default::default()
        })
    }

    async fn signal(&self, _: &TtrpcContext, request: proto::SignalRequest) -> Done {
        self.note(
            "signal",
            &[&request.container_id, &request.exec_id, &request.signal.to_string()],
        )?;
        const KILL: u32 = 9;
        if request.signal == KILL {
            self.end(&request.container_id, &request.exec_id, 128 + KILL);
        }
        Ok(proto::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: proto::ContainerRef) -> Done {
        self.note("pause", &[&request.container_id])?;
        Ok(proto::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: proto::ContainerRef) -> Done {
        self.note("resume", &[&request.container_id])?;
        Ok(proto::Empty::new())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: proto::ResizeTerminalRequest) -> Done {
        let size = format!("{}x{}", request.columns, request.rows);
        self.note("resize_terminal", &[&request.container_id, &request.exec_id, &size])?;
        Ok(proto::Empty::new())
    }

    async fn online_resources(
        &self,
        _: &TtrpcContext,
        request: proto::OnlineRequest,
    ) -> ttrpc::Result<proto::OnlineResponse> {
        self.note("online_resources", &[])?;
        Ok(proto::OnlineResponse {
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            ..Default::default()
        })
    }

    async fn update(&self, _: &TtrpcContext, request: proto::UpdateRequest) -> Done {
        self.note("update", &[&request.container_id])?;
        Ok(proto::Empty::new())
    }

    async fn reset(&self, _: &TtrpcContext, _: proto::Empty) -> Done {
        self.note("reset", &[])?;
        Ok(proto::Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<proto::StatsResponse> {
        self.note("stats", &[&request.container_id])?;
        Ok(proto::StatsResponse::default())
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRef,
    ) -> ttrpc::Result<proto::ProcessesResponse> {
        self.note("processes", &[&request.container_id])?;
        let entries = self.processes().into_iter();
        let its = entries.filter(|(container, _)| *container == request.container_id);
        Ok(proto::ProcessesResponse {
            processes: its
                .map(|(_, exec_id)| proto::ProcessInfo {
                    exec_id,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }
}
