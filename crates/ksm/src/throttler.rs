//! The service: one a host, kicked by whoever starts a machine.
//!
//! In its directory are the socket for kicks (datagrams, whose content does not matter) and the settings as they were before.
//! One that was killed leaves them, so that the next still knows what to put back.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram as Sender;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixDatagram;

use crate::error::{KsmError, host};
use crate::kernel::{Kernel, Settings};
use crate::{Cycle, Pace};

/// Where the service is.
const DIRECTORY: &str = "/run/kata-ksm-throttler";
const SOCKET: &str = "ksm.sock";
const BEFORE: &str = "before.json";

/// Tells the throttler of this host that a machine was started. It does not wait.
///
/// # Errors
/// Whatever sending says; usually that there is no throttler.
pub fn kick() -> io::Result<()> {
    kick_at(&Path::new(DIRECTORY).join(SOCKET))
}

fn kick_at(socket: &Path) -> io::Result<()> {
    let sender = Sender::unbound()?;
    sender.set_nonblocking(true)?;
    match sender.send_to(b"k", socket) {
        // So many kicks wait that one more says nothing new.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        sent => sent.map(drop),
    }
}

/// What a throttler works with.
#[derive(Clone, Debug)]
pub struct Places {
    /// The kernel's settings.
    pub kernel: PathBuf,
    /// `/proc/meminfo`
    pub memory: PathBuf,
    /// A directory for itself.
    pub own: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            kernel: "/sys/kernel/mm/ksm".into(),
            memory: "/proc/meminfo".into(),
            own: DIRECTORY.into(),
        }
    }
}

/// The one throttler of a host.
#[derive(Debug)]
pub struct Throttler {
    kernel: Kernel,
    /// What is put back at the end.
    before: Settings,
    kicks: UnixDatagram,
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Throttler {
    /// Opens the service; from now on kicks are heard. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`KsmError`]; nothing is changed then.
    pub fn open(places: &Places) -> Result<Self, KsmError> {
        let kernel = Kernel::at(&places.kernel, &places.memory)?;
        let directory = places.own.clone();
        let lock = lock(&directory)?;
        let left = left_by_another(&directory);
        if left.is_some() {
            tracing::warn!("a throttler was killed; at the end the settings will be as it found them");
        }
        let opened = match &left {
            Some(before) => Ok(before.clone()),
            None => kernel.read(),
        };
        let opened = opened.and_then(|before| {
            keep(&directory, &before)?;
            // What cannot be written is to be known now.
            kernel.write(&before.at_rest())?;
            Ok((before, listen(&directory)?))
        });
        if opened.is_err() {
            leave(&directory, left.is_none());
        }
        let (before, kicks) = opened?;
        Ok(Self {
            kernel,
            before,
            kicks,
            directory,
            _lock: lock,
        })
    }

    /// Follows kicks and time until `stop` resolves, and puts everything back.
    ///
    /// # Errors
    /// [`KsmError`]; what can be put back was.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), KsmError> {
        tokio::pin!(stop);
        let served = tokio::select! {
            () = &mut stop => Ok(()),
            Err(error) = self.serve() => Err(error),
        };
        let restored = self.kernel.write(&self.before);
        leave(&self.directory, restored.is_ok());
        served.and(restored)
    }

    /// Ends with an error only.
    async fn serve(&self) -> Result<std::convert::Infallible, KsmError> {
        let mut cycle = Cycle::default();
        let mut ignored = [0; 1];
        loop {
            tokio::select! {
                heard = self.kicks.recv(&mut ignored) => {
                    heard.map_err(host("listen at", &self.directory.join(SOCKET)))?;
                    // Those that came together are one.
                    while self.kicks.try_recv(&mut ignored).is_ok() {}
                    cycle.kick(Instant::now());
                }
                () = until(cycle.due()) => {
                    if !cycle.pass(Instant::now()) {
                        continue;
                    }
                }
            }
            self.apply(cycle.pace())?;
        }
    }

    fn apply(&self, pace: Pace) -> Result<(), KsmError> {
        let settings = self.kernel.settings_for(pace, &self.before)?;
        self.kernel.write(&settings)?;
        tracing::info!(?pace, ?settings, "the pace of merging");
        Ok(())
    }
}

/// Held until the service ends, however it does.
fn lock(directory: &Path) -> Result<Flock<File>, KsmError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(host("make", directory))?;
    let file = File::open(directory).map_err(host("open", directory))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => KsmError::Taken {
            path: directory.to_owned(),
        },
        errno => host("lock", directory)(errno.into()),
    })
}

/// What is not whole was being written when nothing had been changed yet.
fn left_by_another(directory: &Path) -> Option<Settings> {
    let text = fs::read(directory.join(BEFORE)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn keep(directory: &Path, before: &Settings) -> Result<(), KsmError> {
    let path = directory.join(BEFORE);
    let text = serde_json::to_vec(before).map_err(|error| host("write", &path)(error.into()))?;
    fs::write(&path, text).map_err(host("write", &path))
}

fn listen(directory: &Path) -> Result<UnixDatagram, KsmError> {
    let socket = directory.join(SOCKET);
    // That of one that was killed.
    let _ = fs::remove_file(&socket);
    UnixDatagram::bind(&socket).map_err(host("listen at", &socket))
}

/// Removes what is ours; what is to be restored stays unless it `is_restored`.
fn leave(directory: &Path, is_restored: bool) {
    if is_restored {
        let _ = fs::remove_file(directory.join(BEFORE));
    }
    let _ = fs::remove_file(directory.join(SOCKET));
    let _ = fs::remove_dir(directory);
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
