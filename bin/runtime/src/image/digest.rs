//! SHA-256 of files, bytes, and lists of fields that together name an input.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

/// A file that cannot be hashed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct DigestError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    source: std::io::Error,
}

/// A digest in the making.
pub struct Digest(sha2::Sha256);

impl Digest {
    /// Of nothing so far.
    pub fn new() -> Self {
        Self(sha2::Sha256::new())
    }

    /// Adds a field. Its length goes in first, so that no two lists of fields look alike.
    pub fn field(&mut self, value: &str) -> &mut Self {
        self.0.update((value.len() as u64).to_le_bytes());
        self.0.update(value.as_bytes());
        self
    }

    /// The digest in lower-case hexadecimal.
    pub fn hex(self) -> String {
        format!("{:x}", self.0.finalize())
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> String {
        Self(sha2::Sha256::new_with_prefix(bytes)).hex()
    }

    /// The digest of a file's content.
    ///
    /// # Errors
    /// [`DigestError`] when it cannot be read.
    pub fn of_file(path: &Path) -> Result<String, DigestError> {
        let failed = |source| DigestError {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let mut hasher = sha2::Sha256::new();
        let mut block = vec![0; 1 << 18];
        loop {
            match file.read(&mut block).map_err(failed)? {
                0 => return Ok(Self(hasher).hex()),
                length => hasher.update(&block[..length]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc"), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        assert_eq!(Digest::of_file(file.path()).unwrap(), expected);
    }

    #[test]
    fn fields_do_not_run_together() {
        let of = |fields: &[&str]| {
            let mut digest = Digest::new();
            for field in fields {
                digest.field(field);
            }
            digest.hex()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["abc"]), of(&["abc", ""]));
    }
}
