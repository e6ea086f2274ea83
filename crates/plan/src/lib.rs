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
mod network;
mod pod;
mod print;
mod seccomp;
mod share;
mod sizing;
mod volume;

pub use cgroup::{CgroupPlan, CpuWish, HostLimits, Split};
pub use container::{ContainerPlan, GuestContainer, RootfsPlan, Update, container, exec_process, update};
pub use demand::Demand;
pub use disk::{DiskMount, DiskPlan, DiskRootfs, DiskSource};
pub use error::PlanError;
pub use facts::{Facts, SourceKind, bind_sources, shm_source};
pub use features::{OCI_VERSION, features};
pub use network::{NamespacePlan, NetworkPlan, NicPlan, namespace};
pub use pod::{PodPlan, pod};
pub use print::Printout;
pub use share::{GuestMount, SharePlan};
pub use sizing::{Size, Sizing};
pub use volume::{SocketPlan, VolumePlan};
