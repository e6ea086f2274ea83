//! Finds the program that a process is to execute, inside the container. The messages are those of runc, because
//! engines derive the exit code (126, 127) from them.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

/// Why there is nothing to execute.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No directory of `$PATH` has it.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// The name looked for.
        name: String,
    },
    /// The path leads nowhere.
    #[error("exec: {name:?}: stat {name}: {}", crate::fault::errno_text(*errno))]
    Stat {
        /// The path.
        name: String,
        /// What `stat` failed with.
        errno: Errno,
    },
    /// It is a directory.
    #[error("exec: {name:?}: is a directory")]
    Directory {
        /// The path.
        name: String,
    },
    /// This user may not execute it.
    #[error("exec: {name:?}: permission denied")]
    Denied {
        /// The path.
        name: String,
    },
}

/// The path to execute for `name`: itself if it has a slash, else the first hit in the directories of `path`
/// (`$PATH`'s value). Relative paths are seen from the current directory, rights are those of the current user.
///
/// # Errors
/// See [`LookupError`].
pub fn find(name: &str, path: Option<&str>) -> Result<PathBuf, LookupError> {
    if name.contains('/') {
        return check(Path::new(name), name).map(|()| PathBuf::from(name));
    }
    path.unwrap_or_default()
        .split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| !name.is_empty() && check(candidate, name).is_ok())
        .ok_or_else(|| LookupError::NotInPath { name: name.to_owned() })
}

fn check(candidate: &Path, name: &str) -> Result<(), LookupError> {
    let name = || name.to_owned();
    let stat = nix::sys::stat::stat(candidate).map_err(|errno| LookupError::Stat { name: name(), errno })?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(LookupError::Directory { name: name() });
    }
    faccessat(AT_FDCWD, candidate, AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|_| LookupError::Denied { name: name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_that_engines_match_on() {
        for (name, message) in [
            (
                "no-such-program",
                r#"exec: "no-such-program": executable file not found in $PATH"#,
            ),
            ("", r#"exec: "": executable file not found in $PATH"#),
            (
                "/no/such",
                r#"exec: "/no/such": stat /no/such: no such file or directory"#,
            ),
            ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
            (
                "/etc/passwd/x",
                r#"exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory"#,
            ),
            ("/", r#"exec: "/": is a directory"#),
        ] {
            assert_eq!(
                find(name, Some("/usr/bin:/bin")).expect_err("nothing").to_string(),
                message
            );
        }
    }

    #[test]
    fn the_first_hit_in_the_path_is_taken() {
        assert_eq!(
            find("sh", Some("/nowhere:/bin:/usr/bin")).expect("sh"),
            Path::new("/bin/sh")
        );
        assert_eq!(find("/bin/sh", None).expect("sh"), Path::new("/bin/sh"));
        assert!(find("sh", None).is_err());
    }
}
