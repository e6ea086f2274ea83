//! What a pod has of its network namespace: the value that is read on the host, planned with, and made again in the guest.

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::link::Mac;
use crate::neighbour::Neighbour;
use crate::route::Route;

/// An interface with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// As the kernel calls its driver (`veth`, `macvlan`, …); may be empty.
    pub kind: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// IPv6 is switched off for it.
    pub ipv6_disabled: bool,
    /// Without those that a kernel gives it by itself.
    pub addresses: Vec<Address>,
    /// Those of the main table, without those that a kernel makes by itself; in the order of the table.
    pub routes: Vec<Route>,
    /// The static ones.
    pub neighbours: Vec<Neighbour>,
}

/// The network of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Without loopback.
    pub interfaces: Vec<Interface>,
    /// What is there and cannot be carried into a machine, for people.
    pub left_out: Vec<String>,
}

/// What the names of our taps in a pod's namespace end with.
const TAP_SUFFIX: &str = "_kata";

/// The name of the `number`-th tap that a sandbox makes in its pod's namespace.
pub fn tap_name(number: usize) -> String {
    format!("tap{number}{TAP_SUFFIX}")
}

/// Whether a link is a sandbox's own and none of the pod's.
pub fn is_tap_name(name: &str) -> bool {
    name.strip_suffix(TAP_SUFFIX)
        .and_then(|name| name.strip_prefix("tap"))
        .is_some_and(|number| number.parse::<u8>().is_ok())
}
