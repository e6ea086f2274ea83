//! Takes the file of a package apart, without installing it: no script of it is run.
//!
//! It refuses packages that do not hold what they are wanted for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command;
use crate::image::package::{PackageError, SOURCES};

/// Time to unpack the largest of them on a slow machine.
const LIMIT: Duration = Duration::from_secs(900);

/// A package's files that matter.
#[derive(Debug)]
pub struct Unpacked {
    /// The kernel image.
    pub image: PathBuf,
    /// The module tree, `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Unpacks the package `deb` into `directory`; its scripts are not run and nothing is installed.
///
/// # Errors
/// See [`PackageError`].
pub fn unpack(deb: &Path, directory: &Path) -> Result<Unpacked, PackageError> {
    extract(deb, directory)?;
    let only = |place: &str, prefix: &str, what: &str| {
        // Where /usr is merged the modules may lie below it.
        let found: Vec<PathBuf> = [place.to_owned(), format!("usr/{place}")]
            .iter()
            .filter_map(|place| std::fs::read_dir(directory.join(place)).ok())
            .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            })
            .collect();
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(PackageError::Content {
                what: format!("there is no {what}"),
                path: deb.to_owned(),
            }),
            _ => Err(PackageError::Content {
                what: format!("there is more than one {what}"),
                path: deb.to_owned(),
            }),
        }
    };
    Ok(Unpacked {
        image: only("boot", "vmlinuz", "kernel (boot/vmlinuz-*)")?,
        modules: only("lib/modules", "", "module tree (lib/modules/*)")?,
    })
}

/// Unpacks the package `deb` into `directory`; answers the archive in it that is a kernel's source.
///
/// # Errors
/// See [`PackageError`].
pub fn unpack_source(deb: &Path, directory: &Path) -> Result<PathBuf, PackageError> {
    extract(deb, directory)?;
    let place = directory.join("usr/src");
    let is_source = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(SOURCES) && name.contains(".tar")
    };
    let entries = std::fs::read_dir(place).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_source)
        .ok_or_else(|| PackageError::Content {
            what: format!("there is no source of a kernel (usr/src/{SOURCES}*.tar*)"),
            path: deb.to_owned(),
        })
}

fn extract(deb: &Path, directory: &Path) -> Result<(), PackageError> {
    command::run("dpkg-deb", &[Path::new("-x"), deb, directory], None, LIMIT)
        .map(drop)
        .map_err(|source| PackageError::Tool {
            what: format!("unpack {}", deb.display()),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::CommandError;

    #[test]
    fn a_package_without_a_kernel_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (tree, deb, out) = (
            place.path().join("tree"),
            place.path().join("x.deb"),
            place.path().join("out"),
        );
        std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n";
        std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let built = command::run("dpkg-deb", &[Path::new("-b"), &tree, &deb], None, LIMIT);
        if matches!(built, Err(CommandError::Start { .. })) {
            return; // not a Debian host
        }
        built.unwrap();
        let message = unpack(&deb, &out).unwrap_err().to_string();
        assert!(
            message.starts_with("there is no kernel (boot/vmlinuz-*) in "),
            "{message}"
        );
    }
}
