//! The plan of a container: what the host binds into the share, and what the agent is asked for.

use std::path::{Path, PathBuf};

use kata_bundle::oci::{LinuxResources, Process};
use kata_bundle::{Bundle, Role, check_process};
use kata_config::Config;
use kata_machine::DiskAccess;
use kata_wire::names::{ROOTFS_DIR, SHARE_MOUNT};
use serde::{Serialize, Serializer};

use crate::disk::{self, DiskPlan};
use crate::memory::{self, HugePages, MemoryPlan};
use crate::pod::check_id;
use crate::tree::TreePlan;
use crate::volume::{self, Fate, SocketPlan, VolumePlan};
use crate::{CpuWish, Demand, Facts, PlanError, cgroup, demand, device, guest_spec, seccomp};

/// A container that does not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContainerPlan {
    /// Its id.
    pub id: String,
    /// Its root file system.
    pub rootfs: RootfsPlan,
    /// What else it sees of the host, in the order of the mounts.
    pub volumes: Vec<VolumePlan>,
    /// The host's sockets that it can connect to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketPlan>,
    /// What the size of its machine depends on.
    pub demand: Demand,
    /// What it says of the host's CPUs.
    pub cpu_wish: CpuWish,
    /// File systems in the guest's memory that it shares with the pod's other containers.
    pub memories: Vec<MemoryPlan>,
    /// Volumes that are copied into the guest.
    pub trees: Vec<TreePlan>,
    /// Huge pages that it may use.
    pub huge_pages: Vec<HugePages>,
    /// Disks that are attached for it.
    pub disks: Vec<DiskPlan>,
    /// How the VMM reaches them.
    pub disk_access: DiskAccess,
    /// What the agent is asked for.
    pub guest: GuestContainer,
    /// What of the specification has no effect or another one in a guest, for people.
    pub notes: Vec<String>,
}

/// A root file system. Whether the container may write to it is enforced by the guest, after it has made mount points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsPlan {
    /// A directory, seen through the share.
    Shared {
        /// On the host.
        source: PathBuf,
        /// Where the host binds it, relative to the share's directory.
        share_path: PathBuf,
    },
    /// On the first of the container's disks.
    Disk,
}

/// What the agent is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestContainer {
    /// The specification, every path in it a guest's path, as JSON.
    #[serde(rename = "spec", serialize_with = "as_json")]
    pub spec_json: Vec<u8>,
    /// `struct sock_filter`s, as the guest's kernel takes them; empty for none.
    #[serde(rename = "seccomp_instructions", serialize_with = "as_instruction_count")]
    pub seccomp_filter: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub seccomp_flags: u64,
    /// The first process gets a terminal.
    pub terminal: bool,
    /// Others may be going to join its namespaces.
    pub keep_namespaces: bool,
}

/// New limits for a container.
#[derive(Clone, Debug)]
pub struct Update {
    /// As the engine gave them.
    pub resources: LinuxResources,
    /// As the agent gets them.
    pub guest_json: Vec<u8>,
    /// What of them has no effect, for people.
    pub notes: Vec<String>,
}

/// Plans a container.
///
/// # Errors
/// See [`PlanError`].
pub fn container(id: &str, bundle: &Bundle, config: &Config, facts: &Facts) -> Result<ContainerPlan, PlanError> {
    check_id(id)?;
    let spec = bundle.spec();
    let fates = volume::fates(id, spec, config, facts)?;
    let filter = match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(wanted) if !config.runtime.disable_guest_seccomp => seccomp::compile(wanted)?,
        _ => seccomp::Filter::default(),
    };
    let mut notes = guest_spec::notes(bundle.role(), spec);
    let devices = device::decide(spec)?;
    if devices.left_out > 0 {
        notes.push(format!(
            "devices: {} of the host's are left out of a privileged container",
            devices.left_out
        ));
    }
    let rootfs_disk = facts
        .disk_rootfs
        .as_ref()
        .and_then(|wanted| disk::rootfs(id, wanted, config));
    let root_on_disk = rootfs_disk.as_ref().and_then(|disk| disk.mount.as_ref());
    let root = match root_on_disk {
        Some(mount) => PathBuf::from(&mount.mount_point),
        None => Path::new(SHARE_MOUNT).join(id).join(ROOTFS_DIR),
    };
    let rootfs = match root_on_disk {
        Some(_) => RootfsPlan::Disk,
        None => RootfsPlan::Shared {
            source: bundle.rootfs().to_owned(),
            share_path: [id, ROOTFS_DIR].iter().collect(),
        },
    };
    let mut disks: Vec<DiskPlan> = rootfs_disk.into_iter().chain(devices.disks).collect();
    disks.extend(fates.iter().filter_map(|fate| match fate {
        Fate::Disk { disk, .. } => Some(disk.clone()),
        _ => None,
    }));
    let view = guest_spec::View {
        root,
        fates: &fates,
        nodes: devices.nodes,
        disks: &disks,
    };
    let guest_spec = guest_spec::rewrite(id, bundle.role(), spec, &view)?;
    let huge_pages = memory::huge_pages(spec)?;
    let (mut volumes, mut sockets) = (Vec::new(), Vec::new());
    let (mut memories, mut trees) = (Vec::new(), Vec::new());
    for fate in fates {
        match fate {
            Fate::Volume(volume) => volumes.push(volume),
            Fate::Socket(socket) => sockets.push(socket),
            Fate::Memory(memory) => memories.push(memory),
            Fate::Tree { tree, .. } => trees.push(tree),
            Fate::Kernel | Fate::Instead(_) | Fate::OfTheGuest { .. } | Fate::Disk { .. } => {}
        }
    }
    Ok(ContainerPlan {
        id: id.into(),
        rootfs,
        demand: demand::of_spec(spec),
        cpu_wish: cgroup::wish_of(spec),
        volumes,
        memories,
        trees,
        huge_pages,
        sockets,
        guest: GuestContainer {
            spec_json: guest_spec::to_json(&guest_spec)?,
            seccomp_filter: filter.instructions,
            seccomp_flags: filter.flags,
            terminal: bundle.terminal(),
            // Podman does not say which container is the first of a pod: any but a member may be.
            keep_namespaces: !matches!(bundle.role(), Role::Member { .. }),
        },
        disk_access: disk::access(config),
        disks,
        notes,
    })
}

/// The JSON that the agent takes for one more process in a container.
///
/// # Errors
/// [`PlanError::Id`] for an unusable id, [`PlanError::Process`] for a process that nothing could run.
pub fn exec_process(id: &str, process: &Process) -> Result<Vec<u8>, PlanError> {
    check_id(id)?;
    check_process(process)?;
    Ok(guest_spec::process_to_json(&guest_spec::rewrite_process(process))?)
}

/// The limits that the agent is given when a container's change, as JSON, and what of them has no effect in a guest.
///
/// # Errors
/// [`PlanError::Resources`] for what is no `linux.resources` object.
pub fn update(resources_json: &[u8]) -> Result<Update, PlanError> {
    let resources: LinuxResources =
        serde_json::from_slice(resources_json).map_err(|source| PlanError::Resources { source })?;
    let (guest, notes) = guest_spec::rewrite_update(&resources);
    Ok(Update {
        notes,
        guest_json: serde_json::to_vec(&guest)?,
        resources,
    })
}

fn as_json<S: Serializer>(json: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let value: serde_json::Value = serde_json::from_slice(json).map_err(serde::ser::Error::custom)?;
    value.serialize(serializer)
}

fn as_instruction_count<S: Serializer>(filter: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64((filter.len() / seccomp::INSTRUCTION_BYTES) as u64)
}
