//! BPF programs: loading them, and those that decide about device access in a cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const FLAG_ALLOW_MULTI: u32 = 2;

/// One instruction, laid out as `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high half.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// How often a program is loaded whose verification a signal interrupts.
const ATTEMPTS: u32 = 10;

/// Loads a program of type `kind`; the kernel verifies it.
///
/// # Errors
/// `EINVAL` or `EACCES` when the verifier refuses it or the kernel has no such programs.
pub(crate) fn load(kind: u32, attach_type: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        prog_type: kind,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: attach_type,
        ..Default::default()
    };
    for _ in 0..ATTEMPTS {
        // SAFETY: the pointers in the attributes point to the instructions (as many as said, laid out as bpf_insn) and to a
        // terminated string; both live through the call, which only reads them.
        match unsafe { command(PROG_LOAD, &attributes) } {
            // The verifier gives up when it sees a signal, as that of a child's end.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            loaded => return Ok(unsafe { OwnedFd::from_raw_fd(loaded?) }),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Gives a command to the kernel; answers the descriptor or zero that it answers.
///
/// # Safety
/// `attributes` begins as `union bpf_attr` does for this command; what is missing of that is meant to be zero. Addresses in
/// it are of memory that lives through the call and may be read and written there as the command does.
///
/// # Errors
/// What the call failed with.
pub(crate) unsafe fn command<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the size is that of the struct, which lives through the call and, as the kernel does not write to it for the
    // commands given in this crate, is only read. The rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?)
}

/// A loaded program.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

impl DeviceProgram {
    /// Loads a program; the kernel verifies it.
    ///
    /// # Errors
    /// `EINVAL` or `EACCES` when the verifier refuses it or the kernel has no such programs.
    pub fn load(instructions: &[Instruction]) -> io::Result<Self> {
        Ok(Self(load(TYPE_CGROUP_DEVICE, 0, instructions)?))
    }

    /// Lets the program decide in this cgroup too, beside those already there. All must agree.
    ///
    /// # Errors
    /// What the call failed with.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        self.command(PROG_ATTACH, cgroup, FLAG_ALLOW_MULTI)
    }

    /// Takes the program away from this cgroup.
    ///
    /// # Errors
    /// What the call failed with.
    pub fn detach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        self.command(PROG_DETACH, cgroup, 0)
    }

    fn command(&self, number: libc::c_int, cgroup: BorrowedFd<'_>, attach_flags: u32) -> io::Result<()> {
        let attributes = AttachAttributes {
            target_fd: cgroup.as_raw_fd() as u32,
            attach_bpf_fd: self.0.as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags,
            replace_bpf_fd: 0,
        };
        // SAFETY: the struct begins as `union bpf_attr` does for these commands, and holds no addresses.
        unsafe { command(number, &attributes) }.map(drop)
    }
}
