//! The mount namespace that the sandbox process was started in: where the paths of engines mean what the engines mean.
//!
//! On a host that does not share its mounts, what is mounted after the sandbox process got a namespace of its own is seen
//! there alone. So the process goes back for every look at an engine's path, and takes what it wants along as a
//! descriptor. Refuses (`EINVAL`) in a process whose threads share a working directory: they would all go along.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, fchdir};

/// The mount namespace of an engine. Keeps it alive.
#[derive(Debug)]
pub struct Origin(Place);

/// A namespace with the directories that this thread has in it.
#[derive(Debug)]
struct Place {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl Origin {
    /// The namespace that this thread is in.
    ///
    /// # Errors
    /// What opening it failed with.
    pub fn here() -> io::Result<Self> {
        Place::here().map(Self)
    }

    /// Does `act` there. Paths mean the engine's, and descriptors opened there stay open.
    ///
    /// # Errors
    /// What the way there failed with; nothing was done then.
    pub fn visit<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let back = Back(Place::here()?);
        self.0.enter()?;
        let answer = act();
        drop(back);
        Ok(answer)
    }

    /// Does `act` in a copy of the namespace: what it mounts is seen by nobody and ends with the visit, except what it
    /// takes along as a [`kata_sys::tree::Tree`].
    ///
    /// # Errors
    /// What the way there failed with; nothing was done then.
    pub fn visit_copy<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        self.visit(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, all, None::<&str>)?;
            Ok(act())
        })?
    }
}

impl Place {
    fn here() -> io::Result<Self> {
        let open = |path| File::open(path).map(OwnedFd::from);
        Ok(Self {
            namespace: open("/proc/thread-self/ns/mnt")?,
            root: open("/")?,
            directory: open(".")?,
        })
    }

    fn enter(&self) -> io::Result<()> {
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
        // The kernel has put us at the root of the namespace, which is not that of a process in a chroot.
        fchdir(self.root.as_fd())?;
        chroot(".")?;
        Ok(fchdir(self.directory.as_fd())?)
    }
}

/// Goes back when it is dropped.
struct Back(Place);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = self.0.enter() {
            // To go on would be to mount in the engine's namespace.
            tracing::error!(%error, "cannot return to the sandbox's own mount namespace");
            std::process::abort();
        }
    }
}
