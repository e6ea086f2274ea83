//! The mount namespace of a sandbox process.

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::origin::Origin;

/// Gives this process a mount namespace of its own: mounts that the host makes later appear in it where the host
/// shares them, mounts made in it stay in it. Answers the way back to where it came from. Must be called before the
/// process has a second thread.
///
/// # Errors
/// What `unshare` or `mount` failed with.
pub fn enter() -> io::Result<Origin> {
    let origin = Origin::here()?;
    unshare_mounts()?;
    Ok(origin)
}

/// A copy of this thread's mount namespace in its place: mounts come into it, and none go out.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    Ok(mount(None::<&str>, "/", None::<&str>, all, None::<&str>)?)
}

/// Makes `directory` the place of the share: a small tmpfs for mount points, shared with the namespaces made from this
/// one, so that the file server sees what is mounted below it later.
///
/// # Errors
/// What `mkdir` or `mount` failed with; nothing is mounted then.
pub fn make_share(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    mount(
        Some("kata-share"),
        directory,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755,size=1m"),
    )?;
    mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED, None::<&str>).inspect_err(|_| {
        let _ = drop_share(directory);
    })?;
    Ok(())
}

/// Takes back [`make_share`] and whatever is mounted below.
///
/// # Errors
/// What `umount2` failed with; that nothing is mounted is no error.
pub fn drop_share(directory: &Path) -> io::Result<()> {
    match umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
