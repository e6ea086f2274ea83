//! The engine's side of the host: the namespaces that the sandbox process was started in, before it made its own and went
//! into its pod's. There the paths of engines mean what the engines mean, and there the programs run that they name.
//!
//! On a host that does not share its mounts, what is mounted after the sandbox process got a namespace of its own is seen
//! there alone. So the process goes back for every look at an engine's path, and takes what it wants along as a
//! descriptor. Refuses (`EINVAL`) in a process whose threads share a working directory: they would all go along.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use kata_sys::process::enter_namespaces;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};

use crate::namespace::unshare_mounts;

/// The mount and network namespaces of an engine. Keeps them alive.
#[derive(Debug)]
pub struct Origin {
    mounts: Place,
    network: OwnedFd,
}

/// A mount namespace with the directories that this thread has in it.
#[derive(Debug)]
struct Place {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl Origin {
    /// The namespaces that this thread is in.
    ///
    /// # Errors
    /// What opening them failed with.
    pub fn here() -> io::Result<Self> {
        Ok(Self {
            mounts: Place::here()?,
            network: File::open("/proc/thread-self/ns/net")?.into(),
        })
    }

    /// The same, with another directory in which whoever visits it is. The path is the engine's.
    ///
    /// # Errors
    /// What opening the directory failed with.
    pub fn in_directory(mut self, directory: &Path) -> io::Result<Self> {
        self.mounts.directory = self.visit(|| File::open(directory))??.into();
        Ok(self)
    }

    /// Lets `command` run there, in `directory` as it is there.
    ///
    /// # Errors
    /// `InvalidInput` for a directory with a zero byte in its name; what duplicating a descriptor failed with.
    pub fn enter(&self, command: &mut Command, directory: &Path) -> io::Result<()> {
        let namespaces = vec![self.mounts.namespace.try_clone()?, self.network.try_clone()?];
        enter_namespaces(command, namespaces, directory)
    }

    /// Does `act` there. Paths mean the engine's, and descriptors opened there stay open.
    ///
    /// # Errors
    /// What the way there failed with; nothing was done then.
    pub fn visit<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let back = Back(Place::here()?);
        self.mounts.enter()?;
        let answer = act();
        drop(back);
        Ok(answer)
    }

    /// Goes back there for good.
    ///
    /// # Errors
    /// What the way there failed with.
    pub fn return_to(self) -> io::Result<()> {
        self.mounts.enter()
    }

    /// Does `act` in a copy of the namespace: what it mounts is seen by nobody and ends with the visit, except what it
    /// takes along as a [`kata_sys::tree::Tree`].
    ///
    /// # Errors
    /// What the way there failed with; nothing was done then.
    pub fn visit_copy<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        self.visit(|| {
            unshare_mounts()?;
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
