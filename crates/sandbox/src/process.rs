//! Processes in a running pod: started, signalled, waited for, looked at.

use std::time::Instant;

use kata_agent_client::{Agent, AgentError, Process};
use kata_wire::proto;
use nix::libc;
use tokio::sync::mpsc;

use crate::error::SandboxError;
use crate::fitting::Wants;
use crate::hooks::Moment;
use crate::lifecycle::{ExitStatus, Phase, Refusal};
use crate::sandbox::{Event, MACHINE_LOST, ProcessThings, Sandbox, now_unix_nanos};
use crate::stdio::{Copying, Stdio};

impl Sandbox {
    /// Adds an exec to a container; it runs once it is started. `process` is the `process` object of an OCI
    /// runtime spec.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Plan`] for an unusable id or process.
    pub async fn add_exec(
        &self,
        exec: &Process,
        process: &kata_bundle::oci::Process,
        stdio: Stdio,
    ) -> Result<(), SandboxError> {
        let json = kata_plan::exec_process(&exec.exec, process)?;
        let exec = exec.clone();
        self.ask(move |state| -> Result<(), Refusal> {
            state.pod.add_exec(&exec)?;
            state.processes.insert(exec.clone(), ProcessThings::new(stdio, json));
            state.tell(Event::ExecAdded(exec));
            Ok(())
        })
        .await??;
        Ok(())
    }

    /// Starts a created process.
    ///
    /// # Errors
    /// See [`SandboxError`]; a process that could not be started has ended.
    pub async fn start(&self, process: &Process) -> Result<(), SandboxError> {
        let began = Instant::now();
        let wanted = process.clone();
        self.ask(move |state| state.pod.start(&wanted)).await??;
        let started = match self.guest().await {
            Ok(guest) if process.exec.is_empty() => self.start_init(&guest, process).await,
            Ok(guest) => self.start_exec(guest, process).await,
            Err(error) => Err(error),
        };
        let started = match started {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain_loss(error).await),
        };
        let failed_at = started.is_err().then(|| ExitStatus {
            code: MACHINE_LOST,
            at_unix_nanos: now_unix_nanos(),
        });
        let wanted = process.clone();
        self.ask(move |state| {
            let ended = state.pod.started(&wanted, failed_at);
            if let Some(status) = failed_at {
                if let Some(things) = state.processes.get_mut(&wanted) {
                    things.exit.send_replace(Some(status));
                    things.copying = None;
                }
                return;
            }
            state.tell(Event::Started(wanted.clone()));
            if let Some(status) = ended {
                state.publish_exit(&wanted, status);
            }
            if wanted.exec.is_empty() {
                state.timeline.note("start the container", began);
                if let Err(error) = state.timeline.write(&state.home) {
                    tracing::warn!(%error, "cannot write the timeline");
                }
            }
        })
        .await?;
        if started.is_ok() && process.exec.is_empty() && self.is_first(&process.container) {
            self.has_started().await;
        }
        started
    }

    async fn start_init(&self, guest: &Agent, process: &Process) -> Result<(), SandboxError> {
        self.refresh_network(guest).await?;
        guest.start_container(&process.container).await?;
        let id = process.container.clone();
        let hooks = self.ask(move |state| state.containers.get(&id)?.hooks.clone()).await?;
        if let Some(hooks) = hooks
            && let Err(error) = hooks.run(Moment::Poststart, &self.origin).await
        {
            // It may have ended already.
            let _ = guest.signal(process, libc::SIGKILL.unsigned_abs(), true).await;
            return Err(error.into());
        }
        Ok(())
    }

    async fn start_exec(&self, guest: Agent, process: &Process) -> Result<(), SandboxError> {
        let wanted = process.clone();
        let asked = self
            .ask(move |state| {
                let things = state.processes.get_mut(&wanted)?;
                Some((std::mem::take(&mut things.exec_json), things.stdio.clone()))
            })
            .await?;
        let Some((process_json, stdio)) = asked else {
            return Err(SandboxError::Closing);
        };
        let host = self.open_stdio(&process.exec, &stdio).await?;
        let request = proto::ExecRequest {
            container_id: process.container.clone(),
            exec_id: process.exec.clone(),
            process_json,
            stdio: Some(host.announce(stdio.terminal)).into(),
            ..Default::default()
        };
        // Streams may come before their process, so both are asked for at once and one round trip is saved.
        let (started, copying) = tokio::join!(guest.exec(request), host.connect(&guest, process));
        started?;
        let mut copying: Copying = copying?;
        if let Some(client_gone) = copying.client_gone() {
            tokio::spawn(
                self.clone()
                    .bury_when_left(client_gone, process.clone(), stdio.terminal),
            );
        }
        let wanted = process.clone();
        let size = self
            .ask(move |state| {
                let things = state.processes.get_mut(&wanted)?;
                things.copies(copying);
                things.size
            })
            .await?;
        self.wait_for_exit(guest.clone(), process.clone());
        if let Some((columns, rows)) = size {
            // One that has ended already needs no size.
            let _ = guest.resize_terminal(process, columns, rows).await;
        }
        Ok(())
    }

    /// Sees to an exec whose last client has gone without a word: its terminal, if it has one, hangs up; once it has
    /// ended it is forgotten, because nobody will ask for it.
    async fn bury_when_left(self, mut client_gone: mpsc::Receiver<()>, exec: Process, terminal: bool) {
        if client_gone.recv().await.is_none() {
            return;
        }
        tracing::info!(container = exec.container, exec = exec.exec, "its client has gone");
        if terminal && let Err(error) = self.signal(&exec, libc::SIGHUP.unsigned_abs(), false).await {
            tracing::debug!(%error, "it has ended already");
        }
        if self.wait(&exec).await.is_ok()
            && let Err(error) = self.delete(&exec).await
        {
            tracing::debug!(%error, "it is forgotten already");
        }
    }

    /// Reports the end of `process` when it comes.
    pub(crate) fn wait_for_exit(&self, guest: Agent, process: Process) {
        let owner = self.owner.clone();
        tokio::spawn(async move {
            let (status, out_of_memory) = match guest.wait(&process).await {
                Ok(answer) => (
                    ExitStatus {
                        code: answer.exit_code.min(255),
                        at_unix_nanos: answer.exited_at_unix_nanos,
                    },
                    answer.oom_killed,
                ),
                // Deleted before it ended; whoever did that knows.
                Err(AgentError::NotFound(_)) => return,
                Err(error) => {
                    tracing::debug!(?process, %error, "lost while waiting");
                    let status = ExitStatus {
                        code: MACHINE_LOST,
                        at_unix_nanos: now_unix_nanos(),
                    };
                    (status, false)
                }
            };
            owner.tell(move |state| {
                if out_of_memory {
                    state.out_of_memory(&process.container);
                }
                state.exited(&process, status);
            });
        });
    }

    /// Sends a signal to a process, or to all of its container's.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] for what has ended or is unknown; [`SandboxError::Agent`]
    pub async fn signal(&self, process: &Process, signal: u32, all: bool) -> Result<(), SandboxError> {
        let wanted = process.clone();
        self.ask(move |state| state.pod.signal(&wanted)).await??;
        let sent = self.guest().await?.signal(process, signal, all).await;
        match sent {
            // It ended between the question and the signal.
            Err(AgentError::NotFound(_)) => Err(Refusal::Finished {
                what: format!("\"{}{}\"", process.container, process.exec),
            }
            .into()),
            other => Ok(other?),
        }
    }

    /// Tells a process's terminal its size, in characters; that of an exec gets it once it is started.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Agent`]
    pub async fn resize(&self, process: &Process, columns: u32, rows: u32) -> Result<(), SandboxError> {
        let wanted = process.clone();
        let begun = self
            .ask(move |state| -> Result<bool, Refusal> {
                state.pod.resize(&wanted)?;
                let begun = wanted.exec.is_empty() || state.pod.phase(&wanted)? != Phase::Created;
                if !begun && let Some(things) = state.processes.get_mut(&wanted) {
                    things.size = Some((columns, rows));
                }
                Ok(begun)
            })
            .await??;
        if begun {
            self.guest().await?.resize_terminal(process, columns, rows).await?;
        }
        Ok(())
    }

    /// Lets the process see the end of its input once what clients wrote is read.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] for unknown ids.
    pub async fn close_stdin(&self, process: &Process) -> Result<(), SandboxError> {
        let wanted = process.clone();
        self.ask(move |state| -> Result<(), Refusal> {
            state.pod.phase(&wanted)?;
            if let Some(things) = state.processes.get_mut(&wanted) {
                things.close_stdin();
            }
            Ok(())
        })
        .await??;
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Agent`]
    pub async fn pause(&self, container: &str) -> Result<(), SandboxError> {
        let id = container.to_owned();
        self.ask({
            let id = id.clone();
            move |state| state.pod.pause(&id)
        })
        .await??;
        self.guest().await?.pause(container).await?;
        self.ask(move |state| {
            state.pod.paused(&id);
            state.tell(Event::Paused { container: id });
        })
        .await
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Agent`]
    pub async fn resume(&self, container: &str) -> Result<(), SandboxError> {
        let id = container.to_owned();
        self.ask({
            let id = id.clone();
            move |state| state.pod.resume(&id)
        })
        .await??;
        self.guest().await?.resume(container).await?;
        self.ask(move |state| {
            state.pod.resumed(&id);
            state.tell(Event::Resumed { container: id });
        })
        .await
    }

    /// Changes a container's limits; `resources_json` is a `linux.resources` object. The machine follows.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Plan`] for what are no limits, [`SandboxError::Agent`]
    pub async fn update(&self, container: &str, resources_json: &[u8]) -> Result<(), SandboxError> {
        let id = container.to_owned();
        self.ask({
            let id = id.clone();
            move |state| state.pod.update(&id)
        })
        .await??;
        let update = kata_plan::update(resources_json)?;
        for note in &update.notes {
            tracing::info!(container, "{note}");
        }
        let before = self
            .ask(move |state| state.wants.get(&id).cloned())
            .await?
            .unwrap_or_default();
        let wants = Wants {
            demand: before.demand.updated(&update.resources),
            cpu: before.cpu.clone().updated(&update.resources),
        };
        // Room comes before limits that need it.
        self.want(container, wants).await?;
        if let Err(error) = self.guest().await?.update(container, update.guest_json).await {
            self.want(container, before).await?;
            return Err(error.into());
        }
        self.confine().await
    }

    /// Notes what a container asks of the machine, and has the machine fit.
    pub(crate) async fn want(&self, container: &str, wants: Wants) -> Result<(), SandboxError> {
        let id = container.to_owned();
        let (fitting, all) = self
            .ask(move |state| {
                state.wants.insert(id, wants);
                (state.fitting.clone(), state.wants.values().cloned().collect())
            })
            .await?;
        if let Some(fitting) = fitting {
            fitting.resize(all).await;
        }
        Ok(())
    }

    /// Holds the pod to what its containers may use of the host.
    pub(crate) async fn confine(&self) -> Result<(), SandboxError> {
        let (fitting, all) = self
            .ask(move |state| (state.fitting.clone(), state.wants.values().cloned().collect()))
            .await?;
        if let Some(fitting) = fitting {
            fitting.confine(all).await;
        }
        Ok(())
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Agent`]
    pub async fn processes(&self, container: &str) -> Result<proto::ProcessesResponse, SandboxError> {
        self.expect_live(container).await?;
        Ok(self.guest().await?.processes(container).await?)
    }

    /// What a container has used.
    ///
    /// # Errors
    /// [`SandboxError::Refused`], [`SandboxError::Agent`]
    pub async fn stats(&self, container: &str) -> Result<proto::StatsResponse, SandboxError> {
        self.expect_live(container).await?;
        Ok(self.guest().await?.stats(container).await?)
    }

    async fn expect_live(&self, container: &str) -> Result<(), SandboxError> {
        let init = Process::init(container);
        self.ask(move |state| state.pod.signal(&init)).await??;
        Ok(())
    }
}
