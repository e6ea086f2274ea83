//! What can be in a machine.

use std::path::PathBuf;

use kata_netlink::Mac;
use serde::{Deserialize, Serialize};

/// A device, described for any VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A file system served by a vhost-user daemon. Needs [`crate::MemoryBacking::SharedMemfd`].
    VirtioFs {
        /// Mount tag in the guest.
        tag: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// Entries of the request queue.
        queue_size: u32,
    },
    /// A file system served by the VMM itself.
    NineP {
        /// Mount tag in the guest.
        tag: String,
        /// Directory on the host.
        source: PathBuf,
    },
    /// What disks are attached to while the machine runs ([`crate::Disk`]).
    DiskController,
    /// Gives back what the guest does not use any more (virtio-balloon with free page reporting).
    Balloon,
    /// Entropy from a file of the host.
    Rng {
        /// `/dev/urandom` or the like.
        source: PathBuf,
    },
    /// A network interface.
    Nic {
        /// Where its packets go.
        wire: Wire,
        /// The address that the guest finds it with.
        mac: Mac,
        /// Pairs of queues, 1 or more.
        queues: u32,
        /// The host's kernel moves the packets.
        vhost: bool,
    },
}

/// The host's end of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// A tap in the VMM's network namespace; it is there, made for several queues if the interface has several.
    Tap {
        /// Its name.
        name: String,
    },
    /// A macvtap.
    Macvtap {
        /// Its device node.
        node: PathBuf,
    },
}
