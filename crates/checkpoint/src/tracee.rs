//! Threads of another process that are stopped, and system calls that it is made to do.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use kata_sys::ptrace::{self as sys, NT_PRSTATUS};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::CheckpointError;

/// Words of a set of general registers.
const WORDS: usize = 27;

/// General registers, in the order of `struct user_regs_struct`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers(pub(crate) Vec<u64>);

/// Places in it.
pub(crate) mod at {
    pub(crate) const RBP: usize = 4;
    pub(crate) const RBX: usize = 5;
    pub(crate) const RAX: usize = 10;
    pub(crate) const ORIG_RAX: usize = 15;
    pub(crate) const RIP: usize = 16;
    pub(crate) const RSP: usize = 19;
    pub(crate) const FS_BASE: usize = 21;
}

impl Registers {
    pub(crate) fn of(thread: Pid) -> Result<Self, CheckpointError> {
        let set = sys::register_set(thread, NT_PRSTATUS).map_err(CheckpointError::kernel("read registers"))?;
        let words: Vec<u64> = set
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
            .collect();
        if words.len() != WORDS {
            return Err(CheckpointError::Astray {
                what: format!("is not a 64-bit one: it has {} words of registers", words.len()),
            });
        }
        Ok(Self(words))
    }

    pub(crate) fn set(&self, thread: Pid) -> Result<(), CheckpointError> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        sys::set_register_set(thread, NT_PRSTATUS, &bytes).map_err(CheckpointError::kernel("set registers"))
    }
}

/// The memory of a process.
#[derive(Debug)]
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn of(process: Pid) -> Result<Self, CheckpointError> {
        let path = format!("/proc/{process}/mem");
        let file = File::options().read(true).write(true).open(&path);
        file.map(Self).map_err(CheckpointError::kernel(format!("open {path}")))
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), CheckpointError> {
        let act = || format!("read memory at {address:#x}");
        self.0
            .read_exact_at(into, address)
            .map_err(|source| CheckpointError::Kernel { act: act(), source })
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let act = || format!("write memory at {address:#x}");
        self.0
            .write_all_at(bytes, address)
            .map_err(|source| CheckpointError::Kernel { act: act(), source })
    }
}

/// Waits for a stop of `thread`.
pub(crate) fn wait(thread: Pid) -> Result<WaitStatus, CheckpointError> {
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL)) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(CheckpointError::kernel("wait for a thread to stop")),
        }
    }
}

/// Threads that stand still until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Stopped(Vec<Pid>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for &thread in &self.0 {
            // One that has ended meanwhile needs it not.
            let _ = ptrace::detach(thread, None);
        }
    }
}

impl Stopped {
    /// The threads, in the order in which they are to be thought of: the first one first.
    pub(crate) fn threads(&self) -> &[Pid] {
        &self.0
    }

    /// Stops all threads of `process`.
    pub(crate) fn stop_all(&mut self, process: Pid) -> Result<(), CheckpointError> {
        // A thread that is made meanwhile is found when the rest stands still.
        loop {
            let before = self.0.len();
            for entry in list(&format!("/proc/{process}/task"))? {
                let thread = Pid::from_raw(entry);
                if !self.0.contains(&thread) {
                    self.stop_one(thread)?;
                }
            }
            if self.0.len() == before {
                self.0.sort_by_key(|&thread| (thread != process, thread));
                return Ok(());
            }
        }
    }

    /// Stops a thread.
    pub(crate) fn stop_one(&mut self, thread: Pid) -> Result<(), CheckpointError> {
        let failed = |what: &str| CheckpointError::kernel(format!("{what} thread {thread}"));
        ptrace::seize(thread, Options::empty()).map_err(failed("trace"))?;
        self.0.push(thread);
        ptrace::interrupt(thread).map_err(failed("stop"))?;
        match wait(thread)? {
            WaitStatus::PtraceEvent(..) => Ok(()),
            other => Err(CheckpointError::Astray {
                what: format!("came to {other:?} instead of a stop"),
            }),
        }
    }
}

/// The numbers that a directory of `/proc` lists.
pub(crate) fn list(path: &str) -> Result<Vec<i32>, CheckpointError> {
    let entries = fs::read_dir(path).map_err(CheckpointError::kernel(format!("read {path}")))?;
    let mut numbers: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A system call: number and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) what: &'static str,
    words: [u64; 7],
}

impl Call {
    pub(crate) fn new<const N: usize>(what: &'static str, number: libc::c_long, arguments: [u64; N]) -> Self {
        let mut words = [0; 7];
        words[0] = number.cast_unsigned();
        words[1..=N].copy_from_slice(&arguments);
        Self { what, words }
    }
}

/// Does the calls of a table: `rbx` points to it, eight words a call, the last one for the answer; `rbp` counts them.
/// ```text
/// again: mov rax,[rbx]; mov rdi,[rbx+8]; mov rsi,[rbx+16]; mov rdx,[rbx+24]
///        mov r10,[rbx+32]; mov r8,[rbx+40]; mov r9,[rbx+48]
///        syscall
///        mov [rbx+56],rax; add rbx,64; dec rbp; jnz again; int3
/// ```
pub(crate) const LOOP: [u8; 45] = [
    0x48, 0x8b, 0x03, 0x48, 0x8b, 0x7b, 0x08, 0x48, 0x8b, 0x73, 0x10, 0x48, 0x8b, 0x53, 0x18, 0x4c, 0x8b, 0x53, 0x20,
    0x4c, 0x8b, 0x43, 0x28, 0x4c, 0x8b, 0x4b, 0x30, 0x0f, 0x05, 0x48, 0x89, 0x43, 0x38, 0x48, 0x83, 0xc3, 0x40, 0x48,
    0xff, 0xcd, 0x75, 0xd6, 0xcc, 0xcc, 0xcc,
];

/// Bytes of a call in a table.
pub(crate) const ENTRY: usize = 64;

/// `syscall; int3`.
const ONE: [u8; 3] = [0x0f, 0x05, 0xcc];

/// Where in a process calls are made from.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    pub(crate) memory: &'a Memory,
    /// Address of [`LOOP`].
    pub(crate) code: u64,
    /// Address of the table.
    pub(crate) table: u64,
    /// How many calls the table has room for.
    pub(crate) room: usize,
}

impl Desk<'_> {
    /// Has `thread` make the calls, one after the other, whatever each comes to. Its registers are whatever afterwards.
    pub(crate) fn run(&self, thread: Pid, calls: &[Call]) -> Result<Vec<i64>, CheckpointError> {
        let mut answers = Vec::with_capacity(calls.len());
        for part in calls.chunks(self.room) {
            self.begin(thread, part)?;
            match wait(thread)? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                other => return Err(astray(&other, part.first().map_or("", |call| call.what))),
            }
            answers.extend(self.answers(part.len())?);
        }
        Ok(answers)
    }

    /// As [`run`](Self::run), and none may fail.
    pub(crate) fn run_well(&self, thread: Pid, calls: &[Call]) -> Result<(), CheckpointError> {
        let answers = self.run(thread, calls)?;
        for (call, answer) in calls.iter().zip(answers) {
            well(call, answer)?;
        }
        Ok(())
    }

    /// Lets `thread` begin with the calls.
    pub(crate) fn begin(&self, thread: Pid, calls: &[Call]) -> Result<(), CheckpointError> {
        let mut table = Vec::with_capacity(calls.len() * ENTRY);
        for call in calls {
            table.extend(call.words.iter().flat_map(|word| word.to_ne_bytes()));
            table.extend([0; 8]);
        }
        self.memory.write(self.table, &table)?;
        let mut registers = Registers::of(thread)?;
        registers.0[at::RBX] = self.table;
        registers.0[at::RBP] = calls.len() as u64;
        registers.0[at::RIP] = self.code;
        registers.0[at::ORIG_RAX] = u64::MAX;
        registers.set(thread)?;
        ptrace::cont(thread, None).map_err(CheckpointError::kernel("let a thread go on"))
    }

    pub(crate) fn answers(&self, count: usize) -> Result<Vec<i64>, CheckpointError> {
        let mut table = vec![0; count * ENTRY];
        self.memory.read(self.table, &mut table)?;
        let answer = |entry: &[u8]| i64::from_ne_bytes(entry[ENTRY - 8..].try_into().unwrap_or_default());
        Ok(table.chunks_exact(ENTRY).map(answer).collect())
    }
}

pub(crate) fn astray(status: &WaitStatus, was_to: &str) -> CheckpointError {
    CheckpointError::Astray {
        what: format!("came to {status:?} where it was to {was_to}"),
    }
}

/// What a call came to, if it did not fail.
pub(crate) fn well(call: &Call, answer: i64) -> Result<i64, CheckpointError> {
    match i32::try_from(answer) {
        Ok(errno) if (-4095..0).contains(&errno) => {
            let [_, first, second, ..] = call.words;
            Err(CheckpointError::Kernel {
                act: format!("have the process {} ({first:#x}, {second:#x})", call.what),
                source: std::io::Error::from_raw_os_error(-errno),
            })
        }
        _ => Ok(answer),
    }
}

/// A `syscall` instruction in the kernel's page, which is at `vdso`.
pub(crate) fn call_place(process: Pid, memory: &Memory, vdso: Option<Range<u64>>) -> Result<u64, CheckpointError> {
    let vdso = vdso.unwrap_or_default();
    let mut code = vec![0; usize::try_from(vdso.end - vdso.start).unwrap_or_default()];
    memory.read(vdso.start, &mut code)?;
    let place = code.windows(2).position(|pair| pair == [0x0f, 0x05]);
    let place = place.ok_or_else(|| CheckpointError::Unknown {
        pid: process.as_raw(),
        what: "no place to call the kernel from".into(),
    })?;
    Ok(vdso.start + place as u64)
}

/// Has `thread` make one call where it stands, by what is written over its code there.
pub(crate) fn call_here(memory: &Memory, thread: Pid, call: &Call) -> Result<i64, CheckpointError> {
    let before = Registers::of(thread)?;
    let place = before.0[at::RIP];
    let mut code = [0; ONE.len()];
    memory.read(place, &mut code)?;
    memory.write(place, &ONE)?;
    let answer = call_at(thread, place, &before, call)?;
    memory.write(place, &code)?;
    before.set(thread)?;
    well(call, answer)
}

/// Has `thread` make one call by the `syscall` instruction at `place`. Its registers are whatever afterwards.
pub(crate) fn call_at(thread: Pid, place: u64, from: &Registers, call: &Call) -> Result<i64, CheckpointError> {
    /// Registers of number and arguments: rax, rdi, rsi, rdx, r10, r8, r9.
    const PLACES: [usize; 7] = [10, 14, 13, 12, 7, 9, 8];
    let mut registers = from.clone();
    for (register, word) in PLACES.into_iter().zip(call.words) {
        registers.0[register] = word;
    }
    registers.0[at::RIP] = place;
    registers.0[at::ORIG_RAX] = u64::MAX;
    registers.set(thread)?;
    ptrace::step(thread, None).map_err(CheckpointError::kernel("let a thread go on"))?;
    match wait(thread)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
        other => return Err(astray(&other, call.what)),
    }
    Ok(Registers::of(thread)?.0[at::RAX].cast_signed())
}
