//! The kernel's announcements of devices. What they say does not matter here: each is a reason to look again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::descriptor::watch_for;

/// Longer announcements are cut, which is fine.
const LONGEST: usize = 4096;

/// A listener. What happens after it was made is not missed.
#[derive(Debug)]
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Begins to listen.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, kind)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(watch_for(socket, Interest::READABLE)?))
    }

    /// Waits for an announcement, and passes over all that there are.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut text = [0; LONGEST];
        loop {
            match recv(self.0.get_ref().as_raw_fd(), &mut text, MsgFlags::empty()) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                // So many came that some are lost.
                Err(Errno::ENOBUFS) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
