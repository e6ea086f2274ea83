//! The host's ends of a process's stdio: fifos, as the Task API names them, and the copying between them and the
//! streams of the channel.
//!
//! The sandbox holds its own writer on the stdin fifo until it is told to close it, so a client that detaches does not end the
//! process's input; and its own reader on the output fifos, so a client that comes late or again finds them alive.

use std::io;
use std::path::{Path, PathBuf};

use kata_agent_client::{Agent, AgentError, Process};
use kata_wire::mux::Stream;
use kata_wire::stream::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// What a client says of a process's stdio; an absent stream is `/dev/null` in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// A terminal: stdin and stdout are its two directions, stderr is not used.
    pub terminal: bool,
    /// Fifo that the process's input is read from.
    pub stdin: Option<PathBuf>,
    /// Fifo that its output is written to.
    pub stdout: Option<PathBuf>,
    /// Fifo that its error output is written to.
    pub stderr: Option<PathBuf>,
}

/// Why a fifo cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {} as the process's {stream}", path.display())]
pub struct StdioError {
    stream: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The fifos, opened before the process exists.
#[derive(Debug)]
pub struct HostStdio {
    stdin: Option<(pipe::Receiver, pipe::Sender)>,
    stdout: Option<pipe::Sender>,
    stderr: Option<pipe::Sender>,
}

impl HostStdio {
    /// Opens what `stdio` names.
    ///
    /// # Errors
    /// [`StdioError`] for a path that is no fifo or cannot be opened.
    pub fn open(stdio: &Stdio) -> Result<Self, StdioError> {
        let output = |path: &Option<PathBuf>, stream| {
            path.as_deref()
                .map(|path| {
                    pipe::OpenOptions::new()
                        .read_write(true)
                        .open_sender(path)
                        .map_err(failed(stream, path))
                })
                .transpose()
        };
        let stdin = stdio
            .stdin
            .as_deref()
            .map(|path| {
                let reader = pipe::OpenOptions::new()
                    .open_receiver(path)
                    .map_err(failed("stdin", path))?;
                let writer = pipe::OpenOptions::new()
                    .open_sender(path)
                    .map_err(failed("stdin", path))?;
                Ok((reader, writer))
            })
            .transpose()?;
        Ok(Self {
            stdin,
            stdout: output(&stdio.stdout, "stdout")?,
            stderr: if stdio.terminal {
                None
            } else {
                output(&stdio.stderr, "stderr")?
            },
        })
    }

    /// What the agent is told to expect.
    pub fn announce(&self, terminal: bool) -> kata_wire::proto::Stdio {
        kata_wire::proto::Stdio {
            terminal,
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
            ..Default::default()
        }
    }

    /// Opens the streams of `process` and starts to copy.
    ///
    /// # Errors
    /// As [`Agent::stdio`].
    pub async fn connect(self, agent: &Agent, process: &Process) -> Result<Copying, AgentError> {
        let mut copying = Copying::default();
        if let Some((reader, writer)) = self.stdin {
            let stream = agent.stdio(Kind::Stdin, process).await?;
            copying.stdin_writer = Some(writer);
            copying.tasks.push(tokio::spawn(copy_in(reader, stream)));
        }
        for (writer, kind) in [(self.stdout, Kind::Stdout), (self.stderr, Kind::Stderr)] {
            if let Some(writer) = writer {
                let stream = agent.stdio(kind, process).await?;
                copying.tasks.push(tokio::spawn(copy_out(stream, writer)));
            }
        }
        Ok(copying)
    }
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StdioError {
    let path = path.to_owned();
    move |source| StdioError { stream, path, source }
}

/// Copying under way. Dropping it stops it, with whatever is under way lost.
#[derive(Debug, Default)]
pub struct Copying {
    stdin_writer: Option<pipe::Sender>,
    tasks: Vec<JoinHandle<()>>,
}

impl Copying {
    /// Gives up the sandbox's own writer on stdin: the process sees the end of its input once the client's writers are
    /// gone too and all they wrote is read.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

const BLOCK: usize = 16 * 1024;

async fn copy_in(mut from: pipe::Receiver, mut to: Stream) {
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to.write_all(&block[..length]).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.shutdown().await;
    // Kept until the process closes its end: dropping the stream now would take back what is still on its way.
    let _ = to.read(&mut block[..1]).await;
}

async fn copy_out(mut from: Stream, mut to: pipe::Sender) {
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to.write_all(&block[..length]).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = from.shutdown().await;
}
