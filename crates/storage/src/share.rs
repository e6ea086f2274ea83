//! The file server of a virtio-fs share.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kata_sys::process::{PidFd, die_with_parent, give_fds};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Why there is no file server.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Its socket cannot be made.
    #[error("cannot listen on {}", socket.display())]
    Socket {
        /// Path of the socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be started.
    #[error("cannot start the virtio-fs daemon {}", daemon.display())]
    Start {
        /// Path of the daemon.
        daemon: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A running virtiofsd. Dropping it kills it.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    socket: PathBuf,
    daemon: PathBuf,
}

/// The number under which the daemon finds its listening socket.
const SOCKET_FD: i32 = 3;

impl FileServer {
    /// Starts `daemon` with `arguments`, its listening socket at `socket`. The socket listens before the daemon runs,
    /// so whoever connects need not wait for it. Must be called on the main thread: the daemon dies with it.
    ///
    /// # Errors
    /// [`ShareError`]; nothing is left then.
    pub fn start(daemon: &Path, arguments: &[String], socket: &Path) -> Result<Self, ShareError> {
        let listener = UnixListener::bind(socket).map_err(|source| ShareError::Socket {
            socket: socket.to_owned(),
            source,
        })?;
        let mut command = std::process::Command::new(daemon);
        command
            .arg(format!("--fd={SOCKET_FD}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        give_fds(&mut command, vec![(listener.as_raw_fd(), SOCKET_FD)]);
        die_with_parent(&mut command);
        let child = Command::from(command).kill_on_drop(true).spawn().map_err(|source| {
            let _ = std::fs::remove_file(socket);
            ShareError::Start {
                daemon: daemon.to_owned(),
                source,
            }
        })?;
        Ok(Self {
            child,
            socket: socket.to_owned(),
            daemon: daemon.to_owned(),
        })
    }

    /// The daemon's pid; `None` once it has been reaped.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the daemon has ended and says how, with its last words.
    pub async fn ended(&mut self) -> String {
        let mut words = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            // Read to its end, kept to its last 2 KiB: a pipe that nobody reads would stop the daemon.
            let mut stderr = stderr;
            let mut block = [0; 1024];
            while let Ok(length @ 1..) = stderr.read(&mut block).await {
                words.extend_from_slice(&block[..length]);
                let excess = words.len().saturating_sub(2048);
                words.drain(..excess);
            }
        }
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        format!(
            "the virtio-fs daemon {} ended ({how}): {}",
            self.daemon.display(),
            String::from_utf8_lossy(&words).trim()
        )
    }

    /// Ends the daemon (it ends by itself when the VMM has closed its connection; this makes sure) and removes its socket.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id()
            && let Ok(process) = PidFd::open(pid)
        {
            let _ = process.signal(nix::sys::signal::Signal::SIGKILL);
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
        let _ = std::fs::remove_file(&self.socket);
    }
}
