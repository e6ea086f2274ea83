//! Terminals: size, raw mode, and the socket over which an engine takes the master of a pseudo-terminal.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Columns and rows of a terminal; `None` for what is none, or says nothing.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    kata_sys::terminal::window_size(terminal)
        .ok()
        .filter(|size| *size != (0, 0))
}

/// A terminal in raw mode: every byte passes as it is. Dropping this restores what was before.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Puts `terminal` in raw mode.
    ///
    /// # Errors
    /// When it is no terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<Self> {
        let before = tcgetattr(terminal).context("not a terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal, SetArg::TCSANOW, &raw).context("cannot put the terminal in raw mode")?;
        Ok(Self {
            terminal: terminal.try_clone_to_owned()?,
            before,
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Makes a pseudo-terminal in raw mode (the real one is in the guest), gives its master to the engine that listens on
/// `socket`, and answers its slave.
///
/// # Errors
/// When there is no such socket, or nobody takes the master.
pub fn give_master(socket: &Path) -> Result<OwnedFd> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to the console socket {}", socket.display()))?;
    let OpenptyResult { master, slave } = openpty(None, None).context("cannot make a pseudo-terminal")?;
    let mut settings = tcgetattr(&slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
    let name = b"/dev/ptmx";
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(name)],
        &[ControlMessage::ScmRights(&[master.as_fd().as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )
    .with_context(|| format!("cannot send the console to {}", socket.display()))?;
    Ok(slave)
}
