//! Areas of an address space, as `/proc/PID/maps` has them (proc_pid_maps(5)).

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;

/// The only size of a page on this architecture, bytes.
pub(crate) const PAGE: u64 = 4096;

/// An area of the address space that is one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Its first address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    pub protection: i32,
    /// What it shows where nothing was written.
    pub source: Source,
    /// The pages that the process has for itself, in the image.
    pub runs: Vec<Run>,
}

/// What an area shows where nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Zeros.
    Nothing,
    /// The process's first stack: zeros, and it grows downwards.
    Stack,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Where in it the area begins, bytes.
        offset: u64,
        /// What tells it from another of that name.
        mark: Mark,
    },
    /// The file that is not in the image, because who makes processes of the image has one for each.
    Outside {
        /// Where in it the area begins, bytes.
        offset: u64,
    },
    /// Pages of the kernel's, which it gives every process.
    Kernel {
        /// `[vdso]`, `[vvar]`…
        name: String,
    },
}

/// What tells a file from another under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Size, bytes.
    pub size: u64,
    /// Last change, nanoseconds after 1970.
    pub changed: i128,
}

/// Consecutive pages, and where their contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first page's address.
    pub start: u64,
    /// Length, bytes.
    pub length: u64,
    /// Where in the image's pages the contents begin, bytes.
    pub at: u64,
}

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub start: u64,
    pub end: u64,
    pub protection: i32,
    pub shared: bool,
    pub offset: u64,
    /// Of the file; 0 for none.
    pub inode: u64,
    /// A path, a name in brackets, or nothing.
    pub name: String,
}

/// The name of the page of the kernel's that has code for the process to call.
pub(crate) const VDSO: &str = "[vdso]";

/// Where that page is.
pub(crate) fn vdso(areas: &[Area]) -> Option<Range<u64>> {
    let is_vdso = |area: &&Area| matches!(&area.source, Source::Kernel { name } if name == VDSO);
    areas.iter().find(is_vdso).map(|area| area.start..area.end)
}

/// The areas of a process.
pub(crate) fn maps(process: Pid) -> Result<Vec<Mapping>, CheckpointError> {
    let path = format!("/proc/{process}/maps");
    let text = fs::read_to_string(&path).map_err(CheckpointError::kernel(format!("read {path}")))?;
    let read = |line: &str| {
        parse(line).ok_or_else(|| CheckpointError::Unknown {
            pid: process.as_raw(),
            what: format!("a mapping {line:?}"),
        })
    };
    text.lines().map(read).collect()
}

/// Reads a line; `None` if it is none.
pub(crate) fn parse(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start_matches(' ');
        let end = trimmed.find(' ').unwrap_or(trimmed.len());
        let (word, after) = trimmed.split_at(end);
        rest = after;
        word
    };
    let (start, end) = word().split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let flags = word().as_bytes();
    let [read, write, execute, kind] = flags else {
        return None;
    };
    let offset = hex(word())?;
    let _device = word();
    let inode = word().parse().ok()?;
    let bit = |flag: u8, letter: u8, bit: i32| if flag == letter { bit } else { 0 };
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        protection: bit(*read, b'r', libc::PROT_READ)
            | bit(*write, b'w', libc::PROT_WRITE)
            | bit(*execute, b'x', libc::PROT_EXEC),
        shared: *kind == b's',
        offset,
        inode,
        name: rest.trim_start_matches(' ').to_owned(),
    })
}

/// Runs of the pages at which `own` (an entry a page, from `start`) is true, at most `gap` others within one; their contents
/// follow each other in the image from `at` on.
pub(crate) fn runs(start: u64, own: &[bool], gap: usize, at: &mut u64) -> Vec<Run> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (page, _) in own.iter().enumerate().filter(|(_, own)| **own) {
        match found.last_mut() {
            Some((_, end)) if page - *end <= gap => *end = page + 1,
            _ => found.push((page, page + 1)),
        }
    }
    let mut place = |(first, end): (usize, usize)| {
        let length = (end - first) as u64 * PAGE;
        let run = Run {
            start: start + first as u64 * PAGE,
            length,
            at: *at,
        };
        *at += length;
        run
    };
    found.drain(..).map(&mut place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let read = |line| parse(line).expect(line);
        let library =
            read("7f31f392b000-7f31f392d000 r-xp 00002000 fe:00 326865                     /usr/lib/my lib.so.2");
        assert_eq!((library.start, library.end), (0x7f31_f392_b000, 0x7f31_f392_d000));
        assert_eq!(library.protection, libc::PROT_READ | libc::PROT_EXEC);
        assert_eq!(
            (library.offset, library.inode, library.shared),
            (0x2000, 326_865, false)
        );
        assert_eq!(library.name, "/usr/lib/my lib.so.2");
        let memory = read(
            "7f31d7fff000-7f31e7fff000 rw-s 00000000 00:01 28028                      /memfd:kata-memory (deleted)",
        );
        assert!(memory.shared && memory.name == "/memfd:kata-memory (deleted)");
        let nothing = read("7f31f3929000-7f31f392b000 ---p 00000000 00:00 0 ");
        assert_eq!((nothing.protection, nothing.name.as_str()), (0, ""));
        for bad in ["", "7f31-", "1-2 rwx 0 0 0", "g-2 rw-p 0 00:00 0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_beside_each_other_are_one_run() {
        let own = |text: &str| text.bytes().map(|byte| byte == b'x').collect::<Vec<_>>();
        let mut at = PAGE;
        let found = runs(0x10000, &own("xx..x......x"), 2, &mut at);
        let run = |start, length, at| Run {
            start: 0x10000 + start * PAGE,
            length: length * PAGE,
            at: at * PAGE,
        };
        assert_eq!(found, [run(0, 5, 1), run(11, 1, 6)]);
        assert_eq!(at, 7 * PAGE);
        assert_eq!(runs(0, &own("...."), 2, &mut at), []);
    }
}
