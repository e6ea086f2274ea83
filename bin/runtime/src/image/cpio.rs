//! Writes the kernel's initramfs format, cpio "newc", so that equal input gives equal bytes.
//!
//! Entries are sorted by path, belong to root, carry no time and are numbered in order. Parent directories are added.
//! It refuses paths that are not plain relative ones, and files that the format's 32 bits cannot count.

use std::collections::BTreeMap;

/// Why an archive cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// A path that is absolute, empty, or climbs.
    #[error("{path:?} cannot be a path in an initramfs")]
    Path {
        /// The path as given.
        path: String,
    },
    /// The same path twice, or a file where a directory must be.
    #[error("{path:?} is in the initramfs twice")]
    Twice {
        /// The path as given.
        path: String,
    },
    /// A file of 4 GiB or more.
    #[error("{path:?} has {bytes} bytes, which is too much for an initramfs")]
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

/// An archive that is being put together.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// The kernel reads headers and data at multiples of this.
const ALIGNMENT: usize = 4;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_CHARACTER: u32 = 0o020_000;

impl Archive {
    /// Adds `entry` at `path`, relative to the root, and the directories above it.
    ///
    /// # Errors
    /// See [`CpioError`].
    pub fn add(&mut self, path: &str, entry: Entry) -> Result<(), CpioError> {
        let bad = path.is_empty()
            || path == TRAILER
            || path.contains('\0')
            || path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if bad {
            return Err(CpioError::Path { path: path.to_owned() });
        }
        if let Entry::File(_, bytes) = &entry
            && u32::try_from(bytes.len()).is_err()
        {
            return Err(CpioError::TooLarge {
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
                return Err(CpioError::Twice {
                    path: path[..end].to_owned(),
                });
            }
        }
        let is_directory = matches!(entry, Entry::Directory(_));
        match self.entries.insert(path.to_owned(), entry) {
            None => Ok(()),
            // A directory that was only implied so far gets its own permission bits.
            Some(Entry::Directory(_)) if is_directory => Ok(()),
            Some(_) => Err(CpioError::Twice { path: path.to_owned() }),
        }
    }

    /// The archive's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        // Inode numbers only tell files from one another; the path's place in the order is stable.
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            let (mode, links, device, data): (u32, u32, (u32, u32), &[u8]) = match entry {
                Entry::Directory(mode) => (TYPE_DIRECTORY | mode, 2, (0, 0), &[]),
                Entry::File(mode, bytes) => (TYPE_FILE | mode, 1, (0, 0), bytes),
                Entry::CharacterDevice(mode, major, minor) => (TYPE_CHARACTER | mode, 1, (*major, *minor), &[]),
            };
            write_entry(&mut out, path, inode, mode, links, device, data);
        }
        write_entry(&mut out, TRAILER, 0, 0, 1, (0, 0), &[]);
        out
    }
}

fn write_entry(out: &mut Vec<u8>, path: &str, inode: u32, mode: u32, links: u32, device: (u32, u32), data: &[u8]) {
    // `add` has refused what does not fit into 32 bits.
    let size = data.len() as u32;
    let name_size = path.len() as u32 + 1;
    let (user, group, time, on_major, on_minor, checksum) = (0, 0, 0, 0, 0, 0);
    let fields = [
        inode, mode, user, group, links, time, size, on_major, on_minor, device.0, device.1, name_size, checksum,
    ];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(data);
    align(out);
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("init", Entry::File(0o755, b"#!".to_vec())).unwrap();
        archive.add("dev/console", Entry::CharacterDevice(0o600, 5, 1)).unwrap();
        archive
    }

    #[test]
    fn the_bytes_are_exactly_these() {
        let expected = concat!(
            "070701",
            "00000001",
            "000041ed",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "dev\0",
            "\0\0",
            "070701",
            "00000002",
            "00002180",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000001",
            "0000000c",
            "00000000",
            "dev/console\0",
            "\0\0",
            "070701",
            "00000003",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0",
            "\0",
            "#!\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        );
        assert_eq!(String::from_utf8(sample().into_bytes()).unwrap(), expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut other = Archive::default();
        other.add("dev/console", Entry::CharacterDevice(0o600, 5, 1)).unwrap();
        other.add("init", Entry::File(0o755, b"#!".to_vec())).unwrap();
        assert_eq!(other.into_bytes(), sample().into_bytes());
    }

    #[test]
    fn wrong_paths_and_doubles_are_refused() {
        for path in ["", "/init", "a//b", "a/../b", "./a", "a/", "TRAILER!!!", "a\0b"] {
            let refusal = Archive::default().add(path, Entry::Directory(0o755));
            assert_eq!(refusal, Err(CpioError::Path { path: path.into() }), "{path:?}");
        }
        let mut archive = sample();
        assert!(matches!(
            archive.add("init", Entry::File(0, vec![])),
            Err(CpioError::Twice { .. })
        ));
        assert!(matches!(
            archive.add("init/x", Entry::File(0, vec![])),
            Err(CpioError::Twice { .. })
        ));
        assert!(matches!(
            archive.add("dev", Entry::File(0, vec![])),
            Err(CpioError::Twice { .. })
        ));
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let Ok(listing) = crate::command::run(
            "cpio",
            &["-t", "--quiet"],
            Some(&sample().into_bytes()),
            Duration::from_secs(20),
        ) else {
            return; // no cpio on this host: the golden test stands alone
        };
        assert_eq!(String::from_utf8(listing).unwrap(), "dev\ndev/console\ninit\n");
    }

    proptest! {
        #[test]
        fn parents_come_before_children_and_everything_is_aligned(paths in prop::collection::btree_set("[a-z]{1,3}(/[a-z]{1,3}){0,3}", 1..20)) {
            let mut archive = Archive::default();
            for path in &paths {
                // A path may be a parent of another one: directories do not clash.
                prop_assert!(archive.add(path, Entry::Directory(0o700)).is_ok());
            }
            let order: Vec<String> = archive.entries.keys().cloned().collect();
            for (place, path) in order.iter().enumerate() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert!(order.iter().position(|other| other == parent).is_some_and(|at| at < place));
                }
            }
            prop_assert_eq!(archive.into_bytes().len() % ALIGNMENT, 0);
        }
    }
}
