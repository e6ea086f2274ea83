//! Names and numbers that both sides must know.

/// Name of the virtio-serial port of the channel (`/sys/class/virtio-ports/*/name` in the guest).
pub const CHANNEL_PORT: &str = "org.kata.agent.0";

/// vsock port on which the agent listens for the channel.
pub const CHANNEL_VSOCK_PORT: u32 = 1024;

/// Tag of the pod's shared file system (virtio-fs tag or 9p mount tag).
pub const SHARE_TAG: &str = "kataShared";

/// Everything that the guest makes for a pod and its containers lies below it.
pub const POD_DIR: &str = "/run/kata";

/// Where the guest mounts the pod's shared file system.
pub const SHARE_MOUNT: &str = "/run/kata/shared";

/// Below the share, every container has a directory of its own; this one in it is its root file system.
pub const ROOTFS_DIR: &str = "rootfs";

/// Below a container's directory in the share: its volumes, `<index>-<name>`.
pub const VOLUMES_DIR: &str = "volumes";

/// Where the guest keeps the namespaces of the pod (`ipc`, `uts`, `pid`) for its containers to join: those of the first
/// container, or its own if the pod has none.
pub const POD_NAMESPACES: &str = "/run/kata/namespaces";

/// Where the guest makes the sockets that stand for sockets of the host, one directory a container.
pub const SOCKETS_DIR: &str = "/run/kata/sockets";

/// Where the guest makes the socket of this number for a container.
pub fn socket_path(container: &str, number: u32) -> String {
    format!("{SOCKETS_DIR}/{container}/{number}")
}

/// Where the guest has a directory for each container that brings disks: in it a link to the node of each disk, by the
/// disk's name, and `root`, the mount point of a root file system.
pub const DISKS_DIR: &str = "/run/kata/disks";

/// Where the guest mounts file systems in its memory that containers share, by name.
pub const MEMORY_DIR: &str = "/run/kata/memory";

/// Where the guest has a directory for each container with volumes that were copied into it, by name.
pub const TREES_DIR: &str = "/run/kata/trees";

/// File in the guest's root that lists the kernel modules to load, one absolute path a line, in order.
pub const MODULES_LIST: &str = "/etc/kata-modules";

/// Likewise in an initramfs that only leads to an image; where this file is, the agent goes on into the image.
pub const ROOT_MODULES_LIST: &str = "/etc/kata-root-modules";

/// Empty directory in every root of a guest, on which the agent mounts the next one.
pub const NEXT_ROOT: &str = "/.root";

/// Kernel command line parameter `kata.log=LEVEL` (error, warn, info, debug, trace).
pub const LOG_PARAMETER: &str = "kata.log";

/// Kernel command line parameter `kata.load=NAME,NAME…`: modules that the agent loads before it listens.
pub const LOAD_PARAMETER: &str = "kata.load";
