//! Bind mounts into the share: taken where the engine's paths mean something, shown where the guest looks.

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

/// What is bound, to where and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Path in the engine's namespace.
    pub from: PathBuf,
    /// Path below the share; it is created, with its parents.
    pub to: PathBuf,
    /// With the mounts below the source.
    pub recursive: bool,
    /// Not writable through this mount, whoever tries.
    pub read_only: bool,
    /// Shows what is mounted below the source later, where the engine's namespace shares it.
    pub follows: bool,
}

/// Something that was taken and is not shown yet. Dropping it lets it go.
#[derive(Debug)]
pub struct Taken {
    how: Bind,
    tree: Tree,
}

impl Bind {
    /// Takes the source. To be called in the engine's namespace ([`crate::origin::Origin::visit`]).
    ///
    /// # Errors
    /// [`BindError`]
    pub fn take(self) -> Result<Taken, BindError> {
        match Tree::copy(&self.from, self.recursive) {
            Ok(tree) => self.settle(tree),
            Err(error) => Err(self.failed("open the source", error)),
        }
    }

    /// Takes `tree`, which was made for this.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn settle(self, tree: Tree) -> Result<Taken, BindError> {
        // Changed before it is seen: the flags of a mount do not follow it into the namespaces that it spreads to, so a
        // mount made writable first would stay writable for the file server.
        match tree.settle(self.read_only, self.follows) {
            Ok(()) => Ok(Taken { how: self, tree }),
            Err(error) => Err(self.failed("settle the copy", error)),
        }
    }

    fn failed(&self, act: &'static str, source: io::Error) -> BindError {
        BindError {
            from: self.from.clone(),
            to: self.to.clone(),
            act,
            source,
        }
    }
}

impl Taken {
    /// Where it will be shown.
    pub fn target(&self) -> &Path {
        &self.how.to
    }

    /// Shows it. To be called in the sandbox's own namespace.
    ///
    /// # Errors
    /// [`BindError`]; nothing is mounted then.
    pub fn show(self) -> Result<(), BindError> {
        let Self { how, tree } = self;
        tree.is_directory()
            .and_then(|directory| make_target(&how.to, directory))
            .map_err(|error| how.failed("create the mount point", error))?;
        tree.attach(&how.to).map_err(|error| how.failed("attach", error))
    }
}

/// Takes back [`Taken::show`], the mount point included.
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
