//! What is in a container's `/dev`: nodes, links, the console.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use kata_sys::tree::Tree;

use crate::fault::{Fault, Naming};
use crate::mountpoint::{self, Kind};

struct Node<'a> {
    path: &'a Path,
    kind: SFlag,
    major: u64,
    minor: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Character devices that every container has.
const DEFAULT: &[(&str, u64, u64)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Fills `/dev` of the current root. `guest` is the guest's root, whose nodes are bound where none can be made.
pub(crate) fn fill(devices: &[LinuxDevice], guest: BorrowedFd<'_>) -> Result<(), Fault> {
    for (path, major, minor) in DEFAULT {
        let path = Path::new(path);
        if devices.iter().all(|device| device.path() != path) {
            let node = Node {
                path,
                kind: SFlag::S_IFCHR,
                major: *major,
                minor: *minor,
                mode: 0o666,
                owner: (0, 0),
            };
            make(&node, guest)?;
        }
    }
    for device in devices {
        make(&read(device)?, guest)?;
    }
    for (target, link) in LINKS {
        link_unless_there(target, link)?;
    }
    if Path::new("/proc/kcore").exists() {
        link_unless_there("/proc/kcore", "/dev/core")?;
    }
    // Without a devpts there, whatever ptmx the image brings must do.
    if Path::new("/dev/pts/ptmx").exists() {
        let _ = fs::remove_file("/dev/ptmx");
        link_unless_there("pts/ptmx", "/dev/ptmx")?;
    }
    Ok(())
}

fn read(device: &LinuxDevice) -> Result<Node<'_>, Fault> {
    let number = |value: i64| {
        u64::try_from(value).map_err(|_| Fault::Value {
            what: "linux.devices",
            value: device.path().display().to_string(),
            expected: "has a negative device number",
        })
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(Fault::Value {
                what: "linux.devices",
                value: device.path().display().to_string(),
                expected: "has no type of its own",
            });
        }
    };
    let is_pipe = kind == SFlag::S_IFIFO;
    Ok(Node {
        path: device.path(),
        kind,
        major: if is_pipe { 0 } else { number(device.major())? },
        minor: if is_pipe { 0 } else { number(device.minor())? },
        mode: device.file_mode().unwrap_or(0o666),
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn make(node: &Node<'_>, guest: BorrowedFd<'_>) -> Result<(), Fault> {
    if let Some(parent) = node.path.parent() {
        mountpoint::make(Path::new("/"), parent, Kind::Directory).on("make directory", parent)?;
    }
    let device = makedev(node.major, node.minor);
    match mknod(node.path, node.kind, Mode::from_bits_truncate(node.mode), device).map_err(io::Error::from) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        // In a user namespace, and on shared file systems, nobody may make nodes.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return bind(node.path, guest),
        Err(error) => return Err(error).on("make device", node.path),
    }
    let (uid, gid) = node.owner;
    if (uid, gid) != (0, 0) {
        chown(node.path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).on("change the owner of", node.path)?;
    }
    Ok(())
}

fn bind(path: &Path, guest: BorrowedFd<'_>) -> Result<(), Fault> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let node = Tree::copy_at(guest, below, false).on("find the guest's device", path)?;
    let target = mountpoint::make(Path::new("/"), path, Kind::File).on("make device", path)?;
    node.attach(&target).on("bind device", path)
}

fn link_unless_there(target: &str, link: &str) -> Result<(), Fault> {
    match symlink(target, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).on("make link", link),
        _ => Ok(()),
    }
}

/// Makes terminal `number` the container's `/dev/console`.
pub(crate) fn bind_console(number: u32) -> Result<(), Fault> {
    let terminal = Path::new("/dev/pts").join(number.to_string());
    let tree = Tree::copy(&terminal, false).on("find", &terminal)?;
    let console = mountpoint::make(Path::new("/"), Path::new("/dev/console"), Kind::File).on("make", "/dev/console")?;
    tree.attach(&console).on("bind", "/dev/console")
}
