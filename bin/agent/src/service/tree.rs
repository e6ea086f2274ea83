//! Volumes that the host copies into the guest: made, changed as a kubelet changes them, removed.
//!
//! Whoever watches such a volume sees what happens on the host: new files are there before a link leads to them, links are
//! replaced in one step, and what is old goes last.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use kata_wire::names::TREES_DIR;
use kata_wire::proto::{Empty, Tree, TreeEntry, UpdateTreeRequest};

use super::ids;
use super::refusal::Refusal;
use crate::pod::Pod;

/// How a file begins that is about to replace another.
const FRESH: &str = ".kata-new.";

/// Makes the volumes of container `id`.
///
/// # Errors
/// [`Refusal`]; what was made is to be removed by [`remove_all`] then.
pub fn make_all(id: &str, trees: &[Tree]) -> Result<(), Refusal> {
    trees.iter().try_for_each(|tree| make(id, tree))
}

/// Makes a volume what it is on the host now.
///
/// # Errors
/// [`Refusal`]
pub fn update(pod: &Pod, request: &UpdateTreeRequest) -> Result<Empty, Refusal> {
    let id = request.container_id.as_str();
    ids::check("container", id)?;
    let is_there = pod.with(|state| state.containers.contains_key(id));
    if !is_there {
        return Err(Refusal::no_container(id));
    }
    make(id, request.tree.get_or_default())?;
    Ok(Empty::new())
}

/// Removes the volumes of container `id`. None there is no error.
pub fn remove_all(id: &str) {
    match fs::remove_dir_all(Path::new(TREES_DIR).join(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(id, "remove copied volumes: {error}"),
        _ => {}
    }
}

fn make(id: &str, tree: &Tree) -> Result<(), Refusal> {
    if !is_name(OsStr::new(&tree.name)) {
        return Err(Refusal::Invalid(format!("{:?} is no name for a volume", tree.name)));
    }
    let root = Path::new(TREES_DIR).join(id).join(&tree.name);
    let failed = |error: io::Error| Refusal::Internal(format!("volume {}: {error}", tree.name));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&root)
        .map_err(failed)?;
    become_like(&root, &tree.entries).map_err(failed)
}

fn become_like(root: &Path, entries: &[TreeEntry]) -> io::Result<()> {
    let mut known = HashSet::with_capacity(entries.len());
    let mut links = Vec::new();
    for entry in entries {
        let path = checked(&entry.path)?;
        let place = root.join(&path);
        known.insert(path);
        match entry.mode & libc::S_IFMT {
            libc::S_IFDIR => make_directory(&place, entry)?,
            libc::S_IFREG => write(&place, entry)?,
            libc::S_IFLNK => links.push((place, entry)),
            other => {
                let message = format!("{}: type {other:o} cannot be copied", place.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
    }
    links.iter().try_for_each(|(place, entry)| link(place, entry))?;
    prune(root, Path::new(""), &known)
}

/// A path that leads nowhere but down.
fn checked(path: &[u8]) -> io::Result<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let down = |component: Component<'_>| matches!(component, Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(down) {
        let message = format!("{}: not a path below the volume", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(path.to_owned())
}

fn is_name(name: &OsStr) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}

fn make_directory(place: &Path, entry: &TreeEntry) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => {}
        found => {
            if found.is_ok() {
                fs::remove_file(place)?;
            }
            fs::create_dir(place)?;
        }
    }
    own(place, entry)
}

fn write(place: &Path, entry: &TreeEntry) -> io::Result<()> {
    if let Ok(found) = fs::symlink_metadata(place)
        && found.is_file()
        && (found.mode() & 0o7777, found.uid(), found.gid()) == (entry.mode & 0o7777, entry.uid, entry.gid)
        && fs::read(place).is_ok_and(|content| content == entry.content)
    {
        return Ok(());
    }
    let fresh = fresh(place);
    clear(&fresh)?;
    File::create_new(&fresh)?.write_all(&entry.content)?;
    own(&fresh, entry)?;
    replace(&fresh, place)
}

fn link(place: &Path, entry: &TreeEntry) -> io::Result<()> {
    let target = Path::new(OsStr::from_bytes(&entry.content));
    if fs::read_link(place).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let fresh = fresh(place);
    clear(&fresh)?;
    symlink(target, &fresh)?;
    lchown(&fresh, Some(entry.uid), Some(entry.gid))?;
    replace(&fresh, place)
}

fn own(place: &Path, entry: &TreeEntry) -> io::Result<()> {
    lchown(place, Some(entry.uid), Some(entry.gid))?;
    fs::set_permissions(place, Permissions::from_mode(entry.mode & 0o7777))
}

fn replace(fresh: &Path, place: &Path) -> io::Result<()> {
    if fs::symlink_metadata(place).is_ok_and(|found| found.is_dir()) {
        fs::remove_dir_all(place)?;
    }
    fs::rename(fresh, place)
}

fn fresh(place: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(FRESH);
    name.push(place.file_name().unwrap_or_default());
    place.with_file_name(name)
}

fn clear(fresh: &Path) -> io::Result<()> {
    match fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what is not known.
fn prune(root: &Path, below: &Path, known: &HashSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let is_directory = entry.file_type()?.is_dir();
        match (known.contains(&path), is_directory) {
            (true, true) => prune(root, &path, known)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(entry.path())?,
            (false, false) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mode: u32, content: &str) -> TreeEntry {
        TreeEntry {
            path: path.into(),
            mode,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            content: content.into(),
            ..Default::default()
        }
    }

    /// As a kubelet lays out a volume with one key.
    fn volume(date: &str, value: &str) -> Vec<TreeEntry> {
        vec![
            entry(date, libc::S_IFDIR | 0o755, ""),
            entry(&format!("{date}/key"), libc::S_IFREG | 0o640, value),
            entry("..data", libc::S_IFLNK | 0o777, date),
            entry("key", libc::S_IFLNK | 0o777, "..data/key"),
        ]
    }

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kata-tree-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).expect("root");
        root
    }

    #[test]
    fn a_volume_is_made_changed_and_emptied() {
        let root = root("volume");
        become_like(&root, &volume("..one", "first")).expect("make");
        assert_eq!(fs::read_to_string(root.join("key")).expect("read"), "first");
        let mode = fs::metadata(root.join("key")).expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o640);
        become_like(&root, &volume("..two", "second")).expect("change");
        assert_eq!(fs::read_to_string(root.join("key")).expect("read"), "second");
        let mut names: Vec<_> = fs::read_dir(&root)
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["..data", "..two", "key"]);
        let other = [
            entry("key", libc::S_IFDIR | 0o700, ""),
            entry("key/x", libc::S_IFREG | 0o600, "x"),
        ];
        become_like(&root, &other).expect("a link becomes a directory");
        become_like(&root, &[entry("key", libc::S_IFREG | 0o600, "file")]).expect("and a file");
        assert_eq!(fs::read_to_string(root.join("key")).expect("read"), "file");
        become_like(&root, &[]).expect("empty");
        assert_eq!(fs::read_dir(&root).expect("list").count(), 0);
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let root = root("paths");
        for path in ["", "/etc/x", "../x", "a/../../x", "."] {
            let error = become_like(&root, &[entry(path, libc::S_IFREG | 0o600, "x")]).expect_err(path);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        assert!(
            become_like(&root, &[entry("d", libc::S_IFCHR | 0o600, "")]).is_err(),
            "a device"
        );
        for (name, good) in [
            ("0-settings", true),
            ("..data", true),
            ("..", false),
            ("a/b", false),
            ("", false),
        ] {
            assert_eq!(is_name(OsStr::new(name)), good, "{name}");
        }
        fs::remove_dir_all(root).expect("clean up");
    }
}
