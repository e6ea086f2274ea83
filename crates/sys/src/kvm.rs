//! Whether the kernel's KVM runs a guest: found out by running one.
//!
//! `/dev/kvm` opens, and even creates virtual machines, on hosts that then run no guest; only a guest that has run
//! proves anything. This one is five bytes of real mode code at the reset vector. It refuses to be more: no registers are
//! set, nothing is emulated, and a child process does it all, so that a guest that never comes back can be killed.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// Why KVM runs no guest here.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened.
    #[error("{} cannot be opened", device.display())]
    Open {
        /// Its path.
        device: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A call on the way to a guest failed.
    #[error("{call} failed")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The guest did something else than what its code says.
    #[error("a guest was created, but did not run: it left with exit reason {reason}")]
    Strayed {
        /// `KVM_EXIT_…`, as `linux/kvm.h` numbers them.
        reason: u32,
    },
    /// The guest did not come back.
    #[error("a guest was created, but did not come back within {limit:?}")]
    Hung {
        /// How long was waited.
        limit: Duration,
    },
}

// linux/kvm.h
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
const KVM_SET_TSS_ADDR: libc::c_ulong = 0xae47;
const KVM_RUN: libc::c_ulong = 0xae80;
const KVM_EXIT_IO: u32 = 2;
const KVM_EXIT_HLT: u32 = 5;
const API_VERSION: i32 = 12;

/// Where `struct kvm_run` holds its `exit_reason`.
const EXIT_REASON_OFFSET: usize = 8;

/// `struct kvm_userspace_memory_region`
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

const PAGE: usize = 4096;

/// The last page below 4 GiB. A CPU starts 16 bytes before its end, in real mode: nothing has to be set up.
const LAST_PAGE: u64 = 0xffff_f000;
const RESET_VECTOR: usize = 0xff0;

/// `mov al, 'K'; out 0x10, al; hlt`
const GUEST: [u8; 5] = [0xb0, b'K', 0xe6, 0x10, 0xf4];

/// Three pages that no BIOS uses; CPUs that cannot run real mode by themselves need them.
const TSS: libc::c_ulong = 0xfffb_d000;

/// What the child reports; the order is the wire format between it and its parent.
const CALLS: [&str; 8] = [
    "open",
    "KVM_GET_API_VERSION",
    "KVM_CREATE_VM",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_CREATE_VCPU",
    "KVM_GET_VCPU_MMAP_SIZE",
    "mmap",
    "KVM_RUN",
];
const RAN: u32 = 100;
const STRAYED: u32 = 101;

/// Creates a virtual machine with one CPU and one page, runs a few instructions in it, and forgets it. Takes
/// milliseconds.
///
/// # Errors
/// See [`KvmError`].
pub fn run_tiny_guest(device: &Path, limit: Duration) -> Result<(), KvmError> {
    let call = |call, source| KvmError::Call { call, source };
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|error| KvmError::Open {
        device: device.into(),
        source: error.into(),
    })?;
    let (mut reader, writer) = io::pipe().map_err(|source| call("pipe", source))?;

    // SAFETY: this process may have other threads, so that the child may neither allocate nor lock. It runs
    // `run_in_child`, which makes system calls on memory of its own stack and on pages that it maps, and ends with
    // `_exit`; `path` and the descriptor were made before the fork.
    let child = match unsafe { fork() }.map_err(|error| call("fork", error.into()))? {
        ForkResult::Child => {
            let [step, detail] = run_in_child(&path);
            let mut report = [0; 8];
            report[..4].copy_from_slice(&step.to_ne_bytes());
            report[4..].copy_from_slice(&detail.to_ne_bytes());
            write_and_exit(writer.as_raw_fd(), &report)
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);

    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout);
    let mut report = [0; 8];
    let answer = match ready {
        Ok(0) => Err(KvmError::Hung { limit }),
        Ok(_) => reader.read_exact(&mut report).map_err(|source| call("KVM_RUN", source)),
        Err(error) => Err(call("poll", error.into())),
    };
    // Whatever it did, it is not needed any more; a guest that hangs is ended by this.
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    answer?;

    let [a, b, c, d, e, f, g, h] = report;
    let detail = u32::from_ne_bytes([e, f, g, h]);
    match u32::from_ne_bytes([a, b, c, d]) {
        RAN => Ok(()),
        STRAYED => Err(KvmError::Strayed { reason: detail }),
        step => {
            let source = io::Error::from_raw_os_error(detail.cast_signed());
            match CALLS.get(step as usize).copied() {
                Some("open") => Err(KvmError::Open {
                    device: device.into(),
                    source,
                }),
                name => Err(call(name.unwrap_or("KVM"), source)),
            }
        }
    }
}

/// Runs between fork and `_exit`: system calls only.
fn run_in_child(path: &std::ffi::CStr) -> [u32; 2] {
    let failed = |step: u32| [step, nix::errno::Errno::last_raw().cast_unsigned()];

    // SAFETY: `path` is a terminated string that lives as long as the call.
    let kvm = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if kvm < 0 {
        return failed(0);
    }
    match control(kvm, KVM_GET_API_VERSION, 0) {
        API_VERSION => {}
        0.. => return [1, libc::ENOTSUP.cast_unsigned()],
        _ => return failed(1),
    }
    let machine = control(kvm, KVM_CREATE_VM, 0);
    if machine < 0 {
        return failed(2);
    }
    // Only CPUs without unrestricted guests need it, only Intel's have it: its failure means nothing.
    control(machine, KVM_SET_TSS_ADDR, TSS);

    let Some(page) = map(-1, PAGE) else { return failed(6) };
    // SAFETY: the page was just mapped, is writable, PAGE bytes long and known to nobody else; the code lies inside.
    unsafe { std::ptr::copy_nonoverlapping(GUEST.as_ptr(), page.add(RESET_VECTOR), GUEST.len()) };
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: LAST_PAGE,
        memory_size: PAGE as u64,
        userspace_addr: page as u64,
    };
    // The kernel reads `region` during the call; the page stays mapped until the process ends.
    if control(
        machine,
        KVM_SET_USER_MEMORY_REGION,
        (&raw const region) as libc::c_ulong,
    ) < 0
    {
        return failed(3);
    }
    let cpu = control(machine, KVM_CREATE_VCPU, 0);
    if cpu < 0 {
        return failed(4);
    }
    let size = control(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    let Ok(size @ PAGE..) = usize::try_from(size) else {
        return failed(5);
    };
    let Some(run) = map(cpu, size) else { return failed(6) };

    for expected in [KVM_EXIT_IO, KVM_EXIT_HLT] {
        while control(cpu, KVM_RUN, 0) < 0 {
            if nix::errno::Errno::last_raw() != libc::EINTR {
                return failed(7);
            }
        }
        // SAFETY: `run` maps a `struct kvm_run` of at least a page, so that the aligned word at this offset is inside;
        // the kernel writes it only during KVM_RUN, which has returned.
        let reason = unsafe { run.add(EXIT_REASON_OFFSET).cast::<u32>().read_volatile() };
        if reason != expected {
            return [STRAYED, reason];
        }
    }
    [RAN, 0]
}

/// One of the ioctls above. Each takes an integer, or the address of a live structure.
fn control(fd: RawFd, request: libc::c_ulong, argument: libc::c_ulong) -> i32 {
    // SAFETY: only called with the requests above, whose arguments are integers, except for the memory region, which
    // its caller holds on its stack.
    unsafe { libc::ioctl(fd, request, argument) }
}

/// Maps `length` bytes of `fd`, or of nothing for -1.
fn map(fd: RawFd, length: usize) -> Option<*mut u8> {
    let flags = if fd < 0 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    } else {
        libc::MAP_SHARED
    };
    // SAFETY: asks for a new mapping at an address of the kernel's choice; nothing that exists is touched.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            0,
        )
    };
    (address != libc::MAP_FAILED).then_some(address.cast())
}

fn write_and_exit(fd: RawFd, report: &[u8; 8]) -> ! {
    // SAFETY: the buffer is 8 bytes long and lives; `_exit` runs no handlers of the parent's.
    unsafe {
        libc::write(fd, report.as_ptr().cast(), report.len());
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named() {
        let error = run_tiny_guest(Path::new("/dev/no-such-kvm"), Duration::from_secs(5)).expect_err("missing");
        assert_eq!(error.to_string(), "/dev/no-such-kvm cannot be opened");
    }

    #[test]
    fn another_device_is_no_kvm() {
        let error = run_tiny_guest(Path::new("/dev/null"), Duration::from_secs(5)).expect_err("not KVM");
        assert!(
            matches!(
                error,
                KvmError::Call {
                    call: "KVM_GET_API_VERSION",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn whatever_this_host_can_the_answer_is_quick() {
        let start = std::time::Instant::now();
        let answer = run_tiny_guest(Path::new("/dev/kvm"), Duration::from_secs(5));
        assert!(start.elapsed() < Duration::from_secs(6), "{answer:?}");
    }
}
