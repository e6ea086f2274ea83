//! Where assets lie: `objects/KEY/` for finished sets, `kernels/KEY/` for kernels that sets share, `current` for the set
//! in use.
//!
//! A directory appears under its key by one rename, complete or not at all, and is believed only as far as its digests
//! hold. One builder at a time; readers need no lock. It refuses to repair: what is broken is made anew.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::image::digest::Digest;
use crate::image::manifest::{Asset, Manifest};

/// Why assets cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another builder does not come to its end.
    #[error("another build in {} has not ended within {} s", path.display(), limit.as_secs())]
    Busy {
        /// The store.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
}

/// Name of the kernel in a set.
pub const VMLINUX: &str = "vmlinux";
/// Name of the initramfs in a set.
pub const INITRD: &str = "initrd.img";
/// Name of the image in a set.
pub const IMAGE: &str = "image.erofs";
/// Name of what leads to the image, in a set; beside any image, its own name and this ending.
pub const LOADER: &str = "image.erofs.initrd";
/// Name of the manifest in a set.
pub const MANIFEST: &str = "manifest.json";
/// Names of unfinished directories begin with this.
const UNFINISHED: &str = ".new-";

/// A set of assets that was found.
#[derive(Clone, Debug)]
pub struct Set {
    /// Its directory.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// What is the matter with a set.
#[derive(Debug, PartialEq, Eq)]
pub enum Defect {
    /// There is none.
    Absent,
    /// The file is missing, or not the one that the manifest speaks of.
    Broken(PathBuf),
}

/// A store of assets in a directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in `root`, which need not exist yet.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the store's directories.
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn create(&self) -> Result<(), StoreError> {
        for directory in [self.objects(), self.kernels()] {
            std::fs::create_dir_all(&directory).map_err(|source| failed("make the directory", &directory, source))?;
        }
        Ok(())
    }

    fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Where kernels that sets share lie.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Where apt's last answer is remembered.
    pub fn apt_memory(&self) -> PathBuf {
        self.root.join("apt.json")
    }

    /// The link to the set in use.
    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// Keeps other builders out until the result is dropped. Waits for up to `limit`.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::File`]
    pub fn lock(&self, limit: Duration) -> Result<Flock<File>, StoreError> {
        let path = self.root.join("lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = open().map_err(|source| failed("open", &path, source))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
            Err((_, error)) => return Err(failed("lock", &path, error.into())),
        };
        tracing::warn!("another build is running in {}, waiting for it", self.root.display());
        let (done, wait) = channel();
        // The thread may outlive the wait; it ends with the process then.
        std::thread::spawn(move || done.send(Flock::lock(file, FlockArg::LockExclusive)));
        match wait.recv_timeout(limit) {
            Ok(Ok(lock)) => Ok(lock),
            Ok(Err((_, error))) => Err(failed("lock", &path, error.into())),
            Err(_) => Err(StoreError::Busy {
                path: self.root.clone(),
                limit,
            }),
        }
    }

    /// The set under `key`, every byte of it checked.
    ///
    /// # Errors
    /// A [`Defect`]
    pub fn find(&self, key: &str) -> Result<Set, Defect> {
        verify(&self.objects().join(key))
    }

    /// The set in use, every byte of it checked.
    ///
    /// # Errors
    /// A [`Defect`]
    pub fn find_current(&self) -> Result<Set, Defect> {
        match std::fs::canonicalize(self.current()) {
            Ok(path) => verify(&path),
            Err(_) => Err(Defect::Absent),
        }
    }

    /// The key of the set in use.
    pub fn current_key(&self) -> Option<String> {
        let target = std::fs::read_link(self.current()).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Keys of all sets, sorted.
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn keys(&self) -> Result<Vec<String>, StoreError> {
        let objects = self.objects();
        let entries = match std::fs::read_dir(&objects) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed("list", &objects, source)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut keys: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        keys.sort();
        Ok(keys)
    }

    /// Puts the files that `fill` writes into a fresh directory under `key` in the objects.
    ///
    /// # Errors
    /// What `fill` returns, or [`StoreError::File`].
    pub fn add_set<E: From<StoreError>>(
        &self,
        key: &str,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        add(&self.objects(), key, fill)
    }

    /// The same for a kernel.
    ///
    /// # Errors
    /// What `fill` returns, or [`StoreError::File`].
    pub fn add_kernel<E: From<StoreError>>(
        &self,
        key: &str,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        add(&self.kernels(), key, fill)
    }

    /// A directory to work in, which is removed when it is dropped, or else by the next [`sweep`](Self::sweep).
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn workshop(&self) -> Result<TempDir, StoreError> {
        unfinished(&self.kernels())
    }

    /// Makes the set under `key` the one in use. Whoever opens `current` meanwhile finds the old or the new one.
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn use_set(&self, key: &str) -> Result<(), StoreError> {
        if self.current_key().as_deref() == Some(key) {
            return Ok(());
        }
        let fresh = self.root.join(format!("{UNFINISHED}current"));
        remove(&fresh)?;
        symlink(Path::new("objects").join(key), &fresh).map_err(|source| failed("make the link", &fresh, source))?;
        let current = self.current();
        std::fs::rename(&fresh, &current).map_err(|source| failed("replace", &current, source))
    }

    /// Removes what builders that were killed have left. Only for the holder of the lock.
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn sweep(&self) -> Result<(), StoreError> {
        for directory in [self.objects(), self.kernels()] {
            let entries = std::fs::read_dir(&directory).map_err(|source| failed("list", &directory, source))?;
            for entry in entries.filter_map(Result::ok) {
                if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Writes a file of a set.
///
/// # Errors
/// [`StoreError::File`]
pub fn write(path: &Path, bytes: &[u8]) -> Result<Asset, StoreError> {
    std::fs::write(path, bytes).map_err(|source| failed("write", path, source))?;
    Ok(Asset {
        sha256: Digest::of(bytes),
        bytes: bytes.len() as u64,
    })
}

/// Makes the file at `from` appear at `to` too; both are never written again.
///
/// # Errors
/// [`StoreError::File`]
pub fn share(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::hard_link(from, to)
        .or_else(|_| std::fs::copy(from, to).map(drop))
        .map_err(|source| failed("write", to, source))
}

fn add<E: From<StoreError>>(parent: &Path, key: &str, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
    let fresh = unfinished(parent)?;
    fill(fresh.path())?;
    let path = parent.join(key);
    // Only a broken one can be there; a rename does not replace a directory that is not empty.
    remove(&path)?;
    std::fs::rename(fresh.path(), &path).map_err(|source| failed("put in place", &path, source))?;
    // It is no longer where it would be removed from.
    let _ = fresh.keep();
    Ok(path)
}

fn unfinished(parent: &Path) -> Result<TempDir, StoreError> {
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(|source| failed("make a directory in", parent, source))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn verify(path: &Path) -> Result<Set, Defect> {
    if !path.exists() {
        return Err(Defect::Absent);
    }
    let broken = |name: &str| Defect::Broken(path.join(name));
    let manifest = std::fs::read(path.join(MANIFEST))
        .ok()
        .and_then(|bytes| Manifest::parse(&bytes));
    let manifest = manifest.ok_or_else(|| broken(MANIFEST))?;
    let assets = [
        (INITRD, Some(&manifest.initrd)),
        (VMLINUX, Some(&manifest.vmlinux)),
        (IMAGE, manifest.image.as_ref()),
        (LOADER, manifest.loader.as_ref()),
    ];
    for (name, asset) in assets.into_iter().filter_map(|(name, asset)| Some((name, asset?))) {
        if !is_intact(&path.join(name), asset) {
            return Err(broken(name));
        }
    }
    Ok(Set {
        path: path.to_owned(),
        manifest,
    })
}

/// Whether a file is the one that was recorded.
pub fn is_intact(path: &Path, asset: &Asset) -> bool {
    let same_size = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == asset.bytes);
    same_size && Digest::of_file(path).is_ok_and(|digest| digest == asset.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::tests::sample;

    fn store() -> (tempfile::TempDir, Store) {
        let place = tempfile::tempdir().unwrap();
        let store = Store::at(&place.path().join("cache"));
        store.create().unwrap();
        (place, store)
    }

    fn fill(store: &Store, key: &str) {
        let filled: Result<PathBuf, StoreError> = store.add_set(key, |path| {
            write(&path.join(VMLINUX), b"kernel")?;
            write(&path.join(INITRD), b"initrd")?;
            write(&path.join(MANIFEST), &sample(b"kernel", b"initrd").render().unwrap())?;
            Ok(())
        });
        filled.unwrap();
    }

    #[test]
    fn a_set_is_found_again_and_can_be_used() {
        let (_place, store) = store();
        assert_eq!(store.find("k1").unwrap_err(), Defect::Absent);
        fill(&store, "k1");
        fill(&store, "k2");
        assert_eq!(store.find("k1").unwrap().manifest, sample(b"kernel", b"initrd"));
        assert_eq!(store.find_current().unwrap_err(), Defect::Absent);
        for key in ["k1", "k2", "k2"] {
            store.use_set(key).unwrap();
            assert_eq!(store.current_key().as_deref(), Some(key));
            assert!(store.find_current().is_ok());
        }
        assert_eq!(store.keys().unwrap(), ["k1", "k2"]);
    }

    #[test]
    fn whatever_is_damaged_is_noticed_and_can_be_replaced() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 5] = [
            (VMLINUX, |file| std::fs::write(file, b"kernal").unwrap()),
            (INITRD, |file| std::fs::write(file, b"init").unwrap()),
            (INITRD, |file| std::fs::remove_file(file).unwrap()),
            (MANIFEST, |file| std::fs::write(file, b"{").unwrap()),
            (MANIFEST, |file| std::fs::remove_file(file).unwrap()),
        ];
        let (_place, store) = store();
        for (name, damage) in damages {
            fill(&store, "k1");
            let file = store.objects().join("k1").join(name);
            damage(&file);
            assert_eq!(store.find("k1").unwrap_err(), Defect::Broken(file));
        }
        fill(&store, "k1");
        assert!(store.find("k1").is_ok());
    }

    #[test]
    fn a_builder_that_fails_or_dies_leaves_nothing_under_the_key() {
        let (_place, store) = store();
        let failing: Result<PathBuf, StoreError> = store.add_set("k1", |path| {
            write(&path.join(VMLINUX), b"half")?;
            Err(failed("write", path, ErrorKind::StorageFull.into()))
        });
        assert!(failing.is_err());
        assert_eq!(std::fs::read_dir(store.objects()).unwrap().count(), 0);
        std::fs::create_dir(store.kernels().join(".new-killed")).unwrap();
        store.sweep().unwrap();
        assert_eq!(std::fs::read_dir(store.kernels()).unwrap().count(), 0);
    }

    #[test]
    fn the_second_builder_waits_for_the_first() {
        let (_place, store) = store();
        let first = store.lock(Duration::from_secs(5)).unwrap();
        assert!(matches!(
            store.lock(Duration::from_millis(20)),
            Err(StoreError::Busy { .. })
        ));
        let other = store.clone();
        let second = std::thread::spawn(move || other.lock(Duration::from_secs(20)).is_ok());
        drop(first);
        assert!(second.join().unwrap());
    }
}
