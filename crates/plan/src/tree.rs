//! Volumes that an orchestrator makes of values (config maps, secrets): small, and replaced as a whole when a value changes.
//!
//! They cross the channel as values and become files of the guest, so that programs in it are told of changes (`inotify`),
//! which no share does. What is too large for that is an ordinary volume.

use std::path::{Path, PathBuf};

use kata_wire::names::TREES_DIR;
use serde::Serialize;

/// Most bytes of such a volume, names not counted.
pub const TREE_BYTES: u64 = 1 << 20;

/// Most files, directories and links in it.
pub const TREE_ENTRIES: usize = 256;

const KINDS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// A volume that is copied into the guest, now and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreePlan {
    /// On the host: a directory.
    pub source: PathBuf,
    /// Its name among the container's.
    pub name: String,
}

/// Whether the path looks like such a volume.
pub(crate) fn is_tree(source: &Path) -> bool {
    let parent = source.parent().and_then(Path::file_name);
    parent.is_some_and(|name| KINDS.iter().any(|kind| name == *kind))
}

/// Where the guest has it.
pub(crate) fn guest_path(container: &str, name: &str) -> PathBuf {
    Path::new(TREES_DIR).join(container).join(name)
}
