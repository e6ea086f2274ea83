//! The container's files as a stand-in sees them: its root file system, and in it the host's mounts where the container has
//! them. Engines that copy files to and from a container look at them by the stand-in's pid.
//!
//! What only the guest has (its memory) cannot be seen; there the stand-in has an empty directory that takes no file, so
//! that nothing that is copied to it is lost unnoticed.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use kata_bundle::Bundle;
use kata_plan::Visible;
use kata_sys::tree::Tree;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

/// Makes the container's files this process's own, in a mount namespace of its own. Never the host's: whatever a guest has
/// made of its mount points, links lead nowhere but inside.
///
/// # Errors
/// What mounting failed with.
pub fn enter(bundle: &Bundle) -> Result<()> {
    let rootfs = bundle.rootfs();
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let visible = kata_plan::visible(bundle.spec());
    // Before the root changes, because afterwards their paths mean the container's.
    let trees: Vec<Option<Tree>> = visible.iter().map(take).collect::<Result<_>>()?;
    let is_read_only = bundle.spec().root().as_ref().and_then(|root| root.readonly()) == Some(true);
    let tree = Tree::copy(rootfs, true)?;
    tree.settle(false, false)?;
    tree.attach(rootfs)?;
    chdir(rootfs)?;
    // Onto itself, and what was the root away from above it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    for (mount, tree) in visible.iter().zip(trees) {
        show(mount, tree).with_context(|| format!("cannot show the mount at {}", mount.destination().display()))?;
    }
    if is_read_only {
        kata_sys::tree::set_attributes(Path::new("/"), kata_sys::tree::Attributes::READ_ONLY, false)?;
    }
    Ok(())
}

/// Nothing for what is not of the host, or is there no more.
fn take(mount: &Visible) -> Result<Option<Tree>> {
    let Visible::Host {
        source,
        recursive,
        read_only,
        ..
    } = mount
    else {
        return Ok(None);
    };
    let tree = match Tree::copy(source, *recursive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        tree => tree.with_context(|| format!("cannot open {}", source.display()))?,
    };
    tree.settle(*read_only, false)?;
    Ok(Some(tree))
}

fn show(what: &Visible, tree: Option<Tree>) -> io::Result<()> {
    let destination = what.destination();
    let shown = match (what, tree) {
        (Visible::Host { .. }, Some(tree)) => tree.attach(destination),
        (Visible::Host { .. }, None) => Ok(()),
        (Visible::Guest { .. }, _) => {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let mounted = mount(
                Some("kata-guest"),
                destination,
                Some("tmpfs"),
                flags,
                Some("size=4k,mode=555"),
            );
            mounted.map_err(io::Error::from)
        }
    };
    // A mount point that the guest has in its memory, or has made into something else.
    let number = |error: &io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let is_absent = |error| matches!(number(error), Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP);
    match shown {
        Err(error) if is_absent(&error) => Ok(()),
        shown => shown,
    }
}
