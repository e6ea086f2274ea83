//! The duties of a first process: a root that can be pivoted, the kernel's file systems, modules, loopback, cgroups.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use kata_jail::cgroup;
use kata_wire::names;

use crate::command_line::values;
use crate::log;
use crate::modules::Modules;

const NOTHING: Option<&str> = None;

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// `(file system, directory, flags, options)`, in order.
const FILE_SYSTEMS: &[(&str, &str, MsFlags, &str)] = &[
    ("proc", "proc", PLAIN, ""),
    ("sysfs", "sys", PLAIN, ""),
    ("devtmpfs", "dev", MsFlags::MS_NOSUID, "mode=0755"),
    (
        "devpts",
        "dev/pts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "gid=5,mode=0620,ptmxmode=0666",
    ),
    ("tmpfs", "run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
    ("tmpfs", "tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", "sys/fs/cgroup", PLAIN, ""),
];

/// `(name, value)` of the kernel's settings that are not its defaults.
const SETTINGS: &[(&str, &str)] = &[
    // What limits of open files may be set to: the host's engines think of hosts, whose limit is as high.
    ("fs/nr_open", "1073741816"),
    // An idle machine is to sleep: no looking for scattered memory twice a second, no counting of pages every second.
    ("vm/compaction_proactiveness", "0"),
    ("vm/stat_interval", "30"),
    // Free pages that a CPU keeps at hand cannot go back to the host. Linux 6.12 lets them be an eighth of the memory: all
    // of the initramfs's archive is among them.
    ("vm/percpu_pagelist_high_fraction", "2000"),
];

/// Does all of it; answers the modules, for those that are loaded later.
///
/// # Errors
/// When the guest could not hold containers.
pub fn prepare() -> anyhow::Result<Modules> {
    change_root().context("move to a root of our own")?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    log::start(log::level(&command_line, names::LOG_PARAMETER)).context("open the log")?;

    tracing::debug!("moved to a root of our own");
    let modules = Modules::read(&fs::read_to_string(names::MODULES_LIST).unwrap_or_default());
    modules.load_first();
    for name in listed(&command_line, names::LOAD_PARAMETER) {
        // Whoever needs it will say why it is missing.
        if let Err(error) = modules.load(name) {
            tracing::warn!("{error}");
        }
    }
    tracing::debug!("first modules loaded");
    if let Err(error) = kata_sys::loopback::up() {
        tracing::warn!("the loopback interface stays down: {error}");
    }
    cgroup::enable_controllers(Path::new(cgroup::ROOT)).context("enable the cgroup controllers")?;
    for (name, value) in SETTINGS {
        match fs::write(format!("/proc/sys/{name}"), value) {
            Err(error) if error.kind() != ErrorKind::NotFound => tracing::warn!("{name} stays as it is: {error}"),
            _ => {}
        }
    }
    // Containers choose their own; the agent's must not narrow what it makes for them.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(modules)
}

/// The words of `parameter=WORD,WORD…` on the kernel's command line.
fn listed<'a>(command_line: &'a str, parameter: &'a str) -> impl Iterator<Item = &'a str> {
    values(command_line, parameter)
        .flat_map(|value| value.split(','))
        .filter(|word| !word.is_empty())
}

/// An initramfs cannot be the old root of a `pivot_root`, which containers need, and an image cannot be written to. So a
/// tmpfs becomes the root, in which the directories of the first root are still to be seen.
fn change_root() -> anyhow::Result<()> {
    make_directory(Path::new(names::NEXT_ROOT))?;
    mount(
        Some("root"),
        names::NEXT_ROOT,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )?;
    let root = Path::new(names::NEXT_ROOT);
    for entry in fs::read_dir("/")?.flatten() {
        let name = entry.file_name();
        let is_ours = FILE_SYSTEMS
            .iter()
            .any(|(_, directory, ..)| *directory == name.to_string_lossy());
        if is_ours || Path::new("/").join(&name) == root {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_directory(&root.join(&name))?;
            mount(
                Some(&entry.path()),
                &root.join(&name),
                NOTHING,
                MsFlags::MS_BIND,
                NOTHING,
            )?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, root.join(&name))?;
        }
    }
    for (kind, directory, flags, options) in FILE_SYSTEMS {
        let target = root.join(directory);
        make_directory(&target)?;
        mount(Some(*kind), &target, Some(*kind), *flags, Some(*options))
            .with_context(|| format!("mount {directory}"))?;
    }
    chdir(names::NEXT_ROOT)?;
    mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_on_the_command_line() {
        let words = |line| listed(line, "kata.load").collect::<Vec<_>>();
        assert_eq!(
            words("quiet kata.load=virtiofs,virtio_net kata.log=info"),
            ["virtiofs", "virtio_net"]
        );
        assert_eq!(words("kata.load=a kata.load=,b,"), ["a", "b"]);
        assert!(words("kata.loads=a xkata.load=b kata.load").is_empty());
    }
}
