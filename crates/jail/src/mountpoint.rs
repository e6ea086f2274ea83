//! Makes the place that something is to be mounted on. Runs with the container's root as its own, so no symbolic link
//! of the container leads out of it; but links may point to what is not there yet, and then that is made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// Most symbolic links on the way, as in the kernel.
const MOST_LINKS: u32 = 40;

/// What to make at the end of the path if there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
}

/// Makes sure that there is something at `path`, and answers its real path below `root`: no component of it is a link,
/// and `..` never leads above `root`. In the container's own root, `root` is `/`.
pub(crate) fn make(root: &Path, path: &Path, kind: Kind) -> io::Result<PathBuf> {
    let mut waiting = components(path);
    let mut real = PathBuf::new();
    let mut links = 0;
    while let Some(name) = waiting.pop_front() {
        if name == ".." {
            real.pop();
            continue;
        }
        real.push(&name);
        let here = root.join(&real);
        match fs::symlink_metadata(&here) {
            Ok(found) if found.is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = fs::read_link(&here)?;
                real.pop();
                if target.is_absolute() {
                    real = PathBuf::new();
                }
                let mut ahead = components(&target);
                ahead.append(&mut waiting);
                waiting = ahead;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if waiting.is_empty() && kind == Kind::File {
                    fs::File::create_new(&here)?;
                } else {
                    DirBuilder::new().mode(0o755).create(&here)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(root.join(real))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kata-mountpoint-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).expect("root");
        root
    }

    #[test]
    fn directories_and_files_are_made_where_there_is_nothing() {
        let root = root("made");
        let directory = make(&root, Path::new("/a/b/c"), Kind::Directory).expect("directory");
        assert!(directory.is_dir() && directory == root.join("a/b/c"));
        let file = make(&root, Path::new("/a/etc/hosts"), Kind::File).expect("file");
        assert!(file.is_file());
        assert_eq!(make(&root, Path::new("a/etc/hosts"), Kind::File).expect("again"), file);
        assert!(
            make(&root, Path::new("/a/etc/hosts/x"), Kind::File).is_err(),
            "below a file"
        );
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn links_are_followed_inside_the_root_even_to_what_is_not_there() {
        let root = root("links");
        fs::create_dir(root.join("etc")).expect("etc");
        symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).expect("link");
        symlink("/data", root.join("absolute")).expect("link");
        symlink("../../../../escape", root.join("up")).expect("link");
        symlink("loop", root.join("loop")).expect("link");
        let real = |path: &str, kind| make(&root, Path::new(path), kind);
        assert_eq!(
            real("/etc/resolv.conf", Kind::File).expect("dangling"),
            root.join("run/resolve/stub.conf")
        );
        assert_eq!(
            real("/absolute/x", Kind::Directory).expect("absolute"),
            root.join("data/x")
        );
        assert_eq!(real("/up", Kind::Directory).expect("upwards"), root.join("escape"));
        assert_eq!(real("/../../top", Kind::Directory).expect("dots"), root.join("top"));
        assert_eq!(
            real("/loop/x", Kind::File).expect_err("loop").raw_os_error(),
            Some(libc::ELOOP)
        );
        fs::remove_dir_all(root).expect("clean up");
    }
}
