//! The owner of one pod, and the way to it.
//!
//! [`Sandbox`] is what the doors hold: each of its methods asks the owner, does what takes long, and reports back. The
//! state itself is seen by the owner's task alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kata_agent_client::{Agent, AgentError, Process};
use kata_cgroup::Hierarchies;
use kata_config::Config;
use kata_machine::{ExitWatch, Machine, Vmm};
use kata_storage::origin::Origin;
use tokio::sync::{mpsc, watch};

use crate::actor::Owner;
use crate::disk::Disks;
use crate::error::SandboxError;
use crate::fitting::{Fitting, Wants};
use crate::hooks::HostHooks;
use crate::lifecycle::{ExitStatus, Phase, Pod, Refusal};
use crate::network::{PodNamespace, PodNetwork};
use crate::record::{Home, Mark, Record};
use crate::spare::Spare;
use crate::stdio::{Client, Copying, HostStdio, Stdio};
use crate::step::{Faults, Steps};
use crate::timeline::Timeline;

/// What happened, for whoever must be told; in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container was created.
    Created {
        /// Container id.
        container: String,
        /// Its bundle.
        bundle: PathBuf,
        /// Its stdio.
        stdio: Stdio,
    },
    /// An exec was added.
    ExecAdded(Process),
    /// A process was started.
    Started(Process),
    /// The kernel of the guest killed something in the container for want of memory.
    OutOfMemory {
        /// Container id.
        container: String,
    },
    /// A process has ended.
    Exited(Process, ExitStatus),
    /// A container was frozen.
    Paused {
        /// Container id.
        container: String,
    },
    /// A container was thawed.
    Resumed {
        /// Container id.
        container: String,
    },
    /// A process was forgotten.
    Deleted(Process, ExitStatus),
}

/// What a process is, for `state`.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// The container's bundle.
    pub bundle: PathBuf,
    /// Where it stands.
    pub phase: Phase,
    /// Its stdio.
    pub stdio: Stdio,
}

/// Everything a sandbox needs from its door.
pub struct Surroundings {
    /// Its directory.
    pub home: Home,
    /// Its record, already written once.
    pub record: Record,
    /// The configuration, frozen.
    pub config: Arc<Config>,
    /// The driver.
    pub vmm: Arc<dyn Vmm>,
    /// The pod's network namespace, entered; without one the guest has its loopback only.
    pub network: Option<PodNamespace>,
    /// The engine's side of the host.
    pub origin: Arc<Origin>,
    /// The host's cgroups; none for a pod that stays where it was started.
    pub hierarchies: Hierarchies,
    /// Where events go.
    pub events: mpsc::UnboundedSender<Event>,
    /// The program that makes templates ([`crate::template::MAKER_ACTION`]); without one, only those are used that are there.
    pub maker: Option<PathBuf>,
    /// A machine that was started ahead, which the pod gets if it fits.
    pub spare: Option<Spare>,
    /// Steps that tests make fail.
    pub faults: Faults,
}

pub(crate) struct ProcessThings {
    pub stdio: Stdio,
    pub copying: Option<Copying>,
    /// The client has said that its input ends, perhaps before the process was started.
    pub stdin_closed: bool,
    pub exit: watch::Sender<Option<ExitStatus>>,
    /// Its end is told to whoever listens to events.
    pub is_told: bool,
    /// Columns and rows of the terminal of an exec that has not been started yet.
    pub size: Option<(u32, u32)>,
    /// The `process` object of an exec that has not been started yet.
    pub exec_json: Vec<u8>,
}

impl ProcessThings {
    pub fn new(stdio: Stdio, exec_json: Vec<u8>) -> Self {
        Self {
            stdio,
            copying: None,
            stdin_closed: false,
            exit: watch::Sender::new(None),
            is_told: true,
            size: None,
            exec_json,
        }
    }
}

impl ProcessThings {
    /// Copying is under way from now on.
    pub fn copies(&mut self, mut copying: Copying) {
        if self.stdin_closed {
            copying.close_stdin();
        }
        self.copying = Some(copying);
    }

    /// The client's input ends, now or as soon as copying begins.
    pub fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(copying) = &mut self.copying {
            copying.close_stdin();
        }
    }
}

pub(crate) struct ContainerThings {
    pub bundle: PathBuf,
    /// What the engine wants run on the host.
    pub hooks: Option<Arc<HostHooks>>,
    /// File that the engine looks for when memory was wanting.
    pub oom_file: Option<PathBuf>,
    pub steps: Option<Steps>,
}

/// What the owner's task owns.
pub(crate) struct State {
    pub home: Home,
    pub record: Record,
    pub pod: Pod,
    /// The agent of the machine, while that runs.
    pub guest: Option<Agent>,
    /// The machine's network, once it is made.
    pub network: Option<PodNetwork>,
    /// The machine that waits for the pod.
    pub spare: Option<Spare>,
    /// The machine, while it runs.
    pub machine: Option<Arc<dyn Machine>>,
    /// How it ends, or has ended.
    pub exit: Option<ExitWatch>,
    /// Disks that are attached to it.
    pub disks: Disks,
    /// Keeps the machine as large as its containers need, while it runs.
    pub fitting: Option<Fitting>,
    /// What each container asks of the machine.
    pub wants: BTreeMap<String, Wants>,
    /// How the pod's own things (share, file server, machine) are taken back.
    pub steps: Option<Steps>,
    pub containers: BTreeMap<String, ContainerThings>,
    pub processes: BTreeMap<Process, ProcessThings>,
    pub events: mpsc::UnboundedSender<Event>,
    pub timeline: Timeline,
}

impl State {
    pub fn tell(&self, event: Event) {
        tracing::debug!(?event, "event");
        // Nobody listens any more only when the process is going down.
        let _ = self.events.send(event);
    }

    /// Writes an exit down, wakes who waits for it, and tells it if it is its turn.
    pub fn exited(&mut self, process: &Process, status: ExitStatus) {
        if self.pod.exited(process, status) {
            self.publish_exit(process, status);
        }
    }

    pub fn publish_exit(&mut self, process: &Process, status: ExitStatus) {
        if self.processes.get(process).is_none_or(|things| things.is_told) {
            self.tell(Event::Exited(process.clone(), status));
        }
        if let Some(things) = self.processes.get_mut(process) {
            things.exit.send_replace(Some(status));
        }
    }

    /// The kernel of the guest has killed something in the container for want of memory.
    pub fn out_of_memory(&self, container: &str) {
        let file = self
            .containers
            .get(container)
            .and_then(|things| things.oom_file.as_ref());
        if let Some(file) = file
            && let Err(error) = std::fs::File::create(file)
        {
            tracing::warn!(file = %file.display(), %error, "cannot tell the engine that memory was wanting");
        }
        self.tell(Event::OutOfMemory {
            container: container.to_owned(),
        });
    }

    /// Every process of the pod has ended, because the machine has.
    pub fn machine_lost(&mut self) {
        self.forget_machine();
        let status = ExitStatus {
            code: MACHINE_LOST,
            at_unix_nanos: now_unix_nanos(),
        };
        for process in self.pod.processes() {
            self.exited(&process, status);
        }
    }

    /// What went with the machine.
    pub fn forget_machine(&mut self) {
        self.guest = None;
        self.machine = None;
        self.fitting = None;
        self.disks = Disks::default();
    }

    pub fn note_helper(&mut self, pid: u32) -> Result<(), SandboxError> {
        if let Ok(mark) = Mark::of(pid) {
            self.record.helpers.push(mark);
        }
        self.home.write(&self.record)?;
        Ok(())
    }
}

/// Exit code of processes whose machine went away under them.
pub const MACHINE_LOST: u32 = 255;

pub(crate) fn now_unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A pod. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) owner: Owner<State>,
    pub(crate) home: Home,
    pub(crate) id: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) config: Arc<Config>,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) network: Option<PodNamespace>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) maker: Option<PathBuf>,
    pub(crate) faults: Faults,
}

impl Sandbox {
    /// A sandbox with nothing in it. Starts its owner's task.
    pub fn new(surroundings: Surroundings) -> Self {
        let Surroundings {
            home,
            record,
            config,
            vmm,
            network,
            origin,
            hierarchies,
            events,
            maker,
            spare,
            faults,
        } = surroundings;
        let id = Arc::from(record.id.as_str());
        let namespace = Arc::from(record.namespace.as_str());
        let owner = Owner::start(State {
            home: home.clone(),
            record,
            pod: Pod::default(),
            guest: None,
            network: None,
            spare,
            machine: None,
            exit: None,
            disks: Disks::default(),
            fitting: None,
            wants: BTreeMap::new(),
            steps: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            events,
            timeline: Timeline::default(),
        });
        Self {
            owner,
            home,
            id,
            namespace,
            config,
            vmm,
            network,
            origin,
            hierarchies: Arc::new(hierarchies),
            maker,
            faults,
        }
    }

    /// Its id: that of the pod.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) async fn ask<R, F>(&self, work: F) -> Result<R, SandboxError>
    where
        R: Send + 'static,
        F: FnOnce(&mut State) -> R + Send + 'static,
    {
        self.owner.ask(work).await.ok_or(SandboxError::Closing)
    }

    /// Opens stdio for a container or an exec of this id.
    pub(crate) async fn open_stdio(&self, id: &str, stdio: &Stdio) -> Result<HostStdio, SandboxError> {
        let client = Client {
            id,
            namespace: &self.namespace,
            origin: &self.origin,
        };
        let opened = HostStdio::open(stdio, &client).await?;
        for pid in opened.programs() {
            self.ask(move |state| state.note_helper(pid)).await??;
        }
        Ok(opened)
    }

    pub(crate) async fn guest(&self) -> Result<Agent, SandboxError> {
        let guest = self.ask(|state| state.guest.clone()).await?;
        guest.ok_or_else(|| self.no_machine())
    }

    pub(crate) fn no_machine(&self) -> SandboxError {
        SandboxError::NoMachine {
            id: self.id.to_string(),
        }
    }

    /// Where a process stands.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] for unknown ids.
    pub async fn state(&self, process: &Process) -> Result<ProcessState, SandboxError> {
        let process = process.clone();
        let state = self
            .ask(move |state| -> Result<ProcessState, Refusal> {
                let phase = state.pod.phase(&process)?;
                let bundle = state.containers.get(&process.container).map(|c| c.bundle.clone());
                let stdio = state.processes.get(&process).map(|p| p.stdio.clone());
                Ok(ProcessState {
                    bundle: bundle.unwrap_or_default(),
                    phase,
                    stdio: stdio.unwrap_or_default(),
                })
            })
            .await??;
        Ok(state)
    }

    /// The ids of the pod's containers.
    pub async fn containers(&self) -> Vec<String> {
        let ids = self
            .ask(|state| state.pod.containers().map(str::to_owned).collect())
            .await;
        ids.unwrap_or_default()
    }

    /// Waits until a process has ended.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] for unknown ids; [`SandboxError::Agent`] when the process is forgotten before it ended.
    pub async fn wait(&self, process: &Process) -> Result<ExitStatus, SandboxError> {
        let wanted = process.clone();
        let mut exit = self
            .ask(move |state| -> Result<_, Refusal> {
                state.pod.phase(&wanted)?;
                let things = state.processes.get_mut(&wanted);
                Ok(things.map(|things| {
                    // Who waits has opened its ends, and has taken their names away if nobody else is to come.
                    if let Some(copying) = &mut things.copying {
                        copying.leave_to_client();
                    }
                    things.exit.subscribe()
                }))
            })
            .await??
            .ok_or(SandboxError::Closing)?;
        let status = exit.wait_for(Option::is_some).await;
        match status.map(|status| *status) {
            Ok(Some(status)) => Ok(status),
            _ => Err(AgentError::NotFound(format!(
                "process \"{}{}\" was deleted before it ended",
                process.container, process.exec
            ))
            .into()),
        }
    }

    /// Ends the machine, forgets all containers and takes everything back. Nothing of the pod is left but its
    /// directory.
    pub async fn shut_down(&self) {
        self.settle_disks().await;
        let taken = self
            .ask(|state| {
                // Before the machine ends, so that its end is no surprise.
                state.machine_lost();
                let copying: Vec<Copying> = std::mem::take(&mut state.processes)
                    .into_values()
                    .filter_map(|things| things.copying)
                    .collect();
                let steps: Vec<Steps> = std::mem::take(&mut state.containers)
                    .into_values()
                    .filter_map(|container| container.steps)
                    .collect();
                state.pod = Pod::default();
                (steps, state.steps.take(), copying, state.spare.take())
            })
            .await;
        let Ok((containers, pod, copying, spare)) = taken else {
            return;
        };
        // The machine first: what the containers' steps would ask of the agent is then moot, and refused at once.
        if let Some(steps) = pod {
            steps.undo().await;
        }
        if let Some(spare) = spare {
            spare.end(&self.home).await;
        }
        for steps in containers {
            steps.undo().await;
        }
        for copying in copying {
            copying.finish().await;
        }
    }
}
