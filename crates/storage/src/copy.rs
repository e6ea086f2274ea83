//! A small directory as values: what is copied into a guest instead of being shared with it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How often a directory is read anew that changes while it is read.
const TRIES: usize = 5;

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the directory that was read.
    pub path: PathBuf,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a file its bytes, of a link where it leads.
    pub content: Vec<u8>,
}

/// The most that is read.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries.
    pub entries: usize,
}

/// Reads all that is below `directory`, parents before their children; `None` if it is more than `bounds`, or holds what
/// cannot be copied (a device, a socket).
///
/// # Errors
/// What reading failed with; `directory` that is none.
pub fn read(directory: &Path, bounds: Bounds) -> io::Result<Option<Vec<Entry>>> {
    let mut tries = 0;
    loop {
        let mut reading = Reading {
            root: directory,
            bounds,
            entries: Vec::new(),
        };
        match reading.read(Path::new("")) {
            // A part of it has gone in between, as when all of it is being replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES && directory.exists() => tries += 1,
            Ok(true) => return Ok(Some(reading.entries)),
            Ok(false) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// What changes whenever something directly in `directory` is made, renamed or removed.
///
/// # Errors
/// What `stat` failed with.
pub fn version(directory: &Path) -> io::Result<(u64, i64, i64)> {
    let data = fs::metadata(directory)?;
    Ok((data.ino(), data.mtime(), data.mtime_nsec()))
}

struct Reading<'a> {
    root: &'a Path,
    bounds: Bounds,
    entries: Vec<Entry>,
}

impl Reading<'_> {
    /// Whether all of it fits.
    fn read(&mut self, below: &Path) -> io::Result<bool> {
        let mut names: Vec<_> = fs::read_dir(self.root.join(below))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            let path = below.join(name);
            if !self.add(&path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn add(&mut self, path: &Path) -> io::Result<bool> {
        let whole = self.root.join(path);
        let data = fs::symlink_metadata(&whole)?;
        let kind = data.file_type();
        if self.entries.len() == self.bounds.entries || !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
            return Ok(false);
        }
        let content = if kind.is_file() {
            if data.len() > self.bounds.bytes {
                return Ok(false);
            }
            fs::read(&whole)?
        } else if kind.is_symlink() {
            fs::read_link(&whole)?.as_os_str().as_bytes().to_owned()
        } else {
            Vec::new()
        };
        let Some(left) = self.bounds.bytes.checked_sub(content.len() as u64) else {
            return Ok(false);
        };
        self.bounds.bytes = left;
        self.entries.push(Entry {
            path: path.to_owned(),
            mode: data.mode(),
            uid: data.uid(),
            gid: data.gid(),
            content,
        });
        if kind.is_dir() { self.read(path) } else { Ok(true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const BOUNDS: Bounds = Bounds {
        bytes: 100,
        entries: 10,
    };

    #[test]
    fn a_volume_as_a_kubelet_makes_it_is_read_with_links_unfollowed() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("..2026")).expect("mkdir");
        fs::write(dir.path().join("..2026/key"), "value").expect("write");
        symlink("..2026", dir.path().join("..data")).expect("link");
        symlink("..data/key", dir.path().join("key")).expect("link");
        let entries = read(dir.path(), BOUNDS).expect("read").expect("small");
        let seen: Vec<_> = entries
            .iter()
            .map(|entry| (entry.path.to_str().expect("UTF-8"), entry.content.as_slice()))
            .collect();
        let expected: [(&str, &[u8]); 4] = [
            ("..2026", b""),
            ("..2026/key", b"value"),
            ("..data", b"..2026"),
            ("key", b"..data/key"),
        ];
        assert_eq!(seen, expected);
        let before = version(dir.path()).expect("stat");
        fs::rename(dir.path().join("..data"), dir.path().join("..old")).expect("rename");
        assert_ne!(version(dir.path()).expect("stat"), before);
    }

    #[test]
    fn what_is_too_large_or_cannot_be_copied_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("a"), [0; 60]).expect("write");
        assert!(read(dir.path(), BOUNDS).expect("read").is_some());
        fs::write(dir.path().join("b"), [0; 41]).expect("write");
        assert!(read(dir.path(), BOUNDS).expect("read").is_none(), "too many bytes");
        fs::remove_file(dir.path().join("b")).expect("rm");
        nix::unistd::mkfifo(&dir.path().join("c"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert!(read(dir.path(), BOUNDS).expect("read").is_none(), "a pipe");
        fs::remove_file(dir.path().join("c")).expect("rm");
        (0..10).for_each(|n| fs::write(dir.path().join(n.to_string()), "").expect("write"));
        assert!(read(dir.path(), BOUNDS).expect("read").is_none(), "too many entries");
        assert!(read(&dir.path().join("missing"), BOUNDS).is_err());
    }
}
