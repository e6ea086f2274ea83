//! Taking memory from a process that goes on.

use std::ops::Range;

use nix::unistd::Pid;

use crate::area::{Mapping, VDSO, maps};
use crate::error::CheckpointError;
use crate::tracee::{Call, Memory, Registers, Stopped, call_at, call_place, well};

/// The largest area that is a process's own, of no file, and may be read, written and executed: where a program keeps code
/// that it has made.
///
/// # Errors
/// [`CheckpointError::Kernel`] when the process has ended.
pub fn made_code(pid: u32) -> Result<Option<Range<u64>>, CheckpointError> {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let is_made = |mapping: &Mapping| !mapping.shared && mapping.inode == 0 && mapping.protection == all;
    let areas = maps(Pid::from_raw(pid.cast_signed()))?;
    let made = areas.iter().filter(|mapping| is_made(mapping));
    let largest = made.max_by_key(|mapping| mapping.end - mapping.start);
    Ok(largest.map(|mapping| mapping.start..mapping.end))
}

/// Has the process give the pages of `range` back to the kernel. It is to have no need of what is in them: it finds zeros.
/// Its first thread is stopped meanwhile, and goes on; the thread that calls must be the process's parent, or may trace it.
///
/// # Errors
/// [`CheckpointError::Kernel`], [`CheckpointError::Astray`], [`CheckpointError::Unknown`]
pub fn take_back(pid: u32, range: &Range<u64>) -> Result<(), CheckpointError> {
    let process = Pid::from_raw(pid.cast_signed());
    let mut stopped = Stopped::default();
    stopped.stop_one(process)?;
    let memory = Memory::of(process)?;
    let areas = maps(process)?;
    let vdso = areas.iter().find(|mapping| mapping.name == VDSO);
    let place = call_place(process, &memory, vdso.map(|mapping| mapping.start..mapping.end))?;
    let before = Registers::of(process)?;
    let call = Call::new(
        "give memory back",
        libc::SYS_madvise,
        [range.start, range.end - range.start, libc::MADV_DONTNEED as u64],
    );
    let answer = call_at(process, place, &before, &call);
    before.set(process)?;
    well(&call, answer?).map(drop)
}
