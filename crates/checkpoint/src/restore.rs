//! Making a process of an image.
//!
//! A child is started with a program and a command line as always, which is stopped before its first instruction. It is then
//! made to give up what it has in its memory, to map what the image says, and to begin the image's threads. It keeps its
//! pid, namespaces, cgroups, credentials and limits, its parent, its command line, and the descriptors that it was given.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use kata_sys::ptrace as sys;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::area::{Area, Mapping, PAGE, Source, maps, vdso};
use crate::capture::mark_of;
use crate::error::CheckpointError;
use crate::image::{Image, Thread};
use crate::tracee::{
    Call, Desk, ENTRY, LOOP, Memory, Registers, astray, at, call_at, call_here, call_place, wait, well,
};

/// How far a stack may grow, bytes.
const STACK_ROOM: u64 = 8 << 20;

/// Where places for what is needed on the way are looked for.
const LOOKED_FOR_FROM: u64 = 0x1000_0000;

/// How large the place for code, calls and texts is, bytes: a page, then so much for either.
const TABLE_ROOM: u64 = 256 << 10;
const TEXT_ROOM: u64 = 128 << 10;
const DESK: u64 = PAGE + TABLE_ROOM + TEXT_ROOM;

/// What the image needs that is not in it, by its number in the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The image's file. It is closed in the end.
    pub pages: RawFd,
    /// The file that is not in the image. It stays open.
    pub outside: RawFd,
    /// Whether what is written to the latter is seen by others who have it.
    pub outside_shared: bool,
    /// Whether the kernel may merge its equal pages (`MADV_MERGEABLE`), where it can and they are the process's own.
    pub outside_mergeable: bool,
}

/// A process that goes on where another was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// For each thread its id in the image and the one that it has now.
    pub threads: Vec<(i32, i32)>,
}

/// Lets the child that `command` starts be one that [`restore`] can make something else of. Start it on the thread that
/// will restore it.
pub fn begin(command: &mut std::process::Command) {
    sys::trace_from_start(command);
}

/// Makes the child `pid`, which was started by a command that [`begin`] has seen, what `image` says, whose pages begin at
/// `pages_at` of its file, and lets it go on.
///
/// # Errors
/// See [`CheckpointError`]. The child is killed then, and its parent can wait for it.
pub fn restore(pid: u32, image: &Image, pages_at: u64, needs: Needs) -> Result<Restored, CheckpointError> {
    let process = Pid::from_raw(pid.cast_signed());
    let mut begun = Vec::new();
    let restored = make(process, image, pages_at, needs, &mut begun);
    if restored.is_err() {
        let _ = nix::sys::signal::kill(process, Signal::SIGKILL);
        // The first thread's end is told when those of the others were heard.
        for thread in begun {
            while let Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)) = wait(thread) {}
        }
    }
    restored
}

/// As [`restore`]; the threads that were begun are added to `begun`.
fn make(
    process: Pid,
    image: &Image,
    pages_at: u64,
    needs: Needs,
    begun: &mut Vec<Pid>,
) -> Result<Restored, CheckpointError> {
    match wait(process)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
        other => return Err(astray(&other, "begin its program")),
    }
    ptrace::setoptions(process, Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE)
        .map_err(CheckpointError::kernel("trace the new process"))?;
    check_files(image)?;
    let memory = Memory::of(process)?;
    let mut child = Child {
        process,
        memory: &memory,
        image,
        mappings: maps(process)?,
        text: Vec::new(),
        begun,
    };
    let place = child.free_place(DESK, &[])?;
    let desk = child.furnish(place)?;
    child.clear(&desk)?;
    child.place_kernel_areas(&desk, place)?;
    child.map(&desk, pages_at, needs)?;
    child.set_actions(&desk)?;
    let threads = child.make_threads(&desk)?;
    child.finish(&threads, place)?;
    for &(_, thread) in &threads {
        ptrace::detach(thread, None).map_err(CheckpointError::kernel("let the new process go"))?;
    }
    Ok(Restored {
        threads: threads.iter().map(|(old, new)| (old.id, new.as_raw())).collect(),
    })
}

fn check_files(image: &Image) -> Result<(), CheckpointError> {
    let mut checked = BTreeMap::new();
    for area in &image.areas {
        if let Source::File { path, mark, .. } = &area.source
            && checked.insert(path, mark).is_none()
        {
            let now = fs::metadata(path).map_err(CheckpointError::kernel(format!("look at {}", path.display())))?;
            if mark_of(&now) != *mark {
                return Err(CheckpointError::Changed { path: path.clone() });
            }
        }
    }
    Ok(())
}

/// The child, while it is made another.
struct Child<'a> {
    process: Pid,
    memory: &'a Memory,
    image: &'a Image,
    /// What it had to begin with.
    mappings: Vec<Mapping>,
    /// Bytes that calls point to, and how they came there.
    text: Vec<u8>,
    /// Its threads but for the first.
    begun: &'a mut Vec<Pid>,
}

impl<'a> Child<'a> {
    /// An address with room that neither image nor child use, nor `others`.
    fn free_place(&self, room: u64, others: &[(u64, u64)]) -> Result<u64, CheckpointError> {
        let areas = self.image.areas.iter().map(|area| (area.start, area.end));
        let mappings = self.mappings.iter().map(|mapping| (mapping.start, mapping.end));
        let taken: Vec<(u64, u64)> = areas.chain(mappings).chain(others.iter().copied()).collect();
        (0..1 << 16)
            .map(|step| LOOKED_FOR_FROM + step * (1 << 24))
            .find(|&place| taken.iter().all(|&(start, end)| end <= place || place + room <= start))
            .ok_or_else(|| CheckpointError::Astray {
                what: "has no room in its address space".into(),
            })
    }

    /// Makes room at `place` for code, calls and texts.
    fn furnish(&self, place: u64) -> Result<Desk<'a>, CheckpointError> {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let call = map(place, DESK, all, flags, -1, 0);
        call_here(self.memory, self.process, &call)?;
        self.memory.write(place, &LOOP)?;
        Ok(Desk {
            memory: self.memory,
            code: place,
            table: place + PAGE,
            room: usize::try_from(TABLE_ROOM).unwrap_or_default() / ENTRY,
        })
    }

    /// Puts bytes where the child's calls can point to.
    fn put(&mut self, desk: &Desk<'_>, bytes: &[u8]) -> Result<u64, CheckpointError> {
        let address = desk.table + TABLE_ROOM + self.text.len() as u64;
        if self.text.len() + bytes.len() > usize::try_from(TEXT_ROOM).unwrap_or_default() {
            return Err(CheckpointError::Damaged {
                reason: "it has too many names".into(),
            });
        }
        self.memory.write(address, bytes)?;
        self.text.extend_from_slice(bytes);
        self.text.resize(self.text.len().next_multiple_of(8), 0);
        Ok(address)
    }

    /// Gives up what the child has, but for its stack, where its command line is, and the kernel's pages.
    fn clear(&self, desk: &Desk<'_>) -> Result<(), CheckpointError> {
        let mut calls = Vec::new();
        for mapping in &self.mappings {
            if mapping.name == "[stack]" {
                let hit = |area: &Area| area.start < mapping.end && mapping.start < area.end;
                if !self.image.areas.iter().any(hit) {
                    continue;
                }
            } else if mapping.name.starts_with("[v") {
                continue;
            }
            calls.push(unmap(mapping.start, mapping.end - mapping.start));
        }
        desk.run_well(self.process, &calls)
    }

    /// Moves the kernel's pages where the image's code expects them: aside first, because they may be in each other's way.
    fn place_kernel_areas(&self, desk: &Desk<'_>, desk_place: u64) -> Result<(), CheckpointError> {
        let (mut aside, mut home) = (Vec::new(), Vec::new());
        let mut free = self.free_place(1 << 20, &[(desk_place, desk_place + DESK)])?;
        for area in &self.image.areas {
            let Source::Kernel { name } = &area.source else {
                continue;
            };
            let size = area.end - area.start;
            let own = self.mappings.iter().find(|mapping| &mapping.name == name);
            let Some(own) = own.filter(|own| own.end - own.start == size) else {
                return Err(CheckpointError::Damaged {
                    reason: format!("it was made under another kernel: its {name} is {size} bytes"),
                });
            };
            aside.push(shift("move the kernel's pages aside", own.start, free, size));
            home.push(shift("move the kernel's pages", free, area.start, size));
            free += size;
        }
        desk.run_well(self.process, &aside)?;
        desk.run_well(self.process, &home)
    }

    /// Maps what the image says.
    fn map(&mut self, desk: &Desk<'_>, pages_at: u64, needs: Needs) -> Result<(), CheckpointError> {
        let files = self.open_files(desk)?;
        let mut calls = Vec::new();
        let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let nothing = fixed | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut before = 0;
        for area in &self.image.areas {
            let size = area.end - area.start;
            let protection = area.protection;
            match &area.source {
                Source::Kernel { .. } => {}
                Source::Nothing => calls.push(map(area.start, size, protection, nothing, -1, 0)),
                Source::Stack => {
                    let start = area.end.saturating_sub(STACK_ROOM).max(before).min(area.start);
                    calls.push(map(start, area.end - start, protection, nothing, -1, 0));
                }
                Source::File { path, offset, .. } => {
                    let number = files.get(path).copied().unwrap_or(-1);
                    calls.push(map(area.start, size, protection, fixed, number, *offset));
                }
                Source::Outside { offset } => {
                    let kind = if needs.outside_shared {
                        libc::MAP_SHARED | libc::MAP_FIXED
                    } else {
                        fixed | libc::MAP_NORESERVE
                    };
                    calls.push(map(area.start, size, protection, kind, needs.outside, *offset));
                }
            }
            for run in &area.runs {
                calls.push(map(
                    run.start,
                    run.length,
                    protection,
                    fixed,
                    needs.pages,
                    pages_at + run.at,
                ));
            }
            before = area.end;
        }
        let close = |&number: &RawFd| Call::new("close a file", libc::SYS_close, [word(number)]);
        calls.extend(files.values().map(close));
        calls.push(close(&needs.pages));
        desk.run_well(self.process, &calls)?;
        if needs.outside_mergeable && !needs.outside_shared {
            let areas = self.image.areas.iter();
            let areas = areas.filter(|area| matches!(area.source, Source::Outside { .. }));
            let advice = word(libc::MADV_MERGEABLE);
            let advise = |area: &Area| {
                let arguments = [area.start, area.end - area.start, advice];
                Call::new("let memory be merged", libc::SYS_madvise, arguments)
            };
            // A kernel without it refuses.
            desk.run(self.process, &areas.map(advise).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Opens the files that the image maps; answers with their numbers.
    fn open_files(&mut self, desk: &Desk<'_>) -> Result<BTreeMap<PathBuf, RawFd>, CheckpointError> {
        let image = self.image;
        let mut calls = BTreeMap::new();
        for area in &image.areas {
            if let Source::File { path, .. } = &area.source
                && !calls.contains_key(path)
            {
                let mut name = path.as_os_str().as_bytes().to_vec();
                name.push(0);
                let name = self.put(desk, &name)?;
                let flags = word(libc::O_RDONLY | libc::O_CLOEXEC);
                let call = Call::new("open a file", libc::SYS_openat, [word(libc::AT_FDCWD), name, flags]);
                calls.insert(path.clone(), call);
            }
        }
        let in_order: Vec<Call> = calls.values().cloned().collect();
        let answers = desk.run(self.process, &in_order)?;
        let mut files = BTreeMap::new();
        for ((path, call), answer) in calls.into_iter().zip(answers) {
            let number = well(&call, answer)?;
            files.insert(path, RawFd::try_from(number).unwrap_or(-1));
        }
        Ok(files)
    }

    fn set_actions(&mut self, desk: &Desk<'_>) -> Result<(), CheckpointError> {
        let image = self.image;
        let mut calls = Vec::new();
        for action in &image.actions {
            let bytes: Vec<u8> = action.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let address = self.put(desk, &bytes)?;
            let call = [word(action.signal), address, 0, 8];
            calls.push(Call::new("do something about a signal", libc::SYS_rt_sigaction, call));
        }
        desk.run_well(self.process, &calls)
    }

    /// Begins the image's threads; none of them runs yet.
    fn make_threads(&mut self, desk: &Desk<'_>) -> Result<Vec<(&'a Thread, Pid)>, CheckpointError> {
        let image = self.image;
        let [first, others @ ..] = image.threads.as_slice() else {
            return Err(CheckpointError::Damaged {
                reason: "it has no thread".into(),
            });
        };
        let keep_id = Call::new(
            "say where its id is kept",
            libc::SYS_set_tid_address,
            [first.id_kept_at],
        );
        desk.run_well(self.process, &[keep_id])?;
        let mut threads = vec![(first, self.process)];
        for thread in others {
            threads.push((thread, self.make_thread(desk, thread)?));
        }
        for &(thread, new) in &threads {
            let mut name = thread.name.clone().into_bytes();
            name.push(0);
            let name = self.put(desk, &name)?;
            let mut calls = vec![
                Call::new("take its name", libc::SYS_prctl, [word(libc::PR_SET_NAME), name]),
                Call::new(
                    "say where its robust futexes are",
                    libc::SYS_set_robust_list,
                    [thread.robust_list.0, thread.robust_list.1],
                ),
            ];
            if let Some((address, size, signature)) = thread.sequences {
                let call = [address, size.into(), 0, signature.into()];
                calls.push(Call::new(
                    "say where its restartable sequences are",
                    libc::SYS_rseq,
                    call,
                ));
            }
            desk.run_well(new, &calls)?;
        }
        Ok(threads)
    }

    fn make_thread(&mut self, desk: &Desk<'_>, thread: &Thread) -> Result<Pid, CheckpointError> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        let pointer = thread.registers.get(at::FS_BASE).copied().unwrap_or_default();
        let arguments = [word(flags), desk.table, thread.id_kept_at, thread.id_kept_at, pointer];
        let call = [Call::new("begin a thread", libc::SYS_clone, arguments)];
        desk.begin(self.process, &call)?;
        match wait(self.process)? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE) => {}
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                for answer in desk.answers(1)? {
                    well(&call[0], answer)?;
                }
                return Err(astray(&WaitStatus::StillAlive, call[0].what));
            }
            other => return Err(astray(&other, call[0].what)),
        }
        let told = ptrace::getevent(self.process).map_err(CheckpointError::kernel("hear of a new thread"))?;
        let new = Pid::from_raw(i32::try_from(told).unwrap_or_default());
        self.begun.push(new);
        ptrace::cont(self.process, None).map_err(CheckpointError::kernel("let a thread go on"))?;
        match (wait(self.process)?, wait(new)?) {
            (WaitStatus::Stopped(_, Signal::SIGTRAP), WaitStatus::Stopped(_, Signal::SIGSTOP)) => Ok(new),
            (other, _) => Err(astray(&other, call[0].what)),
        }
    }

    /// Gives the threads their state, and takes away what was needed on the way.
    fn finish(&self, threads: &[(&Thread, Pid)], desk_place: u64) -> Result<(), CheckpointError> {
        let place = call_place(self.process, self.memory, vdso(&self.image.areas))?;
        let call = unmap(desk_place, DESK);
        let from = Registers::of(self.process)?;
        well(&call, call_at(self.process, place, &from, &call)?)?;
        for &(thread, new) in threads {
            self.memory.write(thread.id_kept_at, &new.as_raw().to_ne_bytes())?;
            sys::set_register_set(new, sys::NT_X86_XSTATE, &thread.state)
                .map_err(CheckpointError::kernel("set a thread's state"))?;
            sys::set_signal_mask(new, thread.blocked).map_err(CheckpointError::kernel("set a thread's mask"))?;
            Registers(thread.registers.clone()).set(new)?;
        }
        Ok(())
    }
}

fn map(start: u64, size: u64, protection: i32, flags: i32, number: RawFd, offset: u64) -> Call {
    let arguments = [start, size, word(protection), word(flags), word(number), offset];
    Call::new("map memory", libc::SYS_mmap, arguments)
}

fn unmap(start: u64, size: u64) -> Call {
    Call::new("unmap memory", libc::SYS_munmap, [start, size])
}

fn shift(what: &'static str, from: u64, to: u64, size: u64) -> Call {
    let flags = word(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    Call::new(what, libc::SYS_mremap, [from, size, size, flags, to])
}

/// A signed argument as the register has it.
fn word(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}
