//! A container as the agent sees it: made from a spec, extended by processes, and what is left of it taken away.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, LinuxResources, Process, Spec};

use kata_sys::child::{self, Child};

use crate::cgroup::{Cgroup, CgroupError, path};
use crate::exec::Exec;
use crate::fault::Fault;
use crate::identity::{Defaults, Filter};
use crate::init::Init;
use crate::link::{self, Link, Word};
use crate::namespaces::{Elsewhere, Namespaces};
use crate::stdio::Stdio;

/// Why there is no container, or no process in it.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The spec lacks something or says something impossible.
    #[error("the spec of container {id}: {what}")]
    Spec {
        /// Container id.
        id: String,
        /// What is wrong.
        what: String,
    },
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its namespaces.
    #[error("container {id}: {source}")]
    Namespaces {
        /// Container id.
        id: String,
        /// What is wrong.
        source: Fault,
    },
    /// A system call of the agent's own side.
    #[error("container {id}: {act}: {source}")]
    Call {
        /// Container id.
        id: String,
        /// What was done.
        act: &'static str,
        /// What it failed with.
        source: io::Error,
    },
}

/// A process that has just been born and prepares itself. Listen to its link.
#[derive(Debug)]
pub struct Newborn {
    /// Its pid in the agent's pid namespace.
    pub pid: u32,
    /// Where it reports.
    pub link: Link,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
    namespaces: Namespaces,
    cgroup: Cgroup,
    init: OwnedFd,
    /// Its mount namespace, which so ends with this value and not with its last process. What that process leaves behind may
    /// still be under way to the server of a file system that only this namespace has mounted, and Linux (seen in 6.1's
    /// virtiofs, by its submounts) falls over such files when it takes the file system down.
    _mounts: Option<File>,
    defaults: Defaults,
}

impl Container {
    /// Makes the cgroup below `cgroup_root` and the first process, which prepares itself and then waits for
    /// [`Word::Start`]. Must be called in a process of one thread.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left then. What the process itself finds wrong comes over its link.
    pub fn create(
        id: &str,
        spec: &Spec,
        filter: Filter,
        stdio: &Stdio,
        cgroup_root: &Path,
    ) -> Result<(Self, Newborn), ContainerError> {
        let process = check(id, spec)?;
        let linux = spec.linux().as_ref();
        let list = linux
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default();
        let namespaces = Namespaces::read(list).map_err(|source| ContainerError::Namespaces {
            id: id.to_owned(),
            source,
        })?;
        let asked = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let mut cgroup = Cgroup::create(cgroup_root, &path::relative(id, asked))?;
        let defaults = Defaults {
            capabilities: process.capabilities().clone(),
            rlimits: process.rlimits().clone(),
            filter,
        };
        let born = limit(&mut cgroup, linux.and_then(|linux| linux.resources().as_ref()))
            .and_then(|()| give_birth(id, spec, process, &namespaces, &cgroup, stdio, &defaults));
        match born {
            Ok((init, newborn)) => Ok((
                Self {
                    id: id.to_owned(),
                    namespaces,
                    cgroup,
                    init,
                    // Missing only if it has died already.
                    _mounts: File::open(format!("/proc/{}/ns/mnt", newborn.pid)).ok(),
                    defaults,
                },
                newborn,
            )),
            Err(error) => {
                // Whoever was born dies with its link; an empty cgroup goes.
                let _ = cgroup.kill();
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Starts one more process. It executes as soon as it is prepared. Must be called in a process of one thread.
    ///
    /// # Errors
    /// [`ContainerError`] when it could not be born, as when the container's init has ended.
    pub fn exec(&self, process: &Process, stdio: &Stdio) -> Result<Newborn, ContainerError> {
        if process.args().iter().flatten().next().is_none() {
            return Err(ContainerError::Spec {
                id: self.id.clone(),
                what: "process.args is empty".into(),
            });
        }
        let (link, child_link) = link::pair().map_err(|source| self.failed("make a link", source))?;
        let elsewhere =
            Elsewhere::beside(&self.namespaces, &self.init).map_err(|source| ContainerError::Namespaces {
                id: self.id.clone(),
                source,
            })?;
        let exec = Exec {
            init: self.init.as_fd(),
            process,
            namespaces: &self.namespaces,
            stdio,
            defaults: &self.defaults,
            link: &child_link,
        };
        let born = child::spawn(0, Some(self.cgroup.directory()), || exec.run());
        drop(elsewhere);
        let Child { pid, .. } = born.map_err(|source| self.failed("start a process", source))?;
        Ok(Newborn { pid, link })
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Changes its limits; absent ones stay.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn update(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.cgroup.limit(resources)
    }

    /// Whether its processes all end with its init, because they have a pid namespace of their own.
    pub fn ends_with_init(&self) -> bool {
        self.namespaces.is_new(LinuxNamespaceType::Pid as u64)
    }

    fn failed(&self, act: &'static str, source: io::Error) -> ContainerError {
        ContainerError::Call {
            id: self.id.clone(),
            act,
            source,
        }
    }
}

fn check<'a>(id: &str, spec: &'a Spec) -> Result<&'a Process, ContainerError> {
    let wrong = |what: &str| ContainerError::Spec {
        id: id.to_owned(),
        what: what.to_owned(),
    };
    let process = spec.process().as_ref().ok_or_else(|| wrong("process is missing"))?;
    if process.args().iter().flatten().next().is_none() {
        return Err(wrong("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(wrong("process.cwd is not an absolute path"));
    }
    let root = spec.root().as_ref().ok_or_else(|| wrong("root is missing"))?;
    if !root.path().is_absolute() || root.path().parent().is_none() {
        return Err(wrong("root.path is not an absolute path below /"));
    }
    if spec
        .mounts()
        .iter()
        .flatten()
        .any(|mount| !mount.destination().is_absolute())
    {
        return Err(wrong("mounts.destination is not an absolute path"));
    }
    Ok(process)
}

fn limit(cgroup: &mut Cgroup, resources: Option<&LinuxResources>) -> Result<(), ContainerError> {
    if let Some(resources) = resources {
        cgroup.limit(resources)?;
    }
    if resources.is_none_or(|resources| resources.devices().is_none()) {
        cgroup.filter_devices(&[])?;
    }
    Ok(())
}

fn give_birth(
    id: &str,
    spec: &Spec,
    process: &Process,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    stdio: &Stdio,
    defaults: &Defaults,
) -> Result<(OwnedFd, Newborn), ContainerError> {
    let failed = |act, source| ContainerError::Call {
        id: id.to_owned(),
        act,
        source,
    };
    let (link, child_link) = link::pair().map_err(|source| failed("make a link", source))?;
    let init = Init {
        id,
        spec,
        process,
        namespaces,
        cgroup: cgroup.path(),
        stdio,
        defaults,
        link: &child_link,
    };
    let elsewhere =
        Elsewhere::for_new(namespaces, &time_offsets(spec)).map_err(|source| ContainerError::Namespaces {
            id: id.to_owned(),
            source,
        })?;
    let born = child::spawn(namespaces.clone_flags(), Some(cgroup.directory()), || init.run());
    drop(elsewhere);
    let Child { pid, pidfd } = born.map_err(|source| failed("start its first process", source))?;
    if namespaces.is_new(LinuxNamespaceType::User as u64) {
        map_ids(pid, spec).map_err(|source| failed("map the ids of its user namespace", source))?;
        link.say(Word::Mapped)
            .map_err(|source| failed("reach its first process", source))?;
    }
    Ok((pidfd, Newborn { pid, link }))
}

fn map_ids(pid: u32, spec: &Spec) -> io::Result<()> {
    let linux = spec.linux().as_ref();
    let lines = |mappings: Option<&Vec<LinuxIdMapping>>| -> String {
        mappings
            .into_iter()
            .flatten()
            .map(|mapping| format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size()))
            .collect()
    };
    for (file, text) in [
        ("uid_map", lines(linux.and_then(|linux| linux.uid_mappings().as_ref()))),
        ("gid_map", lines(linux.and_then(|linux| linux.gid_mappings().as_ref()))),
    ] {
        if !text.is_empty() {
            fs::write(format!("/proc/{pid}/{file}"), text)?;
        }
    }
    Ok(())
}

/// `linux.timeOffsets` as lines for the kernel.
fn time_offsets(spec: &Spec) -> String {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.time_offsets().as_ref())
        .into_iter()
        .flatten()
        .map(|(clock, offset)| {
            format!(
                "{clock} {} {}\n",
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0)
            )
        })
        .collect()
}
