//! Processes of the host: who they are beyond their pid, their end, and dying with one's parent.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

/// When a process was started, in clock ticks after the host's boot (field 22 of `/proc/PID/stat`). With the pid it
/// names a process for good: pids are used again, pairs are not.
///
/// # Errors
/// `NotFound` when there is no such process, or it is a zombie; else what reading `/proc` failed with.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat")))?;
    // The command name is in parentheses and may hold anything, spaces and parentheses included.
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let mut fields = after_name.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields
        .nth(18)
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat}")))
}

/// The processes that `pid` has started and that run, and theirs.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut asked = vec![pid];
    while let Some(pid) = asked.pop() {
        // Who has ended has none.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            asked.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
        found.push(pid);
    }
    found.split_off(1)
}

/// A handle on a process that stays its own, whatever happens to the pid.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a handle on the process that has this pid now.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        Self::owned(fd).map(Self)
    }

    /// A copy of a descriptor of the process (pidfd_getfd(2)), close-on-exec.
    ///
    /// # Errors
    /// `EBADF` for one that is not open there, `EPERM` for a process that the caller may not trace.
    pub fn copy_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        Self::owned(fd)
    }

    /// What a call that makes a descriptor has answered.
    fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` when the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the descriptor is open; a null siginfo is allowed; flags are zero.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits until the process has ended, or the time is over; answers whether it has ended.
    ///
    /// # Errors
    /// What `poll` failed with.
    pub fn wait(&self, limit: std::time::Duration) -> io::Result<bool> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut fds, limit) {
                Ok(ready) => return Ok(ready > 0),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Lets the child that `command` will start be killed when the thread that starts it ends. Start it on the main
/// thread, or the child dies with a worker.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have gone before the line above.
        if nix::unistd::getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Lets the child that `command` will start run in other namespaces, each a descriptor of a file of `/proc/PID/ns`, and
/// in `directory` as it is seen there.
///
/// # Errors
/// `InvalidInput` for a directory with a zero byte in its name.
pub fn enter_namespaces(
    command: &mut std::process::Command,
    namespaces: Vec<OwnedFd>,
    directory: &Path,
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    let before_exec = move || {
        for namespace in &namespaces {
            nix::sched::setns(namespace, nix::sched::CloneFlags::empty())?;
        }
        Ok(nix::unistd::chdir(directory.as_c_str())?)
    };
    // SAFETY: between fork and exec the closure makes system calls with values made before, and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

/// Lets the child that `command` will start, and its children, make no device nodes, whoever they are.
pub fn forbid_device_nodes(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    const CAP_MKNOD: libc::c_ulong = 27;
    let before_exec = || {
        // SAFETY: takes integers only, and changes what this process may ever gain.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Who may not give it up is not root, and may not make any.
            error if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            error => Err(error),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Lets the child that `command` will start have no descriptors of ours but its stdio, whether we know of them or not. To
/// be called before [`give_fds`].
pub fn keep_descriptors(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let before_exec = || {
        const FIRST: libc::c_uint = 3;
        // SAFETY: takes integers only. The descriptors stay open until the program begins, so nobody loses one in use.
        let done = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                FIRST,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Hands descriptors to the child that `command` will start: each `(fd, number)` is open as `number` in the child,
/// without close-on-exec. The descriptors must stay open until the command is started.
pub fn give_fds(command: &mut std::process::Command, fds: Vec<(RawFd, RawFd)>) {
    use std::os::unix::process::CommandExt;
    let above = fds.iter().map(|&(_, number)| number + 1).max().unwrap_or(0);
    let mut fds = fds;
    let before_exec = move || {
        // Out of the way first: one's number may be another's descriptor.
        for (fd, _) in &mut fds {
            // SAFETY: duplicates a descriptor that the caller keeps open; integers only.
            *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above) };
            if *fd < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for &(fd, number) in &fds {
            // SAFETY: duplicates a descriptor opened above; integers only. The copy has no close-on-exec.
            if unsafe { libc::dup2(fd, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls; the vector is written in place, not grown.
    unsafe { command.pre_exec(before_exec) };
}

/// Takes a descriptor that this program was started with.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn take_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks for the flags of a number; touches no memory.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the caller's word it was inherited for exactly this and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: sets a flag on a descriptor that we own.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let me = std::process::id();
        let first = start_ticks(me).expect("I run");
        assert_eq!(start_ticks(me).expect("I still run"), first);
        assert_eq!(
            start_ticks(u32::MAX).expect_err("no such pid").kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn children_of_children_are_found() {
        use std::io::Read;
        use std::process::{Command, Stdio};
        let script = "sleep 100 & echo $!; wait";
        let mut child = Command::new("sh");
        let mut child = child.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
        let mut line = [0; 16];
        let length = child.stdout.take().expect("piped").read(&mut line).expect("a pid");
        let grandchild = String::from_utf8_lossy(&line[..length])
            .trim()
            .parse::<u32>()
            .expect("a pid");
        let found = descendants(std::process::id());
        assert!(found.contains(&child.id()) && found.contains(&grandchild), "{found:?}");
        assert_eq!(descendants(child.id()), [grandchild]);
        crate::child::signal(grandchild, 9).expect("killed");
        child.wait().expect("reaped");
    }

    #[test]
    fn a_pidfd_kills_and_sees_the_end() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let fd = PidFd::open(child.id()).expect("open");
        assert!(!fd.wait(Duration::ZERO).expect("poll"), "it sleeps");
        fd.signal(Signal::SIGKILL).expect("kill");
        assert!(fd.wait(Duration::from_secs(10)).expect("poll"), "it has ended");
        let _ = child.wait();
        assert!(fd.signal(Signal::SIGKILL).is_err(), "reaped");
    }

    #[test]
    fn a_child_can_be_kept_from_making_device_nodes() {
        let mut command = std::process::Command::new("grep");
        command.args(["CapBnd", "/proc/self/status"]);
        forbid_device_nodes(&mut command);
        let output = command.output().expect("grep");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let set = u64::from_str_radix(text.trim_start_matches("CapBnd:").trim(), 16).expect("a set");
        assert_eq!(set & 1 << 27, 0, "{text}");
    }

    #[test]
    fn numbers_may_be_those_of_other_descriptors_to_hand_over() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let (first, mut first_writer) = io::pipe().expect("pipe");
        let (second, mut second_writer) = io::pipe().expect("pipe");
        first_writer.write_all(b"first ").expect("write");
        second_writer.write_all(b"second").expect("write");
        drop((first_writer, second_writer));
        let mut command = Command::new("cat");
        let inherited = |fd: &io::PipeReader| format!("/proc/self/fd/{}", fd.as_raw_fd());
        command
            .args([inherited(&second), inherited(&first)])
            .stdout(Stdio::piped());
        // Swapped.
        give_fds(
            &mut command,
            vec![
                (first.as_raw_fd(), second.as_raw_fd()),
                (second.as_raw_fd(), first.as_raw_fd()),
            ],
        );
        assert_eq!(command.output().expect("cat").stdout, b"first second");
    }

    #[test]
    fn a_child_runs_in_the_namespaces_it_is_given() {
        use std::process::Command;
        let before = std::fs::File::open("/proc/thread-self/ns/mnt").expect("my namespace");
        let read = |own: &str| std::fs::read_link(own).expect("a namespace");
        let mine = read("/proc/thread-self/ns/mnt");
        // On a thread of its own: the namespace ends with it.
        let child = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
            assert_ne!(read("/proc/thread-self/ns/mnt"), mine);
            let mut command = Command::new("sh");
            command.args(["-c", "pwd; readlink /proc/self/ns/mnt"]);
            enter_namespaces(&mut command, vec![before.into()], Path::new("/usr")).expect("enter");
            (command.output().expect("sh").stdout, mine)
        });
        let (output, mine) = child.join().expect("join");
        assert_eq!(String::from_utf8_lossy(&output), format!("/usr\n{}\n", mine.display()));
    }

    #[test]
    fn descriptors_are_handed_over_under_their_new_number() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"handed over\n").expect("write");
        drop(writer);
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&9"]).stdout(Stdio::piped());
        give_fds(&mut command, vec![(reader.as_raw_fd(), 9)]);
        die_with_parent(&mut command);
        let output = command.output().expect("sh");
        assert_eq!(output.stdout, b"handed over\n");
    }
}
