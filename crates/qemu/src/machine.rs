//! A QEMU machine, from its start to its end.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use kata_machine::{
    Accelerator, Channel, Disk, DiskAddress, Exit, ExitWatch, Machine, MachineError, MachineSpec, Root, Size, Transport,
};
use kata_sys::tsc;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::control::{Control, ControlError};
use crate::disk::Disks;
use crate::launch::{self, Making, Process};
use crate::news::{Listening, News};
use crate::render::{MEMORY_FD, Start};
use crate::room::Room;
use crate::tail::Tail;
use crate::{channel, render, translation};

/// How long a control command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// How long QEMU may take to end once it was told to.
const QUIT_LIMIT: Duration = Duration::from_secs(1);

/// How long its end may take to be seen after it has closed its control socket.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct QemuMachine {
    vmm: PathBuf,
    channel: Channel,
    control: Control,
    console: Tail,
    process: Process,
    disks: Disks,
    room: Room,
    /// It has translated its guest's boot.
    has_translated: bool,
    /// Of threads that QEMU believes to have other ids: those, and the ones that they have.
    pub(crate) threads: Vec<(u32, u32)>,
}

/// The command that [`boot`] runs.
///
/// # Errors
/// [`MachineError::Unsupported`]
pub(crate) fn command_line(spec: &MachineSpec, start: Start<'_>) -> Result<Vec<String>, MachineError> {
    // It does not change while this process runs, and takes 10 ms to find out.
    static TSC_KHZ: OnceLock<Option<u32>> = OnceLock::new();
    let tsc_khz = if render::needs_tsc_frequency(spec, start) {
        *TSC_KHZ.get_or_init(tsc::frequency_khz)
    } else {
        None
    };
    render::command_line(spec, start, tsc_khz)
}

/// Starts QEMU, whose machine boots; it greets within `greeting_limit`, or is killed.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn boot(spec: &MachineSpec, greeting_limit: Duration) -> Result<QemuMachine, MachineError> {
    let mut machine = start(spec, Start::Boot, None, greeting_limit).await?;
    machine.has_translated = spec.accelerator == Accelerator::Tcg;
    Ok(machine)
}

/// Starts QEMU, with the memory of a template if it is to have one; it greets within `greeting_limit`, or is killed.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn start(
    spec: &MachineSpec,
    start: Start<'_>,
    memory: Option<File>,
    greeting_limit: Duration,
) -> Result<QemuMachine, MachineError> {
    let line = command_line(spec, start)?;
    if start != Start::Restore {
        check_readable("the guest's kernel", &spec.boot.kernel)?;
        match &spec.boot.root {
            Root::Initrd(path) => check_readable("the guest's initramfs", path)?,
            Root::Image(image) => {
                if let Some(loader) = &image.loader {
                    check_readable("the initramfs of the guest's image", loader)?;
                }
            }
        }
    }
    if let Root::Image(image) = &spec.boot.root {
        check_readable("the guest's image", &image.path)?;
    }
    let mut files = launch::open_nodes(&render::nodes(spec))?;
    files.extend(memory.map(|file| (file, MEMORY_FD)));

    let mut traces = Traces::of(spec);
    let console_log = spec.debug.then(|| launch::open_log(&traces.console_log)).transpose()?;
    tracing::debug!(id = %spec.id, command = ?line, "starting QEMU");
    let launched = launch::launch(&line, files, console_log, None)?;
    let greeted = tokio::select! {
        greeted = Control::open(launched.control, launched.last_words, greeting_limit) => greeted,
        _ = launched.process.ended() => Err(ControlError::Closed),
    };
    match greeted {
        Ok(control) => {
            traces.keep = true;
            Ok(QemuMachine::new(spec, control, launched.console, launched.process))
        }
        Err(error) => {
            let error = explain(&launched.process, &spec.vmm, "its greeting", error).await;
            launched.process.kill().await;
            Err(error)
        }
    }
}

/// Starts QEMU with `files`, and has `making` make of it one that has greeted already.
///
/// # Errors
/// See [`MachineError`].
pub(crate) fn go_on(
    spec: &MachineSpec,
    files: Vec<(File, RawFd)>,
    making: &mut dyn Making,
) -> Result<QemuMachine, MachineError> {
    let line = command_line(spec, Start::Restore)?;
    let mut traces = Traces::of(spec);
    let console_log = spec.debug.then(|| launch::open_log(&traces.console_log)).transpose()?;
    tracing::debug!(id = %spec.id, command = ?line, "making QEMU of a template");
    let launched = launch::launch(&line, files, console_log, Some(making))?;
    traces.keep = true;
    let control = Control::go_on(launched.control, launched.last_words);
    Ok(QemuMachine::new(spec, control, launched.console, launched.process))
}

/// QEMU would say it, too, but later and in its own words.
fn check_readable(what: &str, path: &Path) -> Result<(), MachineError> {
    let readable = || {
        // A pipe would keep us waiting for a writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        File::open(path).map(drop)
    };
    readable().map_err(MachineError::host(format!("read {what} {}", path.display())))
}

/// What went wrong, from what little the control socket tells. A dead QEMU explains itself best.
async fn explain(process: &Process, vmm: &Path, command: &str, error: ControlError) -> MachineError {
    let vmm = vmm.to_owned();
    let ended = match &error {
        ControlError::Closed | ControlError::Socket { .. } | ControlError::Garbage { .. } => {
            timeout(END_LIMIT, process.ended()).await.ok()
        }
        ControlError::Silent { .. } => process.exit().borrow().clone(),
        ControlError::Refused { .. } => None,
    };
    match (ended, error) {
        (Some(exit), _) => MachineError::Died { vmm, exit },
        (None, ControlError::Silent { limit }) => MachineError::Silent { vmm, limit },
        (None, ControlError::Refused { reason }) => MachineError::Refused {
            command: command.to_owned(),
            reason,
        },
        (None, error) => MachineError::Host {
            what: format!("lost the control of {} over {command}", vmm.display()),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        },
    }
}

/// The files that a machine may leave in its directory; removed unless it has come up, then they are its owner's.
struct Traces {
    console_log: PathBuf,
    socket: Option<PathBuf>,
    keep: bool,
}

impl Traces {
    fn of(spec: &MachineSpec) -> Self {
        let socket = match &spec.channel {
            Channel::Serial { socket, .. } => Some(socket.clone()),
            Channel::Vsock { .. } => None,
        };
        Self {
            console_log: spec.run_dir.join("console.log"),
            socket,
            keep: false,
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.console_log);
            if let Some(socket) = &self.socket {
                let _ = std::fs::remove_file(socket);
            }
        }
    }
}

impl QemuMachine {
    fn new(spec: &MachineSpec, control: Control, console: Tail, process: Process) -> Self {
        Self {
            vmm: spec.vmm.clone(),
            channel: spec.channel.clone(),
            control,
            console,
            process,
            disks: Disks::default(),
            room: Room::of(spec),
            has_translated: false,
            threads: Vec::new(),
        }
    }

    async fn execute(&self, command: &'static str) -> Result<(), MachineError> {
        self.execute_with(command, Value::Null, None).await
    }

    /// What to say of its end.
    pub(crate) fn died(&self, exit: Exit) -> MachineError {
        MachineError::Died {
            vmm: self.vmm.clone(),
            exit,
        }
    }

    /// Listens from now on for what happens to the machine.
    pub(crate) fn listen(&self) -> Listening {
        self.control.listen()
    }

    /// Waits for an event of which `look` makes something; `what` says in messages what was waited for.
    pub(crate) async fn hear<T>(
        &self,
        listening: &mut Listening,
        what: &str,
        look: impl FnMut(News) -> Option<T>,
        limit: Duration,
    ) -> Result<T, MachineError> {
        let heard = tokio::select! {
            heard = listening.hear(look, limit) => heard,
            _ = self.process.ended() => Err(ControlError::Closed),
        };
        match heard {
            Ok(answer) => Ok(answer),
            Err(error) => Err(explain(&self.process, &self.vmm, what, error).await),
        }
    }

    /// Removes a device, and waits until it has left.
    pub(crate) async fn unplug(&self, name: &str) -> Result<(), MachineError> {
        const COMMAND: &str = "device_del";
        let deletions = self.control.deletions();
        self.execute_with(COMMAND, json!({ "id": name }), None).await?;
        match deletions.wait_for(name, COMMAND_LIMIT).await {
            Ok(()) => Ok(()),
            Err(error) => Err(explain(&self.process, &self.vmm, COMMAND, error).await),
        }
    }

    pub(crate) async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), MachineError> {
        self.command(command, arguments, descriptor).await.map(drop)
    }

    /// Runs a command with its arguments (an object, or null for none); answers what QEMU returns.
    pub(crate) async fn ask(&self, command: &'static str, arguments: Value) -> Result<Value, MachineError> {
        self.command(command, arguments, None).await
    }

    async fn command(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, MachineError> {
        let done = self
            .control
            .execute_with(command, arguments, descriptor, COMMAND_LIMIT)
            .await;
        match done {
            Ok(value) => Ok(value),
            Err(error) => Err(explain(&self.process, &self.vmm, command, error).await),
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn exit(&self) -> ExitWatch {
        self.process.exit()
    }

    async fn connect(&self) -> Result<Box<dyn Transport>, MachineError> {
        let opened = channel::open(&self.channel, self.exit()).await;
        match self.exit().borrow().clone() {
            Some(exit) if opened.is_err() => Err(self.died(exit)),
            _ => opened,
        }
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }

    async fn suspend(&self) -> Result<(), MachineError> {
        self.execute("stop").await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.execute("cont").await
    }

    async fn attach(&self, disk: Disk) -> Result<DiskAddress, MachineError> {
        self.disks.attach(self, disk).await
    }

    async fn detach(&self, disk: DiskAddress) -> Result<(), MachineError> {
        self.disks.detach(self, disk).await
    }

    async fn vcpu_threads(&self) -> Result<Vec<u32>, MachineError> {
        let cpus = self.ask("query-cpus-fast", Value::Null).await?;
        let threads = cpus.as_array().into_iter().flatten();
        let threads = threads.filter_map(|cpu| u32::try_from(cpu.get("thread-id")?.as_u64()?).ok());
        let real = |told| {
            self.threads
                .iter()
                .find(|&&(id, _)| id == told)
                .map_or(told, |&(_, id)| id)
        };
        Ok(threads.map(real).collect())
    }

    async fn resize(&self, wish: Size) -> Result<Size, MachineError> {
        self.room.resize(self, wish).await
    }

    async fn forget_boot(&self, run_dir: &Path) -> Result<u64, MachineError> {
        if !self.has_translated {
            return Ok(0);
        }
        translation::forget(self, &run_dir.join("debugger.sock")).await
    }

    async fn halt(&self, grace: Duration) {
        if timeout(grace, self.process.ended()).await.is_ok() {
            return;
        }
        let quit = async {
            // Refused or unheard: it is killed.
            let _ = self.control.execute("quit", QUIT_LIMIT).await;
            self.process.ended().await
        };
        if timeout(QUIT_LIMIT, quit).await.is_err() {
            self.process.kill().await;
        }
    }
}

#[cfg(test)]
mod tests;
