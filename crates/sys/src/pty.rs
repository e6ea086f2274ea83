//! Pseudo-terminals of another mount namespace: everything goes by descriptor, no name is looked up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Unlocks the other end of `master` and opens it; answers it and its number N, as in `/dev/pts/N`.
///
/// # Errors
/// What one of the calls failed with.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    let unlock: libc::c_int = 0;
    // SAFETY: reads one int that lives through the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let mut number: libc::c_uint = 0;
    // SAFETY: writes one unsigned int that lives through the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    // SAFETY: takes flags by value and touches no memory of ours.
    let peer = check(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok((unsafe { OwnedFd::from_raw_fd(peer) }, number))
}

/// Makes `terminal` the controlling terminal of this session, which this process must lead.
///
/// # Errors
/// What the call failed with.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes an integer and touches no memory of ours.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the window of a terminal, in characters.
///
/// # Errors
/// What the call failed with.
pub fn set_window(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let window = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: reads one winsize that lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const window) }).map(drop)
}
