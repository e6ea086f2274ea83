//! What the guest needs before its pod: the time, randomness, the host's shared file systems, a name, a network.

use std::fs::DirBuilder;
use std::path::Path;
use std::sync::Arc;

use kata_wire::proto::{SetupRequest, SetupResponse, Share};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::container::keep_namespaces;
use super::refusal::Refusal;
use super::rest;
use crate::clock;
use crate::pod::Pod;

/// Prepares the guest. May be repeated: a guest that was copied gets another time and other randomness.
///
/// # Errors
/// [`Refusal`] naming what could not be done.
pub fn setup(pod: &Arc<Pod>, request: &SetupRequest) -> Result<SetupResponse, Refusal> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal::Internal(format!("{what}: {error}"));
    if request.clock_unix_nanos != 0 {
        clock::set(request.clock_unix_nanos).map_err(|errno| failed("set the clock", &errno))?;
    }
    if !request.entropy.is_empty() {
        kata_sys::entropy::credit(&request.entropy).map_err(|error| failed("feed the random pool", &error))?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|errno| failed("set the hostname", &errno))?;
    }
    for share in &request.shares {
        mount_share(pod, share)?;
    }
    rest::begin_soon(pod, request.balloon);
    if let Some(network) = request.network.as_ref() {
        super::network::make(pod, network)?;
    }
    // The guest's own are the pod's until a first container brings others; a pod may do without one.
    keep_namespaces(std::process::id()).map_err(|error| failed("keep the guest's namespaces", &error))?;
    tracing::info!(sandbox = %request.sandbox_id, shares = request.shares.len(), "set up");
    let kernel = nix::sys::utsname::uname().map_err(|errno| failed("ask for the kernel's name", &errno))?;
    Ok(SetupResponse {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: kernel.release().to_string_lossy().into_owned(),
        agent_started_usecs: pod.boot.started_usecs(),
        agent_ready_usecs: pod.boot.ready_usecs(),
        ..Default::default()
    })
}

fn mount_share(pod: &Pod, share: &Share) -> Result<(), Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        Refusal::Internal(format!(
            "mount {} share {} on {}: {error}",
            share.fs_type, share.tag, share.mount_point
        ))
    };
    let modules: &[&str] = match share.fs_type.as_str() {
        "virtiofs" => &["virtiofs"],
        "9p" => &["9pnet_virtio", "9p"],
        other => return Err(Refusal::Invalid(format!("a share of unknown type {other:?}"))),
    };
    let mount_point = Path::new(&share.mount_point);
    if !mount_point.is_absolute() {
        return Err(Refusal::Invalid(format!(
            "share {} has no absolute mount point",
            share.tag
        )));
    }
    for module in modules {
        pod.modules.load(module).map_err(|error| failed(&error))?;
    }
    DirBuilder::new()
        .recursive(true)
        .create(mount_point)
        .map_err(|error| failed(&error))?;
    let flags = if share.read_only {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let options = share.options.join(",");
    match mount(
        Some(share.tag.as_str()),
        mount_point,
        Some(share.fs_type.as_str()),
        flags,
        Some(options.as_str()),
    ) {
        // There already, from before the guest was copied.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(failed(&errno)),
    }
}
