//! Disks that the host has attached for a container: awaited, named, mounted; and let go.
//!
//! The host knows a disk by its SCSI target. What the kernel calls it here is found out when it has appeared, and takes
//! the place of the host's numbers in the container's specification.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_jail::mounts::Options;
use kata_wire::names::DISKS_DIR;
use kata_wire::proto;
use nix::errno::Errno;
use nix::mount::{MntFlags, mount, umount2};
use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::refusal::Refusal;
use crate::modules::Modules;
use crate::uevents::Uevents;

/// How long an attached disk may take to appear.
const LIMIT: Duration = Duration::from_secs(20);

/// In this order.
const DRIVERS: [&str; 2] = ["virtio_scsi", "sd_mod"];

/// A disk that is there.
struct Found {
    node: PathBuf,
    major: i64,
    minor: i64,
}

/// Brings the disks into the guest for container `id` and puts their numbers here into its specification.
///
/// # Errors
/// [`Refusal`]; what was brought is to be let go by [`release`] then.
pub async fn bring(modules: &Modules, id: &str, disks: &[proto::Disk], spec: &mut Spec) -> Result<(), Refusal> {
    if disks.is_empty() {
        return Ok(());
    }
    for driver in DRIVERS {
        modules
            .load(driver)
            .map_err(|error| Refusal::Internal(error.to_string()))?;
    }
    let directory = directory(id);
    let internal = |error: io::Error| Refusal::Internal(format!("{}: {error}", directory.display()));
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(internal)?;
    let mut numbers = Vec::with_capacity(disks.len());
    for disk in disks {
        check(disk)?;
        let failed =
            |error: io::Error| Refusal::Internal(format!("disk {} (target {}): {error}", disk.name, disk.target));
        let found = tokio::time::timeout(LIMIT, appear(disk.target))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not appear")))
            .map_err(failed)?;
        tracing::debug!(id, name = disk.name, node = %found.node.display(), "disk");
        symlink(&found.node, directory.join(&disk.name)).map_err(failed)?;
        if !disk.mount_point.is_empty() {
            mount_on(&found.node, disk).map_err(failed)?;
        }
        numbers.push((i64::from(disk.host_major), i64::from(disk.host_minor), found));
    }
    renumber(spec, &numbers);
    Ok(())
}

/// Lets go of what [`bring`] has brought. Nothing there is no error.
pub fn release(id: &str) {
    let directory = directory(id);
    let root = directory.join("root");
    if let Err(errno) = umount2(&root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        && !matches!(errno, Errno::ENOENT | Errno::EINVAL)
    {
        tracing::warn!(id, "unmount {}: {errno}", root.display());
        return;
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(id, "remove {}: {error}", directory.display());
        }
        _ => {}
    }
}

fn directory(id: &str) -> PathBuf {
    Path::new(DISKS_DIR).join(id)
}

fn check(disk: &proto::Disk) -> Result<(), Refusal> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if disk.name.is_empty() || !disk.name.chars().all(plain) {
        return Err(Refusal::Invalid(format!("{:?} is no name for a disk", disk.name)));
    }
    if !disk.mount_point.is_empty() && !Path::new(&disk.mount_point).is_absolute() {
        return Err(Refusal::Invalid(format!(
            "disk {} has no absolute mount point",
            disk.name
        )));
    }
    Ok(())
}

/// Waits until the disk at this target is there.
async fn appear(target: u32) -> io::Result<Found> {
    // Listening first, so that nothing happens unheard between the look and the wait.
    let events = Uevents::listen()?;
    loop {
        if let Some(found) = look(target)? {
            return Ok(found);
        }
        events.next().await?;
    }
}

fn look(target: u32) -> io::Result<Option<Found>> {
    let devices = match fs::read_dir("/sys/bus/scsi/devices") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        devices => devices?,
    };
    let suffix = format!(":0:{target}:0");
    for device in devices.flatten() {
        // HOST:CHANNEL:TARGET:LUN
        let name = device.file_name();
        let host = name.to_str().and_then(|name| name.strip_suffix(&suffix));
        if host.is_none_or(|host| host.is_empty() || !host.bytes().all(|letter| letter.is_ascii_digit())) {
            continue;
        }
        let Ok(mut blocks) = fs::read_dir(device.path().join("block")) else {
            continue;
        };
        let Some(Ok(block)) = blocks.next() else { continue };
        let node = Path::new("/dev").join(block.file_name());
        let numbers = fs::read_to_string(block.path().join("dev"))?;
        if node.exists()
            && let Some((major, minor)) = numbers.trim().split_once(':')
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            return Ok(Some(Found { node, major, minor }));
        }
    }
    Ok(None)
}

fn mount_on(node: &Path, disk: &proto::Disk) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&disk.mount_point)?;
    let options = Options::of(&disk.options);
    let data = options.data.join(",");
    let mount_point = Path::new(&disk.mount_point);
    Ok(mount(
        Some(node),
        mount_point,
        Some(disk.fs_type.as_str()),
        options.mount_flags(),
        Some(data.as_str()),
    )?)
}

/// Puts the numbers here in the place of the host's.
fn renumber(spec: &mut Spec, numbers: &[(i64, i64, Found)]) {
    let ours = |major: i64, minor: i64| {
        let known = numbers.iter().find(|(its, own, _)| (*its, *own) == (major, minor));
        known.map(|(.., found)| (found.major, found.minor))
    };
    let Some(linux) = spec.linux_mut().as_mut() else { return };
    for device in linux.devices_mut().iter_mut().flatten() {
        if device.typ() == LinuxDeviceType::B
            && let Some((major, minor)) = ours(device.major(), device.minor())
        {
            device.set_major(major).set_minor(minor);
        }
    }
    let rules = linux
        .resources_mut()
        .as_mut()
        .and_then(|resources| resources.devices_mut().as_mut());
    for rule in rules.into_iter().flatten() {
        if rule.typ() == Some(LinuxDeviceType::B)
            && let (Some(major), Some(minor)) = (rule.major(), rule.minor())
            && let Some((major, minor)) = ours(major, minor)
        {
            rule.set_major(Some(major)).set_minor(Some(minor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_host_become_those_here_and_others_stay() {
        let json = r#"{"ociVersion": "1.0.2", "linux": {
            "devices": [{"path": "/dev/a", "type": "b", "major": 7, "minor": 3},
                        {"path": "/dev/c", "type": "c", "major": 7, "minor": 3}],
            "resources": {"devices": [{"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rw"},
                                      {"allow": true, "type": "c", "major": 7, "minor": 3, "access": "rw"},
                                      {"allow": false, "access": "rwm"}]}}}"#;
        let mut spec: Spec = serde_json::from_str(json).expect("spec");
        let (node, major, minor) = ("/dev/sdb".into(), 8, 16);
        renumber(&mut spec, &[(7, 3, Found { node, major, minor })]);
        let linux = spec.linux().as_ref().expect("linux");
        let devices: Vec<_> = linux
            .devices()
            .iter()
            .flatten()
            .map(|d| (d.major(), d.minor()))
            .collect();
        assert_eq!(devices, [(8, 16), (7, 3)]);
        let rules = linux
            .resources()
            .as_ref()
            .and_then(|resources| resources.devices().as_ref());
        let rules: Vec<_> = rules
            .expect("rules")
            .iter()
            .map(|rule| (rule.major(), rule.minor()))
            .collect();
        assert_eq!(rules, [(Some(8), Some(16)), (Some(7), Some(3)), (None, None)]);
    }
}
