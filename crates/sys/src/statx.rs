//! A look at a file past what the kernel remembers of it (`statx`).

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Lets the kernel ask the server of a remote file system what the file at `path` is like now. What it had remembered of
/// the file's size and content is given up where it differs. A link at the end is not followed. On a local file system
/// nothing happens.
///
/// # Errors
/// What `statx` failed with, as `NotFound`.
pub fn refresh(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::AT_STATX_FORCE_SYNC | libc::AT_SYMLINK_NOFOLLOW;
    let mut answer = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: the path is a terminated string and the answer is room for one, both live through the call; nobody reads the
    // answer.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            libc::STATX_BASIC_STATS,
            answer.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_looked_at_and_what_is_not_is_told() {
        refresh(Path::new("/proc/self/status")).expect("a file");
        let missing = refresh(Path::new("/proc/self/is-not-there")).expect_err("no file");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(refresh(Path::new("zero\0byte")).is_err());
    }
}
