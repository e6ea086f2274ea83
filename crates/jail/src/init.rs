//! The first process of a container, from its birth to its execution. Runs in the child.

use std::fs;
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxPersonality, LinuxPersonalityDomain, Process, Spec};

use crate::fault::{Fault, Naming};
use crate::identity::{self, Defaults};
use crate::link::{ChildLink, Word};
use crate::namespaces::Namespaces;
use crate::stdio::Stdio;
use crate::{devices, hooks, rootfs};

const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
const NEW_NET: u64 = libc::CLONE_NEWNET as u64;
const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;
const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// What the child has to know.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) id: &'a str,
    pub(crate) spec: &'a Spec,
    pub(crate) process: &'a Process,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) cgroup: &'a Path,
    pub(crate) stdio: &'a Stdio,
    pub(crate) defaults: &'a Defaults,
    pub(crate) link: &'a ChildLink,
}

impl Init<'_> {
    /// Everything, in order. Comes back only if it failed; the link has been told then.
    pub(crate) fn run(&self) -> i32 {
        if let Err(fault) = self.live() {
            self.link.failed(&fault.to_string());
        }
        1
    }

    fn live(&self) -> Result<(), Fault> {
        let mut keep = self.stdio.numbers();
        keep.push(self.link.number());
        kata_sys::child::close_all_but(&keep).when("close the agent's files")?;
        self.stdio.take()?;

        if self.namespaces.is_new(NEW_USER) {
            self.link.await_word(Word::Mapped).when("wait for the id mappings")?;
        }
        identity::limit(self.process, self.defaults)?;
        self.namespaces.enter()?;
        if self.namespaces.has(NEW_USER) {
            become_root()?;
        }
        setsid().when("begin a session")?;
        umask(Mode::empty());
        self.name_the_host()?;
        if self.namespaces.is_new(NEW_NET) {
            kata_sys::loopback::up().when("bring up the loopback interface")?;
        }
        self.set_sysctls()?;

        let cgroup = (!self.namespaces.has(NEW_CGROUP)).then_some(self.cgroup);
        let root = rootfs::open(self.spec, cgroup)?;
        if let Some(number) = self.stdio.open_terminal(self.link)? {
            devices::bind_console(number)?;
        }
        root.close(self.process.cwd())?;

        if let Some(personality) = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.personality().as_ref())
        {
            set_personality(personality)?;
        }
        let prepared = identity::assume(self.process, self.defaults)?;
        self.link.ready().when("report to the agent")?;
        self.link.await_word(Word::Start).when("wait for the start")?;
        let hooks = self
            .spec
            .hooks()
            .as_ref()
            .and_then(|hooks| hooks.start_container().as_deref());
        hooks::run(hooks.unwrap_or_default(), &self.state())?;
        Err(prepared.execute())
    }

    fn name_the_host(&self) -> Result<(), Fault> {
        if !self.namespaces.has(NEW_UTS) {
            return Ok(());
        }
        if let Some(name) = self.spec.hostname().as_deref().filter(|name| !name.is_empty()) {
            nix::unistd::sethostname(name).when("set the hostname")?;
        }
        if let Some(name) = self.spec.domainname().as_deref().filter(|name| !name.is_empty()) {
            fs::write("/proc/sys/kernel/domainname", name).when("set the domainname")?;
        }
        Ok(())
    }

    fn set_sysctls(&self) -> Result<(), Fault> {
        let sysctls = self.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
        for (name, value) in sysctls.into_iter().flatten() {
            let path = sysctl_path(name)?;
            fs::write(&path, value).on("set sysctl", &path)?;
        }
        Ok(())
    }

    /// The container's state as hooks get it. The pid is that in its own pid namespace: all they could use.
    fn state(&self) -> String {
        serde_json::json!({
            "ociVersion": self.spec.version(),
            "id": self.id,
            "status": "created",
            "pid": std::process::id(),
            "bundle": self.spec.root().as_ref().and_then(|root| root.path().parent()),
            "annotations": self.spec.annotations(),
        })
        .to_string()
    }
}

/// In a user namespace, its root owns what is made there.
pub(crate) fn become_root() -> Result<(), Fault> {
    // Forbidden where the mapping says so; the groups are set again for the process itself.
    let _ = setgroups(&[]);
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))
        .when("become root's group in the user namespace")?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).when("become root in the user namespace")
}

fn set_personality(personality: &LinuxPersonality) -> Result<(), Fault> {
    const PER_LINUX32: i32 = 8;
    let persona = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    };
    nix::sys::personality::set(nix::sys::personality::Persona::from_bits_retain(persona))
        .map(drop)
        .when("set the personality")
}

/// `net.ipv4.ip_forward` as a path below `/proc/sys`. In a name with slashes, dots are dots (`net/ipv4/conf/eth0.1/…`).
fn sysctl_path(name: &str) -> Result<std::path::PathBuf, Fault> {
    let below = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let is_plain = below
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    if !is_plain {
        return Err(Fault::Value {
            what: "linux.sysctl",
            value: name.to_owned(),
            expected: "is not a name",
        });
    }
    Ok(Path::new("/proc/sys").join(below))
}

#[cfg(test)]
mod tests {
    use super::sysctl_path;
    use std::path::Path;

    #[test]
    fn sysctl_names() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
            ),
            ("kernel..x", None),
            ("../../etc/passwd", None),
            ("/etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(name).ok().as_deref(), path.map(Path::new), "{name}");
        }
    }
}
