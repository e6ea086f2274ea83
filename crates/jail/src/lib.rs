//! Containers inside the guest: namespaces, file system, cgroup and identity of processes, by an OCI spec whose paths
//! are the guest's. Linux with cgroup v2 and kernel 5.14 or later.
//!
//! A container is made in two halves. The agent ([`container`]) makes the cgroup and gives birth to the child; the child
//! (`init`, `exec`) prepares itself and reports over a [`link`]. All that can fail has been tried when it says
//! [`link::Report::Ready`].
//!
//! What it refuses: it waits for nothing (its caller has the event loop), reaps nobody, moves no bytes of stdio, compiles
//! no filters, and serves only callers of one thread.

pub mod capabilities;
pub mod cgroup;
pub mod container;
mod copyup;
mod devices;
mod exec;
pub mod fault;
mod hooks;
pub mod identity;
mod init;
pub mod link;
pub mod lookup;
mod mountpoint;
pub mod mounts;
pub mod namespaces;
pub mod passwd;
pub mod processes;
mod rootfs;
pub mod stdio;
