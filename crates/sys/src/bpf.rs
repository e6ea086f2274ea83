//! Programs that decide about device access in a cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`).

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

/// A loaded program.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

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

impl DeviceProgram {
    /// Loads a program; the kernel verifies it.
    ///
    /// # Errors
    /// `EINVAL` or `EACCES` when the verifier refuses it or the kernel has no such programs.
    pub fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let license = c"Apache-2.0";
        let attributes = LoadAttributes {
            prog_type: TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            insns: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the struct begins as `union bpf_attr` does for this command and its size is given, so the kernel takes
        // the rest as zero. The pointers in it point to the instructions (as many as said, laid out as bpf_insn) and to
        // a terminated string; all live through the call, which only reads them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_LOAD,
                &raw const attributes,
                size_of::<LoadAttributes>(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
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

    fn command(&self, command: libc::c_int, cgroup: BorrowedFd<'_>, attach_flags: u32) -> io::Result<()> {
        let attributes = AttachAttributes {
            target_fd: cgroup.as_raw_fd() as u32,
            attach_bpf_fd: self.0.as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags,
            replace_bpf_fd: 0,
        };
        // SAFETY: the struct begins as `union bpf_attr` does for these commands and its size is given; it holds integers
        // only and lives through the call, which only reads it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw const attributes,
                size_of::<AttachAttributes>(),
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
