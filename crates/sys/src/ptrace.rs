//! Parts of ptrace(2) that no crate offers: whole register sets, the signal mask, and what the kernel knows of a thread's
//! restartable sequences and robust futexes.

use std::io;

use nix::unistd::Pid;

/// The general registers (`struct user_regs_struct`).
pub const NT_PRSTATUS: i32 = 1;

/// Everything else that the processor keeps for a thread, as XSAVE writes it.
pub const NT_X86_XSTATE: i32 = 0x202;

/// No extended state is larger, bytes: AMX's tiles are 8 KiB.
const LARGEST_SET: usize = 64 << 10;

/// Lets the child that `command` will start be traced by the calling thread; it stops at the first instruction of its program.
pub fn trace_from_start(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let before_exec = || Ok(nix::sys::ptrace::traceme()?);
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// A register set of a stopped thread.
///
/// # Errors
/// What ptrace failed with: `ESRCH` for a thread that is not stopped, `EINVAL` for a set that there is not.
pub fn register_set(thread: Pid, kind: i32) -> io::Result<Vec<u8>> {
    let mut set = vec![0_u8; LARGEST_SET];
    let mut part = libc::iovec {
        iov_base: set.as_mut_ptr().cast(),
        iov_len: set.len(),
    };
    // SAFETY: the kernel writes at most iov_len bytes to iov_base, which are ours, and the length to `part`.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, thread.as_raw(), kind, &raw mut part) };
    check(result)?;
    set.truncate(part.iov_len);
    Ok(set)
}

/// Sets a register set of a stopped thread.
///
/// # Errors
/// As [`register_set`].
pub fn set_register_set(thread: Pid, kind: i32, set: &[u8]) -> io::Result<()> {
    let mut part = libc::iovec {
        iov_base: set.as_ptr().cast_mut().cast(),
        iov_len: set.len(),
    };
    // SAFETY: the kernel only reads from iov_base, at most iov_len bytes, which are ours.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETREGSET, thread.as_raw(), kind, &raw mut part) };
    check(result)
}

/// The signals that a stopped thread blocks, a bit each.
///
/// # Errors
/// What ptrace failed with.
pub fn signal_mask(thread: Pid) -> io::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes eight bytes, the size that it is told, to `mask`.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGMASK,
            thread.as_raw(),
            size_of::<u64>(),
            &raw mut mask,
        )
    };
    check(result).map(|()| mask)
}

/// Sets the signals that a stopped thread blocks.
///
/// # Errors
/// What ptrace failed with.
pub fn set_signal_mask(thread: Pid, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads eight bytes, the size that it is told, from `mask`.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETSIGMASK,
            thread.as_raw(),
            size_of::<u64>(),
            &raw const mask,
        )
    };
    check(result)
}

/// What a thread has registered for restartable sequences (rseq(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartableSequences {
    /// Address of its `struct rseq`.
    pub address: u64,
    /// Size of it, bytes.
    pub size: u32,
    /// What stands before an abort handler.
    pub signature: u32,
}

/// What a stopped thread has registered; `None` if nothing.
///
/// # Errors
/// What ptrace failed with: `EIO` from a kernel before Linux 5.13.
pub fn restartable_sequences(thread: Pid) -> io::Result<Option<RestartableSequences>> {
    /// `PTRACE_GET_RSEQ_CONFIGURATION`.
    const REQUEST: libc::c_uint = 0x420f;
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut told = Configuration::default();
    // SAFETY: the kernel writes at most the size that it is told to `told`, which has the layout of its structure.
    let result = unsafe { libc::ptrace(REQUEST, thread.as_raw(), size_of::<Configuration>(), &raw mut told) };
    check(result)?;
    Ok((told.pointer != 0).then_some(RestartableSequences {
        address: told.pointer,
        size: told.size,
        signature: told.signature,
    }))
}

/// Address and size of a thread's list of robust futexes (get_robust_list(2)).
///
/// # Errors
/// What the call failed with.
pub fn robust_list(thread: Pid) -> io::Result<(u64, u64)> {
    let (mut head, mut size) = (0_u64, 0_u64);
    // SAFETY: the kernel writes a pointer to `head` and a size_t to `size`, eight bytes each here.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, thread.as_raw(), &raw mut head, &raw mut size) };
    check(result).map(|()| (head, size))
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
