//! Which namespaces a container gets: new ones, or those at a path.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::fault::{Fault, Naming};

const NEW_TIME: u64 = libc::CLONE_NEWTIME as u64;

/// The namespaces of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// `CLONE_NEW*` bits of those made for it.
    new: u64,
    /// Those it joins.
    join: Vec<(u64, PathBuf)>,
}

impl Namespaces {
    /// Reads the spec's list. A new mount namespace is always among them: the agent's own mounts are nobody else's.
    ///
    /// # Errors
    /// [`Fault::Value`] for a kind named twice, and for a mount namespace given by path.
    pub fn read(list: &[LinuxNamespace]) -> Result<Self, Fault> {
        let mut namespaces = Self::default();
        for namespace in list {
            let bit = namespace.typ() as u64;
            let name = || namespace.typ().to_string();
            if namespaces.has(bit) {
                return Err(Fault::Value {
                    what: "linux.namespaces",
                    value: name(),
                    expected: "may be named only once",
                });
            }
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    if namespace.typ() == LinuxNamespaceType::Mount {
                        let value = path.display().to_string();
                        let expected = "cannot be joined: a mount namespace is always new";
                        return Err(Fault::Value {
                            what: "linux.namespaces",
                            value,
                            expected,
                        });
                    }
                    namespaces.join.push((bit, path.clone()));
                }
                _ => namespaces.new |= bit,
            }
        }
        namespaces.new |= libc::CLONE_NEWNS as u64;
        // Whoever owns a user namespace also owns what is joined after it.
        namespaces
            .join
            .sort_by_key(|(bit, _)| *bit != libc::CLONE_NEWUSER as u64);
        Ok(namespaces)
    }

    /// Whether the container has a namespace of this kind that is not the agent's.
    pub fn has(&self, bit: u64) -> bool {
        self.is_new(bit) || self.join.iter().any(|(joined, _)| *joined == bit)
    }

    /// Whether a namespace of this kind is made for the container.
    pub fn is_new(&self, bit: u64) -> bool {
        self.new & bit != 0
    }

    /// The bits for `clone3`. A cgroup namespace is left to [`Self::enter`]: `clone3` would root it at the parent's
    /// cgroup. A time namespace is left to [`Elsewhere`]: it must get its offsets before anybody is in it.
    pub fn clone_flags(&self) -> u64 {
        self.new & !(libc::CLONE_NEWCGROUP as u64 | NEW_TIME)
    }

    /// The bits to join with `setns` from a process of the container's init.
    pub fn all(&self) -> CloneFlags {
        let bits = self.join.iter().fold(self.new, |bits, (bit, _)| bits | bit);
        // The pid namespace is joined before the clone.
        CloneFlags::from_bits_retain((bits & !(libc::CLONE_NEWPID as u64)) as libc::c_int)
    }

    /// In the child: joins what is joined by path, then makes what `clone3` could not.
    ///
    /// # Errors
    /// [`Fault`] naming the path.
    pub fn enter(&self) -> Result<(), Fault> {
        let mut open = Vec::new();
        for (bit, path) in self.join.iter().filter(|(bit, _)| *bit != libc::CLONE_NEWPID as u64) {
            open.push((bit, path, File::open(path).on("open namespace", path)?));
        }
        for (bit, path, file) in open {
            setns(file, CloneFlags::from_bits_retain(*bit as libc::c_int)).on("join namespace", path)?;
        }
        if self.is_new(libc::CLONE_NEWCGROUP as u64) {
            unshare(CloneFlags::CLONE_NEWCGROUP).when("make a cgroup namespace")?;
        }
        Ok(())
    }

    /// The pid namespace to join.
    fn pid_path(&self) -> Option<&Path> {
        self.join
            .iter()
            .find(|(bit, _)| *bit == libc::CLONE_NEWPID as u64)
            .map(|(_, path)| path.as_path())
    }
}

/// While it lives, children of this process are born in other namespaces than its own.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    back: Vec<(File, CloneFlags)>,
}

impl Elsewhere {
    /// For a container that is to be made.
    pub(crate) fn for_new(namespaces: &Namespaces, time_offsets: &str) -> Result<Self, Fault> {
        let mut elsewhere = Self { back: Vec::new() };
        if let Some(path) = namespaces.pid_path() {
            let file = File::open(path).on("open namespace", path)?;
            elsewhere
                .enter(file, CloneFlags::CLONE_NEWPID, "/proc/self/ns/pid")
                .on("join namespace", path)?;
        }
        if namespaces.is_new(NEW_TIME) {
            let own = File::open("/proc/self/ns/time").on("open", "/proc/self/ns/time")?;
            let time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
            unshare(time).when("make a time namespace")?;
            elsewhere.back.push((own, time));
            if !time_offsets.is_empty() {
                std::fs::write("/proc/self/timens_offsets", time_offsets).when("set linux.timeOffsets")?;
            }
        }
        Ok(elsewhere)
    }

    /// For one more process beside `init`.
    pub(crate) fn beside(namespaces: &Namespaces, init: impl AsFd) -> Result<Self, Fault> {
        let mut elsewhere = Self { back: Vec::new() };
        if namespaces.has(libc::CLONE_NEWPID as u64) {
            elsewhere
                .enter(init, CloneFlags::CLONE_NEWPID, "/proc/self/ns/pid")
                .when("join the container's pid namespace")?;
        }
        Ok(elsewhere)
    }

    fn enter(&mut self, to: impl AsFd, kind: CloneFlags, own: &str) -> io::Result<()> {
        let back = File::open(own)?;
        setns(to, kind)?;
        self.back.push((back, kind));
        Ok(())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for (file, kind) in self.back.drain(..) {
            // Our own namespace is alive, so this cannot fail; if it does, all later children would be misplaced.
            assert!(
                setns(file, kind).is_ok(),
                "the agent cannot come back to its own namespace"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: &str) -> Vec<LinuxNamespace> {
        serde_json::from_str(json).expect("namespaces")
    }

    #[test]
    fn a_mount_namespace_is_always_new_and_the_rest_as_asked() {
        let namespaces = Namespaces::read(&list(
            r#"[{"type":"pid"},{"type":"network","path":"/n"},{"type":"cgroup"},{"type":"user","path":"/u"}]"#,
        ))
        .expect("read");
        assert_eq!(
            namespaces.clone_flags(),
            (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64
        );
        assert!(namespaces.has(libc::CLONE_NEWNET as u64) && !namespaces.is_new(libc::CLONE_NEWNET as u64));
        assert!(!namespaces.has(libc::CLONE_NEWUTS as u64));
        assert_eq!(namespaces.join[0].1, Path::new("/u"), "users first");
        assert_eq!(
            namespaces.all(),
            CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWCGROUP
                | CloneFlags::CLONE_NEWUSER
        );
    }

    #[test]
    fn impossible_lists_are_refused() {
        for json in [
            r#"[{"type":"pid"},{"type":"pid","path":"/p"}]"#,
            r#"[{"type":"mount","path":"/m"}]"#,
        ] {
            assert!(Namespaces::read(&list(json)).is_err(), "{json}");
        }
    }
}
