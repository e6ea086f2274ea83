//! Disks that come to a machine while it runs, and leave it again.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// A disk to be attached. Needs a [`crate::Device::DiskController`] in the machine.
#[derive(Debug)]
pub struct Disk {
    /// A block device or a regular file of the host, opened for reading, and for writing unless `read_only`.
    pub file: OwnedFd,
    /// Whether it is a block device.
    pub is_device: bool,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// How the VMM reaches it.
    pub access: DiskAccess,
}

/// How a VMM reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAccess {
    /// Who does the reading and writing.
    pub aio: DiskAio,
    /// Around the host's page cache.
    pub direct: bool,
    /// What the guest flushes is not flushed on the host: fast, and lost when the host falls.
    pub no_flush: bool,
}

/// Who does the reading and writing of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskAio {
    /// Threads of the VMM. Works everywhere.
    #[default]
    Threads,
    /// The kernel's `io_submit`; needs [`DiskAccess::direct`].
    Native,
    /// The kernel's `io_uring`.
    IoUring,
}

/// Where the guest finds an attached disk: the SCSI target on the disk controller, always its unit 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskAddress {
    /// Number of the target.
    pub target: u8,
}
