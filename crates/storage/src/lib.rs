//! Carries out on the host what the plan says about root file systems, volumes and the share.
//!
//! All mounts are made in the sandbox process's own mount namespace ([`namespace`]), so that the host sees none of them
//! and none outlives the process. Each act here has its undo beside it; who calls them decides the order.

pub mod bind;
pub mod copy;
pub mod disk;
pub mod mount;
pub mod namespace;
pub mod origin;
pub mod share;
pub mod socket;
