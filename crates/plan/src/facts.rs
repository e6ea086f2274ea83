//! What must be known of the host before a plan can be made. Gathered by others; this is only its shape.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kata_bundle::oci::Spec;
use kata_machine::Accelerator;
use kata_netlink::Network;
use serde::Serialize;

use crate::disk::DiskRootfs;
use crate::{memory, tree, volume};

/// The host, as far as plans depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Found out by trying.
    pub accelerator: Accelerator,
    /// Why this one, for people.
    pub accelerator_reason: String,
    /// The host has SELinux.
    pub selinux: bool,
    /// CPUs that this process may use.
    pub host_cpus: u32,
    /// All memory of the host, MiB.
    pub host_memory_mib: u64,
    /// The VMM's executable; it exists.
    pub vmm: PathBuf,
    /// The guest kernel; it exists.
    pub kernel: PathBuf,
    /// The guest's root at first; its files exist.
    pub root: RootFile,
    /// The virtio-fs daemon, if one is installed.
    pub virtiofsd: Option<PathBuf>,
    /// vhost-vsock can be used.
    pub vhost_vsock: bool,
    /// A vsock context id that is free, if one was sought.
    pub vsock_cid: Option<u32>,
    /// vhost-net can be used.
    pub vhost_net: bool,
    /// What the pod has of its network namespace now; `None` if the machine gets no network.
    pub network: Option<Network>,
    /// The sandbox's own directory, for sockets.
    pub run_dir: PathBuf,
    /// The directory of the host that becomes the guest's share.
    pub share_dir: PathBuf,
    /// The directory in which a template is made.
    pub template_dir: PathBuf,
    /// A machine that was started ahead waits for this pod.
    pub has_spare: bool,
    /// What each path of [`bind_sources`] is.
    pub source_kinds: BTreeMap<PathBuf, SourceKind>,
    /// Major and minor number of each of them that is a block device.
    pub block_devices: BTreeMap<PathBuf, (u32, u32)>,
    /// The root file system that the engine leaves to us, if it lies on a disk.
    pub disk_rootfs: Option<DiskRootfs>,
    /// Those of [`memory_sources`] that are in the host's memory.
    pub memory: BTreeMap<PathBuf, MemoryFacts>,
    /// Those of [`tree_sources`] that are small enough to be copied.
    pub small_trees: BTreeSet<PathBuf>,
}

/// A guest's root at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootFile {
    /// An initramfs.
    Initrd(PathBuf),
    /// An image.
    Image {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The initramfs that leads to it, if there is one beside it.
        loader: Option<PathBuf>,
    },
}

impl RootFile {
    /// All its files.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Initrd(path) => vec![path.clone()],
            Self::Image { path, loader, .. } => std::iter::once(path).chain(loader).cloned().collect(),
        }
    }
}

/// A file system in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryFacts {
    /// Of which kind.
    pub kind: MemoryKind,
    /// How much fits into it, bytes.
    pub bytes: u64,
    /// Permissions of its top directory.
    pub mode: u32,
    /// Owner of that.
    pub uid: u32,
    /// Group of that.
    pub gid: u32,
}

/// Kinds of file systems in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Of ordinary pages.
    Tmpfs,
    /// Of huge pages.
    HugePages {
        /// Size of one, KiB.
        page_kib: u64,
    },
}

/// What the source of a bind mount is, symbolic links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket that takes connections, or did.
    Socket,
    /// A unix socket that takes messages without connections.
    DatagramSocket,
    /// Nothing is there.
    Missing,
}

impl SourceKind {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::File => "a regular file",
            Self::BlockDevice => "a block device",
            Self::CharDevice => "a character device",
            Self::Fifo => "a named pipe",
            Self::Socket => "a socket",
            Self::DatagramSocket => "a datagram socket",
            Self::Missing => "missing",
        }
    }
}

/// The host paths that the plan of a container needs to know the kind of, each once.
pub fn bind_sources(spec: &Spec) -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = volume::host_sources(spec).collect();
    sources.sort();
    sources.dedup();
    sources
}

/// The host paths that may be file systems in memory, of which the guest then makes its own: what is bound to `/dev/shm`, and
/// what looks like an `emptyDir`.
pub fn memory_sources(spec: &Spec) -> Vec<PathBuf> {
    let empty_dirs = volume::host_sources(spec).filter(|source| memory::is_empty_dir(source));
    empty_dirs.chain(volume::shm_source(spec)).collect()
}

/// The host paths that may be volumes of [`crate::TreePlan`].
pub fn tree_sources(spec: &Spec) -> Vec<PathBuf> {
    volume::host_sources(spec)
        .filter(|source| tree::is_tree(source))
        .collect()
}
