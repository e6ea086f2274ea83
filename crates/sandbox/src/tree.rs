//! Volumes that are copied into the guest: read when the container is created, and again whenever they change.
//!
//! They are looked at once a second, as orchestrators replace them minutes after the change of a value. (The kernel would tell,
//! but of its inotify instances one user has 128, and every pod of Kubernetes has such a volume.)

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use kata_agent_client::{Agent, AgentError};
use kata_plan::{TREE_BYTES, TREE_ENTRIES, TreePlan};
use kata_storage::copy::{self, Bounds, Entry};
use kata_wire::proto;

use crate::error::SandboxError;
use crate::sandbox::Sandbox;
use crate::step::Steps;

/// The most that is copied.
pub(crate) const TREE_BOUNDS: Bounds = Bounds {
    bytes: TREE_BYTES,
    entries: TREE_ENTRIES,
};

/// How often a volume is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// A volume that was read.
pub(crate) struct ReadTree {
    name: String,
    /// Keeps the way to it, wherever the engine's namespace has it.
    directory: File,
    version: (u64, i64, i64),
    entries: Vec<Entry>,
}

impl Sandbox {
    /// Reads the volumes that are copied.
    pub(crate) fn read_trees(&self, trees: &[TreePlan]) -> Result<Vec<ReadTree>, SandboxError> {
        let read = |tree: &TreePlan| {
            let failed = |source| SandboxError::Host {
                act: "copy the volume",
                path: tree.source.clone(),
                source,
            };
            let directory = self
                .origin
                .visit(|| File::open(&tree.source))
                .and_then(|file| file)
                .map_err(failed)?;
            let path = path_of(&directory);
            let version = copy::version(&path).map_err(failed)?;
            let entries = copy::read(&path, TREE_BOUNDS).map_err(failed)?;
            let grown = || failed(std::io::Error::other("it has grown while it was looked at"));
            Ok(ReadTree {
                name: tree.name.clone(),
                directory,
                version,
                entries: entries.ok_or_else(grown)?,
            })
        };
        trees.iter().map(read).collect()
    }
}

impl ReadTree {
    /// As the agent takes it.
    pub(crate) fn message(&self) -> proto::Tree {
        let entries = self.entries.iter().map(|entry| proto::TreeEntry {
            path: entry.path.as_os_str().as_bytes().to_owned(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            content: entry.content.clone(),
            ..Default::default()
        });
        proto::Tree {
            name: self.name.clone(),
            entries: entries.collect(),
            ..Default::default()
        }
    }

    /// Reads it again if it has changed; answers whether it is another now.
    fn look(&mut self) -> bool {
        let path = path_of(&self.directory);
        // A volume that is being torn down is not there, and nobody needs to know.
        let Ok(version) = copy::version(&path) else {
            return false;
        };
        if version == self.version {
            return false;
        }
        self.version = version;
        match copy::read(&path, TREE_BOUNDS) {
            Ok(Some(entries)) if entries != self.entries => {
                self.entries = entries;
                true
            }
            Ok(None) => {
                tracing::warn!(
                    volume = self.name,
                    "has become too large to be copied; the container sees the old one"
                );
                false
            }
            _ => false,
        }
    }
}

/// Keeps the container's volumes up to date until it is deleted.
pub(crate) fn follow(mut trees: Vec<ReadTree>, container: &str, guest: &Agent, own: &mut Steps) {
    if trees.is_empty() {
        return;
    }
    let (guest, container) = (guest.clone(), container.to_owned());
    let following = tokio::spawn(async move {
        loop {
            tokio::time::sleep(INTERVAL).await;
            for tree in &mut trees {
                if !tree.look() {
                    continue;
                }
                let request = proto::UpdateTreeRequest {
                    container_id: container.clone(),
                    tree: Some(tree.message()).into(),
                    ..Default::default()
                };
                match guest.update_tree(request).await {
                    Ok(()) => tracing::debug!(container, volume = tree.name, "copied anew"),
                    Err(AgentError::Lost) => return,
                    Err(error) => tracing::warn!(container, volume = tree.name, %error, "cannot be copied anew"),
                }
            }
        }
    });
    own.done("copied volumes", move || async move {
        following.abort();
        Ok(())
    });
}

fn path_of(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}
