//! Gets the distribution's packages of a kernel or its source, without installing them: which version apt would install, and
//! its file.
//!
//! Asking apt takes seconds on machines that keep no package cache, so the answer is remembered together with the state
//! of the files that it came from. It refuses packages whose file is not the one that apt's signed lists promise.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError};
use crate::image::digest::{Digest, DigestError};

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// apt has never heard of it.
    #[error(
        "apt does not know the package {package}; see that apt's sources are reachable, run `apt-get update`, or give a file"
    )]
    Unknown {
        /// The package's name.
        package: String,
    },
    /// A meta package that leads nowhere.
    #[error("the package {package} is not a kernel and depends on none")]
    NoKernel {
        /// The package's name.
        package: String,
    },
    /// apt or dpkg failed.
    #[error("cannot {what}")]
    Tool {
        /// What was being done.
        what: String,
        /// What the tool said.
        #[source]
        source: CommandError,
    },
    /// The file is not the one of apt's lists.
    #[error("the downloaded {} has the sha256 {found}, apt's lists say {promised}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// The digest that it should have.
        promised: String,
    },
    /// The package's content is not that of a kernel package.
    #[error("{what} in {}", path.display())]
    Content {
        /// What is missing or too many.
        what: String,
        /// The package's file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be hashed.
    #[error(transparent)]
    Hash(#[from] DigestError),
}

/// A version of a package that apt would install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Name of the package that holds the kernel.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Digest of its file.
    pub sha256: String,
}

/// Time for anything that only reads the host's own files.
const LOCAL: Duration = Duration::from_secs(120);
/// Time for anything that goes over the network.
const REMOTE: Duration = Duration::from_secs(900);
/// How deep meta packages may lead to one another.
const DEPTH: usize = 4;
/// What the names of the packages of a kernel's source begin with.
pub(super) const SOURCES: &str = "linux-source-";
/// Files and directories that decide which version apt would install.
const STATE: [&str; 9] = [
    "/etc/apt/apt.conf",
    "/etc/apt/apt.conf.d",
    "/etc/apt/preferences",
    "/etc/apt/preferences.d",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/var/lib/apt/lists",
    "/var/lib/dpkg/arch",
    "/var/lib/dpkg/status",
];

/// What was found out, and from what.
#[derive(Serialize, Deserialize)]
struct Memory {
    asked: String,
    state: String,
    candidate: Candidate,
}

/// The kernel package that `package` is or leads to, in the version that apt would install; remembered in `memory`.
///
/// # Errors
/// See [`PackageError`].
pub fn resolve(package: &str, memory: &Path) -> Result<Candidate, PackageError> {
    recall(package, memory, || ask(package))
}

/// The package of that very name, in the version that apt would install; the newest package of a kernel's source
/// without a name. Remembered in `memory`.
///
/// # Errors
/// See [`PackageError`].
pub fn resolve_source(name: Option<&str>, memory: &Path) -> Result<Candidate, PackageError> {
    recall(name.unwrap_or(SOURCES), memory, || {
        let name = match name {
            Some(name) => name.to_owned(),
            None => newest_source()?,
        };
        Ok(show(&name)?.candidate)
    })
}

/// What `memory` holds of `asked`, as long as apt's lists are the same; or else what `answer` says, once more after an
/// update of the lists if apt does not know.
fn recall(
    asked: &str,
    memory: &Path,
    answer: impl Fn() -> Result<Candidate, PackageError>,
) -> Result<Candidate, PackageError> {
    let state = state();
    let remembered: Option<Memory> = std::fs::read(memory)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(remembered) = remembered
        && (remembered.asked.as_str(), remembered.state.as_str()) == (asked, state.as_str())
    {
        return Ok(remembered.candidate);
    }
    let candidate = match answer() {
        Err(PackageError::Unknown { .. }) => {
            update()?;
            answer()?
        }
        known => known?,
    };
    // After an update the state is another one. What cannot be remembered is asked again, nothing worse.
    let memo = Memory {
        asked: asked.to_owned(),
        state: self::state(),
        candidate: candidate.clone(),
    };
    if let Err(error) = remember(&memo, memory) {
        tracing::warn!("cannot remember apt's answer in {}: {error}", memory.display());
    }
    Ok(candidate)
}

fn remember(memo: &Memory, path: &Path) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec(memo)?)?;
    file.persist(path)?;
    Ok(())
}

/// Name, size and time of every file that apt's answer depends on.
fn state() -> String {
    let mut digest = Digest::new();
    for path in STATE.map(Path::new) {
        let mut files = vec![path.to_owned()];
        if let Ok(entries) = std::fs::read_dir(path) {
            files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        files.sort();
        // The lock and the directory of downloads change without the answer changing.
        files.retain(|file| {
            !file.ends_with("lists/lock")
                && !file.ends_with("lists/partial")
                && *file != Path::new("/var/lib/apt/lists")
        });
        for file in files {
            if let Ok(metadata) = std::fs::metadata(&file) {
                let line = format!(
                    "{} {} {}.{}",
                    file.display(),
                    metadata.len(),
                    metadata.mtime(),
                    metadata.mtime_nsec()
                );
                digest.field(&line);
            }
        }
    }
    digest.hex()
}

fn ask(package: &str) -> Result<Candidate, PackageError> {
    let mut asked = package.to_owned();
    for _ in 0..DEPTH {
        let record = show(&asked)?;
        match record.next {
            Some(next) => asked = next,
            None if is_kernel(&record.candidate.package) => return Ok(record.candidate),
            None => break,
        }
    }
    Err(PackageError::NoKernel {
        package: package.to_owned(),
    })
}

/// What apt says of a package.
fn show(package: &str) -> Result<Record, PackageError> {
    let unknown = || PackageError::Unknown {
        package: package.to_owned(),
    };
    // `--` keeps a name that begins with a dash from being a flag.
    match command::run("apt-cache", &["show", "--no-all-versions", "--", package], None, LOCAL) {
        Ok(text) => parse_record(&String::from_utf8_lossy(&text)).ok_or_else(unknown),
        Err(CommandError::Failed { .. }) => Err(unknown()),
        Err(source) => Err(PackageError::Tool {
            what: format!("ask apt for {package}"),
            source,
        }),
    }
}

fn newest_source() -> Result<String, PackageError> {
    let pattern = format!("^{SOURCES}[0-9.]+$");
    let text = command::run("apt-cache", &["search", "--names-only", &pattern], None, LOCAL).map_err(|source| {
        PackageError::Tool {
            what: "ask apt for the sources of kernels".into(),
            source,
        }
    })?;
    newest(&String::from_utf8_lossy(&text)).ok_or_else(|| PackageError::Unknown {
        package: format!("{SOURCES}VERSION"),
    })
}

/// The package of the highest version in the output of `apt-cache search`.
fn newest(found: &str) -> Option<String> {
    let names = found.lines().filter_map(|line| line.split_ascii_whitespace().next());
    let version = |name: &str| -> Option<Vec<u32>> {
        let numbers = name.strip_prefix(SOURCES)?.split('.');
        numbers.map(|number| number.parse().ok()).collect()
    };
    let versions = names.filter_map(|name| Some((version(name)?, name)));
    versions.max().map(|(_, name)| name.to_owned())
}

/// Fills apt's lists.
fn update() -> Result<(), PackageError> {
    tracing::info!("apt does not know the kernel package, updating its lists");
    command::run("apt-get", &["update", "-q"], None, REMOTE)
        .map(drop)
        .map_err(|source| PackageError::Tool {
            what: "update apt's package lists".into(),
            source,
        })
}

/// A record of `apt-cache show`.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    candidate: Candidate,
    /// The package to look at in its place, as `NAME` or `NAME=VERSION`: a meta package's kernel.
    next: Option<String>,
}

/// Whether a package holds a kernel: its name carries a version, which a meta package's name does not.
fn is_kernel(package: &str) -> bool {
    ["linux-image-unsigned-", "linux-image-"]
        .iter()
        .find_map(|prefix| package.strip_prefix(prefix))
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// The first record in the output of `apt-cache show`.
fn parse_record(text: &str) -> Option<Record> {
    let record = text.trim_start().split("\n\n").next()?;
    let field = |name: &str| {
        let line = record
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let candidate = Candidate {
        package: field("Package")?,
        version: field("Version")?,
        sha256: field("SHA256")?,
    };
    let next = if is_kernel(&candidate.package) {
        None
    } else {
        kernel_dependency(&field("Depends").unwrap_or_default())
    };
    Some(Record { candidate, next })
}

/// The first kernel, or else the first meta package of one, in a `Depends` field.
fn kernel_dependency(depends: &str) -> Option<String> {
    let alternatives: Vec<(&str, &str)> = depends
        .split([',', '|'])
        .map(|one| one.trim().split_once(' ').unwrap_or((one.trim(), "")))
        .filter(|(name, _)| name.starts_with("linux-image-"))
        .collect();
    let (name, version) = alternatives
        .iter()
        .find(|(name, _)| is_kernel(name))
        .or(alternatives.first())?;
    let exact = version
        .trim()
        .strip_prefix("(=")
        .and_then(|version| version.strip_suffix(')'));
    Some(exact.map_or((*name).to_owned(), |version| format!("{name}={}", version.trim())))
}

/// Downloads the candidate's file into `directory`.
///
/// # Errors
/// See [`PackageError`].
pub fn download(candidate: &Candidate, directory: &Path) -> Result<PathBuf, PackageError> {
    let what = || format!("download {} {}", candidate.package, candidate.version);
    let script = [
        "-q",
        // The user that apt downloads as cannot write to a private directory.
        "-o",
        "APT::Sandbox::User=root",
        "-o",
        "Acquire::Retries=2",
        "-o",
        "Acquire::http::Timeout=60",
        "-o",
        "Acquire::https::Timeout=60",
        "download",
        &format!("{}={}", candidate.package, candidate.version),
    ]
    .map(str::to_owned);
    // apt-get downloads into the working directory and has no flag for another one.
    let arguments = [
        vec!["-C".to_owned(), directory.display().to_string(), "apt-get".to_owned()],
        script.to_vec(),
    ]
    .concat();
    command::run("env", &arguments, None, REMOTE).map_err(|source| PackageError::Tool { what: what(), source })?;
    let unusable = |source| PackageError::File {
        path: directory.to_owned(),
        source,
    };
    let found = std::fs::read_dir(directory)
        .map_err(unusable)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let path = found.ok_or_else(|| unusable(std::io::ErrorKind::NotFound.into()))?;
    let digest = Digest::of_file(&path)?;
    if digest != candidate.sha256 {
        return Err(PackageError::Digest {
            path,
            found: digest,
            promised: candidate.sha256.clone(),
        });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64\nVersion: 6.1.192-2\nArchitecture: amd64\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: Linux for cloud\n Version: not a field\nSHA256: 00be\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.1.176-1\nSHA256: 6f32\n";

    #[test]
    fn a_meta_package_leads_to_its_kernel() {
        let record = parse_record(META).unwrap();
        assert_eq!(record.candidate.version, "6.1.192-2");
        assert_eq!(
            record.next.as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64=6.1.192-2")
        );
    }

    #[test]
    fn a_kernel_package_leads_nowhere() {
        let text = "\nPackage: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nDepends: kmod, linux-base (>= 4.3~)\nSHA256: e7d0\n";
        let expected = Candidate {
            package: "linux-image-6.1.0-56-cloud-amd64".into(),
            version: "6.1.192-2".into(),
            sha256: "e7d0".into(),
        };
        assert_eq!(
            parse_record(text),
            Some(Record {
                candidate: expected,
                next: None
            })
        );
    }

    #[test]
    fn the_kernel_is_found_among_dependencies() {
        for (depends, expected) in [
            ("", None),
            ("kmod, linux-base (>= 4.3~)", None),
            ("linux-image-amd64", Some("linux-image-amd64")),
            (
                "linux-image-generic | linux-image-6.8.0-1-generic, firmware",
                Some("linux-image-6.8.0-1-generic"),
            ),
            (
                "wireless-regdb, linux-image-6.12.9-amd64 (= 6.12.9-1~bpo12+1)",
                Some("linux-image-6.12.9-amd64=6.12.9-1~bpo12+1"),
            ),
            ("linux-image-6.1.0-1-amd64 (>= 6.1)", Some("linux-image-6.1.0-1-amd64")),
        ] {
            assert_eq!(kernel_dependency(depends).as_deref(), expected, "{depends}");
        }
    }

    #[test]
    fn kernels_are_told_from_meta_packages() {
        for (name, expected) in [
            ("linux-image-6.1.0-56-cloud-amd64", true),
            ("linux-image-unsigned-6.8.0-1-generic", true),
            ("linux-image-cloud-amd64", false),
            ("linux-headers-6.1.0-56", false),
        ] {
            assert_eq!(is_kernel(name), expected, "{name}");
        }
    }

    #[test]
    fn the_newest_source_is_the_one_of_the_highest_version() {
        let text = "linux-source-6.1 - Linux kernel source\nlinux-source-6.12 - the same\nlinux-source-6.9 - the same\n\
                    linux-source-rt - none\n";
        assert_eq!(newest(text).as_deref(), Some("linux-source-6.12"));
        assert_eq!(newest("linux-image-6.1 - no source\n"), None);
    }

    #[test]
    fn output_without_a_record_is_none() {
        for text in ["", "N: No packages found\n", "Package: x\nVersion: 1\n"] {
            assert_eq!(parse_record(text), None, "{text:?}");
        }
    }
}
