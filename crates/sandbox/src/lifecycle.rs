//! The rules of a pod's containers and processes: what may follow what. No lock, no clock, no I/O.
//!
//! ```text
//!            create        created         start          started
//!   (none) ─────────► Creating ──► Created ─────► Starting ──► Running ◄─────► Paused
//!                        │ failed     │               │            │   pause /     │
//!                        ▼            │               │ exit is    │   resume      │
//!                      (none)         ├───────────────┤ kept       ├───────────────┘
//!                                     ▼ exit          ▼ back       ▼ exit
//!                                  Stopped ◄──────────┴────────────┘
//!                                     │ delete (also from Created)
//!                                     ▼
//!                                  Deleting ──► (none)
//! ```
//!
//! The same states hold for the init of a container and for every exec; only an init can be paused. Whoever does the
//! work asks first ([`Pod::start`]) and reports afterwards ([`Pod::started`]); an exit that arrives in between is kept,
//! so that a start is always told before its exit.

use std::collections::BTreeMap;

use kata_agent_client::Process;
use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 0-255; 128 + N for signal N; 255 when the machine went away under the process.
    pub code: u32,
    /// Nanoseconds since 1970-01-01 UTC.
    pub at_unix_nanos: u64,
}

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being built.
    Creating,
    /// Built, not yet executed.
    Created,
    /// Being executed.
    Starting {
        /// Its exit, if that was heard first.
        exited: Option<ExitStatus>,
    },
    /// Executing.
    Running,
    /// Frozen; only of an init.
    Paused,
    /// Ended.
    Stopped(ExitStatus),
    /// Ended, or never started, and being forgotten.
    Deleting(Option<ExitStatus>),
}

impl Phase {
    /// The word that users read.
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created | Self::Starting { .. } => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) | Self::Deleting(_) => "stopped",
        }
    }

    /// How the process ended, once it has.
    pub fn exit(self) -> Option<ExitStatus> {
        match self {
            Self::Stopped(status) => Some(status),
            Self::Deleting(status) => status,
            _ => None,
        }
    }
}

/// Why something may not be done now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing has this id.
    #[error("container \"{id}\" does not exist")]
    NoContainer {
        /// Container id.
        id: String,
    },
    /// The container has no exec of this id.
    #[error("exec \"{exec}\" of container \"{container}\" does not exist")]
    NoExec {
        /// Container id.
        container: String,
        /// Exec id.
        exec: String,
    },
    /// The id is taken.
    #[error("{what} with id \"{id}\" exists already")]
    Exists {
        /// `a container` or `an exec`
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The process has ended already.
    #[error("process already finished: {what} is not running")]
    Finished {
        /// Which process, in words.
        what: String,
    },
    /// Not in this state.
    #[error("cannot {verb} {what} that is {state}")]
    WrongState {
        /// What was asked for.
        verb: &'static str,
        /// Which process, in words.
        what: String,
        /// Its state.
        state: &'static str,
    },
}

#[derive(Debug)]
struct Container {
    init: Phase,
    execs: BTreeMap<String, Phase>,
}

/// The containers of one pod.
#[derive(Debug, Default)]
pub struct Pod {
    containers: BTreeMap<String, Container>,
}

fn words(process: &Process) -> String {
    if process.exec.is_empty() {
        format!("container \"{}\"", process.container)
    } else {
        format!("exec \"{}\" of container \"{}\"", process.exec, process.container)
    }
}

fn wrong(verb: &'static str, process: &Process, phase: Phase) -> Refusal {
    Refusal::WrongState {
        verb,
        what: words(process),
        state: phase.word(),
    }
}

impl Pod {
    /// Nothing is in the pod.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Ids of the containers, in order.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.containers.keys().map(String::as_str)
    }

    /// Every process, in order, inits before their execs.
    pub fn processes(&self) -> Vec<Process> {
        self.containers
            .iter()
            .flat_map(|(id, container)| {
                std::iter::once("")
                    .chain(container.execs.keys().map(String::as_str))
                    .map(|exec| Process {
                        container: id.clone(),
                        exec: exec.to_owned(),
                    })
            })
            .collect()
    }

    /// Where a process stands.
    ///
    /// # Errors
    /// [`Refusal::NoContainer`], [`Refusal::NoExec`]
    pub fn phase(&self, process: &Process) -> Result<Phase, Refusal> {
        let container = self
            .containers
            .get(&process.container)
            .ok_or_else(|| no_container(&process.container))?;
        if process.exec.is_empty() {
            return Ok(container.init);
        }
        container
            .execs
            .get(&process.exec)
            .copied()
            .ok_or_else(|| no_exec(process))
    }

    fn slot(&mut self, process: &Process) -> Result<&mut Phase, Refusal> {
        let container = self
            .containers
            .get_mut(&process.container)
            .ok_or_else(|| no_container(&process.container))?;
        if process.exec.is_empty() {
            return Ok(&mut container.init);
        }
        container.execs.get_mut(&process.exec).ok_or_else(|| no_exec(process))
    }

    /// Begins to create a container.
    ///
    /// # Errors
    /// [`Refusal::Exists`]
    pub fn create(&mut self, id: &str) -> Result<(), Refusal> {
        if self.containers.contains_key(id) {
            return Err(Refusal::Exists {
                what: "a container",
                id: id.to_owned(),
            });
        }
        let container = Container {
            init: Phase::Creating,
            execs: BTreeMap::new(),
        };
        self.containers.insert(id.to_owned(), container);
        Ok(())
    }

    /// Reports the end of [`Self::create`]. A failed container is gone.
    pub fn created(&mut self, id: &str, well: bool) {
        if !well {
            self.containers.remove(id);
        } else if let Some(container) = self.containers.get_mut(id)
            && container.init == Phase::Creating
        {
            container.init = Phase::Created;
        }
    }

    /// Adds an exec to a container that runs or will; it can be started once that runs.
    ///
    /// # Errors
    /// [`Refusal::NoContainer`], [`Refusal::Exists`], [`Refusal::WrongState`]
    pub fn add_exec(&mut self, process: &Process) -> Result<(), Refusal> {
        let container = self
            .containers
            .get_mut(&process.container)
            .ok_or_else(|| no_container(&process.container))?;
        if !matches!(container.init, Phase::Created | Phase::Starting { .. } | Phase::Running) {
            return Err(Refusal::WrongState {
                verb: "exec in",
                what: format!("container \"{}\"", process.container),
                state: container.init.word(),
            });
        }
        if container.execs.contains_key(&process.exec) {
            return Err(Refusal::Exists {
                what: "an exec",
                id: process.exec.clone(),
            });
        }
        container.execs.insert(process.exec.clone(), Phase::Created);
        Ok(())
    }

    /// Begins to start a created process.
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn start(&mut self, process: &Process) -> Result<(), Refusal> {
        if !process.exec.is_empty() {
            let init = self.phase(&Process::init(&process.container))?;
            if init != Phase::Running {
                return Err(Refusal::WrongState {
                    verb: "exec in",
                    what: format!("container \"{}\"", process.container),
                    state: init.word(),
                });
            }
        }
        let phase = self.slot(process)?;
        match *phase {
            Phase::Created => {
                *phase = Phase::Starting { exited: None };
                Ok(())
            }
            other => Err(wrong("start", process, other)),
        }
    }

    /// Reports the end of [`Self::start`]. A start that failed is a process that ended with `failed_at`'s status.
    /// Answers the exit to be told after the start, if there is one already.
    pub fn started(&mut self, process: &Process, failed_at: Option<ExitStatus>) -> Option<ExitStatus> {
        let phase = self.slot(process).ok()?;
        let Phase::Starting { exited } = *phase else {
            return None;
        };
        *phase = match (failed_at, exited) {
            (Some(status), _) => Phase::Stopped(status),
            (None, Some(status)) => Phase::Stopped(status),
            (None, None) => Phase::Running,
        };
        match failed_at {
            Some(_) => None,
            None => exited,
        }
    }

    /// Reports that a process has ended. Answers true if that is to be told now: not when it was known, nor before the
    /// start that is under way has been told.
    pub fn exited(&mut self, process: &Process, status: ExitStatus) -> bool {
        let Ok(phase) = self.slot(process) else {
            return false;
        };
        match phase {
            Phase::Created | Phase::Running | Phase::Paused => {
                *phase = Phase::Stopped(status);
                true
            }
            Phase::Starting { exited } => {
                exited.get_or_insert(status);
                false
            }
            Phase::Creating | Phase::Stopped(_) | Phase::Deleting(_) => false,
        }
    }

    /// May a signal be sent?
    ///
    /// # Errors
    /// [`Refusal::Finished`], [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn signal(&self, process: &Process) -> Result<(), Refusal> {
        match self.phase(process)? {
            Phase::Stopped(_) | Phase::Deleting(_) => Err(Refusal::Finished { what: words(process) }),
            // An init exists from its creation on, an exec only from its start.
            Phase::Created if !process.exec.is_empty() => Err(wrong("signal", process, Phase::Created)),
            Phase::Creating => Err(wrong("signal", process, Phase::Creating)),
            Phase::Created | Phase::Starting { .. } | Phase::Running | Phase::Paused => Ok(()),
        }
    }

    /// May the terminal of a process be resized?
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn resize(&self, process: &Process) -> Result<(), Refusal> {
        match self.phase(process)? {
            Phase::Created | Phase::Starting { .. } | Phase::Running | Phase::Paused => Ok(()),
            other => Err(wrong("resize the terminal of", process, other)),
        }
    }

    /// May the limits of a container be changed?
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn update(&self, id: &str) -> Result<(), Refusal> {
        let init = Process::init(id);
        match self.phase(&init)? {
            Phase::Created | Phase::Starting { .. } | Phase::Running | Phase::Paused => Ok(()),
            other => Err(wrong("update", &init, other)),
        }
    }

    /// May the container be frozen?
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn pause(&self, id: &str) -> Result<(), Refusal> {
        self.expect_init(id, "pause", Phase::Running)
    }

    /// May the container be thawed?
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn resume(&self, id: &str) -> Result<(), Refusal> {
        self.expect_init(id, "resume", Phase::Paused)
    }

    fn expect_init(&self, id: &str, verb: &'static str, wanted: Phase) -> Result<(), Refusal> {
        let container = self.containers.get(id).ok_or_else(|| no_container(id))?;
        if container.init == wanted {
            return Ok(());
        }
        Err(Refusal::WrongState {
            verb,
            what: format!("container \"{id}\""),
            state: container.init.word(),
        })
    }

    /// Reports that the container is frozen.
    pub fn paused(&mut self, id: &str) {
        self.swap_init(id, Phase::Running, Phase::Paused);
    }

    /// Reports that the container is thawed.
    pub fn resumed(&mut self, id: &str) {
        self.swap_init(id, Phase::Paused, Phase::Running);
    }

    fn swap_init(&mut self, id: &str, from: Phase, to: Phase) {
        if let Some(container) = self.containers.get_mut(id)
            && container.init == from
        {
            container.init = to;
        }
    }

    /// Begins to delete a process that has ended or was never started; answers how it ended.
    ///
    /// # Errors
    /// [`Refusal::WrongState`] and those of [`Self::phase`]
    pub fn delete(&mut self, process: &Process) -> Result<Option<ExitStatus>, Refusal> {
        let phase = self.slot(process)?;
        let exit = match *phase {
            Phase::Created => None,
            Phase::Stopped(status) => Some(status),
            other => return Err(wrong("delete", process, other)),
        };
        *phase = Phase::Deleting(exit);
        Ok(exit)
    }

    /// Reports the end of [`Self::delete`]: the process is forgotten, and with an init all its execs.
    pub fn deleted(&mut self, process: &Process) {
        if process.exec.is_empty() {
            self.containers.remove(&process.container);
        } else if let Some(container) = self.containers.get_mut(&process.container) {
            container.execs.remove(&process.exec);
        }
    }
}

fn no_container(id: &str) -> Refusal {
    Refusal::NoContainer { id: id.to_owned() }
}

fn no_exec(process: &Process) -> Refusal {
    Refusal::NoExec {
        container: process.container.clone(),
        exec: process.exec.clone(),
    }
}

#[cfg(test)]
mod tests;
