//! The three standard streams of a process: files that it is given, or a terminal of the container's own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::stat::fstat;
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown};

use kata_sys::pty;

use crate::fault::{Fault, Naming};
use crate::link::ChildLink;

/// What a process reads from and writes to.
#[derive(Debug)]
pub enum Stdio {
    /// A new pseudo-terminal of the container; a size of zero leaves the kernel's.
    Terminal {
        /// Width, characters.
        columns: u16,
        /// Height, characters.
        rows: u16,
    },
    /// These files.
    Files {
        /// Read from.
        stdin: OwnedFd,
        /// Written to.
        stdout: OwnedFd,
        /// Written to.
        stderr: OwnedFd,
    },
}

impl Stdio {
    /// In the child, first of all: takes the files as 0, 1 and 2.
    pub(crate) fn take(&self) -> Result<(), Fault> {
        match self {
            Self::Terminal { .. } => Ok(()),
            Self::Files { stdin, stdout, stderr } => become_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()),
        }
    }

    /// The descriptors that must live until [`Self::take`].
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        match self {
            Self::Terminal { .. } => Vec::new(),
            Self::Files { stdin, stdout, stderr } => vec![stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        }
    }

    /// In the child, in the container's root and leading its own session: makes the terminal, if it is to have one,
    /// sends its master end away and takes it as 0, 1 and 2. Answers the terminal's number in `/dev/pts`.
    pub(crate) fn open_terminal(&self, link: &ChildLink) -> Result<Option<u32>, Fault> {
        let Self::Terminal { columns, rows } = self else {
            return Ok(None);
        };
        let master = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open("/dev/ptmx")
            .on("open", "/dev/ptmx")?;
        let (terminal, number) = pty::open_peer(master.as_fd()).when("open a terminal")?;
        if (*columns, *rows) != (0, 0) {
            pty::set_window(terminal.as_fd(), *columns, *rows).when("set the size of the terminal")?;
        }
        become_streams(terminal.as_fd(), terminal.as_fd(), terminal.as_fd())?;
        pty::make_controlling(terminal.as_fd()).when("make the terminal the controlling one")?;
        link.terminal(master.as_fd()).when("hand over the terminal")?;
        Ok(Some(number))
    }
}

fn become_streams(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> Result<(), Fault> {
    dup2_stdin(stdin).when("take stdin")?;
    dup2_stdout(stdout).when("take stdout")?;
    dup2_stderr(stderr).when("take stderr")
}

/// Gives the standard streams to the process's user, who could not reopen them by `/dev/stdout` otherwise. Devices such
/// as `/dev/null` are everybody's already.
pub(crate) fn give_to(uid: Uid) {
    let streams = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()] {
        let Ok(stat) = fstat(stream) else { continue };
        let is_terminal = std::io::IsTerminal::is_terminal(&stream);
        if stat.st_mode & libc::S_IFMT == libc::S_IFIFO || is_terminal {
            // A user namespace may not know the owner; the process can still use what it has.
            let _ = fchown(stream, Some(uid), None);
        }
    }
}
