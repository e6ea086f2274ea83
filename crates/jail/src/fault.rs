//! What goes wrong while a process is prepared, in the words that are sent to whoever asked for it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a process could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A system call on a path failed.
    #[error("{act} {}: {}", path.display(), reason(source))]
    Path {
        /// What was done.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What it failed with.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{act}: {}", reason(source))]
    Call {
        /// What was done.
        act: &'static str,
        /// What it failed with.
        source: io::Error,
    },
    /// A value of the spec is not possible.
    #[error("{what}: {value:?} {expected}")]
    Value {
        /// Name of the member.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The program to execute was not found.
    #[error(transparent)]
    Lookup(#[from] crate::lookup::LookupError),
}

/// An error in the C library's words and case, without Rust's number behind it.
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| errno_text(nix::errno::Errno::from_raw(number)),
    )
}

/// What the C library says, as Go programs print it: engines match on these words.
pub(crate) fn errno_text(errno: nix::errno::Errno) -> String {
    errno.desc().to_lowercase()
}

/// Names what was done where an outcome is only an error number.
pub(crate) trait Naming<T> {
    /// For calls on a path.
    fn on(self, act: &'static str, path: impl AsRef<Path>) -> Result<T, Fault>;
    /// For calls on nothing in particular.
    fn when(self, act: &'static str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Naming<T> for Result<T, E> {
    fn on(self, act: &'static str, path: impl AsRef<Path>) -> Result<T, Fault> {
        self.map_err(|error| Fault::Path {
            act,
            path: path.as_ref().to_owned(),
            source: error.into(),
        })
    }

    fn when(self, act: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Call {
            act,
            source: error.into(),
        })
    }
}
