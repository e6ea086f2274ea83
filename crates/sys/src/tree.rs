//! Mount trees as values (`open_tree`, `mount_setattr`, `move_mount`): taken in one root directory, attached in another,
//! with attributes set while nobody can reach them yet.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const EMPTY: &CStr = c"";

/// Attributes to set and to clear on mounts: `MOUNT_ATTR_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
}

impl Attributes {
    /// Only `MOUNT_ATTR_RDONLY`.
    pub const READ_ONLY: Self = Self {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
    };

    /// Whether there is nothing to change.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A copy of what is mounted at a path, attached nowhere. Dropping it unmounts it.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Copies what is seen at `path`, with `recursive` the mounts below it too.
    ///
    /// # Errors
    /// What `open_tree` failed with.
    pub fn copy(path: &Path, recursive: bool) -> io::Result<Self> {
        Self::copy_from(libc::AT_FDCWD, path, recursive)
    }

    /// Copies what is seen at `path` below `directory`.
    ///
    /// # Errors
    /// What `open_tree` failed with.
    pub fn copy_at(directory: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<Self> {
        Self::copy_from(directory.as_raw_fd(), path, recursive)
    }

    fn copy_from(directory: RawFd, path: &Path, recursive: bool) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= libc::AT_RECURSIVE as libc::c_uint;
        }
        // SAFETY: the path is a terminated string that lives through the call, which only reads it.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Changes the attributes of the top mount, with `recursive` of those below it too.
    ///
    /// # Errors
    /// What `mount_setattr` failed with.
    pub fn set(&self, attributes: Attributes, recursive: bool) -> io::Result<()> {
        let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
        change(
            self.0.as_raw_fd(),
            EMPTY,
            libc::AT_EMPTY_PATH | recursive,
            attributes,
            AS_IT_IS,
        )
    }

    /// Separates the tree from its original: what is mounted below it later does not appear below the original, and,
    /// unless it `follows`, the other way round. With `read_only`, nobody can write through it. All holds for the mounts
    /// below it too.
    ///
    /// # Errors
    /// What `mount_setattr` failed with.
    pub fn settle(&self, read_only: bool, follows: bool) -> io::Result<()> {
        let attributes = if read_only {
            Attributes::READ_ONLY
        } else {
            Attributes::default()
        };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        let propagation = if follows { libc::MS_SLAVE } else { libc::MS_PRIVATE };
        change(self.0.as_raw_fd(), EMPTY, flags, attributes, propagation)
    }

    /// Whether its top is a directory.
    ///
    /// # Errors
    /// What `fstat` failed with.
    pub fn is_directory(&self) -> io::Result<bool> {
        let stat = nix::sys::stat::fstat(&self.0)?;
        Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    /// The number of the descriptor that holds the tree.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Attaches the tree at `target`.
    ///
    /// # Errors
    /// What `move_mount` failed with; the tree is gone then.
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
                libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// Changes the attributes of the mount at `path`, with `recursive` of those below it too.
///
/// # Errors
/// What `mount_setattr` failed with.
pub fn set_attributes(path: &Path, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    change(libc::AT_FDCWD, &path, flags, attributes, AS_IT_IS)
}

/// No change of propagation.
const AS_IT_IS: u64 = 0;

fn change(
    directory: RawFd,
    path: &CStr,
    flags: libc::c_int,
    attributes: Attributes,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a terminated string and the attributes a struct of the size given; both live through the call,
    // which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
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
