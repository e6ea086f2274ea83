//! The network namespace of a sandbox process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// What makes one namespace another than all others that there are at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of the namespace that the file at `path` stands for.
    ///
    /// # Errors
    /// What looking at it failed with.
    pub fn of(path: &Path) -> io::Result<Self> {
        let data = fs::metadata(path)?;
        Ok(Self {
            device: data.dev(),
            inode: data.ino(),
        })
    }

    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn own() -> io::Result<Self> {
        Self::of(Path::new(OWN))
    }
}

/// The namespace of the calling thread; this keeps it alive.
///
/// # Errors
/// What opening it failed with.
pub fn own() -> io::Result<File> {
    File::open(OWN)
}

/// Takes the calling thread into the namespace at `path`. Threads that it starts are there, too.
///
/// # Errors
/// What opening or entering failed with; `EINVAL` for a file that is no network namespace.
pub fn enter(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Takes the calling thread into a new namespace, whose loopback interface is up. It lives as long as somebody is in it.
///
/// # Errors
/// What `unshare` failed with, or setting loopback up.
pub fn enter_new() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    kata_sys::loopback::up()
}
