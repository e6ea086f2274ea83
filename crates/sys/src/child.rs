//! A child by `clone3(2)`: new namespaces, its cgroup and a handle on it, all in the one call. Refuses in a process of
//! several threads, where the child could inherit a lock that nobody will ever release.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// linux/sched.h; libc has them in a type too narrow for them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child that was just made.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: u32,
    /// A handle that stays its own, whatever happens to the pid.
    pub pidfd: OwnedFd,
}

/// Makes a child that runs `body` and exits with its result; no destructor of the parent's values runs in it. Signals
/// are back to their defaults in the child. `flags` are `CLONE_NEW*` bits; `cgroup` is a cgroup v2 directory
/// to be born in.
///
/// # Errors
/// `Deadlock` when this process has more than one thread; else what `clone3` failed with.
pub fn spawn(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(
            io::ErrorKind::Deadlock,
            "clone in a process of several threads",
        ));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which all zeroes is a value; zero means "not asked for" in each.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live through the call, which reads them and writes only `pidfd`. Without CLONE_VM the child
    // has memory and a stack of its own, as after fork. We are the only thread (checked above), so no lock is held by
    // another and the child may allocate.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            restore_signals();
            let status = body();
            // SAFETY: ends this process without running destructors, which belong to the parent.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Child {
            pid: u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?,
            // SAFETY: the kernel has just written this descriptor, and nobody else knows it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// What CLONE_CLEAR_SIGHAND leaves: SIGPIPE, which Rust programs ignore, and the mask.
fn restore_signals() {
    // SAFETY: sets a default disposition, for which no handler has to be sound.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Sends signal `number`, which may be a realtime one without a name (0 sends none), to a child not yet waited for.
///
/// # Errors
/// `ESRCH` when it has been waited for, `EINVAL` for what is no signal; `InvalidInput` for 0, which is no pid.
pub fn signal(pid: u32, number: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: takes integers only.
    if unsafe { libc::kill(pid, number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A child that has ended and was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The pid it had.
    pub pid: u32,
    /// Its exit code, or 128 and the signal that ended it: as a shell says it.
    pub code: u32,
}

/// Waits for any one child that has ended already, whichever signal ended it: a realtime one, too, which has no name. `None`
/// when there is none.
///
/// # Errors
/// What `waitpid` failed with.
pub fn reap() -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: `status` lives through the call, which writes nothing else.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid < 0 {
        let error = io::Error::last_os_error();
        let no_children = error.raw_os_error() == Some(libc::ECHILD);
        return if no_children { Ok(None) } else { Err(error) };
    }
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    let ended = u32::try_from(pid).ok().filter(|pid| *pid > 0);
    Ok(ended.map(|pid| Ended {
        pid,
        code: code.unsigned_abs(),
    }))
}

/// Closes every descriptor above 2 except those in `keep`. For a child before it runs somebody else's code.
///
/// # Errors
/// What `close_range` failed with.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
        .collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 3;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes integers only. Descriptors that values of this process still own become closed; the caller is a
    // child that runs no destructors (see `spawn`).
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_are_refused() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || held.recv());
        let error = spawn(0, None, || 0).expect_err("two threads at least");
        assert_eq!(error.kind(), io::ErrorKind::Deadlock);
        drop(hold);
        let _ = thread.join();
    }
}
