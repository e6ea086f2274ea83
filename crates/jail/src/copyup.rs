//! Copies what a new tmpfs hides into it (`tmpcopyup`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{Gid, Uid, chown};

/// Copies the files, directories and links in the directory `from` into the directory `to`, with owners and modes.
/// Sockets, devices and pipes are left out.
pub(crate) fn copy(from: BorrowedFd<'_>, to: &Path) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = Dir::openat(from, ".", flags, Mode::empty())?;
    let names: Vec<_> = directory
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let stat = fstatat(from, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let target = to.join(std::ffi::OsStr::new(&*name.to_string_lossy()));
        let open = |flags| {
            openat(
                from,
                name.as_c_str(),
                flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        match kind {
            SFlag::S_IFDIR => {
                fs::create_dir(&target)?;
                copy(open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)?.as_fd(), &target)?;
            }
            SFlag::S_IFREG => {
                io::copy(
                    &mut fs::File::from(open(OFlag::O_RDONLY)?),
                    &mut fs::File::create_new(&target)?,
                )?;
            }
            SFlag::S_IFLNK => symlink(readlinkat(from, name.as_c_str())?, &target)?,
            _ => continue,
        }
        if kind != SFlag::S_IFLNK {
            chown(
                &target,
                Some(Uid::from_raw(stat.st_uid)),
                Some(Gid::from_raw(stat.st_gid)),
            )?;
            fs::set_permissions(
                &target,
                std::os::unix::fs::PermissionsExt::from_mode(stat.st_mode & 0o7777),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_and_links() {
        let base = std::env::temp_dir().join(format!("kata-copyup-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("sub")).expect("from");
        fs::create_dir_all(&to).expect("to");
        fs::write(from.join("sub/file"), b"text").expect("file");
        fs::set_permissions(
            from.join("sub/file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o640),
        )
        .expect("mode");
        symlink("file", from.join("sub/link")).expect("link");
        copy(fs::File::open(&from).expect("open").as_fd(), &to).expect("copy");
        assert_eq!(fs::read(to.join("sub/link")).expect("through the link"), b"text");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(to.join("sub/file")).expect("stat").permissions());
        assert_eq!(mode & 0o7777, 0o640);
        fs::remove_dir_all(base).expect("clean up");
    }
}
