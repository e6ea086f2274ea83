//! Which QEMU this is.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kata_sys::process::PidFd;

/// Longest wait; QEMU takes some 20 ms.
const LIMIT: Duration = Duration::from_secs(10);

/// The most that is read of what it says, bytes.
const OUTPUT_LIMIT: u64 = 4096;

/// Why there is no version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It cannot be run.
    #[error("cannot run {} --version", vmm.display())]
    Run {
        /// Its path.
        vmm: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It said something else.
    #[error("{} --version did not answer like QEMU, but {said:?}", vmm.display())]
    Other {
        /// Its path.
        vmm: PathBuf,
        /// Its first line.
        said: String,
    },
    /// It did not end.
    #[error("{} --version took longer than {limit:?}", vmm.display())]
    Silent {
        /// Its path.
        vmm: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
}

/// Asks the program; blocks for some 20 ms, at most 10 s. The answer is like `10.0.2 (Debian 1:10.0.2+ds-2)`.
///
/// # Errors
/// See [`VersionError`].
pub fn version(vmm: &Path) -> Result<String, VersionError> {
    let failed = |source| VersionError::Run {
        vmm: vmm.into(),
        source,
    };
    let mut child = Command::new(vmm)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let in_time = PidFd::open(child.id()).and_then(|handle| handle.wait(LIMIT));
    // No matter if it has ended.
    let _ = child.kill();
    let _ = child.wait();
    if !in_time.map_err(failed)? {
        return Err(VersionError::Silent {
            vmm: vmm.into(),
            limit: LIMIT,
        });
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        read_what_is_there(stdout, &mut said).map_err(failed)?;
    }
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().unwrap_or_default();
    match line.strip_prefix("QEMU emulator version ") {
        Some(version) if !version.is_empty() => Ok(version.to_owned()),
        _ => Err(VersionError::Other {
            vmm: vmm.into(),
            said: line.to_owned(),
        }),
    }
}

/// A child of the dead process may still hold the pipe: only what is in it is read.
fn read_what_is_there(stdout: std::process::ChildStdout, into: &mut Vec<u8>) -> io::Result<()> {
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&stdout, flags)?;
    match stdout.take(OUTPUT_LIMIT).read_to_end(into) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
