//! The pod as something with a life of its own, for engines that know pods as such (containerd's Sandbox API): the machine
//! runs before there is any container in it, and until it is told to stop. Otherwise the first container is the pod.
//!
//! To the rules it is a container with the pod's id, of which the guest knows nothing and nobody is told.

use kata_agent_client::{AgentError, Process};
use kata_bundle::Bundle;

use crate::error::SandboxError;
use crate::lifecycle::{ExitStatus, Phase, Refusal};
use crate::sandbox::{MACHINE_LOST, ProcessState, ProcessThings, Sandbox, now_unix_nanos};
use crate::stdio::Stdio;
use crate::survey;

impl Sandbox {
    fn itself(&self) -> Process {
        Process::init(&self.id)
    }

    /// Opens the pod; it has no machine yet.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] if it is open.
    pub async fn open_pod(&self) -> Result<(), SandboxError> {
        let itself = self.itself();
        self.ask(move |state| -> Result<(), Refusal> {
            state.pod.create(&itself.container)?;
            state.pod.created(&itself.container, true);
            let things = ProcessThings {
                is_told: false,
                ..ProcessThings::new(Stdio::default(), Vec::new())
            };
            state.processes.insert(itself, things);
            Ok(())
        })
        .await??;
        Ok(())
    }

    /// Boots the machine of an open pod, which `bundle` describes. After an error nothing of it is left.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn start_pod(&self, bundle: &Bundle) -> Result<(), SandboxError> {
        let itself = self.itself();
        self.ask({
            let itself = itself.clone();
            move |state| state.pod.start(&itself)
        })
        .await??;
        let booted = self.boot_alone(bundle).await;
        let failed_at = booted.is_err().then(|| ExitStatus {
            code: MACHINE_LOST,
            at_unix_nanos: now_unix_nanos(),
        });
        if booted.is_err() {
            self.undo_pod().await;
        }
        self.ask(move |state| {
            // It may have ended already.
            let ended = state.pod.started(&itself, failed_at).or(failed_at);
            if let Some(status) = ended {
                state.publish_exit(&itself, status);
            }
        })
        .await?;
        booted
    }

    async fn boot_alone(&self, bundle: &Bundle) -> Result<(), SandboxError> {
        let facts = self.abroad(|| survey::facts(&self.config, &self.home, bundle.spec(), &[]))??;
        self.boot_for(bundle, facts, self.faults.clone()).await?;
        self.has_started().await;
        Ok(())
    }

    /// Ends the machine, and with it all containers. That it has ended already is no error.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when the pod is not open.
    pub async fn stop_pod(&self) -> Result<(), SandboxError> {
        let itself = self.itself();
        self.ask(move |state| -> Result<(), Refusal> {
            if state.pod.phase(&itself)?.exit().is_none() {
                let well = ExitStatus {
                    code: 0,
                    at_unix_nanos: now_unix_nanos(),
                };
                state.exited(&itself, well);
            }
            state.machine_lost();
            Ok(())
        })
        .await??;
        self.undo_pod().await;
        Ok(())
    }

    /// Where the pod stands.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when it is not open.
    pub async fn pod_phase(&self) -> Result<Phase, SandboxError> {
        let state: ProcessState = self.state(&self.itself()).await?;
        Ok(state.phase)
    }

    /// Waits until the pod's machine has ended: 0 if it was told to.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when the pod is not open.
    pub async fn wait_pod(&self) -> Result<ExitStatus, SandboxError> {
        self.wait(&self.itself()).await
    }

    /// Whether the guest's agent can be asked.
    ///
    /// # Errors
    /// [`SandboxError::NoMachine`], [`SandboxError::Agent`]
    pub async fn ping_pod(&self) -> Result<(), SandboxError> {
        self.pod_phase().await?;
        let guest = self.guest().await?;
        match guest.processes(&self.id).await {
            // It knows no such container, which is an answer.
            Err(AgentError::NotFound(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
