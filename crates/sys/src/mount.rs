//! Mounts by descriptor: take a copy of a tree, change it while nobody sees it, put it in its place.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A copy of a mount that is not attached anywhere yet. Dropping it unmounts it.
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

const EMPTY: &CStr = c"";

impl DetachedMount {
    /// Copies what is mounted at `path` (`open_tree(2)`, Linux 5.2), with `recursive` the mounts below it too.
    ///
    /// # Errors
    /// What the call failed with.
    pub fn clone_from(path: &Path, recursive: bool) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= libc::AT_RECURSIVE as libc::c_uint;
        }
        // SAFETY: the path is a terminated string that lives through the call, which only reads it.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Separates the copy from its original: mounts made below either do not appear below the other. With `read_only`,
    /// nobody can write through the copy (`mount_setattr(2)`, Linux 5.12). Both hold for the mounts below it too.
    ///
    /// # Errors
    /// What the call failed with.
    pub fn settle(&self, read_only: bool) -> io::Result<()> {
        let attributes = libc::mount_attr {
            attr_set: if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
            attr_clr: 0,
            propagation: libc::MS_PRIVATE,
            userns_fd: 0,
        };
        // SAFETY: the path is a terminated string and the attributes a struct of the size given; both live through the
        // call, which only reads them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                EMPTY.as_ptr(),
                libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Puts the copy in its place (`move_mount(2)`): a file on a file, a directory on a directory.
    ///
    /// # Errors
    /// What the call failed with; nothing is mounted then.
    pub fn attach(self, target: &Path) -> io::Result<()> {
        let target = CString::new(target.as_os_str().as_bytes())?;
        // SAFETY: both paths are terminated strings that live through the call, which only reads them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                EMPTY.as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
