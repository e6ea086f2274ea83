//! Disks that a container brings into its machine.

use std::fmt;
use std::path::{Path, PathBuf};

use kata_config::{BlockAio, Config};
use kata_machine::{DiskAccess, DiskAio};
use kata_wire::names::DISKS_DIR;
use serde::Serialize;

/// File systems on disks that the guest's kernel has. (xfs would be 4 MiB more to load at every boot.)
const GUEST_FILE_SYSTEMS: [&str; 1] = ["ext4"];

/// A disk to be attached for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    /// Its name among the container's disks.
    pub name: String,
    /// What it is on the host.
    pub source: DiskSource,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The guest mounts the file system on it.
    pub mount: Option<DiskMount>,
}

/// What a disk is on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A block device.
    Device {
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
    },
    /// The image of a disk.
    File {
        /// On the host.
        path: PathBuf,
    },
}

/// How the guest mounts a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskMount {
    /// Absolute path in the guest.
    pub mount_point: String,
    /// One that the guest has.
    pub fs_type: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

/// A root file system on a disk, as an engine asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskRootfs {
    /// What it is on the host.
    pub source: DiskSource,
    /// As the engine named it.
    pub fs_type: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { major, minor } => write!(f, "block device {major}:{minor}"),
            Self::File { path } => write!(f, "disk image {}", path.display()),
        }
    }
}

impl DiskPlan {
    /// Whether it is the host's block device of this number.
    pub(crate) fn has_numbers(&self, major: Option<i64>, minor: Option<i64>) -> bool {
        match self.source {
            DiskSource::Device { major: its, minor: own } => major == Some(its.into()) && minor == Some(own.into()),
            DiskSource::File { .. } => false,
        }
    }
}

/// Where the guest finds the node of a disk.
pub(crate) fn node(container: &str, name: &str) -> PathBuf {
    Path::new(DISKS_DIR).join(container).join(name)
}

/// How the VMM reaches disks.
pub(crate) fn access(config: &Config) -> DiskAccess {
    let qemu = &config.qemu;
    DiskAccess {
        aio: match qemu.block_device_aio {
            BlockAio::Threads => DiskAio::Threads,
            BlockAio::Native => DiskAio::Native,
            BlockAio::IoUring => DiskAio::IoUring,
        },
        direct: qemu.block_device_aio == BlockAio::Native
            || qemu.block_device_cache_set && qemu.block_device_cache_direct,
        no_flush: qemu.block_device_cache_set && qemu.block_device_cache_noflush,
    }
}

/// The root file system as a disk; `None` where the host must mount it.
pub(crate) fn rootfs(container: &str, wanted: &DiskRootfs, config: &Config) -> Option<DiskPlan> {
    if config.qemu.disable_block_device_use || !GUEST_FILE_SYSTEMS.contains(&wanted.fs_type.as_str()) {
        return None;
    }
    let is = |word: &str| wanted.options.iter().any(|option| option == word);
    let read_only = is("ro");
    Some(DiskPlan {
        name: "rootfs".into(),
        source: wanted.source.clone(),
        read_only,
        mount: Some(DiskMount {
            mount_point: format!("{DISKS_DIR}/{container}/root"),
            fs_type: wanted.fs_type.clone(),
            // A disk needs no loop device.
            options: wanted
                .options
                .iter()
                .filter(|option| *option != "loop")
                .cloned()
                .collect(),
        }),
    })
}
