//! Taking memory from a process that goes on.

use std::ops::Range;

use nix::unistd::Pid;

use crate::area::{Mapping, VDSO, maps};
use crate::error::CheckpointError;
use crate::tracee::{Call, Memory, Registers, Stopped, call_at, call_place, well};

/// Where a program keeps code that it has made: memory of no file that may be read, written and executed, and what lies beside
/// it with nothing but inaccessible pages between. If there are several such places, the largest; if there is none, nothing.
///
/// # Errors
/// [`CheckpointError::Kernel`] when the process has ended.
pub fn made_code(pid: u32) -> Result<Vec<Range<u64>>, CheckpointError> {
    Ok(largest_made(&maps(Pid::from_raw(pid.cast_signed()))?))
}

fn largest_made(areas: &[Mapping]) -> Vec<Range<u64>> {
    const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let is_own = |mapping: &&Mapping| !mapping.shared && mapping.inode == 0 && mapping.name.is_empty();
    let is_made = |mapping: &Mapping| [ALL, libc::PROT_NONE].contains(&mapping.protection);
    let candidates: Vec<&Mapping> = areas.iter().filter(is_own).filter(|mapping| is_made(mapping)).collect();
    let places = candidates.chunk_by(|one, next| one.end == next.start);
    let code = |place: &[&Mapping]| -> Vec<Range<u64>> {
        let code = place.iter().filter(|mapping| mapping.protection == ALL);
        code.map(|mapping| mapping.start..mapping.end).collect()
    };
    let size = |code: &Vec<Range<u64>>| code.iter().map(|range| range.end - range.start).sum::<u64>();
    places.map(code).max_by_key(size).unwrap_or_default()
}

/// Has the process give the pages of `ranges` back to the kernel. It is to have no need of what is in them: it finds zeros.
/// Its first thread is stopped meanwhile, and goes on; the thread that calls must be the process's parent, or may trace it.
///
/// # Errors
/// [`CheckpointError::Kernel`], [`CheckpointError::Astray`], [`CheckpointError::Unknown`]
pub fn take_back(pid: u32, ranges: &[Range<u64>]) -> Result<(), CheckpointError> {
    let process = Pid::from_raw(pid.cast_signed());
    let mut stopped = Stopped::default();
    stopped.stop_one(process)?;
    let memory = Memory::of(process)?;
    let areas = maps(process)?;
    let vdso = areas.iter().find(|mapping| mapping.name == VDSO);
    let place = call_place(process, &memory, vdso.map(|mapping| mapping.start..mapping.end))?;
    let before = Registers::of(process)?;
    let taken = ranges.iter().try_for_each(|range| {
        let call = Call::new(
            "give memory back",
            libc::SYS_madvise,
            [range.start, range.end - range.start, libc::MADV_DONTNEED as u64],
        );
        well(&call, call_at(process, place, &before, &call)?).map(drop)
    });
    before.set(process)?;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::area::parse;

    #[test]
    fn the_largest_place_of_code_is_found() {
        let read = |text: &str| -> Vec<Mapping> { text.lines().map(|line| parse(line).expect(line)).collect() };
        let text = "10000-20000 rwxp 00000000 00:00 0 \n\
                    30000-38000 rwxp 00000000 00:00 0 \n\
                    38000-39000 ---p 00000000 00:00 0 \n\
                    39000-44000 rwxp 00000000 00:00 0 \n\
                    44000-45000 ---p 00000000 00:00 0 \n\
                    45000-90000 rw-p 00000000 00:00 0 \n\
                    90000-f0000 rwxp 00000000 fe:00 7 /usr/lib/a.so\n";
        assert_eq!(largest_made(&read(text)), [0x30000..0x38000, 0x39000..0x44000]);
        assert_eq!(largest_made(&read("10000-20000 rw-p 00000000 00:00 0 [heap]")), []);
    }
}
