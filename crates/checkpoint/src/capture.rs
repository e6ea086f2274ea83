//! Writing a process down.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use kata_sys::process::PidFd;
use kata_sys::ptrace as sys;
use nix::unistd::Pid;

use crate::area::{Area, Mapping, Mark, PAGE, Source, VDSO, maps, runs, vdso};
use crate::error::CheckpointError;
use crate::image::{Action, Descriptor, Image, Kind, Thread};
use crate::tracee::{Call, Memory, Registers, Stopped, at, call_at, call_place, list, well};

/// Where the C library keeps a thread's id, bytes after its thread pointer: so for glibc on x86_64 since 2.4.
const ID_KEPT_AFTER: u64 = 0x2d0;

/// So many pages that the process has not may be within a run, bytes of zeros in the file that nobody stored.
const GAP: usize = 8;

/// Writes the process `pid` into `file`, which is empty. `outside` is the file whose contents are not to be in the image.
/// The process must wait, all its threads in system calls; it is stopped meanwhile, and goes on.
///
/// # Errors
/// See [`CheckpointError`].
pub fn capture(pid: u32, outside: &File, file: &File) -> Result<Image, CheckpointError> {
    let process = Pid::from_raw(pid.cast_signed());
    let mut stopped = Stopped::default();
    stopped.stop_all(process)?;
    let threads = stopped.threads();
    let memory = Memory::of(process)?;
    let outside = mark(outside)?;
    let mut areas = areas(process, &outside)?;
    let mut image = Image {
        actions: actions(process, &memory, &areas)?,
        threads: threads
            .iter()
            .map(|&id| thread(process, &memory, id))
            .collect::<Result<_, _>>()?,
        descriptors: descriptors(process, &outside)?,
        areas: Vec::new(),
    };
    own_pages(process, &mut areas)?;
    image.areas = areas;
    let begin = image.write(file)?;
    let mut buffer = vec![0; 1 << 20];
    for run in image.areas.iter().flat_map(|area| &area.runs) {
        let mut done = 0;
        while done < run.length {
            let part = usize::try_from(run.length - done)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            memory.read(run.start + done, &mut buffer[..part])?;
            file.write_all_at(&buffer[..part], begin + run.at + done)
                .map_err(CheckpointError::kernel("write an image's pages"))?;
            done += part as u64;
        }
    }
    Ok(image)
}

fn thread(process: Pid, memory: &Memory, id: Pid) -> Result<Thread, CheckpointError> {
    let failed = |what: &str| CheckpointError::kernel(format!("read a thread's {what}"));
    let unknown = |what: String| CheckpointError::Unknown {
        pid: process.as_raw(),
        what,
    };
    let mut registers = Registers::of(id)?;
    begin_again(&mut registers);
    let id_kept_at = registers.0[at::FS_BASE] + ID_KEPT_AFTER;
    let mut kept = [0; 4];
    memory.read(id_kept_at, &mut kept)?;
    if i32::from_ne_bytes(kept) != id.as_raw() {
        return Err(unknown("a C library that is not glibc".into()));
    }
    let comm = format!("/proc/{process}/task/{id}/comm");
    let state = sys::register_set(id, sys::NT_X86_XSTATE).map_err(failed("state"))?;
    let sequences = sys::restartable_sequences(id).map_err(failed("restartable sequences"))?;
    Ok(Thread {
        id: id.as_raw(),
        name: fs::read_to_string(comm).map_err(failed("name"))?.trim_end().to_owned(),
        registers: registers.0,
        state,
        blocked: sys::signal_mask(id).map_err(failed("mask"))?,
        id_kept_at,
        robust_list: sys::robust_list(id).map_err(failed("robust list"))?,
        sequences: sequences.map(|it| (it.address, it.size, it.signature)),
    })
}

/// Lets a thread begin its system call again: what the kernel remembered of it is not there in another process.
fn begin_again(registers: &mut Registers) {
    /// What a call that was interrupted left behind, as the kernel has it inside.
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    let words = &mut registers.0;
    let call = words[at::ORIG_RAX].cast_signed();
    if call < 0 {
        // It was in none.
        return;
    }
    match words[at::RAX].cast_signed() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
            words[at::RAX] = call.cast_unsigned();
            words[at::RIP] -= 2;
        }
        ERESTART_RESTARTBLOCK => words[at::RAX] = i64::from(-libc::EINTR).cast_unsigned(),
        // It was over.
        _ => {}
    }
    words[at::ORIG_RAX] = u64::MAX;
}

fn mark(file: &File) -> Result<Mark, CheckpointError> {
    let failed = CheckpointError::kernel("look at a file");
    file.metadata().map(|metadata| mark_of(&metadata)).map_err(failed)
}

pub(crate) fn mark_of(metadata: &fs::Metadata) -> Mark {
    Mark {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    }
}

fn same_file(one: &Mark, other: &Mark) -> bool {
    (one.device, one.inode) == (other.device, other.inode)
}

fn areas(process: Pid, outside: &Mark) -> Result<Vec<Area>, CheckpointError> {
    let mut areas = Vec::new();
    for mapping in maps(process)? {
        if mapping.name == "[vsyscall]" {
            continue;
        }
        areas.push(Area {
            start: mapping.start,
            end: mapping.end,
            protection: mapping.protection,
            source: source(process, &mapping, outside)?.ok_or_else(|| CheckpointError::Unknown {
                pid: process.as_raw(),
                what: format!("a mapping of {:?} at {:x}", mapping.name, mapping.start),
            })?,
            runs: Vec::new(),
        });
    }
    Ok(areas)
}

/// What a mapping shows; `None` if that is not known.
fn source(process: Pid, mapping: &Mapping, outside: &Mark) -> Result<Option<Source>, CheckpointError> {
    let name = mapping.name.as_str();
    if mapping.inode == 0 {
        return Ok(match name {
            _ if mapping.shared => None,
            "[stack]" => Some(Source::Stack),
            "" | "[heap]" => Some(Source::Nothing),
            _ if name.starts_with("[anon") => Some(Source::Nothing),
            VDSO | "[vvar]" | "[vvar_vclock]" => Some(Source::Kernel { name: name.into() }),
            _ => None,
        });
    }
    let path = format!("/proc/{process}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let metadata = fs::metadata(&path).map_err(CheckpointError::kernel(format!("look at {path}, {name}")))?;
    let mark = mark_of(&metadata);
    Ok(if same_file(&mark, outside) {
        Some(Source::Outside { offset: mapping.offset })
    } else if mapping.shared && mapping.protection & libc::PROT_WRITE != 0 || metadata.nlink() == 0 {
        None
    } else {
        Some(Source::File {
            path: name.into(),
            offset: mapping.offset,
            mark,
        })
    })
}

/// Finds the pages that the process has for itself (proc_pid_pagemap(5)).
fn own_pages(process: Pid, areas: &mut [Area]) -> Result<(), CheckpointError> {
    const OF_A_FILE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    let path = format!("/proc/{process}/pagemap");
    let pagemap = File::open(&path).map_err(CheckpointError::kernel(format!("open {path}")))?;
    let mut next = 0;
    for area in areas {
        if matches!(area.source, Source::Kernel { .. } | Source::Outside { .. }) {
            continue;
        }
        let pages = usize::try_from((area.end - area.start) / PAGE).unwrap_or_default();
        let mut entries = vec![0; pages * 8];
        pagemap
            .read_exact_at(&mut entries, area.start / PAGE * 8)
            .map_err(CheckpointError::kernel(format!("read {path}")))?;
        let own = |entry: &[u8]| {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
        };
        let own: Vec<bool> = entries.chunks_exact(8).map(own).collect();
        // A page of a file between two of the process's own is the file's.
        let gap = if matches!(area.source, Source::File { .. }) {
            0
        } else {
            GAP
        };
        area.runs = runs(area.start, &own, gap, &mut next);
    }
    Ok(())
}

/// What is done about signals: only the process itself can ask for it.
fn actions(process: Pid, memory: &Memory, areas: &[Area]) -> Result<Vec<Action>, CheckpointError> {
    let status = format!("/proc/{process}/status");
    let status = fs::read_to_string(&status).map_err(CheckpointError::kernel(format!("read {status}")))?;
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or_default()
    };
    let features = status
        .lines()
        .find_map(|line| line.strip_prefix("x86_Thread_features:"));
    if features.is_some_and(|features| features.contains("shstk")) {
        return Err(CheckpointError::Unknown {
            pid: process.as_raw(),
            what: "a shadow stack".into(),
        });
    }
    let others = mask("SigCgt:") | mask("SigIgn:");
    let place = call_place(process, memory, vdso(areas))?;
    let before = Registers::of(process)?;
    // Below what the stack's function may use without saying so.
    let room = (before.0[at::RSP] - 4096) & !0xf;
    let mut found = Vec::new();
    for signal in (1..=64).filter(|signal| others & (1 << (signal - 1)) != 0) {
        let number = u64::try_from(signal).unwrap_or_default();
        let call = Call::new(
            "tell what it does about a signal",
            libc::SYS_rt_sigaction,
            [number, 0, room, 8],
        );
        well(&call, call_at(process, place, &before, &call)?)?;
        let mut told = [0; 32];
        memory.read(room, &mut told)?;
        let word = |index: usize| u64::from_ne_bytes(told[index * 8..][..8].try_into().unwrap_or_default());
        found.push(Action {
            signal,
            words: [word(0), word(1), word(2), word(3)],
        });
    }
    before.set(process)?;
    Ok(found)
}

fn descriptors(process: Pid, outside: &Mark) -> Result<Vec<Descriptor>, CheckpointError> {
    let failed = CheckpointError::kernel(format!("open process {process}"));
    let handle = PidFd::open(process.as_raw().cast_unsigned()).map_err(failed)?;
    let describe = |number: i32| {
        Ok(Descriptor {
            number,
            kind: kind(process, &handle, number, outside)?,
        })
    };
    list(&format!("/proc/{process}/fd"))?
        .into_iter()
        .map(describe)
        .collect()
}

fn kind(process: Pid, handle: &PidFd, number: i32, outside: &Mark) -> Result<Kind, CheckpointError> {
    let path = format!("/proc/{process}/fd/{number}");
    let failed = |path: &str| CheckpointError::kernel(format!("look at {path}"));
    let link = fs::read_link(&path).map_err(failed(&path))?;
    let told = format!("/proc/{process}/fdinfo/{number}");
    let told = fs::read_to_string(&told).map_err(failed(&told))?;
    let field = |name: &str, radix| {
        let line = told.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| u64::from_str_radix(value.trim().trim_start_matches("0x"), radix).ok())
    };
    let flags = i32::try_from(field("flags:", 8).unwrap_or_default()).unwrap_or_default();
    let nonblocking = flags & libc::O_NONBLOCK != 0;
    let text = link.to_string_lossy().into_owned();
    Ok(match text.as_str() {
        "anon_inode:[eventfd]" => Kind::Event {
            count: field("eventfd-count:", 16).unwrap_or_default(),
            nonblocking,
        },
        "anon_inode:[signalfd]" => Kind::Signals {
            mask: field("sigmask:", 16).unwrap_or_default(),
            nonblocking,
        },
        _ if text.starts_with("socket:") => socket(handle, number, nonblocking)?,
        _ => match fs::metadata(&path) {
            Ok(metadata) if same_file(&mark_of(&metadata), outside) => Kind::Outside,
            Ok(metadata) if metadata.is_dir() => Kind::Directory { path: link },
            // Devices of this kind have nothing of their own to go on with.
            Ok(metadata)
                if metadata.is_file() && metadata.nlink() > 0
                    || ["/dev/urandom", "/dev/random", "/dev/null"].contains(&text.as_str()) =>
            {
                Kind::File { path: link, flags }
            }
            _ => Kind::Other { link: text },
        },
    })
}

fn socket(handle: &PidFd, number: i32, nonblocking: bool) -> Result<Kind, CheckpointError> {
    use nix::sys::socket::{UnixAddr, getpeername, getsockname, getsockopt, sockopt};
    let failed = CheckpointError::kernel(format!("take a copy of descriptor {number}"));
    let copy = handle.copy_descriptor(number).map_err(failed)?;
    let path = |name: nix::Result<UnixAddr>| name.ok().and_then(|name| name.path().map(Path::to_owned));
    let own: Option<PathBuf> = path(getsockname(copy.as_raw_fd()));
    Ok(Kind::Socket {
        own,
        peer: path(getpeername(copy.as_raw_fd())),
        listens: getsockopt(&copy, sockopt::AcceptConn).unwrap_or(false),
        nonblocking,
    })
}
