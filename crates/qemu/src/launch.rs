//! The QEMU process: its start, what it says while it lives, its end.
//!
//! Nothing here knows QMP. The process has three descriptors: control, console and messages; all are read or left alone
//! such that QEMU never waits for us.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

use kata_machine::{Exit, ExitWatch, MachineError, Wire};
use kata_sys::process::{PidFd, die_with_parent, forbid_device_nodes, give_fds, keep_descriptors};
use kata_sys::tun::open_tap;
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::control::LastWords;
use crate::render::Node;
use crate::tail::Tail;

/// How much of the guest's console is kept, bytes.
const CONSOLE_TAIL: usize = 4 << 10;

/// How much of QEMU's messages is kept, bytes.
const MESSAGES_TAIL: usize = 8 << 10;

/// How much of the console goes to `console.log`, bytes.
const LOG_LIMIT: usize = 1 << 20;

/// How long after the process's end its pipes may stay open, because a child of its own holds them.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_millis(300);

/// How long a killed process may take to be gone: it may have gigabytes to give back.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// A QEMU that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) process: Process,
    /// Our end of the control socket.
    pub(crate) control: UnixStream,
    /// The guest's console.
    pub(crate) console: Tail,
    /// To be filled with what QEMU says about its guest's end; becomes part of the exit messages.
    pub(crate) last_words: LastWords,
}

/// The process. Dropping it kills.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    handle: PidFd,
    exit: ExitWatch,
}

/// What else is done to a process that has started and not yet begun.
pub(crate) trait Making {
    /// Changes how it is started.
    fn prepare(&self, command: &mut std::process::Command);

    /// Makes something of it.
    fn make(&mut self, pid: u32) -> Result<(), MachineError>;
}

/// Starts `line` in a process group of its own, with `files` open under their numbers; it dies with the calling thread.
///
/// # Errors
/// [`MachineError::Start`], [`MachineError::Host`]
pub(crate) fn launch(
    line: &[String],
    files: Vec<(File, RawFd)>,
    console_log: Option<File>,
    making: Option<&mut dyn Making>,
) -> Result<Launched, MachineError> {
    let [program, arguments @ ..] = line else {
        return Err(MachineError::Unsupported("an empty command line".into()));
    };
    let (control, their_control) = socket_pair("a control socket", making.is_some())?;
    let (console, their_console) = socket_pair("a console", making.is_some())?;

    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        // Its threads do not compete for memory: one heap for all of them is half a MiB smaller than one for each.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::from(their_control))
        .stdout(Stdio::from(their_console))
        .stderr(Stdio::piped())
        .process_group(0);
    die_with_parent(&mut command);
    keep_descriptors(&mut command);
    give_fds(
        &mut command,
        files.iter().map(|(file, number)| (file.as_raw_fd(), *number)).collect(),
    );
    // Its own file server (virtio-9p) would make those that the guest asks for, with the host's numbers.
    forbid_device_nodes(&mut command);
    if let Some(making) = &making {
        making.prepare(&mut command);
    }
    let mut command = Command::from(command);
    let spawned = command.kill_on_drop(true).spawn();
    // The command still holds their ends; while it does, the console would not end with QEMU.
    drop((command, files));
    let start_error = |source| MachineError::Start {
        vmm: program.into(),
        source,
    };
    let mut child = spawned.map_err(start_error)?;

    let messages = Tail::new(MESSAGES_TAIL);
    let console_tail = Tail::new(CONSOLE_TAIL);
    let (sender, exit) = watch::channel(None);
    let last_words = LastWords::default();
    // Not reaped before the task below runs, so that the pid still names it.
    let pid = child.id().ok_or_else(|| start_error(io::ErrorKind::NotFound.into()))?;
    if let Some(making) = making {
        making.make(pid)?;
    }
    let handle = PidFd::open(pid).map_err(start_error)?;

    let outputs = [
        child
            .stderr
            .take()
            .map(|stderr| tokio::spawn(drain(stderr, messages.clone(), None))),
        Some(tokio::spawn(drain(console, console_tail.clone(), console_log))),
    ];
    let words = last_words.clone();
    tokio::spawn(async move {
        let status = wait(&mut child).await;
        let last_output = async {
            for output in outputs.into_iter().flatten() {
                let _ = output.await;
            }
        };
        let _ = tokio::time::timeout(LAST_OUTPUT_LIMIT, last_output).await;
        let mut messages = messages.text();
        if let Some(words) = words.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
            messages.push_str(words);
        }
        tracing::debug!(pid, ?status, "QEMU has ended");
        let _ = sender.send(Some(Exit { status, messages }));
    });
    Ok(Launched {
        process: Process { pid, handle, exit },
        control,
        console: console_tail,
        last_words,
    })
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn exit(&self) -> ExitWatch {
        self.exit.clone()
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Exit {
        ended(self.exit()).await
    }

    /// Kills it, and waits until it is gone.
    pub(crate) async fn kill(&self) -> Option<Exit> {
        // It may have ended just now.
        let _ = self.handle.signal(Signal::SIGKILL);
        let exit = tokio::time::timeout(KILL_LIMIT, self.ended()).await.ok();
        if exit.is_none() {
            tracing::error!(pid = self.pid, "QEMU was killed {KILL_LIMIT:?} ago and is still there");
        }
        exit
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            let _ = self.handle.signal(Signal::SIGKILL);
        }
    }
}

/// Waits until the watch shows the end.
pub(crate) async fn ended(mut exit: ExitWatch) -> Exit {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    }
    // The task that watches was dropped with its runtime, and has killed the process.
    .unwrap_or_else(|| Exit {
        status: Err(Signal::SIGKILL as i32),
        messages: String::new(),
    })
}

async fn wait(child: &mut Child) -> Result<i32, i32> {
    match child.wait().await {
        Ok(status) => how(status),
        Err(error) => {
            tracing::error!(%error, "cannot wait for QEMU");
            Err(0)
        }
    }
}

fn how(status: ExitStatus) -> Result<i32, i32> {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(code),
        (None, signal) => Err(signal.unwrap_or_default()),
    }
}

/// Reads to the end, whatever comes.
async fn drain(mut from: impl AsyncRead + Unpin, tail: Tail, mut log: Option<File>) {
    let mut room = LOG_LIMIT;
    let mut buffer = [0; 2048];
    loop {
        let new = match from.read(&mut buffer).await {
            // A killed QEMU resets its sockets.
            Ok(0) | Err(_) => return,
            Ok(count) => &buffer[..count],
        };
        tail.push(new);
        if let Some(file) = &mut log {
            let part = &new[..new.len().min(room)];
            room -= part.len();
            if file.write_all(part).is_err() || room == 0 {
                log = None;
            }
        }
    }
}

/// Ours, theirs.
fn socket_pair(what: &str, made: bool) -> Result<(UnixStream, OwnedFd), MachineError> {
    let make = || -> io::Result<_> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // QEMU does that itself, but for one that is made something and believes to have done it.
        theirs.set_nonblocking(made)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    make().map_err(MachineError::host(format!("make {what} for QEMU")))
}

/// Opens the files that [`launch`] hands over.
///
/// # Errors
/// [`MachineError::Host`]
pub(crate) fn open_nodes(nodes: &[Node]) -> Result<Vec<(File, RawFd)>, MachineError> {
    let open = |node: &Node| {
        let (name, opened) = match &node.wire {
            Wire::Tap { name } => (name.clone(), open_tap(name, node.several)),
            Wire::Macvtap { node } => {
                let opened = File::options().read(true).write(true).open(node);
                (node.display().to_string(), opened)
            }
        };
        let file = opened.map_err(MachineError::host(format!("open {name} for QEMU")))?;
        Ok((file, node.number))
    };
    nodes.iter().map(open).collect()
}

/// Opens the log of the guest's console.
///
/// # Errors
/// [`MachineError::Host`]
pub(crate) fn open_log(path: &Path) -> Result<File, MachineError> {
    File::create(path).map_err(MachineError::host(format!("create {}", path.display())))
}
