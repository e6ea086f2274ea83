//! What a specification must say before anything is decided from it.
//!
//! Refuses only what no runtime could carry out; what this project does not support yet is said by `plan`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::oci::{LinuxNamespaceType, Mount, Process, Spec};

/// Minor versions of the OCI runtime specification 1.x that are understood.
const KNOWN_MINORS: std::ops::RangeInclusive<u32> = 0..=3;

/// What is wrong with a specification, in the words of its fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Missing or foreign version.
    #[error("ociVersion {version:?} is not supported (known are 1.0 to 1.3)")]
    Version {
        /// As written; empty if missing.
        version: String,
    },
    /// No `process`.
    #[error("process must not be empty")]
    NoProcess,
    /// No `process.args`, or an empty command.
    #[error("process.args must not be empty")]
    NoArgs,
    /// `process.cwd` is relative or missing.
    #[error("process.cwd must be an absolute path, not {cwd:?}")]
    Cwd {
        /// As written.
        cwd: PathBuf,
    },
    /// Text that no system call can take.
    #[error("{field} contains a zero byte")]
    ZeroByte {
        /// The field.
        field: &'static str,
    },
    /// A limit is given twice.
    #[error("process.rlimits has {kind} twice")]
    DoubleRlimit {
        /// Its name.
        kind: String,
    },
    /// No `root.path`.
    #[error("root.path must not be empty")]
    NoRoot,
    /// No `linux`.
    #[error("the linux section is missing: only Linux containers can be run")]
    NoLinux,
    /// A namespace is listed twice.
    #[error("linux.namespaces has {kind} twice")]
    DoubleNamespace {
        /// Its type.
        kind: LinuxNamespaceType,
    },
    /// A hostname would change that of others.
    #[error("hostname is set, but linux.namespaces has no uts namespace")]
    HostnameWithoutUts,
    /// A mount point is relative.
    #[error("mounts[{index}].destination must be an absolute path, not {destination:?}")]
    Destination {
        /// Position in `mounts`.
        index: usize,
        /// As written.
        destination: PathBuf,
    },
    /// A bind mount binds nothing.
    #[error("mounts[{index}] (to {}) is a bind mount without a source", destination.display())]
    NoSource {
        /// Position in `mounts`.
        index: usize,
        /// Its mount point.
        destination: PathBuf,
    },
    /// The program of a hook is relative.
    #[error("hooks: path must be absolute, not {path:?}")]
    Hook {
        /// As written.
        path: PathBuf,
    },
    /// An annotation that says what the container is has a value nobody knows.
    #[error("annotation {name} is {value:?}; allowed are {allowed}")]
    UnknownRole {
        /// Of the annotation.
        name: &'static str,
        /// Of the annotation.
        value: String,
        /// The known values.
        allowed: String,
    },
    /// A member of a pod does not say of which.
    #[error("annotation {name} says that the container belongs to a pod, but {id_name} does not say to which")]
    NoPodId {
        /// The annotation that says so.
        name: &'static str,
        /// The annotation that is missing or empty.
        id_name: &'static str,
    },
}

pub(crate) fn check_spec(spec: &Spec) -> Result<(), Problem> {
    check_version(spec.version())?;
    check_process(spec.process().as_ref().ok_or(Problem::NoProcess)?)?;
    let root = spec.root().as_ref().ok_or(Problem::NoRoot)?;
    if root.path().as_os_str().is_empty() {
        return Err(Problem::NoRoot);
    }
    free_of_zero("root.path", root.path())?;
    check_linux(spec)?;
    check_hooks(spec)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_mount(index, mount)?;
    }
    Ok(())
}

/// Checks what any process must have: a command and an absolute working directory.
///
/// # Errors
/// See [`Problem`].
pub fn check_process(process: &Process) -> Result<(), Problem> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(Problem::NoArgs);
    }
    if !process.cwd().is_absolute() {
        return Err(Problem::Cwd {
            cwd: process.cwd().clone(),
        });
    }
    free_of_zero("process.cwd", process.cwd())?;
    for (field, texts) in [
        ("process.args", args),
        ("process.env", process.env().as_deref().unwrap_or_default()),
    ] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(Problem::ZeroByte { field });
        }
    }
    let mut seen = BTreeSet::new();
    for rlimit in process.rlimits().iter().flatten() {
        let kind = rlimit.typ().to_string();
        if !seen.insert(kind.clone()) {
            return Err(Problem::DoubleRlimit { kind });
        }
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), Problem> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(minor))) if KNOWN_MINORS.contains(&minor) => Ok(()),
        _ => Err(Problem::Version {
            version: version.to_owned(),
        }),
    }
}

fn check_linux(spec: &Spec) -> Result<(), Problem> {
    let linux = spec.linux().as_ref().ok_or(Problem::NoLinux)?;
    let mut seen = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if seen.contains(&kind) {
            return Err(Problem::DoubleNamespace { kind });
        }
        seen.push(kind);
    }
    let hostname = spec.hostname().as_deref().unwrap_or_default();
    if !hostname.is_empty() && !seen.contains(&LinuxNamespaceType::Uts) {
        return Err(Problem::HostnameWithoutUts);
    }
    Ok(())
}

fn check_hooks(spec: &Spec) -> Result<(), Problem> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    for hook in lists.into_iter().flatten().flatten() {
        if !hook.path().is_absolute() {
            return Err(Problem::Hook {
                path: hook.path().clone(),
            });
        }
        free_of_zero("hooks.path", hook.path())?;
    }
    Ok(())
}

fn check_mount(index: usize, mount: &Mount) -> Result<(), Problem> {
    let destination = mount.destination();
    if !destination.is_absolute() {
        return Err(Problem::Destination {
            index,
            destination: destination.clone(),
        });
    }
    free_of_zero("mounts[].destination", destination)?;
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    free_of_zero("mounts[].source", source)?;
    if is_bind(mount) && source.as_os_str().is_empty() {
        return Err(Problem::NoSource {
            index,
            destination: destination.clone(),
        });
    }
    Ok(())
}

/// Whether a mount shows something of the host instead of a file system of its own.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

fn free_of_zero(field: &'static str, path: &Path) -> Result<(), Problem> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Problem::ZeroByte { field });
    }
    Ok(())
}
