//! Unix sockets of the host that a container may connect to. Held from the beginning as the thing itself, not as its
//! name, so that nobody can put another in its place.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// How long a listener whose queue is full may take to make room, and how often it is asked.
const QUEUE_LIMIT: Duration = Duration::from_secs(5);
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the socket {}", path.display())]
pub struct SocketError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A socket of the host.
#[derive(Debug)]
pub struct HostSocket {
    held: File,
    /// Where it was when it was opened.
    path: PathBuf,
    metadata: Metadata,
}

impl HostSocket {
    /// Takes hold of the socket at `path`, symbolic links followed. Connects to nobody.
    ///
    /// # Errors
    /// [`SocketError`], also for what is no socket.
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let opened = || {
            let held = OpenOptions::new()
                .read(true)
                .custom_flags(OFlag::O_PATH.bits())
                .open(path)?;
            let metadata = held.metadata()?;
            if !metadata.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
            }
            Ok((held, metadata))
        };
        match opened() {
            Ok((held, metadata)) => Ok(Self {
                held,
                path: path.to_owned(),
                metadata,
            }),
            Err(source) => Err(SocketError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.metadata.mode() & 0o7777
    }

    /// Its owner and group.
    pub fn owner(&self) -> (u32, u32) {
        (self.metadata.uid(), self.metadata.gid())
    }

    /// Connects to it. Where its queue is full, waits a while.
    ///
    /// # Errors
    /// What `connect` failed with.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let given_up = Instant::now() + QUEUE_LIMIT;
        loop {
            match UnixStream::connect(address(&self.held)).await {
                // A full queue has no event to wait for.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < given_up => {
                    sleep(QUEUE_PAUSE).await;
                }
                other => return other,
            }
        }
    }
}

/// Whether the socket at `path` takes messages without connections. Nobody notices the question.
pub fn is_datagram(path: &Path) -> bool {
    let Ok(socket_itself) = HostSocket::open(path) else {
        return false;
    };
    let asked = || {
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        connect(probe.as_raw_fd(), &UnixAddr::new(&address(&socket_itself.held))?)
    };
    asked().is_ok()
}

/// Names what a descriptor holds, whatever has become of its path.
fn address(held: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_was_opened_is_connected_to_wherever_its_name_leads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name);
        let listener = UnixListener::bind(path("real")).expect("bind");
        std::fs::set_permissions(path("real"), std::fs::Permissions::from_mode(0o640)).expect("chmod");
        symlink("real", path("link")).expect("link");
        let socket = HostSocket::open(&path("link")).expect("open");
        assert_eq!(socket.mode(), 0o640);
        std::fs::rename(path("real"), path("moved")).expect("rename");
        let _decoy = UnixListener::bind(path("real")).expect("bind");

        let mut near = socket.connect().await.expect("connect");

        let (far, _) = listener.accept().expect("accept");
        far.set_nonblocking(true).expect("set");
        let mut far = UnixStream::from_std(far).expect("watch");
        near.write_all(b"ping").await.expect("write");
        let mut got = [0; 4];
        far.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"ping");
        drop(listener);
        let error = socket.connect().await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn kinds_are_told_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name);
        let listener = UnixListener::bind(path("stream")).expect("bind");
        let _datagram = UnixDatagram::bind(path("datagram")).expect("bind");
        std::fs::write(path("file"), "").expect("write");
        listener.set_nonblocking(true).expect("set");
        assert!(is_datagram(&path("datagram")));
        assert!(!is_datagram(&path("stream")));
        assert!(listener.accept().is_err(), "the question was noticed");
        assert!(!is_datagram(&path("file")) && !is_datagram(&path("none")));
        let error = HostSocket::open(&path("file")).expect_err("a file");
        assert!(error.to_string().contains("cannot use the socket"), "{error}");
    }
}
