//! Between the stdio of this process and a process in a container: bytes both ways, signals and window sizes inwards,
//! the exit code outwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use anyhow::Result;
use nix::libc;
use tokio::signal::unix::{SignalKind, signal};

use crate::container::client::Connection;
use crate::container::console;
use crate::container::fifo::Ends;

const BLOCK: usize = 64 * 1024;

/// What is relayed.
pub struct Relay {
    /// To the sandbox process.
    pub connection: Connection,
    /// Exec id; empty for the init.
    pub exec: String,
    /// This side's ends of the fifos.
    pub ends: Ends,
    /// This process's stdin and stdout are a terminal whose size is passed on.
    pub terminal: bool,
}

/// Signals that are passed on. Not those that a process gets for its own mistakes, nor those that no process can catch.
const FORWARDED: [i32; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGURG,
    libc::SIGPOLL,
    libc::SIGPWR,
];

impl Relay {
    /// Relays until the process has ended and all it printed is passed on; answers its exit code. Calls `begin` once
    /// signals are caught.
    ///
    /// # Errors
    /// What `begin` says; what the sandbox process says, or that it died.
    pub async fn run(self, begin: impl Future<Output = Result<()>>) -> Result<u8> {
        let Self {
            connection,
            exec,
            ends,
            terminal,
        } = self;
        let (signals, mut caught) = tokio::sync::mpsc::unbounded_channel();
        for number in FORWARDED {
            // A signal that this system does not let us catch keeps its meaning.
            if let Ok(mut stream) = signal(SignalKind::from_raw(number)) {
                let signals = signals.clone();
                tokio::spawn(async move {
                    while stream.recv().await.is_some() {
                        let _ = signals.send(number);
                    }
                });
            }
        }
        let mut resized = signal(SignalKind::window_change())?;
        if terminal {
            pass_size(&connection, &exec).await;
        }
        begin.await?;
        let outputs = start_outputs(ends.stdout, ends.stderr);
        let mut input_ended = start_input(ends.stdin);
        let waiting = connection.wait(&exec);
        tokio::pin!(waiting);
        let code = loop {
            tokio::select! {
                code = &mut waiting => break code?,
                Some(number) = caught.recv() => {
                    let number = u32::try_from(number).unwrap_or_default();
                    if let Err(error) = connection.kill(&exec, number, false).await {
                        tracing::debug!(number, error = %format!("{error:#}"), "signal not passed on");
                    }
                }
                _ = resized.recv(), if terminal => pass_size(&connection, &exec).await,
                Some(()) = input_ended.recv() => {
                    // A process that has ended needs no end of input.
                    let _ = connection.close_stdin(&exec).await;
                }
            }
        };
        for output in outputs {
            // A copying thread ends with its fifo; that it panicked is a bug that must not hide the exit code.
            let _ = output.join();
        }
        Ok(code)
    }
}

async fn pass_size(connection: &Connection, exec: &str) {
    if let Some(size) = console::size(std::io::stdin().as_fd())
        && let Err(error) = connection.resize(exec, size).await
    {
        tracing::debug!(error = %format!("{error:#}"), "size not passed on");
    }
}

fn start_outputs(stdout: Option<File>, stderr: Option<File>) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    if let Some(from) = stdout {
        threads.push(std::thread::spawn(move || copy(from, std::io::stdout().as_fd())));
    }
    if let Some(from) = stderr {
        threads.push(std::thread::spawn(move || copy(from, std::io::stderr().as_fd())));
    }
    threads
}

/// Copies to its end. A broken `to` breaks `from`, so that the process finds its own pipe broken, as it would without us.
fn copy(mut from: File, to: BorrowedFd<'_>) {
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(length) => {
                if write_all(to, &block[..length]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

/// Past the standard library's buffer and lock: bytes go out as they come.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            // Whoever gave us this descriptor may have made it non-blocking.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies stdin to the process. The thread is never joined: a read of a terminal ends when it likes.
fn start_input(to: Option<File>) -> tokio::sync::mpsc::UnboundedReceiver<()> {
    let (ended, end) = tokio::sync::mpsc::unbounded_channel();
    if let Some(mut to) = to {
        std::thread::spawn(move || {
            let stdin = std::io::stdin();
            let mut block = vec![0; BLOCK];
            loop {
                match nix::unistd::read(stdin.as_fd(), &mut block) {
                    Ok(0) => break,
                    Ok(length) => {
                        if to.write_all(&block[..length]).is_err() {
                            break;
                        }
                    }
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(nix::errno::Errno::EAGAIN) => wait_readable(stdin.as_fd()),
                    Err(_) => break,
                }
            }
            drop(to);
            // Nobody listens any more when the process has ended first.
            let _ = ended.send(());
        });
    } else {
        // Keeps the channel open for ever: there is no input, so it does not end.
        std::mem::forget(ended);
    }
    end
}

fn wait_readable(fd: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE);
}
