//! Files for a guest, before they are written in one format or another.
//!
//! Entries are sorted by path, so that the order of adding does not show; parent directories are added. It refuses paths
//! that are not plain relative ones, and files that the formats' 32 bits cannot count.

use std::collections::BTreeMap;

/// Why something cannot be among a guest's files.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A path that is absolute, empty, or climbs.
    #[error("{path:?} cannot be a path in the guest's files")]
    Path {
        /// The path as given.
        path: String,
    },
    /// The same path twice, or a file where a directory must be.
    #[error("{path:?} is among the guest's files twice")]
    Twice {
        /// The path as given.
        path: String,
    },
    /// A file of 4 GiB or more.
    #[error("{path:?} has {bytes} bytes, which is too much for a guest's file")]
    TooLarge {
        /// The path as given.
        path: String,
        /// Its size.
        bytes: usize,
    },
}

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory with these permission bits.
    Directory(u32),
    /// A regular file with these permission bits.
    File(u32, Vec<u8>),
    /// A character device with these permission bits, major and minor number.
    CharacterDevice(u32, u32, u32),
}

/// Files that are being put together.
#[derive(Debug, Default)]
pub struct Content {
    entries: BTreeMap<String, Entry>,
}

/// How a cpio archive ends: a name that no file can have.
pub(super) const TRAILER: &str = "TRAILER!!!";

impl Content {
    /// Adds `entry` at `path`, relative to the root, and the directories above it.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub fn add(&mut self, path: &str, entry: Entry) -> Result<(), ContentError> {
        let bad = path.is_empty()
            || path == TRAILER
            || path.contains('\0')
            || path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if bad {
            return Err(ContentError::Path { path: path.to_owned() });
        }
        if let Entry::File(_, bytes) = &entry
            && u32::try_from(bytes.len()).is_err()
        {
            return Err(ContentError::TooLarge {
                path: path.to_owned(),
                bytes: bytes.len(),
            });
        }
        for (end, _) in path.match_indices('/') {
            let parent = self
                .entries
                .entry(path[..end].to_owned())
                .or_insert(Entry::Directory(0o755));
            if !matches!(parent, Entry::Directory(_)) {
                return Err(ContentError::Twice {
                    path: path[..end].to_owned(),
                });
            }
        }
        let is_directory = matches!(entry, Entry::Directory(_));
        match self.entries.insert(path.to_owned(), entry) {
            None => Ok(()),
            // A directory that was only implied so far gets its own permission bits.
            Some(Entry::Directory(_)) if is_directory => Ok(()),
            Some(_) => Err(ContentError::Twice { path: path.to_owned() }),
        }
    }

    /// All entries, parents before their children, in the order of their paths' bytes.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An init and a console.
    pub fn sample() -> Content {
        let mut content = Content::default();
        content.add("init", Entry::File(0o755, b"#!".to_vec())).unwrap();
        content.add("dev/console", Entry::CharacterDevice(0o600, 5, 1)).unwrap();
        content
    }

    #[test]
    fn wrong_paths_and_doubles_are_refused() {
        for path in ["", "/init", "a//b", "a/../b", "./a", "a/", "TRAILER!!!", "a\0b"] {
            let refusal = Content::default().add(path, Entry::Directory(0o755));
            assert_eq!(refusal, Err(ContentError::Path { path: path.into() }), "{path:?}");
        }
        for path in ["init", "init/x", "dev"] {
            let refusal = sample().add(path, Entry::File(0, vec![]));
            assert!(matches!(refusal, Err(ContentError::Twice { .. })), "{path:?}");
        }
    }

    #[test]
    fn a_directory_that_was_only_implied_gets_its_own_mode() {
        let mut content = sample();
        content.add("dev", Entry::Directory(0o700)).unwrap();
        assert_eq!(content.entries()["dev"], Entry::Directory(0o700));
    }

    proptest! {
        #[test]
        fn parents_come_before_children(paths in prop::collection::btree_set("[a-z]{1,3}(/[a-z]{1,3}){0,3}", 1..20)) {
            let mut content = Content::default();
            for path in &paths {
                // A path may be a parent of another one: directories do not clash.
                prop_assert!(content.add(path, Entry::Directory(0o700)).is_ok());
            }
            let order: Vec<&String> = content.entries().keys().collect();
            for (place, path) in order.iter().enumerate() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert!(order.iter().position(|other| *other == parent).is_some_and(|at| at < place));
                }
            }
        }
    }
}
