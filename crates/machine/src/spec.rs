//! The description of a machine, complete before anything is started.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Device;

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's hardware virtualization.
    Kvm,
    /// The VMM's own translator: runs everywhere, many times slower.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A machine that is not yet running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Sandbox id; the VMM's process shows it as its guest's name.
    pub id: String,
    /// The VMM's executable.
    pub vmm: PathBuf,
    /// As the VMM names it (QEMU: `q35`, `microvm`); options after commas are passed on.
    pub machine_type: String,
    /// Firmware file; `None` is the VMM's own choice.
    pub firmware: Option<PathBuf>,
    /// Found out, not wished for.
    pub accelerator: Accelerator,
    /// Comma separated additions to the CPU model (`pmu=off`); may be empty.
    pub cpu_features: String,
    /// CPUs at boot.
    pub vcpus: u32,
    /// Memory at boot, MiB.
    pub memory_mib: u32,
    /// What may be added while it runs; `None` for nothing.
    pub growth: Option<Growth>,
    /// Where the guest's memory lies.
    pub memory_backing: MemoryBacking,
    /// What is booted.
    pub boot: Boot,
    /// How the agent is reached.
    pub channel: Channel,
    /// Everything else that is in the machine when it starts.
    pub devices: Vec<Device>,
    /// The machine's own directory for sockets and logs; it exists and is emptied by its owner, not by the driver.
    pub run_dir: PathBuf,
    /// The VMM's own system call filter, in its words (QEMU `-sandbox`); empty for none.
    pub seccomp_sandbox: String,
    /// Keep the guest's console verbose.
    pub debug: bool,
}

/// CPUs and memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
}

/// What a running machine may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// CPUs in the end.
    pub vcpus: u32,
    /// Memory in the end, MiB.
    pub memory_mib: u32,
    /// How memory comes.
    pub memory: MemoryGrowth,
}

/// How memory comes into a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryGrowth {
    /// As memory devices, which stay.
    Slots {
        /// How many of them.
        count: u32,
    },
    /// By one virtio-mem device, which also takes memory back.
    Virtio,
}

/// Where the guest's memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBacking {
    /// Anonymous memory of the VMM.
    Private,
    /// A memfd that vhost-user daemons can map.
    SharedMemfd,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Uncompressed ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// What is the guest's root at first.
    pub root: Root,
    /// Kernel parameters, in order. The driver adds those that its machine needs (console and the like) before them.
    pub parameters: Vec<String>,
}

/// What is a guest's root at first. In it the agent is `/init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// An initramfs, unpacked into the guest's memory.
    Initrd(PathBuf),
    /// A file system on a device that cannot be written to.
    Image(Image),
}

/// A file with a file system, of which the host has one copy in its memory, however many guests have it as their root.
/// It is not written to as long as one of them runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// As the guest's kernel calls it: `erofs`, `ext4`.
    pub file_system: String,
    /// The guest uses it where it is in the host's memory (DAX), on a machine that can do that; else it is a disk.
    pub dax: bool,
    /// Initramfs that leads to it, for a kernel that has the drivers for it as modules.
    pub loader: Option<PathBuf>,
}

/// How the agent is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// A virtio-serial port behind a unix socket of the VMM.
    Serial {
        /// Name of the port, as the guest sees it.
        port: String,
        /// Socket on which the VMM listens.
        socket: PathBuf,
    },
    /// vhost-vsock.
    Vsock {
        /// Context id of the guest, 3 or more.
        cid: u32,
        /// Port on which the agent listens.
        port: u32,
    },
}
