//! The cgroups of one pod in all hierarchies: made, entered, limited, left, removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_plan::{CgroupPlan, HostLimits, Split};

use crate::limits;
use crate::{Hierarchies, Hierarchy};

/// Who is put into a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The sandbox process and the file server.
    Rest,
    /// The VMM as a whole, before its guest runs.
    Vmm,
}

/// The cgroups of a pod.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    places: Vec<Place>,
    made: Vec<PathBuf>,
}

/// In one hierarchy.
#[derive(Clone, Debug)]
struct Place {
    hierarchy: Hierarchy,
    pod: PathBuf,
    rest: PathBuf,
    vmm: PathBuf,
}

impl Groups {
    /// Makes what is planned in each hierarchy that lets us. What fails is a warning.
    pub fn make(plan: &CgroupPlan, hierarchies: &Hierarchies) -> Self {
        let mut groups = Self::default();
        for hierarchy in &hierarchies.0 {
            let Place { pod, rest, vmm, .. } = place(plan, hierarchy);
            let directories = [&pod, &rest, &vmm];
            let made = directories
                .iter()
                .try_for_each(|path| make(hierarchy, path, &mut groups.made));
            match made {
                Ok(()) => groups.places.push(Place {
                    pod: hierarchy.root.join(pod),
                    rest: hierarchy.root.join(rest),
                    vmm: hierarchy.root.join(vmm),
                    hierarchy: hierarchy.clone(),
                }),
                Err(error) => {
                    let root = hierarchy.root.display();
                    tracing::warn!(%error, "no cgroup for the pod below {root}");
                }
            }
        }
        groups
    }

    /// The directories that were made, in order: what [`remove`] has to remove.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// The pod's own cgroup in each hierarchy.
    pub fn of_the_pod(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| place.pod.clone()).collect()
    }

    /// Puts this process where it starts `part`: children begin where their parent is.
    pub fn enter(&self, part: Part) {
        self.put(part, "0");
    }

    /// Puts a process that was started before these cgroups were made where it would have been started.
    pub fn take(&self, part: Part, pid: u32) {
        self.put(part, &pid.to_string());
    }

    fn put(&self, part: Part, pid: &str) {
        for place in &self.places {
            let directory = match part {
                Part::Rest => &place.rest,
                Part::Vmm => &place.vmm,
            };
            warn(directory, write(directory, "cgroup.procs", pid));
        }
    }

    /// Puts the threads that are the guest's CPUs into the pod's cgroup, where the kernel takes threads one by one.
    pub fn take_threads(&self, threads: &[u32]) {
        for place in self
            .places
            .iter()
            .filter(|place| place.hierarchy.takes_threads() && place.pod != place.rest)
        {
            for thread in threads {
                warn(&place.pod, write(&place.pod, "tasks", &thread.to_string()));
            }
        }
    }

    /// Sets the limits of the pod's cgroup.
    pub fn limit(&self, limits: &HostLimits) {
        for place in &self.places {
            for (file, value) in limits::writes(limits, &place.hierarchy) {
                warn(&place.pod, write(&place.pod, file, &value));
            }
        }
    }

    /// Puts this process back where it was before.
    pub fn leave(&self) {
        for place in &self.places {
            let Hierarchy { root, own, .. } = &place.hierarchy;
            // Where it was may have gone since.
            let back = write(&root.join(own), "cgroup.procs", "0").or_else(|_| write(root, "cgroup.procs", "0"));
            warn(root, back);
        }
    }
}

/// Who is where.
fn place(plan: &CgroupPlan, hierarchy: &Hierarchy) -> Place {
    let pod = plan.pod.clone();
    let (rest, vmm) = match &plan.split {
        Split::Whole => (pod.clone(), pod.clone()),
        // Here only whole processes can be moved; the guest is most of the VMM.
        Split::Guest { overhead, .. } if hierarchy.unified => (overhead.clone(), pod.clone()),
        Split::Guest { counted: true, .. } if !hierarchy.takes_threads() => (pod.clone(), pod.clone()),
        Split::Guest { overhead, .. } => (overhead.clone(), overhead.clone()),
    };
    Place {
        hierarchy: hierarchy.clone(),
        pod,
        rest,
        vmm,
    }
}

/// Makes the cgroup and those above it, and notes which of them are new.
fn make(hierarchy: &Hierarchy, relative: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut path = hierarchy.root.clone();
    for name in relative {
        if hierarchy.unified {
            offer_controllers(&path);
        }
        let above = path.clone();
        path.push(name);
        match fs::create_dir(&path) {
            Ok(()) => made.push(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Who removes the last pod below a directory removes the directory, in this very moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&path)?;
                made.extend([above.clone(), path.clone()]);
            }
            Err(error) => return Err(error),
        }
        if !hierarchy.unified && hierarchy.has(&["cpuset"]) {
            inherit(&above, &path)?;
        }
    }
    Ok(())
}

/// A new cgroup of cpuset takes nobody before it has CPUs and memory nodes.
fn inherit(above: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(path.join(file))?.trim().is_empty() {
            let all = fs::read_to_string(above.join(file))?;
            write(path, file, all.trim())?;
        }
    }
    Ok(())
}

/// Offers the controllers of `directory` to those below it, as far as it has them and may give them.
fn offer_controllers(directory: &Path) {
    let all = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let given = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in all.split_whitespace() {
        if !given.split_whitespace().any(|name| name == controller) {
            // One at a time, so that one that refuses does not take the others with it.
            let _ = write(directory, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }
}

/// Puts a process into cgroups. What fails is a warning.
pub fn join(directories: &[PathBuf], pid: u32) {
    for directory in directories {
        warn(directory, write(directory, "cgroup.procs", &pid.to_string()));
    }
}

/// Removes directories, the last made first, unless others use them; answers whether all processes that keep one have
/// gone. What has vanished already is fine.
pub fn remove(made: &[PathBuf]) -> bool {
    let mut empty = true;
    for directory in made.iter().rev() {
        match fs::remove_dir(directory) {
            // Nobody in it, nothing below it, and busy: the last has left in between, or is about to.
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && !has_cgroups(directory) => empty = false,
            Err(error) if error.kind() != io::ErrorKind::NotFound => empty &= !has_processes(directory),
            _ => {}
        }
    }
    empty
}

fn has_cgroups(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

fn has_processes(directory: &Path) -> bool {
    let of = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    !of("cgroup.procs").trim().is_empty() || !of("tasks").trim().is_empty()
}

/// In one write: the kernel reads each as a whole.
fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).open(directory.join(file))?;
    file.write_all(value.as_bytes())
}

fn warn(directory: &Path, outcome: io::Result<()>) {
    match outcome {
        // A thread or process that has ended needs no place.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
        Err(error) => tracing::warn!(%error, "cgroup {} refuses", directory.display()),
        Ok(()) => {}
    }
}
