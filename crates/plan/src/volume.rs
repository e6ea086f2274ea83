//! What becomes of each mount of a specification.
//!
//! Refuses what cannot be shared with a guest yet: datagram sockets, pipes, character devices outside of `/dev`, and file
//! systems that need the host's disks.

use std::path::{Component, Path, PathBuf};

use kata_bundle::oci::{Mount, Spec};
use kata_config::Config;
use kata_wire::names::{SHARE_MOUNT, VOLUMES_DIR, socket_path};
use serde::Serialize;

use crate::disk::{self, DiskPlan, DiskSource};
use crate::memory::{self, MemoryPlan};
use crate::tree::{self, TreePlan};
use crate::{Facts, PlanError, SourceKind};

/// File systems that the guest's kernel makes out of nothing.
const KERNEL_FILE_SYSTEMS: [&str; 14] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "hugetlbfs",
];

/// Directories that hold nothing but devices.
const DEVICE_DIRECTORIES: [&str; 8] = [
    "/dev",
    "/dev/pts",
    "/dev/net",
    "/dev/dri",
    "/dev/snd",
    "/dev/input",
    "/dev/vfio",
    "/dev/hugepages",
];

const SHM: &str = "/dev/shm";

/// Mount options that carry labels of the host's SELinux policy.
const LABELS: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

/// Something of the host that the guest sees through the share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumePlan {
    /// On the host.
    pub source: PathBuf,
    /// Where the host binds it, relative to the share's directory.
    pub share_path: PathBuf,
    /// Where the guest finds it.
    pub guest_path: String,
    /// Bound without writing, so that the guest cannot.
    pub read_only: bool,
    /// With what is mounted below the source.
    pub recursive: bool,
    /// And what the host mounts there later.
    pub follows: bool,
    /// A directory or a regular file.
    pub kind: SourceKind,
    /// Where the container sees it.
    pub destination: PathBuf,
}

/// A socket of the host that the container can connect to: the guest makes one that stands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketPlan {
    /// Names it among those of its container.
    pub number: u32,
    /// On the host.
    pub source: PathBuf,
    /// Where the guest makes its own.
    pub guest_path: String,
    /// Where the container sees it.
    pub destination: PathBuf,
}

/// What becomes of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The guest's kernel makes it, as it is described.
    Kernel,
    /// A bind of a whole kernel file system of the host: the guest makes its own, of this type.
    Instead(&'static str),
    /// A bind of something in `/proc`, `/sys` or `/dev`: the guest binds its own.
    OfTheGuest { source: PathBuf },
    /// A file system in the guest's memory that containers share.
    Memory(MemoryPlan),
    /// Copied into the guest.
    Tree { tree: TreePlan, path: PathBuf },
    /// A block device: a disk of the machine.
    Disk { disk: DiskPlan, node: PathBuf },
    /// Seen through the share.
    Volume(VolumePlan),
    /// Connected through the channel.
    Socket(SocketPlan),
}

/// The fate of each mount, in order.
///
/// # Errors
/// [`PlanError::NoSource`], [`PlanError::SourceKind`], [`PlanError::MountType`], [`PlanError::Unsupported`],
/// [`PlanError::Unsurveyed`]
pub(crate) fn fates(container: &str, spec: &Spec, config: &Config, facts: &Facts) -> Result<Vec<Fate>, PlanError> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    mounts
        .map(|(index, mount)| fate(container, index, mount, config, facts))
        .collect()
}

/// The sources on the host whose kind matters.
pub(crate) fn host_sources(spec: &Spec) -> impl Iterator<Item = PathBuf> {
    let binds = spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
    binds
        .filter(|mount| mount.destination() != Path::new(SHM) && of_the_guest(mount).is_none())
        .map(source)
}

/// A mount of a container as it can be shown on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visible {
    /// It is the host's.
    Host {
        /// Path on the host.
        source: PathBuf,
        /// Where the container has it.
        destination: PathBuf,
        /// With what is mounted below the source.
        recursive: bool,
        /// Without writing.
        read_only: bool,
    },
    /// It is in the guest's memory.
    Guest {
        /// Where the container has it.
        destination: PathBuf,
    },
}

impl Visible {
    /// Where the container has it.
    pub fn destination(&self) -> &Path {
        let (Self::Host { destination, .. } | Self::Guest { destination }) = self;
        destination
    }
}

/// The mounts of a specification that hold files of people, in order.
pub fn visible(spec: &Spec) -> Vec<Visible> {
    let mounts = spec.mounts().iter().flatten();
    let shown = mounts.filter_map(|mount| {
        let destination = mount.destination().clone();
        let is_ours = destination == Path::new(SHM) || memory::is_empty_dir(&source(mount));
        if is_bind(mount) && !is_ours {
            return of_the_guest(mount).is_none().then(|| Visible::Host {
                source: source(mount),
                recursive: has_option(mount, "rbind"),
                read_only: is_read_only(mount),
                destination,
            });
        }
        let in_memory = is_bind(mount) || mount.typ().as_deref() == Some("tmpfs");
        let is_of_the_system = ["/dev", "/proc", "/sys"]
            .iter()
            .any(|system| destination.starts_with(system));
        (in_memory && !is_of_the_system).then_some(Visible::Guest { destination })
    });
    shown.collect()
}

/// What the specification binds to `/dev/shm`.
pub(crate) fn shm_source(spec: &Spec) -> Option<PathBuf> {
    let mut mounts = spec.mounts().iter().flatten();
    mounts
        .find(|mount| is_bind(mount) && mount.destination() == Path::new(SHM))
        .map(source)
}

pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, "bind") || has_option(mount, "rbind")
}

pub(crate) fn is_label(option: &str) -> bool {
    LABELS.iter().any(|label| option.starts_with(label))
}

fn fate(container: &str, index: usize, mount: &Mount, config: &Config, facts: &Facts) -> Result<Fate, PlanError> {
    let destination = mount.destination();
    if !is_bind(mount) {
        let kind = mount.typ().as_deref().unwrap_or_default();
        return match KERNEL_FILE_SYSTEMS.contains(&kind) {
            true => Ok(Fate::Kernel),
            false => Err(PlanError::MountType {
                kind: kind.into(),
                destination: destination.clone(),
            }),
        };
    }
    let idmapped = |option: &String| option == "idmap" || option == "ridmap";
    let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    if mapped || mount.options().iter().flatten().any(idmapped) {
        return Err(PlanError::Unsupported {
            what: format!("an idmapped mount (at {})", destination.display()),
        });
    }
    if destination == Path::new(SHM) {
        return Ok(Fate::Memory(memory::shm(&source(mount), facts)));
    }
    if let Some(fate) = of_the_guest(mount) {
        return Ok(fate);
    }
    if let Some(memory) = memory::empty_dir(&source(mount), config, facts) {
        return Ok(Fate::Memory(memory));
    }
    volume(container, index, mount, facts)
}

fn volume(container: &str, index: usize, mount: &Mount, facts: &Facts) -> Result<Fate, PlanError> {
    let source = source(mount);
    let destination = mount.destination().clone();
    let Some(&kind) = facts.source_kinds.get(&source) else {
        return Err(PlanError::Unsurveyed { source_path: source });
    };
    match kind {
        SourceKind::Directory | SourceKind::File => {}
        SourceKind::Socket => return Ok(Fate::Socket(socket(container, index, source, destination))),
        SourceKind::Missing => {
            return Err(PlanError::NoSource {
                source_path: source,
                destination,
            });
        }
        // As Kata: a device of the host is the guest's device of the same name.
        SourceKind::CharDevice if source.starts_with("/dev") => {
            return Ok(Fate::OfTheGuest { source });
        }
        SourceKind::BlockDevice => {
            let Some(&(major, minor)) = facts.block_devices.get(&source) else {
                return Err(PlanError::Unsurveyed { source_path: source });
            };
            let name = format!("mount-{index}");
            return Ok(Fate::Disk {
                node: disk::node(container, &name),
                disk: DiskPlan {
                    name,
                    source: DiskSource::Device { major, minor },
                    read_only: is_read_only(mount),
                    mount: None,
                },
            });
        }
        kind => {
            return Err(PlanError::SourceKind {
                source_path: source,
                destination,
                kind,
            });
        }
    }
    if let Some(propagation) = spreads(mount) {
        return Err(PlanError::Propagation {
            source_path: source,
            destination,
            propagation: propagation.into(),
        });
    }
    let name = format!("{index}-{}", plain_name(&destination));
    // It could not be written from inside, and kubelets mount all of these read-only.
    if facts.small_trees.contains(&source) && is_read_only(mount) {
        return Ok(Fate::Tree {
            path: tree::guest_path(container, &name),
            tree: TreePlan { source, name },
        });
    }
    Ok(Fate::Volume(VolumePlan {
        share_path: [container, VOLUMES_DIR, &name].iter().collect(),
        guest_path: format!("{SHARE_MOUNT}/{container}/{VOLUMES_DIR}/{name}"),
        read_only: is_read_only(mount),
        recursive: has_option(mount, "rbind"),
        follows: has_option(mount, "rslave") || has_option(mount, "slave"),
        kind,
        source,
        destination,
    }))
}

fn socket(container: &str, index: usize, source: PathBuf, destination: PathBuf) -> SocketPlan {
    // A specification of that many mounts would not have been read.
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    SocketPlan {
        number,
        source,
        guest_path: socket_path(container, number),
        destination,
    }
}

/// The fate of a bind whose source the guest has itself; `None` if it must come from the host.
fn of_the_guest(mount: &Mount) -> Option<Fate> {
    let source = source(mount);
    let whole = [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup"),
        ("/dev/mqueue", "mqueue"),
    ];
    if let Some((_, kind)) = whole.iter().find(|(path, _)| source == Path::new(path)) {
        return Some(Fate::Instead(kind));
    }
    let devices = DEVICE_DIRECTORIES.iter().any(|dir| source == Path::new(dir));
    (devices || source.starts_with("/proc") || source.starts_with("/sys")).then_some(Fate::OfTheGuest { source })
}

/// The source without `.` and `..`, so that its beginning says where it is.
fn source(mount: &Mount) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in mount.source().as_deref().unwrap_or(Path::new("")).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

fn has_option(mount: &Mount, wanted: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == wanted)
}

/// The option by which mounts made in the container would appear on the host.
fn spreads(mount: &Mount) -> Option<&str> {
    let mut options = mount.options().iter().flatten().map(String::as_str);
    options.find(|option| matches!(*option, "shared" | "rshared"))
}

/// The last word counts.
fn is_read_only(mount: &Mount) -> bool {
    let words = mount.options().iter().flatten().rev();
    words
        .map(String::as_str)
        .find(|option| matches!(*option, "ro" | "rro" | "rw" | "rrw"))
        .is_some_and(|option| option == "ro" || option == "rro")
}

/// The last part of the mount point, in letters that mean nothing to anybody.
pub(crate) fn plain_name(destination: &Path) -> String {
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    let plain: String = name
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || "._-".contains(letter) {
                letter
            } else {
                '_'
            }
        })
        .take(64)
        .collect();
    if plain.is_empty() { "root".into() } else { plain }
}
