//! The sockets that stand in a container for sockets of the host. Whoever connects to one waits, in the kernel, until the
//! host has a stream for it; from then on the bytes go through that.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_wire::mux::Stream;
use kata_wire::names;
use kata_wire::proto;
use kata_wire::relay::relay;
use kata_wire::stream::{CONNECTED, Header};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::pod::State;
use crate::pump::Streams;

/// Pause before the next connection is taken when the last one could not be.
const PAUSE: Duration = Duration::from_millis(50);

/// The sockets of one container. Dropping them ends their connections and removes them.
#[derive(Debug)]
pub struct Sockets {
    /// `None` while there is nothing.
    directory: Option<PathBuf>,
    acceptors: Vec<JoinHandle<()>>,
}

impl Sockets {
    /// Makes those that are asked for.
    ///
    /// # Errors
    /// What could not be made; nothing is left then.
    pub fn make(container: &str, asked: &[proto::Socket], state: &mut State) -> io::Result<Self> {
        let mut sockets = Self {
            directory: None,
            acceptors: Vec::new(),
        };
        for socket in asked {
            let directory = sockets.directory.insert(Path::new(names::SOCKETS_DIR).join(container));
            let listener = listen(directory, container, socket)?;
            let streams = state.streams.expect(Header::Accept {
                container: container.to_owned(),
                socket: socket.number,
            });
            sockets.acceptors.push(tokio::spawn(accept(listener, streams)));
        }
        Ok(sockets)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for acceptor in &self.acceptors {
            acceptor.abort();
        }
        if let Some(directory) = &self.directory
            && let Err(error) = fs::remove_dir_all(directory)
        {
            tracing::warn!(directory = %directory.display(), "left of a container's sockets: {error}");
        }
    }
}

fn listen(directory: &Path, container: &str, socket: &proto::Socket) -> io::Result<UnixListener> {
    fs::create_dir_all(directory)?;
    // A socket's address is short, and a container's name may be long.
    let opened = fs::File::open(directory)?;
    let address = format!("/proc/self/fd/{}/{}", opened.as_raw_fd(), socket.number);
    let listener = net::UnixListener::bind(address)?;
    let path = names::socket_path(container, socket.number);
    chown(&path, Some(socket.uid), Some(socket.gid))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(socket.mode & 0o7777))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Takes a connection whenever the host has brought a stream for it.
async fn accept(listener: UnixListener, mut streams: Streams) {
    // All end with this task.
    let mut connections = JoinSet::new();
    let mut brought = None;
    loop {
        tokio::select! {
            next = streams.recv() => match next {
                // One that was not used has been lost with its channel.
                Some(stream) => brought = Some(stream),
                None => return,
            },
            accepted = listener.accept(), if brought.is_some() => match (accepted, brought.take()) {
                (Ok((connection, _)), Some(stream)) => {
                    connections.spawn(serve(connection, stream));
                }
                (Err(error), stream) => {
                    tracing::warn!("a socket takes no connection: {error}");
                    brought = stream;
                    sleep(PAUSE).await;
                }
                (Ok(_), None) => {}
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut connection: UnixStream, mut stream: Stream) {
    if stream.write_all(&[CONNECTED]).await.is_ok() && stream.flush().await.is_ok() {
        // However it ended, dropping both ends it on both sides.
        let _ = relay(&mut stream, &mut connection).await;
    }
}
