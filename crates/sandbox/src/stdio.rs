//! The host's ends of a process's stdio, as the Task API names them, and the copying between them and the streams of the
//! channel.
//!
//! The sandbox holds its own writer on the stdin fifo until it is told to close it, so a client that detaches does not end the
//! process's input; and its own readers on the output fifos, so a client that comes late or again finds them alive. Where the
//! fifos have no names any more nobody can come: the client that has them is the last, and is missed when it goes.

mod log_program;
mod output;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_agent_client::{Agent, AgentError, Process};
use kata_wire::block;
use kata_wire::mux::Stream;
use kata_wire::stream::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use kata_storage::origin::Origin;
use log_program::LogProgram;
pub use output::Output;
use output::Place;

/// What a client says of a process's stdio; an absent stream is `/dev/null` in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// A terminal: stdin and stdout are its two directions, stderr is not used.
    pub terminal: bool,
    /// Fifo that the process's input is read from.
    pub stdin: Option<PathBuf>,
    /// Where its output goes.
    pub stdout: Option<Output>,
    /// Where its error output goes.
    pub stderr: Option<Output>,
}

impl Stdio {
    /// Understands the words of the Task API.
    ///
    /// # Errors
    /// [`StdioError::Uri`]
    pub fn parse(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> Result<Self, StdioError> {
        let wrong = |reason: &str| StdioError::Uri {
            stream: "stdin",
            uri: stdin.to_owned(),
            reason: reason.to_owned(),
        };
        let stdin = match output::split_scheme(stdin) {
            None => (!stdin.is_empty()).then(|| PathBuf::from(stdin)),
            Some(("fifo", rest)) => Some(output::path(rest).map_err(wrong)?),
            Some(_) => return Err(wrong("known are a path and fifo://")),
        };
        Ok(Self {
            terminal,
            stdin,
            stdout: Output::parse("stdout", stdout)?,
            stderr: Output::parse("stderr", stderr)?,
        })
    }
}

/// Why stdio cannot be had as a client wants it.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The URI means nothing.
    #[error("{uri:?} as the process's {stream}: {reason}")]
    Uri {
        /// `stdin`, `stdout` or `stderr`
        stream: &'static str,
        /// What the client said.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A fifo or file cannot be opened.
    #[error("cannot open {} as the process's {stream}", path.display())]
    Open {
        /// `stdin`, `stdout` or `stderr`
        stream: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program that is to log output does not start.
    #[error("cannot have the log program {}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
}

/// For whom stdio is opened.
#[derive(Debug)]
pub struct Client<'a> {
    /// Id of the container, or of the exec.
    pub id: &'a str,
    /// Namespace of the engine.
    pub namespace: &'a str,
    /// Where its programs run.
    pub origin: &'a Origin,
}

/// One open place for output.
#[derive(Debug)]
enum Writer {
    Pipe(pipe::Sender),
    File(File),
}

impl Writer {
    /// A file takes what it is given at once, or never; only pipes are waited for.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
        }
    }

    /// Resolves when nobody reads what is written any more.
    async fn readers_gone(&self) {
        match self {
            // Fails only while the runtime is shutting down.
            Self::Pipe(pipe) => drop(pipe.ready(Interest::ERROR).await),
            Self::File(_) => std::future::pending().await,
        }
    }
}

/// The host's ends, opened before the process exists.
#[derive(Debug)]
pub struct HostStdio {
    stdin: Option<(pipe::Receiver, pipe::Sender)>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    output_readers: Vec<pipe::Receiver>,
    programs: Vec<LogProgram>,
    /// No client waits at the other end for all that was written.
    is_kept: bool,
}

impl HostStdio {
    /// Opens what `stdio` names.
    ///
    /// # Errors
    /// [`StdioError`] for what cannot be opened or started.
    pub async fn open(stdio: &Stdio, client: &Client<'_>) -> Result<Self, StdioError> {
        let stdin = stdio.stdin.as_deref();
        let stdin = stdin.map(|path| open_fifo("stdin", path)).transpose()?;
        let mut this = Self {
            stdin,
            stdout: None,
            stderr: None,
            output_readers: Vec::new(),
            programs: Vec::new(),
            is_kept: false,
        };
        let stderr = stdio.stderr.as_ref().filter(|_| !stdio.terminal);
        if let Some(stdout) = &stdio.stdout {
            let (writer, other) = this.open_output("stdout", stdout, client).await?;
            this.stdout = Some(writer);
            // One program has both, if it is asked for twice.
            this.stderr = other.filter(|_| stderr == Some(stdout));
        }
        if let Some(stderr) = stderr
            && this.stderr.is_none()
        {
            let (writer, other) = this.open_output("stderr", stderr, client).await?;
            this.stderr = Some(other.unwrap_or(writer));
        }
        Ok(this)
    }

    /// Opens a place; of a program its input for stdout and that for stderr.
    async fn open_output(
        &mut self,
        stream: &'static str,
        output: &Output,
        client: &Client<'_>,
    ) -> Result<(Writer, Option<Writer>), StdioError> {
        self.is_kept |= !matches!(output.place(), Place::Fifo(_));
        match output.place() {
            Place::Fifo(path) => {
                let (reader, writer) = open_fifo(stream, path)?;
                self.output_readers.push(reader);
                Ok((Writer::Pipe(writer), None))
            }
            Place::File(path) => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed(stream, path))?;
                }
                let opened = File::options().append(true).create(true).open(path);
                Ok((Writer::File(opened.map_err(failed(stream, path))?), None))
            }
            Place::Program(program) => {
                let (program, inputs) = LogProgram::start(program, client).await?;
                self.programs.push(program);
                Ok((Writer::Pipe(inputs.stdout), Some(Writer::Pipe(inputs.stderr))))
            }
        }
    }

    /// The pids of the programs that were started.
    pub fn programs(&self) -> Vec<u32> {
        self.programs.iter().filter_map(|program| program.pid).collect()
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
        copying.programs = self.programs;
        copying.is_kept = self.is_kept;
        copying.output_readers = self.output_readers;
        let (missed, client_gone) = mpsc::channel(1);
        copying.client_gone = Some(client_gone);
        if let Some((reader, writer)) = self.stdin {
            let stream = agent.stdio(Kind::Stdin, process).await?;
            copying.stdin_writer = Some(writer);
            copying.input = Some(tokio::spawn(copy_in(reader, stream)));
        }
        for (writer, kind) in [(self.stdout, Kind::Stdout), (self.stderr, Kind::Stderr)] {
            if let Some(writer) = writer {
                let stream = agent.stdio(kind, process).await?;
                copying
                    .outputs
                    .push(tokio::spawn(copy_out(stream, writer, missed.clone())));
            }
        }
        Ok(copying)
    }
}

/// Both ends, in this order: a writer is not opened without a reader.
fn open_fifo(stream: &'static str, path: &Path) -> Result<(pipe::Receiver, pipe::Sender), StdioError> {
    let reader = pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(failed(stream, path))?;
    let writer = pipe::OpenOptions::new()
        .open_sender(path)
        .map_err(failed(stream, path))?;
    Ok((reader, writer))
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StdioError {
    let path = path.to_owned();
    move |source| StdioError::Open { stream, path, source }
}

/// Copying under way. Dropping it stops it, with whatever is under way lost.
#[derive(Debug, Default)]
pub struct Copying {
    stdin_writer: Option<pipe::Sender>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    output_readers: Vec<pipe::Receiver>,
    client_gone: Option<mpsc::Receiver<()>>,
    programs: Vec<LogProgram>,
    is_kept: bool,
}

/// How long output may stay open after its process has ended, where nobody but us waits for all of it.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

impl Copying {
    /// Gives up the sandbox's own writer on stdin: the process sees the end of its input once the client's writers are
    /// gone too and all they wrote is read.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// Gives up the sandbox's own readers on output fifos that have no names any more: the client that reads them is the
    /// last.
    pub fn leave_to_client(&mut self) {
        self.output_readers.retain(|reader| {
            let still_named = nix::sys::stat::fstat(reader).map(|fifo| fifo.st_nlink > 0);
            still_named.unwrap_or(true)
        });
    }

    /// What says that nobody reads the process's output any more, nor ever will. Given out once.
    pub fn client_gone(&mut self) -> Option<mpsc::Receiver<()>> {
        self.client_gone.take()
    }

    /// Ends the copying of a process that has ended. Files and log programs get all of its output first; a client at a
    /// fifo waits for that itself.
    pub async fn finish(mut self) {
        if !self.is_kept {
            return;
        }
        let end = tokio::time::Instant::now() + LAST_OUTPUT;
        for output in &mut self.outputs {
            if tokio::time::timeout_at(end, &mut *output).await.is_err() {
                output.abort();
                // Its end of the pipe is closed when it has ended.
                let _ = output.await;
            }
        }
        for program in std::mem::take(&mut self.programs) {
            program.end().await;
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        for task in self.input.iter().chain(&self.outputs) {
            task.abort();
        }
    }
}

async fn copy_in(mut from: pipe::Receiver, mut to: Stream) {
    loop {
        let block = block::read(&mut from).await.unwrap_or_default();
        if block.is_empty() {
            break;
        }
        if to.write_all(&block).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
    // Kept until the process closes its end: dropping the stream now would take back what is still on its way.
    let _ = to.read(&mut [0]).await;
}

async fn copy_out(mut from: Stream, mut to: Writer, missed: mpsc::Sender<()>) {
    loop {
        let block = tokio::select! {
            read = block::read(&mut from) => read.unwrap_or_default(),
            () = to.readers_gone() => break,
        };
        if block.is_empty() {
            drop(to);
            let _ = from.shutdown().await;
            return;
        }
        if to.write(&block).await.is_err() {
            break;
        }
    }
    // Dropped as it is, the stream is reset, and the process finds its pipe broken.
    let _ = missed.try_send(());
}
