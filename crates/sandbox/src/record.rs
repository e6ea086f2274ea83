//! Where a sandbox keeps its things on the host, and the record that outlives its process.
//!
//! Everything of a sandbox lies in one directory, `/run/kata/<key>`; the key is made from the place that names the
//! sandbox for its owner: containerd's bundle directory, or `<root>/<id>` of the command line. So whoever knows that place
//! finds the sandbox, and nobody has to keep an index. The record has its own versioned type and is replaced
//! atomically.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kata_sys::process;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hooks::HostHooks;
use crate::network::NetworkRecord;

/// Below it, every sandbox of the host has its directory.
pub const RUN_ROOT: &str = "/run/kata";

const RECORD: &str = "record.json";

/// How the name of a directory begins that is being made.
const FRESH: &str = ".new-";

const VERSION: u32 = 1;

/// Hexadecimal digits of the digest that are in a directory's name: socket paths are short.
const KEY_DIGITS: usize = 20;

/// The directory of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The directory of the sandbox that its owner knows by `place` (an absolute path, which need not exist).
    pub fn of(place: &Path) -> Self {
        let digest = format!("{:x}", Sha256::digest(place.as_os_str().as_encoded_bytes()));
        Self(Path::new(RUN_ROOT).join(&digest[..KEY_DIGITS]))
    }

    /// A directory given as it is (what [`Self::path`] has told another process).
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Every sandbox directory of this host.
    ///
    /// # Errors
    /// What reading [`RUN_ROOT`] failed with; that it is not there is no error.
    pub fn all() -> io::Result<Vec<Self>> {
        let entries = match std::fs::read_dir(RUN_ROOT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut homes = Vec::new();
        for entry in entries {
            let entry = entry?;
            // Those that are being made, and those of the cache, are nobody's pods.
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if entry.file_type()?.is_dir() && !is_hidden {
                homes.push(Self(entry.path()));
            }
        }
        homes.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(homes)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Socket of the Task API.
    pub fn task_socket(&self) -> PathBuf {
        self.0.join("task.sock")
    }

    /// Mount point of what the guest sees of the host. Only the sandbox process's mount namespace has it mounted.
    pub fn share(&self) -> PathBuf {
        self.0.join("share")
    }

    /// Directory for the fifos of command-line clients.
    pub fn stdio(&self) -> PathBuf {
        self.0.join("stdio")
    }

    /// The sandbox process's own messages.
    pub fn log(&self) -> PathBuf {
        self.0.join("sandbox.log")
    }

    /// Makes the directory, for root's eyes only, with its record in it: nobody ever sees it without one.
    ///
    /// # Errors
    /// `AlreadyExists` when it is there; what making or writing failed with. Nothing is left then.
    pub fn create(&self, record: &Record) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        if let Some(parent) = self.0.parent() {
            builder.mode(0o711).recursive(true).create(parent)?;
        }
        let fresh = self.fresh(std::process::id());
        builder.mode(0o700).recursive(false).create(&fresh)?;
        let made = Self(fresh.clone())
            .write(record)
            .map_err(io::Error::other)
            .and_then(|()| {
                Ok(renameat2(
                    AT_FDCWD,
                    &fresh,
                    AT_FDCWD,
                    &self.0,
                    RenameFlags::RENAME_NOREPLACE,
                )?)
            });
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&fresh);
        }
        made
    }

    /// Where the process `maker` makes the directory before it has its name.
    fn fresh(&self, maker: u32) -> PathBuf {
        let key = self.0.file_name().unwrap_or_default().to_string_lossy();
        self.0.with_file_name(format!("{FRESH}{key}-{maker}"))
    }

    /// Removes the directory and all in it, and what makers that were killed have left. That there is nothing is no
    /// error.
    ///
    /// # Errors
    /// What the removal failed with.
    pub fn remove(&self) -> io::Result<()> {
        let siblings = self.0.parent().and_then(|parent| std::fs::read_dir(parent).ok());
        let key = self.0.file_name().unwrap_or_default().to_string_lossy();
        for sibling in siblings.into_iter().flatten().flatten() {
            let name = sibling.file_name();
            let maker = name.to_str().and_then(|name| {
                name.strip_prefix(FRESH)?
                    .strip_prefix(&*key)?
                    .strip_prefix('-')?
                    .parse()
                    .ok()
            });
            if maker.is_some_and(|maker: u32| process::start_ticks(maker).is_err()) {
                std::fs::remove_dir_all(sibling.path())?;
            }
        }
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Reads the record.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn read(&self) -> Result<Record, RecordError> {
        let path = self.0.join(RECORD);
        let text = std::fs::read(&path).map_err(|source| RecordError::Read {
            path: path.clone(),
            source,
        })?;
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_slice(&text).map_err(|source| RecordError::Broken {
            path: path.clone(),
            source,
        })?;
        if versioned.version != VERSION {
            return Err(RecordError::Version {
                path,
                found: versioned.version,
            });
        }
        serde_json::from_slice(&text).map_err(|source| RecordError::Broken { path, source })
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// [`RecordError::Write`]
    pub fn write(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.0.join(RECORD);
        let fresh = self.0.join(".record.json.new");
        let failed = |source| RecordError::Write {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        let mut file = std::fs::File::create(&fresh).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)
    }
}

/// Why there is no usable record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("cannot read the sandbox record {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be replaced.
    #[error("cannot write the sandbox record {}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no record.
    #[error("the sandbox record {} is damaged", path.display())]
    Broken {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of this program wrote it.
    #[error("the sandbox record {} has version {found}; this program knows version {VERSION}", path.display())]
    Version {
        /// Its path.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
}

impl RecordError {
    /// There is no record at all, as opposed to a bad one.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A process, named for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Process id.
    pub pid: u32,
    /// See [`process::start_ticks`].
    pub start_ticks: u64,
}

impl Mark {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// As [`process::start_ticks`].
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_ticks: process::start_ticks(pid)?,
        })
    }

    /// A handle on exactly this process; `None` when it has ended.
    pub fn open(self) -> Option<process::PidFd> {
        let fd = process::PidFd::open(self.pid).ok()?;
        // Looked at after the handle is open, so the answer is about the process that the handle holds.
        (process::start_ticks(self.pid).ok()? == self.start_ticks).then_some(fd)
    }
}

/// What has to be known of a sandbox after its process has died; or, of a container that the command line put into the
/// pod of another, where that pod is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this type.
    pub version: u32,
    /// Id of the sandbox: that of its first container. Of a member of a pod, its own.
    pub id: String,
    /// containerd's namespace, or the `--root` of the command line.
    pub namespace: String,
    /// The bundle that the sandbox was started with.
    pub bundle: PathBuf,
    /// Seconds since 1970-01-01 UTC.
    pub created_unix_secs: u64,
    /// Of a member of a pod: the directory of the pod's sandbox, which has the processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PathBuf>,
    /// The sandbox process, once it runs.
    pub sandbox: Option<Mark>,
    /// The VMM and the file server, once they run.
    pub helpers: Vec<Mark>,
    /// What was made in the pod's network namespace, if that outlives the processes.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// What the engine wants run on the host, of each container that has not been deleted.
    #[serde(default)]
    pub hooks: BTreeMap<String, HostHooks>,
    /// The pod's cgroup in each hierarchy, for who else belongs in it.
    #[serde(default)]
    pub pod_cgroups: Vec<PathBuf>,
    /// Every cgroup that was made for the pod, in order.
    #[serde(default)]
    pub made_cgroups: Vec<PathBuf>,
}

impl Record {
    /// A record of a sandbox that has no process yet.
    pub fn new(id: String, namespace: String, bundle: PathBuf) -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            version: VERSION,
            id,
            namespace,
            bundle,
            created_unix_secs: now.as_secs(),
            pod: None,
            sandbox: None,
            helpers: Vec::new(),
            network: None,
            hooks: BTreeMap::new(),
            pod_cgroups: Vec::new(),
            made_cgroups: Vec::new(),
        }
    }

    /// The directory of the sandbox in which the container of this record is, which lies at `home`.
    pub fn sandbox_home(&self, home: &Home) -> Home {
        self.pod.clone().map_or_else(|| home.clone(), Home::at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record {
            created_unix_secs: 1,
            helpers: vec![Mark { pid: 4, start_ticks: 5 }],
            ..Record::new("web".into(), "default".into(), "/b/web".into())
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().to_owned());
        assert!(home.read().expect_err("none yet").is_absent());
        home.write(&sample()).expect("write");
        home.write(&sample()).expect("replace");
        assert_eq!(home.read().expect("read"), sample());
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_directory_is_never_seen_without_its_record_nor_made_twice() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().join("key"));
        home.create(&sample()).expect("create");
        assert_eq!(home.read().expect("read"), sample());
        let again = home.create(&sample()).expect_err("taken");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("list").count(),
            1,
            "nothing half made stays"
        );
        // One whose maker was killed in the middle, and one that is being made.
        let (left, in_work) = (home.fresh(u32::MAX), home.fresh(std::process::id()));
        std::fs::create_dir(&left).expect("mkdir");
        std::fs::create_dir(&in_work).expect("mkdir");
        home.remove().expect("remove");
        assert!(!home.path().exists() && !left.exists() && in_work.exists());
    }

    #[test]
    fn a_damaged_or_foreign_record_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().to_owned());
        for (text, expected) in [
            ("{", "is damaged"),
            ("{\"version\": 9}", "has version 9; this program knows version 1"),
        ] {
            std::fs::write(dir.path().join(RECORD), text).expect("write");
            let error = home.read().expect_err("bad record");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.is_absent());
        }
    }

    #[test]
    fn places_have_their_own_short_directories() {
        let long = PathBuf::from("/run").join("x".repeat(200));
        let (a, b) = (Home::of(&long.join("a")), Home::of(&long.join("b")));
        assert_ne!(a, b);
        assert_eq!(a, Home::of(&long.join("a")));
        assert!(
            a.task_socket().as_os_str().len() < 100,
            "a unix socket's path holds 107 bytes"
        );
    }

    #[test]
    fn a_mark_opens_only_its_own_process() {
        let me = Mark::of(std::process::id()).expect("I run");
        assert!(me.open().is_some());
        let other = Mark {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(other.open().is_none());
    }
}
