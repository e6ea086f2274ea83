//! (Bundle, Config, Facts) to plans: whatever can be settled before anything is done is settled here.
//!
//! Pure: no clock, no async, no look at the host; what must be known of the host comes in as [`Facts`]. The plans go out
//! and are carried out by others; nothing is written back into them.

mod cgroup;
mod container;
mod demand;
mod device;
mod disk;
mod error;
mod facts;
mod features;
mod guest_spec;
mod memory;
mod network;
mod pod;
mod print;
mod rehearsal;
mod seccomp;
mod share;
mod sizing;
mod template;
mod tree;
mod volume;

pub use cgroup::{CgroupPlan, CpuWish, HostLimits, Split};
pub use container::{ContainerPlan, GuestContainer, RootfsPlan, Update, container, exec_process, update};
pub use demand::Demand;
pub use disk::{DiskMount, DiskPlan, DiskRootfs, DiskSource};
pub use error::PlanError;
pub use facts::{Facts, MemoryFacts, MemoryKind, RootFile, SourceKind, bind_sources, memory_sources, tree_sources};
pub use features::{OCI_VERSION, features};
pub use memory::{HugePages, MemoryPlan};
pub use network::{NamespacePlan, NetworkPlan, NicPlan, namespace};
pub use pod::{PodPlan, pod};
pub use print::Printout;
pub use rehearsal::RehearsalPlan;
pub use share::{GuestMount, SharePlan};
pub use sizing::Sizing;
pub use template::{TemplatePlan, template};
pub use tree::{TREE_BYTES, TREE_ENTRIES, TreePlan};
pub use volume::{SocketPlan, Visible, VolumePlan, visible};
