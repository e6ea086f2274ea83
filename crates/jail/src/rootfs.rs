//! Builds a container's file system, in the container's own mount namespace.
//!
//! What comes from outside (binds, disks, shares) is taken as detached trees first; then the new root becomes the root,
//! and everything is attached inside it by plain paths. So a symbolic link in the image cannot make us mount outside.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use oci_spec::runtime::{Mount, Spec};

use kata_sys::tree::{Attributes, Tree, set_attributes};

use crate::devices;
use crate::fault::{Fault, Naming};
use crate::mountpoint::{self, Kind};
use crate::mounts::{Options, root_propagation};

const NOTHING: Option<&str> = None;

/// Mounts that need nothing from outside the container.
const SELF_CONTAINED: &[&str] = &[
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs", "bpf",
];

/// Where a file system that needs something from outside is mounted for a moment. The agent's own `/tmp` is hidden in
/// our namespace only.
const SCRATCH: &str = "/tmp";

/// A root that is in place but not closed yet: the guest's is still reachable.
#[derive(Debug)]
pub(crate) struct OpenRoot<'a> {
    spec: &'a Spec,
    guest: OwnedFd,
}

/// Builds the root and everything mounted in it. `cgroup` is what a `cgroup` mount shows to a container that has no
/// cgroup namespace of its own.
pub(crate) fn open<'a>(spec: &'a Spec, cgroup: Option<&Path>) -> Result<OpenRoot<'a>, Fault> {
    let linux = spec.linux().as_ref();
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let propagation = propagation(spec)?;
    mount(NOTHING, "/", NOTHING, propagation, NOTHING).on("set the propagation of", "/")?;
    mount(Some(&root), &root, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING).on("bind the root", &root)?;
    mount(NOTHING, &root, NOTHING, MsFlags::MS_PRIVATE, NOTHING).on("make private the root", &root)?;

    let mounts: Vec<(&Mount, Options)> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| (mount, Options::read(mount)))
        .collect();
    let mut sources = Vec::new();
    for (mount, options) in &mounts {
        sources.push(fetch(mount, options, cgroup)?);
    }

    let guest = File::open("/").on("open", "/")?.into();
    chdir(&root).on("enter the root", &root)?;
    // The guest's root ends up on top of ours at the same place; absolute paths are ours from here on.
    pivot_root(".", ".").on("pivot to the root", &root)?;

    for ((mount, options), source) in mounts.iter().zip(sources) {
        match source {
            Some(source) => attach(mount, options, source)?,
            None => mount_fresh(mount, options)?,
        }
    }
    let dev_is_bound = mounts
        .iter()
        .any(|(mount, options)| mount.destination() == Path::new("/dev") && options.bind.is_some());
    let open = OpenRoot { spec, guest };
    if !dev_is_bound {
        let nodes = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
        devices::fill(nodes, open.guest.as_fd())?;
    }
    Ok(open)
}

fn propagation(spec: &Spec) -> Result<MsFlags, Fault> {
    let name = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_deref())
        .unwrap_or_default();
    if name.is_empty() {
        return Ok(MsFlags::MS_SLAVE | MsFlags::MS_REC);
    }
    root_propagation(name).ok_or_else(|| Fault::Value {
        what: "linux.rootfsPropagation",
        value: name.to_owned(),
        expected: "is not a propagation",
    })
}

/// Something to attach, and whether it is a directory.
struct Source {
    tree: Tree,
    is_directory: bool,
}

/// Takes what a mount needs from outside; nothing for those that are self-contained.
fn fetch(mount: &Mount, options: &Options, cgroup: Option<&Path>) -> Result<Option<Source>, Fault> {
    let kind = mount.typ().as_deref().unwrap_or_default();
    let fetched = match (options.bind, cgroup) {
        (Some(recursive), _) => take(&source_path(mount)?, recursive)?,
        (None, Some(directory)) if matches!(kind, "cgroup" | "cgroup2") => take(directory, false)?,
        _ if SELF_CONTAINED.contains(&kind) => return Ok(None),
        _ => mount_outside(mount, options, kind)?,
    };
    let (top, all) = options.bind_attributes();
    for (attributes, recursive) in [(all, true), (top, false)] {
        if !attributes.is_empty() {
            fetched
                .tree
                .set(attributes, recursive)
                .on("set the options of mount", mount.destination())?;
        }
    }
    Ok(Some(fetched))
}

fn source_path(mount: &Mount) -> Result<PathBuf, Fault> {
    mount
        .source()
        .clone()
        .filter(|source| source.is_absolute())
        .ok_or_else(|| Fault::Value {
            what: "mounts.source",
            value: mount.destination().display().to_string(),
            expected: "is bound to no absolute path",
        })
}

fn take(path: &Path, recursive: bool) -> Result<Source, Fault> {
    let is_directory = fs::metadata(path).on("stat mount source", path)?.is_dir();
    Ok(Source {
        tree: Tree::copy(path, recursive).on("take mount source", path)?,
        is_directory,
    })
}

fn mount_outside(spec: &Mount, options: &Options, kind: &str) -> Result<Source, Fault> {
    let source = spec.source().as_deref();
    let data = options.data.join(",");
    mount(source, SCRATCH, Some(kind), options.mount_flags(), Some(data.as_str()))
        .on("mount for", spec.destination())?;
    let taken = take(Path::new(SCRATCH), false);
    umount2(SCRATCH, MntFlags::MNT_DETACH).on("unmount", SCRATCH)?;
    taken
}

fn attach(mount: &Mount, options: &Options, source: Source) -> Result<(), Fault> {
    let kind = if source.is_directory {
        Kind::Directory
    } else {
        Kind::File
    };
    let target = mount_point(mount, kind)?;
    source.tree.attach(&target).on("mount on", mount.destination())?;
    propagate(&target, options)
}

fn mount_fresh(spec: &Mount, options: &Options) -> Result<(), Fault> {
    let kind = match spec.typ().as_deref().unwrap_or_default() {
        "cgroup" => "cgroup2",
        other => other,
    };
    let hidden_mode = fs::metadata(spec.destination()).ok().map(|there| there.mode() & 0o7777);
    let target = mount_point(spec, Kind::Directory)?;
    let mut data = options.data.clone();
    if kind == "cgroup2" {
        // Such options speak of version 1.
        data.clear();
    } else if kind == "tmpfs" && !data.iter().any(|option| option.starts_with("mode=")) {
        // It looks like the directory that it hides; where none was, it is a tmpfs's own 1777.
        data.extend(hidden_mode.map(|mode| format!("mode={mode:o}")));
    }
    let hidden = if options.copy_up {
        Some(File::open(&target).on("open", &target)?)
    } else {
        None
    };
    let flags = options.mount_flags();
    // Things are still to be put there; `/dev` becomes read-only when the root is closed.
    let is_dev = spec.destination() == Path::new("/dev");
    let early = if hidden.is_some() || is_dev {
        flags & !MsFlags::MS_RDONLY
    } else {
        flags
    };
    let source = spec.source().as_deref().unwrap_or(Path::new(kind));
    mount(Some(source), &target, Some(kind), early, Some(data.join(",").as_str()))
        .on("mount on", spec.destination())?;
    if let Some(hidden) = hidden {
        crate::copyup::copy(hidden.as_fd(), &target).on("copy what was in", &target)?;
        if flags != early && !is_dev {
            set_attributes(&target, Attributes::READ_ONLY, false).on("make read-only", &target)?;
        }
    }
    propagate(&target, options)
}

fn mount_point(mount: &Mount, kind: Kind) -> Result<PathBuf, Fault> {
    let destination = mount.destination();
    mountpoint::make(Path::new("/"), destination, kind).on("make mount point", destination)
}

fn propagate(target: &Path, options: &Options) -> Result<(), Fault> {
    for flags in &options.propagation {
        mount(NOTHING, target, NOTHING, *flags, NOTHING).on("set the propagation of", target)?;
    }
    Ok(())
}

impl OpenRoot<'_> {
    /// Closes the root: what must not be seen or written is covered, and the guest's root is let go.
    pub(crate) fn close(self, cwd: &Path) -> Result<(), Fault> {
        let linux = self.spec.linux().as_ref();
        if let Err(error) = mountpoint::make(Path::new("/"), cwd, Kind::Directory)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).on("make the working directory", cwd);
        }
        if self.spec.mounts().iter().flatten().any(is_read_only_dev) {
            set_attributes(Path::new("/dev"), Attributes::READ_ONLY, false).on("make read-only", "/dev")?;
        }
        for path in linux
            .and_then(|linux| linux.readonly_paths().as_deref())
            .unwrap_or_default()
        {
            make_read_only(Path::new(path))?;
        }
        for path in linux
            .and_then(|linux| linux.masked_paths().as_deref())
            .unwrap_or_default()
        {
            self.mask(Path::new(path))?;
        }
        fchdir(&self.guest).when("go to the guest's root")?;
        // Our unmounting must not reach the guest's own mounts.
        mount(NOTHING, ".", NOTHING, MsFlags::MS_SLAVE | MsFlags::MS_REC, NOTHING).when("leave the guest's root")?;
        umount2(".", MntFlags::MNT_DETACH).when("unmount the guest's root")?;
        chdir("/").on("enter", "/")?;
        let shared = propagation(self.spec)?;
        if shared.intersects(MsFlags::MS_SHARED | MsFlags::MS_UNBINDABLE) {
            mount(NOTHING, "/", NOTHING, shared & !MsFlags::MS_REC, NOTHING).on("set the propagation of", "/")?;
        }
        if self
            .spec
            .root()
            .as_ref()
            .is_some_and(|root| root.readonly() == Some(true))
        {
            set_attributes(Path::new("/"), Attributes::READ_ONLY, false).on("make read-only", "/")?;
        }
        Ok(())
    }

    fn mask(&self, path: &Path) -> Result<(), Fault> {
        let Ok(found) = fs::metadata(path) else { return Ok(()) };
        if found.is_dir() {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, NOTHING).on("mask", path)
        } else {
            let null = Tree::copy_at(self.guest.as_fd(), Path::new("dev/null"), false).on("find", "/dev/null")?;
            null.attach(path).on("mask", path)
        }
    }
}

fn is_read_only_dev(mount: &Mount) -> bool {
    let options = Options::read(mount);
    mount.destination() == Path::new("/dev")
        && options.bind.is_none()
        && options.mount_flags().contains(MsFlags::MS_RDONLY)
}

fn make_read_only(path: &Path) -> Result<(), Fault> {
    match Tree::copy(path, true) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(error).on("find", path),
        Ok(tree) => {
            tree.set(Attributes::READ_ONLY, false).on("make read-only", path)?;
            tree.attach(path).on("make read-only", path)
        }
    }
}
