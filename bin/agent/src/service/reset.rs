//! Undoes the set-up, after a rehearsal: the guest is to be saved, and then to be the pod of whoever gets a copy.
//!
//! All that the guest has made for a pod lies in one directory, but for its name, its links and its cgroups. Drivers stay
//! loaded, and the clock goes on. It refuses while there are containers, which would be lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_jail::cgroup;
use kata_wire::names;
use kata_wire::proto::Empty;
use nix::mount::{MntFlags, umount2};

use super::balloon;
use super::refusal::Refusal;
use crate::network;
use crate::pod::{Pod, State};

/// Makes the guest what it was when the agent first listened.
///
/// # Errors
/// [`Refusal::State`] while there are containers; [`Refusal::Internal`] for what cannot be undone, and then the guest is not to
/// be saved.
pub fn reset(pod: &Pod) -> Result<Empty, Refusal> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal::Internal(format!("{what}: {error}"));
    pod.with(forget)?;
    clear(Path::new(names::POD_DIR)).map_err(|error| failed("remove what the pod had", &error))?;
    cgroup::remove_below(Path::new(cgroup::ROOT))?;
    network::reset().map_err(|error| failed("put the links back", &error))?;
    nix::unistd::sethostname(&pod.hostname).map_err(|errno| failed("take the name back", &errno))?;
    // What is free now no copy needs to have.
    balloon::begin(pod);
    tracing::info!("as before the set-up");
    Ok(Empty::new())
}

/// Forgets streams that nobody came for.
fn forget(state: &mut State) -> Result<(), Refusal> {
    if let Some(id) = state.containers.keys().next() {
        return Err(Refusal::State(format!("container {id} is still there")));
    }
    state.streams = Default::default();
    Ok(())
}

/// Unmounts everything below `directory`, what was mounted last first, and removes it. Nothing there is no error. Who still
/// uses one of the mounts keeps all of it from being done: a file server must have seen the end of its session.
fn clear(directory: &Path) -> io::Result<()> {
    let about = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    for point in mount_points(&fs::read_to_string("/proc/thread-self/mountinfo")?, directory).rev() {
        umount2(&point, MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| about(&point, errno.into()))?;
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(about(directory, error)),
        _ => Ok(()),
    }
}

/// Those below `directory`, first mounted first. They have plain names.
fn mount_points<'a>(table: &'a str, directory: &'a Path) -> impl DoubleEndedIterator<Item = PathBuf> + 'a {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(PathBuf::from)
        .filter(move |point| point.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn streams_are_forgotten_and_containers_are_not() {
        let mut state = State::default();
        assert!(forget(&mut state).is_ok());
        state.containers.insert("c".into(), None);
        let refused = forget(&mut state).expect_err("one is being made");
        assert!(matches!(&refused, Refusal::State(_)), "{refused:?}");
        assert_eq!(refused.to_string(), "container c is still there");
    }

    /// Needs root, for mounts.
    #[test]
    fn what_is_mounted_goes_unless_it_is_in_use() {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
        let place = std::env::temp_dir().join(format!("kata-reset-{}", std::process::id()));
        let inner = place.join("shared/inner");
        let tmpfs = |on: &Path| {
            fs::create_dir_all(on).expect("mount point");
            mount(Some("x"), on, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
        };
        tmpfs(&place.join("shared"));
        tmpfs(&inner);
        tmpfs(&inner);
        let left = || {
            let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("table");
            mount_points(&table, &place).count()
        };
        assert_eq!(left(), 3);
        let user = fs::File::create(inner.join("file")).expect("file");
        let error = clear(&place).expect_err("in use").to_string();
        assert!(error.contains("shared/inner: "), "{error}");
        assert!(inner.exists());
        drop(user);
        clear(&place).expect("clear");
        assert_eq!((left(), place.exists()), (0, false));
        clear(&place).expect("nothing there");
    }
}
