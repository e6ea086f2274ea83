//! The source of a kernel that is to be compiled: the distribution's package of it, a tarball, or a directory.
//!
//! It is known by the digest of its content before anything is unpacked. It refuses archives that hold anything else
//! than one directory; a directory is only read, never built in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::command;
use crate::image::deb;
use crate::image::digest::Digest;
use crate::image::package::{self, Candidate};
use crate::image::store::Store;

/// Time to unpack a kernel's source on a slow machine.
const UNPACKING: Duration = Duration::from_secs(1800);
/// How deep directories may lie in one another.
const DEPTH: usize = 64;

/// Which source is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest that apt has.
    Newest,
    /// A package, `linux-source-X.Y`.
    Package(String),
    /// An archive.
    Tarball(PathBuf),
    /// A tree.
    Directory(PathBuf),
}

/// A source that was found.
#[derive(Debug)]
pub struct Source {
    /// What it is, without any path.
    pub name: String,
    /// Digest of its content.
    pub sha256: String,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Package(Candidate),
    Tarball(PathBuf),
    Directory(PathBuf),
}

impl Wanted {
    /// What a word of the command line means: nothing, something that exists, or else a package's name.
    pub fn parse(word: &str) -> Self {
        let path = Path::new(word);
        if word.is_empty() {
            Self::Newest
        } else if path.is_dir() {
            Self::Directory(path.to_owned())
        } else if word.contains('/') || path.is_file() {
            Self::Tarball(path.to_owned())
        } else {
            Self::Package(word.to_owned())
        }
    }

    /// Finds out what it is at this moment.
    ///
    /// # Errors
    /// When apt does not know the package, or a file cannot be read.
    pub fn find(&self, store: &Store) -> anyhow::Result<Source> {
        match self {
            Self::Newest => find_package(None, store),
            Self::Package(name) => find_package(Some(name), store),
            Self::Tarball(path) => Ok(Source {
                name: "a tarball".into(),
                sha256: Digest::of_file(path)?,
                origin: Origin::Tarball(path.clone()),
            }),
            Self::Directory(path) => {
                let tree = std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
                Ok(Source {
                    name: "a directory".into(),
                    sha256: digest_of_tree(&tree)?,
                    origin: Origin::Directory(tree),
                })
            }
        }
    }
}

fn find_package(name: Option<&str>, store: &Store) -> anyhow::Result<Source> {
    let candidate = package::resolve_source(name, &store.apt_memory())?;
    Ok(Source {
        name: format!("{} {}", candidate.package, candidate.version),
        sha256: candidate.sha256.clone(),
        origin: Origin::Package(candidate),
    })
}

impl Source {
    /// The source tree: its own, or unpacked into `place`.
    ///
    /// # Errors
    /// When a download or an archive fails, or holds no kernel.
    pub fn lay_out(&self, place: &Path) -> anyhow::Result<PathBuf> {
        let tree = match &self.origin {
            Origin::Directory(tree) => tree.clone(),
            Origin::Tarball(path) => unpack(path, place)?,
            Origin::Package(candidate) => {
                tracing::info!("downloading {} {}", candidate.package, candidate.version);
                let download = tempfile::tempdir_in(place).context("cannot make a directory for the download")?;
                let deb = package::download(candidate, download.path())?;
                unpack(&deb::unpack_source(&deb, download.path())?, place)?
            }
        };
        for file in ["Makefile", "Kconfig"] {
            if !tree.join(file).is_file() {
                bail!("{} is not the source of a kernel: it has no {file}", self.name);
            }
        }
        Ok(tree)
    }
}

/// The one directory that an archive holds.
fn unpack(archive: &Path, place: &Path) -> anyhow::Result<PathBuf> {
    tracing::info!("unpacking {}", archive.display());
    let into = place.join("source");
    std::fs::create_dir(&into).with_context(|| format!("cannot make {}", into.display()))?;
    let arguments = [
        Path::new("--no-same-owner"),
        Path::new("-xf"),
        archive,
        Path::new("-C"),
        &into,
    ];
    command::run("tar", &arguments, None, UNPACKING).with_context(|| format!("cannot unpack {}", archive.display()))?;
    let entries = std::fs::read_dir(&into).with_context(|| format!("cannot list {}", into.display()))?;
    let found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match found.as_slice() {
        [one] if one.is_dir() => Ok(one.clone()),
        _ => bail!("{} does not hold one directory and nothing else", archive.display()),
    }
}

/// Digest of names and contents of all files, links included; version control's own directory does not count.
fn digest_of_tree(root: &Path) -> anyhow::Result<String> {
    let mut digest = Digest::new();
    add_directory(root, Path::new(""), DEPTH, &mut digest)?;
    Ok(digest.hex())
}

fn add_directory(root: &Path, inside: &Path, depth: usize, digest: &mut Digest) -> anyhow::Result<()> {
    let directory = root.join(inside);
    let Some(depth) = depth.checked_sub(1) else {
        bail!("{} lies too deep", directory.display());
    };
    let unreadable = || format!("cannot read {}", directory.display());
    let mut entries = std::fs::read_dir(&directory)
        .with_context(unreadable)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(unreadable)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let inside = inside.join(entry.file_name());
        let kind = entry.file_type().with_context(unreadable)?;
        if kind.is_dir() {
            if entry.file_name() != ".git" {
                add_directory(root, &inside, depth, digest)?;
            }
            continue;
        }
        let content = if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).with_context(unreadable)?;
            format!("to {}", target.display())
        } else {
            Digest::of_file(&entry.path())?
        };
        digest.field(&inside.to_string_lossy()).field(&content);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let place = tempfile::tempdir().unwrap();
        let store = Store::at(&place.path().join("cache"));
        (place, store)
    }

    #[test]
    fn words_mean_what_exists_or_a_package() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().to_str().unwrap();
        assert_eq!(Wanted::parse(""), Wanted::Newest);
        assert_eq!(Wanted::parse(directory), Wanted::Directory(directory.into()));
        assert_eq!(Wanted::parse("/no/linux.tar"), Wanted::Tarball("/no/linux.tar".into()));
        let package = "linux-source-6.12";
        assert_eq!(Wanted::parse(package), Wanted::Package(package.into()));
    }

    #[test]
    fn a_tree_is_known_by_its_content_alone() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for place in [&one, &two] {
            tree(place.path(), &[("Makefile", "all:"), ("a/Kconfig", "config A")]);
        }
        let digest = |place: &tempfile::TempDir| digest_of_tree(place.path()).unwrap();
        tree(two.path(), &[(".git/HEAD", "main")]);
        assert_eq!(digest(&one), digest(&two));

        tree(two.path(), &[("a/Kconfig", "config B")]);
        assert_ne!(digest(&one), digest(&two));
    }

    #[test]
    fn an_archive_is_one_directory_with_a_kernel_in_it() {
        let (place, store) = store();
        let at = place.path();
        tree(at, &[("good/linux-1/Makefile", ""), ("good/linux-1/Kconfig", "")]);
        tree(
            at,
            &[("two/a/Makefile", ""), ("two/b/Makefile", ""), ("other/x/README", "")],
        );
        for (name, expected) in [
            ("good", None),
            ("two", Some("does not hold one directory")),
            (
                "other",
                Some("a tarball is not the source of a kernel: it has no Makefile"),
            ),
        ] {
            let archive = at.join(format!("{name}.tar"));
            let arguments = [
                Path::new("-cf"),
                &archive,
                Path::new("-C"),
                &at.join(name),
                Path::new("."),
            ];
            // Made as `./linux-1/…`, which is the same directory.
            command::run("tar", &arguments, None, UNPACKING).unwrap();
            let out = tempfile::tempdir().unwrap();
            let source = Wanted::Tarball(archive).find(&store).unwrap();
            let laid = source.lay_out(out.path());
            match expected {
                None => assert!(laid.unwrap().ends_with("source/linux-1")),
                Some(part) => {
                    let message = laid.unwrap_err().to_string();
                    assert!(message.contains(part), "{name}: {message}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let (_place, store) = store();
        let error = Wanted::Tarball("/no/linux.tar".into()).find(&store).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/linux.tar");
    }
}
