//! Bind mounts into the share.

use std::io;
use std::path::{Path, PathBuf};

use kata_sys::tree::Tree;
use nix::mount::{MntFlags, umount2};

/// Why a bind mount was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind {} to {}: {act}", from.display(), to.display())]
pub struct BindError {
    from: PathBuf,
    to: PathBuf,
    act: &'static str,
    #[source]
    source: io::Error,
}

/// What is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The source is a directory; else a file.
    pub directory: bool,
    /// With the mounts below the source.
    pub recursive: bool,
    /// Not writable through this mount, whoever tries.
    pub read_only: bool,
}

/// Makes `to` (which is created, with its parents) show `from`.
///
/// # Errors
/// [`BindError`]; nothing is mounted then.
pub fn bind(from: &Path, to: &Path, how: Bind) -> Result<(), BindError> {
    let failed = |act| {
        move |source: io::Error| BindError {
            from: from.to_owned(),
            to: to.to_owned(),
            act,
            source,
        }
    };
    make_target(to, how.directory).map_err(failed("create the mount point"))?;
    // Changed before it is seen: the flags of a mount do not follow it into the namespaces that it spreads to, so a
    // mount made writable first would stay writable for the file server.
    let tree = Tree::copy(from, how.recursive).map_err(failed("open the source"))?;
    tree.settle(how.read_only).map_err(failed("settle the copy"))?;
    tree.attach(to).map_err(failed("attach"))
}

/// Takes back [`bind`], the mount point included.
///
/// # Errors
/// What `umount2` or the removal failed with; that nothing is there is no error.
pub fn unbind(to: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    match umount2(to, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let removed = if to.is_dir() {
        std::fs::remove_dir(to)
    } else {
        std::fs::remove_file(to)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_target(to: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return std::fs::create_dir_all(to);
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(to).map(drop)
}
