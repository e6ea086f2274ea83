//! Block devices and disk images of the host, opened for a machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Opens the block device of this number. To be called in a copy of the engine's namespace
/// ([`crate::origin::Origin::visit_copy`]): the node is made anew in it, on `place` (any directory), so that it does not
/// matter what the engine calls the device and where.
///
/// # Errors
/// `ENXIO` when there is no such device.
pub fn open_device(major: u32, minor: u32, read_only: bool, place: &Path) -> io::Result<File> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("kata-node"),
        place,
        Some("tmpfs"),
        flags,
        Some("mode=0700,size=64k"),
    )?;
    let node = place.join("node");
    let number = makedev(major.into(), minor.into());
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    open(&node, read_only)
}

/// Opens the image of a disk.
///
/// # Errors
/// `InvalidInput` for what is no regular file; what opening failed with.
pub fn open_image(path: &Path, read_only: bool) -> io::Result<File> {
    let file = open(path, read_only)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    // Without waiting, should it be a pipe or a drive without a medium.
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}
