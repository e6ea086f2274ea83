//! How the guest sees the directories of the host that belong to its pod.

use std::path::{Path, PathBuf};

use kata_config::{Config, SharedFs};
use kata_machine::{Device, MemoryBacking};
use kata_wire::names::{SHARE_MOUNT, SHARE_TAG};
use serde::{Deserialize, Serialize};

use crate::pod::socket;
use crate::{Facts, PlanError};

/// The pod's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharePlan {
    /// Served by a vhost-user daemon.
    VirtioFs {
        /// Its executable.
        daemon: PathBuf,
        /// All its arguments but the listening socket, which it inherits (`--fd`).
        arguments: Vec<String>,
        /// Where that socket is bound.
        socket: PathBuf,
        /// Directory of the host.
        source: PathBuf,
        /// How the guest mounts it.
        mount: GuestMount,
    },
    /// Served by the VMM itself.
    NineP {
        /// Directory of the host.
        source: PathBuf,
        /// How the guest mounts it.
        mount: GuestMount,
    },
}

/// A mount that the guest makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// `virtiofs` or `9p`.
    pub fs_type: String,
    /// Which device.
    pub tag: String,
    /// Absolute path in the guest.
    pub mount_point: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
    /// Without writing.
    pub read_only: bool,
}

impl SharePlan {
    pub(crate) fn device(&self, config: &Config) -> Device {
        match self {
            Self::VirtioFs { socket, mount, .. } => Device::VirtioFs {
                tag: mount.tag.clone(),
                socket: socket.clone(),
                queue_size: config.qemu.virtio_fs_queue_size,
            },
            Self::NineP { source, mount } => Device::NineP {
                tag: mount.tag.clone(),
                source: source.clone(),
            },
        }
    }

    pub(crate) fn memory_backing(&self) -> MemoryBacking {
        match self {
            Self::VirtioFs { .. } => MemoryBacking::SharedMemfd,
            Self::NineP { .. } => MemoryBacking::Private,
        }
    }
}

/// The share and why it is this one.
pub(crate) fn decide(config: &Config, facts: &Facts) -> Result<(SharePlan, String), PlanError> {
    match (config.qemu.shared_fs, &facts.virtiofsd) {
        (Some(SharedFs::None), _) => Err(PlanError::Unsupported {
            what: "shared_fs = \"none\" (there is no other way yet to bring a root file system into the guest)".into(),
        }),
        (Some(SharedFs::VirtioFs), None) => Err(PlanError::NoVirtioFsDaemon {
            candidates: config.virtio_fs_daemon_candidates(),
        }),
        (wish @ (None | Some(SharedFs::VirtioFs)), Some(daemon)) => {
            let why = match wish {
                Some(_) => "configured",
                None => "its daemon is installed",
            };
            let note = format!("share: virtio-fs by {} ({why})", daemon.display());
            Ok((virtio_fs(daemon, config, facts)?, note))
        }
        (None, None) => Ok((
            nine_p(config, facts),
            "share: virtio-9p (no virtio-fs daemon is installed)".into(),
        )),
        (Some(SharedFs::Virtio9p), _) => Ok((nine_p(config, facts), "share: virtio-9p (configured)".into())),
    }
}

fn virtio_fs(daemon: &Path, config: &Config, facts: &Facts) -> Result<SharePlan, PlanError> {
    Ok(SharePlan::VirtioFs {
        daemon: daemon.to_owned(),
        arguments: daemon_arguments(config, &facts.share_dir),
        socket: socket(&facts.run_dir, "share.sock")?,
        source: facts.share_dir.clone(),
        mount: guest_mount("virtiofs", Vec::new()),
    })
}

/// What is not said here, and why: `--rlimit-nofile` (the daemon's default takes the hard limit where it may not raise it;
/// `0` would leave it with the soft limit, often 1024, and it holds one descriptor for each inode the guest knows),
/// `--xattr` and `--posix-acl` (each write would then ask for an attribute; those who need file capabilities or ACLs set
/// `virtio_fs_extra_args`), `--thread-pool-size` (the default, none, is right for guests of a few CPUs).
fn daemon_arguments(config: &Config, share_dir: &Path) -> Vec<String> {
    let level = if config.qemu.enable_debug { "debug" } else { "warn" };
    let ours = [
        format!("--shared-dir={}", share_dir.display()),
        // Its own mount, pid and network namespaces, with the share as its root.
        "--sandbox=namespace".into(),
        "--seccomp=kill".into(),
        // A device node that a guest makes in a volume would be one of the host's devices for whoever opens it there.
        "--modcaps=-mknod".into(),
        format!("--cache={}", config.qemu.virtio_fs_cache.as_str()),
        // Every container's root file system is a mount below the share.
        "--announce-submounts".into(),
        // Handles would need CAP_DAC_READ_SEARCH, which the daemon gives up.
        "--inode-file-handles=never".into(),
        format!("--log-level={level}"),
    ];
    let theirs = &config.qemu.virtio_fs_extra_args;
    ours.into_iter()
        .filter(|our| !theirs.iter().any(|their| option(their) == option(our)))
        .chain(theirs.iter().cloned())
        .collect()
}

fn option(argument: &str) -> &str {
    argument.split_once('=').map_or(argument, |(name, _)| name)
}

fn nine_p(config: &Config, facts: &Facts) -> SharePlan {
    let options = [
        "trans=virtio".to_owned(),
        "version=9p2000.L".to_owned(),
        format!("msize={}", config.qemu.msize_9p),
        // Without it shared writable mappings fail, which package managers and databases make.
        "cache=mmap".to_owned(),
    ];
    SharePlan::NineP {
        source: facts.share_dir.clone(),
        mount: guest_mount("9p", options.into()),
    }
}

fn guest_mount(fs_type: &str, options: Vec<String>) -> GuestMount {
    GuestMount {
        fs_type: fs_type.into(),
        tag: SHARE_TAG.into(),
        mount_point: SHARE_MOUNT.into(),
        options,
        read_only: false,
    }
}
