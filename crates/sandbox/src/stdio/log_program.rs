//! A program of the engine's side that logs the output of a process: it is given the reading ends of two pipes, says by
//! closing a third that it is ready, and ends by itself when it has read all there is.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use kata_sys::process::give_fds;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::output::Program;
use super::{Client, StdioError};

/// How long it may take to get ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long it may go on after its input has ended; then it is asked to end, and then killed.
const READ_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(2);

/// The numbers under which it finds its pipes.
const STDOUT_FD: i32 = 3;
const STDERR_FD: i32 = 4;
const READY_FD: i32 = 5;

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub(super) struct LogProgram {
    /// Its pid.
    pub pid: Option<u32>,
    /// To be told that its input has ended.
    input_ended: oneshot::Sender<()>,
    watch: JoinHandle<()>,
}

/// The writing ends of its pipes.
pub(super) struct Inputs {
    pub stdout: pipe::Sender,
    pub stderr: pipe::Sender,
}

impl LogProgram {
    /// Starts the program and waits until it is ready.
    ///
    /// # Errors
    /// [`StdioError::Program`]
    pub async fn start(program: &Program, client: &Client<'_>) -> Result<(Self, Inputs), StdioError> {
        let failed = |source| StdioError::Program {
            path: program.path.clone(),
            source,
        };
        let (child, inputs, mut ready) = spawn(program, client).map_err(failed)?;
        let pid = child.id();
        let (input_ended, ended) = oneshot::channel();
        let this = Self {
            pid,
            input_ended,
            watch: tokio::spawn(watch(child, ended)),
        };
        let mut word = [0];
        match tokio::time::timeout(READY_LIMIT, ready.read(&mut word)).await {
            // A byte says as much as the end.
            Ok(Ok(_)) => Ok((this, inputs)),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it has not said within {READY_LIMIT:?} that it is ready"),
            ))),
        }
    }

    /// Waits until it has ended, and sees to it. Its pipes must have been closed.
    pub async fn end(self) {
        // Fails when it has ended already.
        let _ = self.input_ended.send(());
        let _ = self.watch.await;
    }
}

fn spawn(program: &Program, client: &Client<'_>) -> io::Result<(Child, Inputs, pipe::Receiver)> {
    let (stdout_reader, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr_reader, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    let (ready, ready_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .envs(&program.environment)
        .env("CONTAINER_ID", client.id)
        .env("CONTAINER_NAMESPACE", client.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let fds = [
        (&stdout_reader, STDOUT_FD),
        (&stderr_reader, STDERR_FD),
        (&ready_writer, READY_FD),
    ];
    give_fds(
        command.as_std_mut(),
        fds.map(|(fd, number): (&OwnedFd, i32)| (fd.as_raw_fd(), number)).into(),
    );
    client.origin.enter(command.as_std_mut(), "/".as_ref())?;
    let child = command.spawn()?;
    let inputs = Inputs {
        stdout: pipe::Sender::from_owned_fd(stdout)?,
        stderr: pipe::Sender::from_owned_fd(stderr)?,
    };
    Ok((child, inputs, pipe::Receiver::from_owned_fd(ready)?))
}

/// Waits for the end of the program, and brings it about when its input has ended or it is no longer wanted.
async fn watch(mut child: Child, input_ended: oneshot::Receiver<()>) {
    let wanted = tokio::select! {
        _ = child.wait() => return,
        ended = input_ended => ended.is_ok(),
    };
    if wanted {
        if tokio::time::timeout(READ_LIMIT, child.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(pid = child.id(), "a log program does not end after its input");
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Not waited for yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(END_LIMIT, child.wait()).await.is_ok() {
            return;
        }
    }
    let _ = child.kill().await;
}
