//! The way to the agent: a unix socket of QEMU's, or vsock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use kata_machine::{Channel, ExitWatch, MachineError, Transport};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket, sockopt};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::launch::ended;

/// How long a guest may take until it listens on vsock.
const VSOCK_LIMIT: Duration = Duration::from_secs(60);

/// vsock tells nobody when a guest begins to listen: one has to ask again.
const VSOCK_PAUSE: Duration = Duration::from_millis(20);

/// Connects.
///
/// # Errors
/// [`MachineError::Host`], naming the socket or address.
pub(crate) async fn open(channel: &Channel, exit: ExitWatch) -> Result<Box<dyn Transport>, MachineError> {
    let stream = match channel {
        // QEMU listens before it greets, and reads nothing from the socket before the guest has opened its port.
        Channel::Serial { socket, .. } => {
            let act = format!("connect to the guest's channel {}", socket.display());
            UnixStream::connect(socket).await.map_err(MachineError::host(act))?
        }
        Channel::Vsock { cid, port } => {
            let act = format!("connect to the guest's channel vsock:{cid}:{port}");
            open_vsock(*cid, *port, exit).await.map_err(MachineError::host(act))?
        }
    };
    Ok(Box::new(stream))
}

async fn open_vsock(cid: u32, port: u32, exit: ExitWatch) -> io::Result<UnixStream> {
    let attempts = async {
        loop {
            match try_vsock(cid, port).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_too_early(&error) => tokio::time::sleep(VSOCK_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        result = tokio::time::timeout(VSOCK_LIMIT, attempts) => result.unwrap_or_else(|_| {
            let message = format!("nobody listened within {VSOCK_LIMIT:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }),
        exit = ended(exit) => Err(io::Error::new(io::ErrorKind::BrokenPipe, exit.messages)),
    }
}

fn is_too_early(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ECONNRESET | libc::ECONNREFUSED | libc::ETIMEDOUT | libc::EHOSTUNREACH)
    )
}

async fn try_vsock(cid: u32, port: u32) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(cid, port)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // Not a unix socket, but a stream socket: of the two, tokio's type only ever asks for the latter.
    let stream = UnixStream::from_std(socket.into())?;
    stream.ready(Interest::WRITABLE).await?;
    match nix::sys::socket::getsockopt(&stream, sockopt::SocketError)? {
        0 => Ok(stream),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
