//! What any VMM driver must do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::{Disk, DiskAddress, MachineSpec, Size, Template, TemplateFiles};

/// A byte stream to the guest's agent.
pub trait Transport: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Transport for T {}

/// How a VMM process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or the signal that ended it.
    pub status: Result<i32, i32>,
    /// The last lines of the VMM's own messages.
    pub messages: String,
}

/// `None` while the VMM runs.
pub type ExitWatch = watch::Receiver<Option<Exit>>;

/// Why a machine could not be booted, reached or driven.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The VMM's executable could not be started.
    #[error("cannot start the VMM {}", vmm.display())]
    Start {
        /// Its path.
        vmm: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The VMM ended when it should have run.
    #[error("the VMM {} ended {exit}{}", vmm.display(), tail("its messages", &exit.messages))]
    Died {
        /// Its path.
        vmm: PathBuf,
        /// How.
        exit: Exit,
    },
    /// The VMM did not answer on its control socket in time.
    #[error("the VMM {} did not answer on its control socket within {limit:?}", vmm.display())]
    Silent {
        /// Its path.
        vmm: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The VMM refused a control command.
    #[error("the VMM refused {command}: {reason}")]
    Refused {
        /// The command's name.
        command: String,
        /// The VMM's words.
        reason: String,
    },
    /// Something this VMM or this machine type cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// The host failed.
    #[error("{what}")]
    Host {
        /// What was being done, with path.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl MachineError {
    /// Makes of what the host said the error that `act` cannot be done.
    pub fn host<E: Into<std::io::Error>>(act: impl Into<String>) -> impl FnOnce(E) -> Self {
        let act = act.into();
        move |error| Self::Host {
            what: format!("cannot {act}"),
            source: error.into(),
        }
    }
}

impl Exit {
    /// Whether somebody has killed it (SIGKILL), as the kernel does when memory is wanting.
    pub fn was_killed(&self) -> bool {
        self.status == Err(9)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Ok(code) => write!(f, "with code {code}"),
            Err(9) => write!(f, "by signal 9 (so the kernel ends processes when memory is wanting)"),
            Err(signal) => write!(f, "by signal {signal}"),
        }
    }
}

fn tail(what: &str, text: &str) -> String {
    if text.trim().is_empty() {
        String::new()
    } else {
        format!("; {what}: {}", text.trim())
    }
}

/// A driver: turns a [`MachineSpec`] into a running [`Machine`].
#[async_trait]
pub trait Vmm: Send + Sync {
    /// The command that [`boot`](Self::boot) would run, program first.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] for what this VMM cannot express.
    fn command_line(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError>;

    /// Starts the VMM and lets the guest run. Must be called on a thread that lives as long as the process: the VMM is
    /// killed when that thread ends, however it ends.
    ///
    /// # Errors
    /// See [`MachineError`]; after an error no process and no file of the machine is left.
    async fn boot(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, MachineError>;

    /// What of `spec`, and of the way in which this driver makes machines, is in a template: one made by another recipe
    /// cannot be taken for this one.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] for what this VMM cannot express, or cannot save.
    fn recipe(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError>;

    /// Boots a machine that is to be saved in `files`, until its agent listens, which may take `limit`. As for
    /// [`boot`](Self::boot), the VMM ends with the calling thread.
    ///
    /// # Errors
    /// See [`MachineError`]; after an error no process is left, but perhaps parts of the files.
    async fn draft(
        &self,
        spec: &MachineSpec,
        files: &TemplateFiles,
        limit: Duration,
    ) -> Result<Box<dyn Draft>, MachineError>;

    /// Whether [`redraft`](Self::redraft) has a way for such a machine.
    fn redrafts(&self, spec: &MachineSpec) -> bool;

    /// A machine of `template`, which a draft of `spec` was saved as, that is to be saved in `files` in another way, by
    /// which machines are made of it with less work. Otherwise as [`draft`](Self::draft).
    ///
    /// # Errors
    /// See [`MachineError`]; after an error no process is left, but perhaps parts of the files.
    async fn redraft(
        &self,
        spec: &MachineSpec,
        template: &Template,
        files: &TemplateFiles,
    ) -> Result<Box<dyn Draft>, MachineError>;

    /// Makes a machine of a template whose [`recipe`](Self::recipe) is that of `spec`, and lets the guest run on. The host's
    /// ends of its devices are those of `spec`. Otherwise as [`boot`](Self::boot).
    ///
    /// # Errors
    /// See [`MachineError`]; after an error no process and no file of the machine is left.
    async fn restore(&self, spec: &MachineSpec, template: &Template) -> Result<Box<dyn Machine>, MachineError>;
}

/// A machine that is to be saved; its agent listens. Dropping it kills the VMM.
#[async_trait]
pub trait Draft: Send + Sync {
    /// How the VMM ended, as soon as it has.
    fn exit(&self) -> ExitWatch;

    /// A byte stream to the agent. It is to be closed before the machine is saved.
    ///
    /// # Errors
    /// [`MachineError::Host`] when the channel cannot be reached.
    async fn connect(&mut self) -> Result<Box<dyn Transport>, MachineError>;

    /// The last lines (at most 4 KiB) that the guest's console has shown.
    fn console_tail(&self) -> String;

    /// Writes the machine into its files and ends it. If there was a connection to its agent, waits for at most `limit`
    /// until that listens again.
    ///
    /// # Errors
    /// See [`MachineError`]; no process is left then, but perhaps parts of the files.
    async fn save(self: Box<Self>, limit: Duration) -> Result<(), MachineError>;

    /// Ends it, and leaves the files as they are.
    ///
    /// # Errors
    /// [`MachineError`] for why it had ended before.
    async fn discard(self: Box<Self>) -> Result<(), MachineError>;
}

/// A running machine. Dropping it kills the VMM.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The VMM's process id.
    fn pid(&self) -> u32;

    /// How the VMM ended, as soon as it has.
    fn exit(&self) -> ExitWatch;

    /// A byte stream to the agent. Bytes written before the agent listens are kept, not lost.
    ///
    /// # Errors
    /// [`MachineError::Host`] when the channel cannot be reached.
    async fn connect(&self) -> Result<Box<dyn Transport>, MachineError>;

    /// The last lines (at most 4 KiB) that the guest's console has shown.
    fn console_tail(&self) -> String;

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]
    async fn suspend(&self) -> Result<(), MachineError>;

    /// Lets the guest's CPUs run again.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]
    async fn resume(&self) -> Result<(), MachineError>;

    /// Attaches a disk.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]; [`MachineError::Unsupported`] without a controller or when
    /// it is full. The machine has no part of the disk then.
    async fn attach(&self, disk: Disk) -> Result<DiskAddress, MachineError>;

    /// Detaches a disk. The guest must not use it any more.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]
    async fn detach(&self, disk: DiskAddress) -> Result<(), MachineError>;

    /// The threads of the host that are the guest's CPUs.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]
    async fn vcpu_threads(&self) -> Result<Vec<u32>, MachineError>;

    /// Gives the machine CPUs and memory, or takes back what it can give, within its [`crate::Growth`]; answers what it has
    /// then, which may be more or less. What is new the guest has yet to take into use.
    ///
    /// # Errors
    /// [`MachineError::Refused`], [`MachineError::Silent`]; part of it may have been done.
    async fn resize(&self, wish: Size) -> Result<Size, MachineError>;

    /// Gives back to the host what the VMM keeps only because the guest has booted; what the guest does next takes longer,
    /// once. It stands still for some milliseconds. Answers how many bytes that were, 0 if there is nothing worth it.
    /// `_run_dir` is the machine's directory as it is now, in which a socket is made meanwhile.
    ///
    /// # Errors
    /// See [`MachineError`]; the machine is no worse for it, unless it has ended.
    async fn forget_boot(&self, _run_dir: &Path) -> Result<u64, MachineError> {
        Ok(0)
    }

    /// Ends the VMM: waits up to `grace` for the guest's own power-off, then kills it. The process is gone on return.
    async fn halt(&self, grace: Duration);
}
