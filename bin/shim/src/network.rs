//! The network namespace of the sandbox process: that of its pod, so that whoever looks for the pod's finds it by the pid.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use kata_bundle::Bundle;
use kata_bundle::oci::LinuxNamespaceType;
use nix::sched::{CloneFlags, setns, unshare};

/// Enters the namespace that the bundle's specification asks for; answers whether it is the pod's alone. Must be called
/// before the process has a second thread.
///
/// # Errors
/// When it cannot be made or entered.
pub fn enter(bundle: &Path) -> Result<bool> {
    let bundle = Bundle::load(bundle)?;
    let linux = bundle.spec().linux().as_ref();
    let mut namespaces = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    let Some(wanted) = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) else {
        return Ok(false);
    };
    let Some(path) = wanted.path() else {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        kata_sys::loopback::up().context("cannot bring up loopback")?;
        return Ok(true);
    };
    let entered = || -> io::Result<bool> {
        let (theirs, ours) = (File::open(path)?, File::open("/proc/self/ns/net")?);
        if theirs.metadata()?.ino() == ours.metadata()?.ino() {
            return Ok(false);
        }
        setns(theirs, CloneFlags::CLONE_NEWNET)?;
        Ok(true)
    };
    entered().with_context(|| format!("cannot enter the network namespace {}", path.display()))
}
