//! A container's cgroup (version 2): made, limited, frozen, emptied, removed. Waiting for its events is left to the
//! caller, who gets the file to watch.

pub mod devices;
pub mod limits;
pub mod path;
pub mod stats;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kata_sys::bpf::DeviceProgram;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Why a cgroup does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file or directory of it refuses.
    #[error("cgroup {}: {act}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was done.
        act: &'static str,
        /// What it failed with.
        source: io::Error,
    },
    /// Somebody else has processes in it.
    #[error("cgroup {} is in use by another container", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The limits make no sense.
    #[error(transparent)]
    Limit(#[from] limits::LimitError),
    /// The device rules make no sense.
    #[error(transparent)]
    Rule(#[from] devices::RuleError),
}

/// A cgroup of our own.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    devices: Option<DeviceProgram>,
}

impl Cgroup {
    /// Makes the cgroup `relative` below `root`, with every controller that there is.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] when it has processes already; [`CgroupError::File`] naming the file otherwise.
    pub fn create(root: &Path, relative: &Path) -> Result<Self, CgroupError> {
        let mut path = root.to_owned();
        for name in relative {
            enable_controllers(&path)?;
            path.push(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::File {
                        path,
                        act: "make it",
                        source: error,
                    });
                }
                _ => {}
            }
        }
        let directory = fs::File::open(&path)
            .map_err(|source| CgroupError::File {
                path: path.clone(),
                act: "open it",
                source,
            })?
            .into();
        let cgroup = Self {
            path,
            directory,
            devices: None,
        };
        if cgroup.events().get("populated") == Some(&1) {
            return Err(CgroupError::InUse { path: cgroup.path });
        }
        Ok(cgroup)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, opened: to be born in.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Sets limits; absent ones stay as they are. Device rules replace the earlier ones as a whole.
    ///
    /// # Errors
    /// [`CgroupError`] naming the file or the limit.
    pub fn limit(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let now = |file: &str| fs::read_to_string(self.path.join(file)).ok();
        for write in limits::writes(resources, &now)? {
            match self.write(&write.file, &write.value) {
                Err(CgroupError::File { source, .. }) if write.optional && source.kind() == io::ErrorKind::NotFound => {
                }
                other => other?,
            }
        }
        match resources.devices() {
            Some(rules) => self.filter_devices(rules),
            None => Ok(()),
        }
    }

    /// Lets the kernel enforce these device rules.
    ///
    /// # Errors
    /// [`CgroupError`] naming the rule, or what the kernel says to the program.
    pub fn filter_devices(&mut self, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let failed = |path: &Path, source| CgroupError::File {
            path: path.to_owned(),
            act: "filter devices",
            source,
        };
        let program = DeviceProgram::load(&devices::program(rules)?).map_err(|error| failed(&self.path, error))?;
        program
            .attach(self.directory())
            .map_err(|error| failed(&self.path, error))?;
        // All attached programs must agree, so the old one goes only now: there is no moment without any.
        if let Some(old) = self.devices.replace(program) {
            old.detach(self.directory())
                .map_err(|error| failed(&self.path, error))?;
        }
        Ok(())
    }

    /// Asks the kernel to freeze or thaw it; `frozen` in [`Self::events`] says when that is done.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// See [`kill`].
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        kill(&self.path)
    }

    /// The file that reports `populated` and `frozen`, and can be polled.
    pub fn events_file(&self) -> PathBuf {
        self.path.join("cgroup.events")
    }

    /// `populated` and `frozen`.
    pub fn events(&self) -> std::collections::HashMap<String, u64> {
        stats::flat(&fs::read_to_string(self.events_file()).unwrap_or_default())
    }

    /// Its numbers.
    pub fn stats(&self) -> stats::Stats {
        stats::Stats::read(&self.path)
    }

    /// The pids in it and below, in the reader's pid namespace.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        walk(&self.path, &mut |directory| {
            let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
        });
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Removes it and what the container made below it. It must be empty of processes.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove(&tree(&self.path))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        // Not `fs::write`: that would make what is not there, which a cgroup refuses in words that say something else.
        let opened = fs::OpenOptions::new().write(true).open(&path);
        let written = opened.and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|source| CgroupError::File {
            path,
            act: "write it",
            source,
        })
    }
}

/// Kills every process in the cgroup at `directory` and below; `populated` in its events says when they are gone.
///
/// # Errors
/// [`CgroupError::File`].
pub fn kill(directory: &Path) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.kill");
    fs::write(&path, "1").map_err(|source| CgroupError::File {
        path,
        act: "write it",
        source,
    })
}

/// Removes all cgroups below `directory`. They must be empty of processes.
///
/// # Errors
/// [`CgroupError::File`].
pub fn remove_below(directory: &Path) -> Result<(), CgroupError> {
    remove(tree(directory).get(1..).unwrap_or_default())
}

/// Removes these, parents first in the list.
fn remove(directories: &[PathBuf]) -> Result<(), CgroupError> {
    for path in directories.iter().rev() {
        match fs::remove_dir(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CgroupError::File {
                    path: path.clone(),
                    act: "remove it",
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many processes of the cgroup at `directory` the out-of-memory killer has ended.
pub fn oom_kills(directory: &Path) -> u64 {
    let events = stats::flat(&fs::read_to_string(directory.join("memory.events")).unwrap_or_default());
    events.get("oom_kill").copied().unwrap_or(0)
}

/// Offers every controller of `directory` to the cgroups below it.
///
/// # Errors
/// [`CgroupError::File`] naming the file.
pub fn enable_controllers(directory: &Path) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.controllers");
    let all = fs::read_to_string(&path).map_err(|source| CgroupError::File {
        path,
        act: "read it",
        source,
    })?;
    let path = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path).unwrap_or_default();
    for controller in all.split_whitespace() {
        if !enabled.split_whitespace().any(|name| name == controller) {
            // One at a time, so that one that refuses (cpu with realtime tasks) does not take the others with it.
            let _ = fs::write(&path, format!("+{controller}"));
        }
    }
    Ok(())
}

/// `directory` and all below, parents first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    walk(directory, &mut |directory| directories.push(directory.to_owned()));
    directories
}

/// Calls `visit` for `directory` and all below, parents first. Not by recursion: the container decides how deep it goes.
fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        visit(&directory);
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let below = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(below.map(|entry| entry.path()));
    }
}
