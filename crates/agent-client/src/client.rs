//! The questions that the host asks the agent.

use std::time::Duration;

use kata_wire::mux::{self, Opener};
use kata_wire::proto;
use kata_wire::stream::{CONNECTED, Family, Header, HeaderError, Kind};
use tokio::io::AsyncReadExt;
use ttrpc::Code;
use ttrpc::context::Context;

/// A process in the guest: the init of a container if `exec` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Container id.
    pub container: String,
    /// Exec id, or empty.
    pub exec: String,
}

impl Process {
    /// The init of a container.
    pub fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }
}

/// Why the agent did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent knows no such container or process, or, on start, the program does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The container or process is not in a state for this.
    #[error("{0}")]
    WrongState(String),
    /// The request makes no sense to the agent.
    #[error("{0}")]
    Invalid(String),
    /// The agent tried and failed.
    #[error("{0}")]
    Failed(String),
    /// The agent did not answer in time.
    #[error("the guest's agent did not answer {request} within {limit:?}")]
    Silent {
        /// The request's name.
        request: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The channel has ended: the guest, or its agent, is gone.
    #[error("the channel to the guest is closed")]
    Lost,
}

impl From<mux::OpenError> for AgentError {
    fn from(error: mux::OpenError) -> Self {
        match error {
            mux::OpenError::Closed => Self::Lost,
            mux::OpenError::TooMany => Self::Failed(error.to_string()),
        }
    }
}

/// How long a request may take that has no reason to take long. Generous: an emulated guest on a busy host is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// The agent of one guest. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    client: proto::AgentClient,
    opener: Opener,
}

/// One request with the usual bound, and its error as an [`AgentError`].
macro_rules! ask {
    ($self:ident . $method:ident ( $request:expr )) => {
        within(
            LIMIT,
            stringify!($method),
            $self.client.$method(Context::default(), &$request),
        )
        .await
    };
}

impl Agent {
    pub(crate) fn new(client: proto::AgentClient, opener: Opener) -> Self {
        Self { client, opener }
    }

    /// Prepares the guest for its pod.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn set_up(&self, request: proto::SetupRequest) -> Result<proto::SetupResponse, AgentError> {
        ask!(self.setup(request))
    }

    /// Makes the guest's network what it is told.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update_network(&self, network: proto::Network) -> Result<(), AgentError> {
        ask!(self.update_network(network)).map(drop)
    }

    /// Builds a container, up to the point where its init only has to be executed; answers its pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_container(&self, request: proto::CreateContainerRequest) -> Result<u32, AgentError> {
        ask!(self.create_container(request)).map(|answer| answer.pid)
    }

    /// Makes a volume that was copied into the guest what the host's is now.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update_tree(&self, request: proto::UpdateTreeRequest) -> Result<(), AgentError> {
        ask!(self.update_tree(request)).map(drop)
    }

    /// Executes the init of a created container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start_container(&self, container: &str) -> Result<(), AgentError> {
        ask!(self.start_container(container_ref(container))).map(drop)
    }

    /// Kills what is left of a container and forgets it.
    ///
    /// # Errors
    /// See [`AgentError`]; an unknown id is none.
    pub async fn delete_container(&self, container: &str) -> Result<(), AgentError> {
        ask!(self.delete_container(container_ref(container))).map(drop)
    }

    /// Starts one more process in a running container; answers its pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn exec(&self, request: proto::ExecRequest) -> Result<u32, AgentError> {
        ask!(self.exec(request)).map(|answer| answer.pid)
    }

    /// Forgets an exec process.
    ///
    /// # Errors
    /// See [`AgentError`]; an unknown id is none.
    pub async fn delete_process(&self, process: &Process) -> Result<(), AgentError> {
        ask!(self.delete_process(process_ref(process))).map(drop)
    }

    /// Waits, without bound, until the process has ended.
    ///
    /// # Errors
    /// See [`AgentError`]; [`AgentError::Lost`] when the guest ends first.
    pub async fn wait(&self, process: &Process) -> Result<proto::WaitResponse, AgentError> {
        let request = process_ref(process);
        tokio::select! {
            answer = self.client.wait(Context::default(), &request) => {
                answer.map_err(from_ttrpc)
            }
            () = self.opener.closed() => Err(AgentError::Lost),
        }
    }

    /// Sends a signal to a process, or to every process of its container.
    ///
    /// # Errors
    /// See [`AgentError`]; [`AgentError::NotFound`] for a process that has ended.
    pub async fn signal(&self, process: &Process, signal: u32, all: bool) -> Result<(), AgentError> {
        let request = proto::SignalRequest {
            container_id: process.container.clone(),
            exec_id: process.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        ask!(self.signal(request)).map(drop)
    }

    /// Tells a process's terminal its size, in characters.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn resize_terminal(&self, process: &Process, columns: u32, rows: u32) -> Result<(), AgentError> {
        let request = proto::ResizeTerminalRequest {
            container_id: process.container.clone(),
            exec_id: process.exec.clone(),
            columns,
            rows,
            ..Default::default()
        };
        ask!(self.resize_terminal(request)).map(drop)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn pause(&self, container: &str) -> Result<(), AgentError> {
        ask!(self.pause(container_ref(container))).map(drop)
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn resume(&self, container: &str) -> Result<(), AgentError> {
        ask!(self.resume(container_ref(container))).map(drop)
    }

    /// Changes a container's limits. `resources_json` is a `linux.resources` object of the OCI runtime spec.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update(&self, container: &str, resources_json: Vec<u8>) -> Result<(), AgentError> {
        let request = proto::UpdateRequest {
            container_id: container.to_owned(),
            resources_json,
            ..Default::default()
        };
        ask!(self.update(request)).map(drop)
    }

    /// Has the guest take into use what its machine was given, and answers what it has.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn online(&self, request: proto::OnlineRequest) -> Result<proto::OnlineResponse, AgentError> {
        ask!(self.online_resources(request))
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn processes(&self, container: &str) -> Result<proto::ProcessesResponse, AgentError> {
        ask!(self.processes(container_ref(container)))
    }

    /// What a container has used.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn stats(&self, container: &str) -> Result<proto::StatsResponse, AgentError> {
        ask!(self.stats(container_ref(container)))
    }

    /// Has the guest forget its pod, whose containers must be gone: it is then as before [`set_up`](Self::set_up).
    ///
    /// # Errors
    /// See [`AgentError`]; [`AgentError::WrongState`] while there are containers.
    pub async fn reset(&self) -> Result<(), AgentError> {
        ask!(self.reset(proto::Empty::new())).map(drop)
    }

    /// Asks the guest to power off. It may be gone before it answers, so there is nothing to learn from the answer.
    pub async fn shut_down(&self, limit: Duration) {
        let nothing = proto::Empty::new();
        let _ = within(limit, "shutdown", self.client.shutdown(Context::default(), &nothing)).await;
    }

    /// Opens one stdio stream of a process. May come before the process itself is asked for.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the channel has ended, [`AgentError::Invalid`] for an id that is too long.
    pub async fn stdio(&self, kind: Kind, process: &Process) -> Result<mux::Stream, AgentError> {
        let header = Header::Stdio {
            kind,
            container: process.container.clone(),
            exec: process.exec.clone(),
        };
        self.open(header).await
    }

    /// Waits, without bound, until somebody in a container has connected to its socket of this number; answers the
    /// stream that is their connection.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the channel has ended, [`AgentError::NotFound`] when the socket has.
    pub async fn accept(&self, container: &str, socket: u32) -> Result<mux::Stream, AgentError> {
        let header = Header::Accept {
            container: container.to_owned(),
            socket,
        };
        let stream = connected(self.open(header).await?).await;
        stream.ok_or_else(|| AgentError::NotFound(format!("socket {socket} of container {container} is gone")))
    }

    /// Connects to a port of the guest's loopback; answers the stream that is the connection, or `None` if the guest
    /// refuses it.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the channel has ended.
    pub async fn connect(&self, family: Family, port: u16) -> Result<Option<mux::Stream>, AgentError> {
        let stream = self.open(Header::Connect { family, port }).await?;
        Ok(connected(stream).await)
    }

    async fn open(&self, header: Header) -> Result<mux::Stream, AgentError> {
        let mut stream = self.opener.open().await?;
        header.send(&mut stream).await.map_err(|error| match error {
            HeaderError::TooLong { .. } => AgentError::Invalid(error.to_string()),
            _ => AgentError::Lost,
        })?;
        Ok(stream)
    }

    /// Resolves when the channel has ended.
    pub async fn closed(&self) {
        self.opener.closed().await;
    }
}

async fn connected(mut stream: mux::Stream) -> Option<mux::Stream> {
    let first = stream.read_u8().await;
    (first.ok()? == CONNECTED).then_some(stream)
}

fn container_ref(container: &str) -> proto::ContainerRef {
    proto::ContainerRef {
        container_id: container.to_owned(),
        ..Default::default()
    }
}

fn process_ref(process: &Process) -> proto::ProcessRef {
    proto::ProcessRef {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
        ..Default::default()
    }
}

/// The answer to a request, if it comes in time: that of the host. A limit in the request would be measured by the guest,
/// whose clock may be wrong.
async fn within<T>(
    limit: Duration,
    request: &'static str,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(from_ttrpc),
        Err(_) => Err(AgentError::Silent { request, limit }),
    }
}

fn from_ttrpc(error: ttrpc::Error) -> AgentError {
    let ttrpc::Error::RpcStatus(status) = error else {
        return AgentError::Lost;
    };
    let code = status.code.enum_value_or(Code::UNKNOWN);
    let message = bounded_text(status.message);
    match code {
        Code::NOT_FOUND => AgentError::NotFound(message),
        Code::ALREADY_EXISTS => AgentError::AlreadyExists(message),
        Code::FAILED_PRECONDITION => AgentError::WrongState(message),
        Code::INVALID_ARGUMENT => AgentError::Invalid(message),
        _ => AgentError::Failed(message),
    }
}

/// The guest's words, cut to a length that fits a log line, and without control characters.
fn bounded_text(text: String) -> String {
    const MOST: usize = 2000;
    text.chars()
        .take(MOST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_without_an_answer_is_named_with_its_limit() {
        let never = std::future::pending::<ttrpc::Result<()>>();
        let error = within(Duration::from_millis(1), "update", never)
            .await
            .expect_err("no answer");
        assert_eq!(error.to_string(), "the guest's agent did not answer update within 1ms");
    }

    #[tokio::test]
    async fn an_answer_is_told_from_the_end_of_the_channel() {
        let refused = ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "no c\n"));
        let error = within(LIMIT, "update", async { Err::<(), _>(refused) }).await;
        assert!(matches!(error, Err(AgentError::NotFound(text)) if text == "no c "));
        let error = within(LIMIT, "update", async { Err::<(), _>(ttrpc::Error::RemoteClosed) }).await;
        assert!(matches!(error, Err(AgentError::Lost)));
    }
}
