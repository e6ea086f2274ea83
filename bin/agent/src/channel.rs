//! Finds the way to the host: the virtio-serial port of the agreed name, else vsock; then waits for connections on it,
//! one after the other.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use kata_sys::listener;
use kata_wire::names;

use crate::descriptor::{Descriptor, watch, watch_for};
use crate::modules::Modules;
use crate::uevents::Uevents;

const PORTS: &str = "/sys/class/virtio-ports";

/// How long a port may take to appear when the machine has a console device, and when none has been seen yet.
const PORT_LIMIT: Duration = Duration::from_secs(10);
const DEVICE_LIMIT: Duration = Duration::from_secs(1);

/// Kinds of virtio devices.
const CONSOLE: &str = "0x0003";
const VSOCK: &str = "0x0013";

/// Where connections come from.
#[derive(Debug)]
pub enum Channel {
    /// A virtio-serial port: one connection at a time.
    Port(PathBuf),
    /// A listening vsock socket.
    Vsock(AsyncFd<OwnedFd>),
}

impl Channel {
    /// Finds it.
    ///
    /// # Errors
    /// When there is neither.
    pub async fn find(modules: &Modules) -> anyhow::Result<Self> {
        if let Some(port) = find_port().await? {
            tracing::info!(port = %port.display(), "channel found");
            return Ok(Self::Port(port));
        }
        if !has_device(VSOCK) {
            bail!(
                "the machine has neither a virtio-serial port {} nor vsock",
                names::CHANNEL_PORT
            );
        }
        modules.load("vmw_vsock_virtio_transport")?;
        let listener = listen_on_vsock().context("listen on vsock")?;
        tracing::info!(port = names::CHANNEL_VSOCK_PORT, "listening on vsock");
        Ok(Self::Vsock(listener))
    }

    /// Waits for the next connection. The one before must have been dropped.
    ///
    /// # Errors
    /// When the channel itself has gone.
    pub async fn accept(&self) -> io::Result<Descriptor> {
        match self {
            // Opening it anew also throws away what an earlier connection has left unread.
            Self::Port(path) => wait_for_host(open_port(path)?).await,
            Self::Vsock(socket) => loop {
                let mut ready = socket.readable().await?;
                if let Ok(accepted) = ready.try_io(|socket| listener::accept(socket.as_fd())) {
                    return Descriptor::new(accepted?);
                }
            },
        }
    }
}

fn open_port(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map(OwnedFd::from)
}

/// A port whose host end nobody has opened reports a hang-up and reads as ended. Each change of that is an edge. The
/// runtime takes a hang-up for final, so an epoll instance of our own waits for the edges, and the runtime for that.
async fn wait_for_host(port: OwnedFd) -> io::Result<Descriptor> {
    if has_host(&port)? {
        return Descriptor::new(port);
    }
    let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    edges.add(&port, EpollEvent::new(interest, 0))?;
    let watched = watch_for(edges.0.as_fd(), Interest::READABLE)?;
    while !has_host(&port)? {
        let mut ready = watched.readable().await?;
        edges.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?;
        ready.clear_ready();
    }
    drop(watched);
    Descriptor::new(port)
}

fn has_host(port: &OwnedFd) -> io::Result<bool> {
    let mut state = [PollFd::new(port.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
    poll(&mut state, PollTimeout::ZERO)?;
    let [state] = state;
    let seen = state.revents().unwrap_or(PollFlags::POLLHUP);
    Ok(!seen.contains(PollFlags::POLLHUP))
}

async fn find_port() -> anyhow::Result<Option<PathBuf>> {
    // Mostly it is there: no listener needs to be made.
    if let Some(port) = port() {
        return Ok(Some(port));
    }
    // Listening begins before looking, so that nothing falls between.
    let events = Uevents::listen().context("listen to the kernel's events")?;
    if let Ok(found) = timeout(DEVICE_LIMIT, next_port(&events)).await {
        return found.map(Some);
    }
    if !has_device(CONSOLE) {
        return Ok(None);
    }
    match timeout(PORT_LIMIT, next_port(&events)).await {
        Ok(found) => found.map(Some),
        Err(_) => Ok(None),
    }
}

async fn next_port(events: &Uevents) -> anyhow::Result<PathBuf> {
    loop {
        if let Some(port) = port() {
            return Ok(port);
        }
        events.next().await?;
    }
}

fn port() -> Option<PathBuf> {
    let port = named_port(Path::new(PORTS), names::CHANNEL_PORT)?;
    Some(Path::new("/dev").join(port))
}

/// The directory below `ports` whose `name` is `name`.
fn named_port(ports: &Path, name: &str) -> Option<std::ffi::OsString> {
    fs::read_dir(ports)
        .ok()?
        .flatten()
        .find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim_end() == name))
        .map(|port| port.file_name())
}

/// Whether the machine has a virtio device of this kind, as `/sys` writes it.
pub fn has_device(kind: &str) -> bool {
    fs::read_dir("/sys/bus/virtio/devices")
        .into_iter()
        .flatten()
        .flatten()
        .any(|device| fs::read_to_string(device.path().join("device")).is_ok_and(|found| found.trim_end() == kind))
}

fn listen_on_vsock() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(
        socket.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, names::CHANNEL_VSOCK_PORT),
    )?;
    listen(&socket, Backlog::new(4)?)?;
    watch(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = std::env::temp_dir().join(format!("kata-ports-{}", std::process::id()));
        let _ = fs::remove_dir_all(&ports);
        for (port, name) in [("vport1p0", "other\n"), ("vport1p1", "org.kata.agent.0\n")] {
            fs::create_dir_all(ports.join(port)).expect("port");
            fs::write(ports.join(port).join("name"), name).expect("name");
        }
        fs::create_dir_all(ports.join("vport2p0")).expect("a port without a name");
        assert_eq!(named_port(&ports, names::CHANNEL_PORT).expect("found"), "vport1p1");
        assert_eq!(named_port(&ports, "org.kata.agent"), None);
        fs::remove_dir_all(ports).expect("clean up");
    }
}
