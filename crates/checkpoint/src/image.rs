//! What of a process is written down, and the file that it is in.
//!
//! The file begins with its head (a mark, the length of a description, the description as JSON); from the next page on are the
//! pages, so that they can be mapped.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::area::{Area, PAGE};
use crate::error::CheckpointError;

/// How the file begins.
const MARK: &[u8; 8] = b"KATAIMG1";

/// No description is longer, bytes.
const LONGEST: u64 = 16 << 20;

/// A process, but for its pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its address space, in order.
    pub areas: Vec<Area>,
    /// Its threads; the first is the one that the process began with.
    pub threads: Vec<Thread>,
    /// What it has open, in order of the numbers.
    pub descriptors: Vec<Descriptor>,
    /// What it does about signals.
    pub(crate) actions: Vec<Action>,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id in the process that was written down.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// General registers, with which it goes on.
    pub(crate) registers: Vec<u64>,
    /// The processor's other state.
    pub(crate) state: Vec<u8>,
    pub(crate) blocked: u64,
    /// Where the C library keeps its id.
    pub(crate) id_kept_at: u64,
    /// Address and size.
    pub(crate) robust_list: (u64, u64),
    /// Address, size, signature.
    pub(crate) sequences: Option<(u64, u32, u32)>,
}

/// What is done about a signal: `struct sigaction` as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Action {
    pub(crate) signal: i32,
    pub(crate) words: [u64; 4],
}

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub number: RawFd,
    /// What it is.
    pub kind: Kind,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// eventfd(2).
    Event {
        /// What it stands at.
        count: u64,
        /// Whether it does not block.
        nonblocking: bool,
    },
    /// signalfd(2).
    Signals {
        /// Which, a bit each.
        mask: u64,
        /// Whether it does not block.
        nonblocking: bool,
    },
    /// A file that can be opened by its name.
    File {
        /// Its path.
        path: PathBuf,
        /// As for open(2).
        flags: i32,
    },
    /// A directory that can be opened by its name.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// The file whose contents are not in the image.
    Outside,
    /// A socket.
    Socket {
        /// The name that it is bound to, if it is.
        own: Option<PathBuf>,
        /// That of the other end, if it is connected to one.
        peer: Option<PathBuf>,
        /// Whether it takes connections.
        listens: bool,
        /// Whether it does not block.
        nonblocking: bool,
    },
    /// Something else, by the link in `/proc`.
    Other {
        /// Where it points.
        link: String,
    },
}

impl Image {
    /// Writes the description into a new file; answers where the pages begin.
    pub(crate) fn write(&self, file: &File) -> Result<u64, CheckpointError> {
        let description = serde_json::to_vec(self).map_err(|error| CheckpointError::Damaged {
            reason: error.to_string(),
        })?;
        let mut head = MARK.to_vec();
        head.extend((description.len() as u64).to_le_bytes());
        head.extend(description);
        file.write_all_at(&head, 0)
            .map_err(CheckpointError::kernel("write an image"))?;
        Ok((head.len() as u64).next_multiple_of(PAGE))
    }

    /// Whether this is the beginning of an image.
    ///
    /// # Errors
    /// [`CheckpointError::Kernel`]
    pub fn is_in(file: &File) -> Result<bool, CheckpointError> {
        let mut mark = [0; MARK.len()];
        let count = file
            .read_at(&mut mark, 0)
            .map_err(CheckpointError::kernel("read an image"))?;
        Ok(&mark[..count] == MARK)
    }

    /// Reads a description; answers with it where the pages begin.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] for anything that is no image, [`CheckpointError::Kernel`].
    pub fn read(file: &File) -> Result<(Self, u64), CheckpointError> {
        let damaged = |reason: &str| CheckpointError::Damaged { reason: reason.into() };
        let mut head = [0; 16];
        let failed = CheckpointError::kernel("read an image");
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        if &head[..8] != MARK {
            return Err(damaged("it begins otherwise"));
        }
        let length = u64::from_le_bytes(head[8..].try_into().unwrap_or_default());
        if length > LONGEST {
            return Err(damaged("its description is too long"));
        }
        let mut description = vec![0; usize::try_from(length).unwrap_or_default()];
        let failed = CheckpointError::kernel("read an image's description");
        file.read_exact_at(&mut description, 16).map_err(failed)?;
        let image: Self = serde_json::from_slice(&description).map_err(|error| damaged(&error.to_string()))?;
        Ok((image, (16 + length).next_multiple_of(PAGE)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_no_image_is_told() {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(bytes).expect("written");
            file
        };
        let image = Image {
            areas: Vec::new(),
            threads: Vec::new(),
            descriptors: Vec::new(),
            actions: Vec::new(),
        };
        let whole = file(b"");
        assert_eq!(image.write(&whole).expect("written"), PAGE);
        assert!(Image::is_in(&whole).expect("read"));
        assert_eq!(Image::read(&whole).expect("an image"), (image, PAGE));

        let long = [MARK.as_slice(), &u64::MAX.to_le_bytes()].concat();
        let garbled = [MARK.as_slice(), &4_u64.to_le_bytes(), b"[1,}"].concat();
        for (bytes, said) in [
            (b"QEVM and what follows".as_slice(), "it begins otherwise"),
            (&long, "its description is too long"),
            (&garbled, "expected a sequence"),
        ] {
            let error = Image::read(&file(bytes)).expect_err("no image").to_string();
            assert!(error.contains(said), "{error}");
        }
        for short in [b"".as_slice(), MARK, &garbled[..18]] {
            assert!(
                matches!(Image::read(&file(short)), Err(CheckpointError::Kernel { .. })),
                "{short:?}"
            );
        }
        assert!(!Image::is_in(&file(b"QEVM")).expect("read"));
    }
}
