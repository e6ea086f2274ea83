//! Finds the sandbox process of a container and asks it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use kata_sandbox::record::{Home, Record};
use kata_sandbox::recover;
use kata_wire::proto::AgentClient;
use ttrpc::context::{self, Context as Deadline};

use crate::cli::Globals;

/// The longest id; that of runc and containerd.
const LONGEST_ID: usize = 1024;

/// Where a container's sandbox is, whether or not there is one.
pub fn home_of(globals: &Globals, id: &str) -> Result<Home> {
    check_id(id)?;
    Ok(Home::of(&place_of(globals, id)?))
}

/// What names the sandbox for its owner.
pub fn place_of(globals: &Globals, id: &str) -> Result<PathBuf> {
    let root = std::path::absolute(&globals.root).with_context(|| format!("root {}", globals.root.display()))?;
    Ok(root.join(id))
}

/// Letters, digits and `_ + - . @`, as runc has it.
fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.@".contains(c);
    if id.is_empty() || id.len() > LONGEST_ID || id == "." || id == ".." || !id.chars().all(allowed) {
        bail!("invalid container ID format: {id:?} (letters, digits and _ + - . @ are allowed)");
    }
    Ok(())
}

/// A container that has a record.
pub struct Found {
    /// Its own directory; that of its sandbox, too, unless it is a member of another's pod.
    pub home: Home,
    /// The record there.
    pub record: Record,
    /// Its id.
    pub id: String,
}

/// Looks for a container. `None` when nothing has this id.
///
/// # Errors
/// An id that cannot be one; a record that cannot be read.
pub fn find(globals: &Globals, id: &str) -> Result<Option<Found>> {
    let home = home_of(globals, id)?;
    match home.read() {
        Ok(record) => Ok(Some(Found {
            home,
            record,
            id: id.to_owned(),
        })),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// As [`find`], where a container must be.
///
/// # Errors
/// As [`find`], and when nothing has this id.
pub fn expect(globals: &Globals, id: &str) -> Result<Found> {
    find(globals, id)?.with_context(|| format!("container \"{id}\" does not exist"))
}

impl Found {
    /// Connects to the sandbox process; `None` when that has died.
    ///
    /// # Errors
    /// What connecting failed with.
    pub async fn connect(&self) -> Result<Option<Connection>> {
        let sandbox = self.sandbox_home();
        if !recover::is_alive(&sandbox) {
            return Ok(None);
        }
        Connection::open(&sandbox.task_socket(), &self.id).await.map(Some)
    }

    /// The directory of its sandbox.
    pub fn sandbox_home(&self) -> Home {
        self.record.sandbox_home(&self.home)
    }

    /// Whether its sandbox is another container's.
    pub fn is_member(&self) -> bool {
        self.record.pod.is_some()
    }

    /// As [`connect`](Self::connect), where the container must be running.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and when the sandbox process has died.
    pub async fn connect_live(&self) -> Result<Connection> {
        let connection = self.connect().await?;
        connection.with_context(|| format!("container \"{}\" is not running: its sandbox process has died", self.id))
    }
}

/// A connection to a sandbox process, about one container.
#[derive(Clone)]
pub struct Connection {
    /// The Task API.
    pub task: TaskClient,
    /// The questions about the guest.
    pub guest: AgentClient,
    id: String,
}

/// How long a call may take that only looks or signals.
const SHORT: Duration = Duration::from_secs(60);

/// A bound for a short call.
pub fn short() -> Deadline {
    context::with_timeout(i64::try_from(SHORT.as_nanos()).unwrap_or(i64::MAX))
}

/// No bound: for calls that boot a machine or wait for a process.
pub fn unbounded() -> Deadline {
    Deadline::default()
}

impl Connection {
    /// Connects to the sandbox process that listens on `socket`.
    ///
    /// # Errors
    /// What connecting failed with.
    pub async fn open(socket: &Path, id: &str) -> Result<Self> {
        let client = Client::connect(&format!("unix://{}", socket.display()))
            .await
            .with_context(|| format!("cannot reach the sandbox process on {}", socket.display()))?;
        Ok(Self {
            task: TaskClient::new(client.clone()),
            guest: AgentClient::new(client),
            id: id.to_owned(),
        })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How the container's init stands.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn state(&self) -> Result<api::StateResponse> {
        let request = api::StateRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.task.state(short(), &request).await.map_err(said)
    }

    /// Starts the init, or an exec.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn start(&self, exec: &str) -> Result<()> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.task.start(unbounded(), &request).await.map(drop).map_err(said)
    }

    /// Waits for the end of the init, or of an exec; answers its exit code.
    ///
    /// # Errors
    /// What the sandbox process said, or that it died.
    pub async fn wait(&self, exec: &str) -> Result<u8> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let answer = self.task.wait(unbounded(), &request).await.map_err(said)?;
        Ok(u8::try_from(answer.exit_status).unwrap_or(u8::MAX))
    }

    /// Sends a signal to the init or an exec, or to all processes of the container.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.task.kill(short(), &request).await.map(drop).map_err(said)
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn resize(&self, exec: &str, size: (u16, u16)) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width: size.0.into(),
            height: size.1.into(),
            ..Default::default()
        };
        self.task.resize_pty(short(), &request).await.map(drop).map_err(said)
    }

    /// Ends the input of the init or an exec.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn close_stdin(&self, exec: &str) -> Result<()> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.task.close_io(short(), &request).await.map(drop).map_err(said)
    }

    /// Forgets an exec, or the container.
    ///
    /// # Errors
    /// What the sandbox process said.
    pub async fn delete(&self, exec: &str) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.task.delete(short(), &request).await.map(drop).map_err(said)
    }
}

/// What the sandbox process said, in its own words.
pub fn said(error: ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status) => anyhow::anyhow!("{}", status.message),
        // It does not end before it has answered.
        gone @ (ttrpc::Error::Socket(_) | ttrpc::Error::Eof | ttrpc::Error::RemoteClosed) => anyhow::Error::new(gone)
            .context("the sandbox process was killed, as the kernel does when memory is wanting"),
        other => anyhow::Error::new(other).context("the sandbox process does not answer"),
    }
}

/// A runtime for one verb.
///
/// # Errors
/// When the system has no epoll or eventfd left.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_runc() {
        for id in ["a", "web-1", "A_b+c.d@e", &"x".repeat(64)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(1025)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
