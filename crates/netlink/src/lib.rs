//! Speaks rtnetlink: what a network namespace holds, read and changed. Both wings use it: the host reads a pod's namespace,
//! the guest makes its own the same.
//!
//! The values ([`Link`], [`Address`], [`Route`], [`Neighbour`]) are plain nouns that plans are made of; [`Socket`] reads and
//! writes them, one blocking exchange with the kernel at a time. It knows no machine and no container. Why it is our own:
//! `docs/decisions/0008-network.md`.

mod address;
mod link;
pub mod message;
mod neighbour;
mod network;
mod route;
mod socket;

pub use address::Address;
pub use link::{Link, Mac};
pub use neighbour::Neighbour;
pub use network::{Interface, Network, is_tap_name, tap_name};
pub use route::Route;
pub use socket::{NetlinkError, Socket};
