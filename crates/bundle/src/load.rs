//! Reads `config.json` (and the process files of `exec --process`), once and bounded.
//!
//! Refuses what is not a regular file, what is larger than [`LIMIT_BYTES`], what is not JSON, and what
//! [`check`](crate::check) rejects.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::Role;
use crate::check::{Problem, check_process, check_spec};
use crate::oci::{Process, Spec};

/// Name of the file in a bundle that describes the container.
pub const CONFIG_FILE: &str = "config.json";

/// No sane `config.json` comes near it; more is not read.
const LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// Why a bundle or a process file is unusable.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bundle directory is missing or is something else.
    #[error("the bundle directory {} does not exist", dir.display())]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The bundle has no `config.json`.
    #[error("JSON specification file {CONFIG_FILE} not found in the bundle {}", dir.display())]
    NoConfig {
        /// The bundle directory.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory, device or fifo where a file should be.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file is larger than anything sensible.
    #[error("{} is larger than {} MiB", path.display(), LIMIT_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not JSON, or not the JSON that the OCI specification describes.
    #[error("{}, line {line}, column {column}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// The parser's words.
        reason: String,
    },
    /// The JSON is well-formed and asks for something impossible.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: Problem,
    },
    /// The container's root file system is missing.
    #[error("the root file system {} of the bundle {}: {reason}", rootfs.display(), dir.display())]
    NoRootfs {
        /// The bundle directory.
        dir: PathBuf,
        /// Absolute path of the root file system.
        rootfs: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Annotation that names a configuration file, as in Kata Containers.
const CONFIG_PATH: &str = "io.katacontainers.config_path";

/// A bundle that has passed all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    dir: PathBuf,
    spec: Spec,
    rootfs: PathBuf,
    role: Role,
}

impl Bundle {
    /// Reads and checks the bundle in `dir` (made absolute). The root file system itself is not looked at: engines may
    /// mount it later; see [`check_rootfs`](Self::check_rootfs).
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let no_directory = || BundleError::NoDirectory { dir: dir.to_owned() };
        let absolute = std::path::absolute(dir).map_err(|_| no_directory())?;
        if !absolute.is_dir() {
            return Err(no_directory());
        }
        let path = absolute.join(CONFIG_FILE);
        let json = match read(&path) {
            Err(BundleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(BundleError::NoConfig { dir: absolute });
            }
            other => other?,
        };
        Self::from_json(&absolute, &json)
    }

    /// The bundle that [`load`](Self::load) would make of `dir` if `config.json` held `json`. Touches no file.
    ///
    /// # Errors
    /// [`BundleError::Json`], [`BundleError::Invalid`]
    pub fn from_json(dir: &Path, json: &[u8]) -> Result<Self, BundleError> {
        let path = dir.join(CONFIG_FILE);
        let mut spec: Spec = parse(&path, json)?;
        let invalid = |problem| BundleError::Invalid {
            path: path.clone(),
            problem,
        };
        check_spec(&spec).map_err(invalid)?;
        let role = Role::of(&spec).map_err(invalid)?;
        let rootfs = resolve(&mut spec, dir).ok_or_else(|| invalid(Problem::NoRoot))?;
        Ok(Self {
            dir: dir.to_owned(),
            spec,
            rootfs,
            role,
        })
    }

    /// The bundle directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The specification as it was read, except that its paths relative to the bundle (the root file system, the
    /// sources of bind mounts) are absolute.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The root file system on the host, absolute. Perhaps not there yet.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// Whether the container is a pod, a member of one, or alone.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The container's name in its pod, if the engine has told it.
    pub fn container_name(&self) -> Option<&str> {
        crate::role::container_name(&self.spec)
    }

    /// The file that the engine looks for when memory was wanting in the container, if it looks for one.
    pub fn oom_file(&self) -> Option<PathBuf> {
        crate::role::is_cri_o(&self.spec).then(|| self.dir.join("oom"))
    }

    /// The configuration file that the engine's annotations name, if they do.
    pub fn config_path(&self) -> Option<&Path> {
        let annotations = self.spec.annotations().as_ref()?;
        annotations.get(CONFIG_PATH).map(Path::new)
    }

    /// The annotations of the specification, in no order.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.spec.annotations().iter().flatten();
        all.map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Whether the container's first process wants a terminal.
    pub fn terminal(&self) -> bool {
        let process = self.spec.process().as_ref();
        process.and_then(Process::terminal).unwrap_or(false)
    }

    /// Looks whether the root file system is there now.
    ///
    /// # Errors
    /// [`BundleError::NoRootfs`] if it is missing or not a directory.
    pub fn check_rootfs(&self) -> Result<(), BundleError> {
        let reason = match std::fs::metadata(&self.rootfs) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => "not a directory".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "no such directory".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(BundleError::NoRootfs {
            dir: self.dir.clone(),
            rootfs: self.rootfs.clone(),
            reason,
        })
    }
}

/// Reads and checks a file that holds the `process` object of a specification.
///
/// # Errors
/// See [`BundleError`].
pub fn load_process(path: &Path) -> Result<Process, BundleError> {
    let process: Process = parse(path, &read(path)?)?;
    check_process(&process).map_err(|problem| BundleError::Invalid {
        path: path.to_owned(),
        problem,
    })?;
    Ok(process)
}

/// As [`load_process`], for a process that came over a socket.
///
/// # Errors
/// [`BundleError::Json`], [`BundleError::Invalid`]; their path is `process`.
pub fn parse_process(json: &[u8]) -> Result<Process, BundleError> {
    let path = Path::new("process");
    let process: Process = parse(path, json)?;
    check_process(&process).map_err(|problem| BundleError::Invalid {
        path: path.to_owned(),
        problem,
    })?;
    Ok(process)
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    // Asked before it is opened: opening a fifo would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(BundleError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(BundleError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// As runc, takes a process without a user for root's; the type does not know that default.
fn parse<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, BundleError> {
    match parse_strictly(path, json) {
        Err(error @ BundleError::Json { .. }) if error.to_string().contains("missing field `user`") => {
            let root = || serde_json::json!({ "uid": 0, "gid": 0 });
            let mut value: serde_json::Value = parse_strictly(path, json)?;
            let process = if value.get("process").is_some() {
                value.get_mut("process")
            } else {
                Some(&mut value)
            };
            if let Some(fields) = process.and_then(serde_json::Value::as_object_mut) {
                fields.entry("user").or_insert_with(root);
            }
            serde_json::from_value(value).map_err(|_| error)
        }
        other => other,
    }
}

fn parse_strictly<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, BundleError> {
    serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let words = error.to_string();
        let reason = words
            .strip_suffix(&format!(" at line {line} column {column}"))
            .unwrap_or(&words);
        BundleError::Json {
            path: path.to_owned(),
            line,
            column,
            reason: reason.to_owned(),
        }
    })
}

/// Makes the host paths of `spec` absolute; answers that of the root file system.
fn resolve(spec: &mut Spec, dir: &Path) -> Option<PathBuf> {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if crate::check::is_bind(mount)
            && let Some(source) = mount.source().as_ref()
        {
            let absolute = dir.join(source);
            mount.set_source(Some(absolute));
        }
    }
    let root = spec.root_mut().as_mut()?;
    let rootfs = dir.join(root.path());
    root.set_path(rootfs.clone());
    Some(rootfs)
}
