//! Accepting connections on sockets of families that the standard library does not know.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Takes the next connection of a listening socket.
///
/// # Errors
/// `WouldBlock` when there is none and the socket does not wait; else what `accept4` failed with.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = nix::sys::socket::accept4(listener.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
