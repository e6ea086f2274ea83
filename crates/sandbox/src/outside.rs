//! The engine's side of the host: the namespaces in which this process was started, before it made its own and went into
//! its pod's. Programs that the engine names run there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kata_sys::process::enter_namespaces;

/// Mount and network namespace of the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outside(Arc<[OwnedFd; 2]>);

impl Outside {
    /// The namespaces in which the calling thread is.
    ///
    /// # Errors
    /// What opening them in `/proc` failed with.
    pub fn here() -> io::Result<Self> {
        let open = |kind| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
        Ok(Self(Arc::new([open("mnt")?, open("net")?])))
    }

    /// Lets `command` run there, in `directory` as it is there.
    ///
    /// # Errors
    /// `InvalidInput` for a directory with a zero byte in its name; what duplicating a descriptor failed with.
    pub(crate) fn enter(&self, command: &mut Command, directory: &Path) -> io::Result<()> {
        let namespaces = [self.0[0].try_clone()?, self.0[1].try_clone()?];
        enter_namespaces(command, namespaces.into(), directory)
    }
}
