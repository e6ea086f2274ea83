//! What a template is made of.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a template is made of. Another kernel, agent, VMM, configuration or build is another recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The program that made it.
    build: String,
    /// The machine, in the words of its driver.
    machine: Vec<String>,
    /// The files that went into it.
    files: Vec<Ingredient>,
}

/// A file as it was. Its content is not read (the kernel alone has 50 MB, and every start asks): whoever changes that changes
/// the times, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ingredient {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of the last change of the content, then of the inode.
    changed: [i64; 4],
}

impl Ingredient {
    fn of(path: &Path) -> io::Result<Self> {
        let data = std::fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: data.dev(),
            inode: data.ino(),
            bytes: data.size(),
            changed: [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()],
        })
    }
}

impl Recipe {
    /// The recipe of a machine that its driver describes by `machine`, made of `files` as they are now, by `build`.
    ///
    /// # Errors
    /// What looking at a file failed with, and at which.
    pub fn new(build: &str, machine: Vec<String>, files: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let looked = files
            .iter()
            .map(|path| Ingredient::of(path).map_err(|error| (path.clone(), error)));
        Ok(Self {
            build: build.to_owned(),
            machine,
            files: looked.collect::<Result<_, _>>()?,
        })
    }

    /// Whether all its files are still what they were.
    pub fn is_current(&self) -> bool {
        let same = |file: &Ingredient| Ingredient::of(&file.path).is_ok_and(|now| now == *file);
        self.files.iter().all(same)
    }

    /// A name that no other recipe has.
    pub fn name(&self) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &[u8]| {
            digest.update(text.len().to_le_bytes());
            digest.update(text);
        };
        add(self.build.as_bytes());
        for word in &self.machine {
            add(word.as_bytes());
        }
        for file in &self.files {
            add(file.path.as_os_str().as_encoded_bytes());
            for number in [file.device, file.inode, file.bytes] {
                add(&number.to_le_bytes());
            }
            for number in file.changed {
                add(&number.to_le_bytes());
            }
        }
        let mut name = format!("{:x}", digest.finalize());
        name.truncate(NAME_DIGITS);
        name
    }
}

/// Hexadecimal digits of the digest that are in a name.
const NAME_DIGITS: usize = 16;

/// Whether [`Recipe::name`] could have answered this.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() == NAME_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ingredient_is_in_the_name() {
        let place = tempfile::tempdir().expect("temporary directory");
        let kernel = place.path().join("kernel");
        std::fs::write(&kernel, "one").expect("kernel");
        let recipe = |build: &str, machine: &[&str]| {
            let machine = machine.iter().map(|&word| word.to_owned()).collect();
            Recipe::new(build, machine, std::slice::from_ref(&kernel)).expect("it is there")
        };
        let first = recipe("1", &["qemu", "-m", "256M"]);
        assert!(is_name(&first.name()), "{}", first.name());
        assert_eq!(first.name(), recipe("1", &["qemu", "-m", "256M"]).name());
        for other in [
            recipe("2", &["qemu", "-m", "256M"]),
            recipe("1", &["qemu", "-m", "512M"]),
            recipe("1", &["qemu", "-m256M"]),
            recipe("1", &["qemu", "-m", "256M", ""]),
        ] {
            assert_ne!(first.name(), other.name(), "{other:?}");
        }
        assert!(first.is_current());
        std::fs::write(&kernel, "two").expect("another kernel of the same length");
        assert!(!first.is_current());
        assert_ne!(first.name(), recipe("1", &["qemu", "-m", "256M"]).name());
        std::fs::remove_file(&kernel).expect("remove");
        assert!(!first.is_current());
        let (missing, _) = Recipe::new("1", vec![], std::slice::from_ref(&kernel)).expect_err("gone");
        assert_eq!(missing, kernel);
    }

    #[test]
    fn other_names() {
        for text in [
            "",
            ".new",
            "0123456789abcde",
            "0123456789ABCDEF",
            "0123456789abcdef0",
            "../../../../etc/x",
        ] {
            assert!(!is_name(text), "{text}");
        }
    }
}
