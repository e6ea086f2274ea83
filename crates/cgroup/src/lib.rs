//! The host's cgroups: where a pod's processes are, and what holds there. Version 1, version 2, or both at once.
//!
//! Plain directories, made and removed by hand: also on hosts where systemd keeps the tree, in the places where it would
//! have made them. What a host does not have, or does not let us write, is a warning and not an error: nothing of what a
//! cgroup does for a pod is worth refusing to run it.

mod group;
mod hierarchy;
mod limits;

pub use group::{Groups, Part, join, remove};
pub use hierarchy::{Hierarchies, Hierarchy, own_cgroups};
