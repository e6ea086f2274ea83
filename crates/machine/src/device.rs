//! What can be in a machine.

use std::path::PathBuf;

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
    /// Entropy from a file of the host.
    Rng {
        /// `/dev/urandom` or the like.
        source: PathBuf,
    },
}
