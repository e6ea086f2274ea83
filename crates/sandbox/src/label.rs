//! The SELinux label of a program that this thread starts next, on hosts that have SELinux: a container's label means
//! something there for its VMM, and nothing in a guest.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// Where the kernel is told.
const NEXT: &str = "/proc/thread-self/attr/exec";

/// As long as it lives, programs started by this thread get the label.
pub(crate) struct NextLabel(File);

impl NextLabel {
    /// # Errors
    /// What the kernel says; `EINVAL` for a label that its policy does not know.
    pub fn set(label: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).open(NEXT)?;
        file.write_all(label.as_bytes())?;
        Ok(Self(file))
    }
}

impl Drop for NextLabel {
    fn drop(&mut self) {
        // Nothing, written, is no label; `Write` would not write nothing.
        if let Err(errno) = nix::unistd::write(&self.0, &[]) {
            tracing::warn!(%errno, "the next program may have the label of the VMM");
        }
    }
}
