//! File systems in the guest's memory that all containers of a pod share: `/dev/shm`, and `emptyDir` volumes that are in
//! memory on the host, too.
//!
//! Containers mean the same one when they bind the same path of the host; so it is named after that path.

use std::path::{Path, PathBuf};

use kata_bundle::oci::{LinuxHugepageLimit, Spec};
use kata_config::Config;
use kata_wire::names::MEMORY_DIR;
use serde::Serialize;

use crate::PlanError;
use crate::facts::{Facts, MemoryFacts, MemoryKind};

/// A directory of this name holds a pod's `emptyDir` volumes.
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";

/// What other runtimes give `/dev/shm`.
const DEFAULT_SHM: MemoryFacts = MemoryFacts {
    kind: MemoryKind::Tmpfs,
    bytes: 64 << 20,
    mode: 0o1777,
    uid: 0,
    gid: 0,
};

/// A file system in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The same for all that share it.
    pub name: String,
    /// `tmpfs` or `hugetlbfs`
    pub fs_type: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

/// Huge pages that a container may use; the guest sets them aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Size of one, KiB.
    pub page_kib: u64,
    /// How many.
    pub pages: u64,
}

impl MemoryPlan {
    /// Where the guest has it.
    pub(crate) fn guest_path(&self) -> PathBuf {
        Path::new(MEMORY_DIR).join(&self.name)
    }
}

/// What becomes of `/dev/shm` when it is a bind of `source`.
pub(crate) fn shm(source: &Path, facts: &Facts) -> MemoryPlan {
    let known = facts
        .memory
        .get(source)
        .filter(|found| found.kind == MemoryKind::Tmpfs && found.bytes > 0);
    let mode = MemoryFacts {
        mode: DEFAULT_SHM.mode,
        ..known.copied().unwrap_or(DEFAULT_SHM)
    };
    plan(source, &mode)
}

/// What becomes of a bind of `source`, if that is an `emptyDir` in memory.
pub(crate) fn empty_dir(source: &Path, config: &Config, facts: &Facts) -> Option<MemoryPlan> {
    let found = facts.memory.get(source).filter(|_| is_empty_dir(source))?;
    match found.kind {
        MemoryKind::Tmpfs if config.runtime.disable_guest_empty_dir => None,
        // Huge pages cannot be mapped through a share.
        _ => Some(plan(source, found)),
    }
}

/// Whether the path looks like an `emptyDir` itself, not like something in one.
pub(crate) fn is_empty_dir(source: &Path) -> bool {
    let parent = source.parent().and_then(Path::file_name);
    parent.is_some_and(|name| name == EMPTY_DIRS)
}

/// The huge pages that the specification limits a container to, beyond none.
///
/// # Errors
/// [`PlanError::HugePages`] for a size that cannot be read.
pub(crate) fn huge_pages(spec: &Spec) -> Result<Vec<HugePages>, PlanError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = resources.and_then(|resources| resources.hugepage_limits().as_deref());
    let wanted = limits.unwrap_or_default().iter().filter(|limit| is_some(limit));
    wanted
        .map(|limit| {
            let page_kib = page_kib(limit.page_size()).ok_or_else(|| PlanError::HugePages {
                size: limit.page_size().clone(),
            })?;
            let bytes = u64::try_from(limit.limit()).unwrap_or(0);
            Ok(HugePages {
                page_kib,
                pages: bytes.div_ceil(page_kib << 10),
            })
        })
        .collect()
}

/// Kubelets write a limit of 0 for every size that the host has.
pub(crate) fn is_some(limit: &LinuxHugepageLimit) -> bool {
    limit.limit() > 0
}

/// `2MB`, as the kernel writes it in the names of cgroup files.
fn page_kib(size: &str) -> Option<u64> {
    let (number, factor) = [("KB", 1), ("MB", 1 << 10), ("GB", 1 << 20)]
        .iter()
        .find_map(|(unit, factor)| Some((size.strip_suffix(unit)?, *factor)))?;
    number
        .parse::<u64>()
        .ok()
        .filter(|number| *number > 0)?
        .checked_mul(factor)
}

fn plan(source: &Path, found: &MemoryFacts) -> MemoryPlan {
    let size = match found.kind {
        MemoryKind::Tmpfs => format!("size={}", found.bytes),
        MemoryKind::HugePages { page_kib } => format!("pagesize={page_kib}K"),
    };
    let fs_type = match found.kind {
        MemoryKind::Tmpfs => "tmpfs",
        MemoryKind::HugePages { .. } => "hugetlbfs",
    };
    MemoryPlan {
        name: name(source),
        fs_type: fs_type.into(),
        options: vec![
            format!("mode={:o}", found.mode),
            size,
            format!("uid={}", found.uid),
            format!("gid={}", found.gid),
        ],
    }
}

/// A number that follows from the path (FNV-1a), and its last part for people.
fn name(source: &Path) -> String {
    let bytes = source.as_os_str().as_encoded_bytes();
    let number = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |number, byte| {
        (number ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{number:016x}-{}", crate::volume::plain_name(source))
}
