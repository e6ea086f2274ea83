//! Why pages cannot be merged, or not by us.

use std::io;
use std::path::{Path, PathBuf};

/// Why pages cannot be merged, or not by us.
#[derive(Debug, thiserror::Error)]
pub enum KsmError {
    /// The kernel was built without.
    #[error("the kernel cannot merge pages (no {}; it needs CONFIG_KSM)", path.display())]
    Unknown {
        /// Where the kernel's settings would be.
        path: PathBuf,
    },
    /// There is one already.
    #[error("another throttler runs (it has the lock on {})", path.display())]
    Taken {
        /// The directory of throttlers.
        path: PathBuf,
    },
    /// The host failed.
    #[error("cannot {act} {}", path.display())]
    Host {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel says what we do not understand.
    #[error("{} says {text:?}, where {expected} was expected", path.display())]
    Strange {
        /// Which file.
        path: PathBuf,
        /// What is in it.
        text: String,
        /// What should be.
        expected: &'static str,
    },
}

pub(crate) fn host(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KsmError {
    let path = path.to_owned();
    move |source| KsmError::Host { act, path, source }
}
