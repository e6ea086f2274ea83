//! Templates are kept in memory: elsewhere every clone would read its pages from a disk.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::FsFlags;

/// What our file systems are called in the list of mounts.
const SOURCE: &str = "kata-templates";

/// Makes `directory`, for root's eyes only, and mounts a tmpfs on it unless it is on one whose files may be executed: part
/// of a process's image is code.
///
/// # Errors
/// What `mkdir` or `mount` failed with.
pub(crate) fn settle(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let there = statfs(directory)?;
    if there.filesystem_type() == TMPFS_MAGIC && !there.flags().contains(FsFlags::ST_NOEXEC) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some(SOURCE), directory, Some("tmpfs"), flags, Some("mode=0700"))?)
}

/// Takes back [`settle`]: what is mounted of ours, and the directory if nothing else is in it.
///
/// # Errors
/// What `umount` or `rmdir` failed with; that there is nothing is no error.
pub(crate) fn leave(directory: &Path) -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if is_ours(&mounts, directory) {
        umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the last mount on `directory` is one of ours.
fn is_ours(mounts: &str, directory: &Path) -> bool {
    let escaped = directory.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    let here = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(escaped.as_str()));
    let source = here.and_then(|line| line.split_once(" - ")?.1.split(' ').nth(1));
    source == Some(SOURCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let mounts = "30 1 0:5 / /run rw - tmpfs tmpfs rw\n\
                      31 30 0:6 / /run/a\\040b rw,nosuid shared:4 - tmpfs kata-templates rw,mode=700\n\
                      32 30 0:7 / /run/c rw - tmpfs kata-templates rw\n\
                      33 30 0:8 / /run/c rw - ext4 /dev/vda rw\n";
        for (directory, expected) in [
            ("/run/a b", true),
            ("/run", false),
            ("/run/c", false),
            ("/run/d", false),
        ] {
            assert_eq!(is_ours(mounts, Path::new(directory)), expected, "{directory}");
        }
    }
}
