//! From a plan to a machine whose agent answers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kata_agent_client::{Agent, AgentError, connect};
use kata_cgroup::{Groups, Part};
use kata_machine::{Device, Exit, Machine, MachineError, MachineSpec, Template};
use kata_plan::{GuestMount, PodPlan, SharePlan};
use kata_storage::namespace;
use kata_storage::share::FileServer;
use kata_sys::random;
use kata_wire::proto;
use tokio::sync::oneshot;

use crate::error::SandboxError;
use crate::expendable::{Expendable, ended, spare};
use crate::fitting::{Fitter, Fitting};
use crate::label::NextLabel;
use crate::record::Home;
use crate::recover;
use crate::sandbox::{Sandbox, now_unix_nanos};
use crate::serving::{Serving, end_with};
use crate::step::Steps;
use crate::template::Chosen;
use crate::{localhost, network};

/// How long a machine gets to end by itself when it is told to.
const HALT_GRACE: Duration = Duration::ZERO;

/// How long after its file server or its channel a VMM may be seen to end, if it was the VMM that ended first.
pub(crate) const VMM_END: Duration = Duration::from_millis(500);

/// How long after its start a pod has come to rest, its other containers included.
const REST: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Boots the pod's machine. What is done is noted in `steps`; after an error the caller takes it back.
    pub(crate) async fn boot(&self, plan: &PodPlan, steps: &mut Steps) -> Result<Agent, SandboxError> {
        for note in &plan.notes {
            tracing::info!("{note}");
        }
        let has_spare = self.keep_if_fit(plan).await?;
        // Before anything is made for the pod: what the template takes is not the pod's.
        let chosen = match has_spare {
            true => None,
            false => self.choose_template(plan).await,
        };
        let groups = self.make_cgroups(plan, steps).await?;
        let adopted = self.adopt(plan, &groups, steps).await?;
        let (machine, guest) = match adopted {
            Some(adopted) => adopted,
            None => {
                self.make_share(steps)?;
                let networked = Instant::now();
                self.make_network(&plan.network, None, steps).await?;
                self.note("make the network", networked).await;
                self.start_guest(plan, chosen, &groups, steps).await?
            }
        };
        if self.network.is_some() {
            serve_localhost(&guest, steps)?;
        }
        let fitting = Fitting::start(Fitter {
            machine: machine.clone(),
            guest: guest.clone(),
            sizing: plan.sizing.clone(),
            cgroups: plan.cgroups.clone(),
            groups,
            alone: plan.alone,
            pin: self.config.runtime.enable_vcpus_pinning,
        });
        let (kept, driven) = (guest.clone(), machine.clone());
        self.ask(move |state| {
            state.guest = Some(kept);
            state.exit = Some(driven.exit());
            state.machine = Some(driven);
            state.fitting = Some(fitting);
        })
        .await?;
        self.watch(&machine);
        Ok(guest)
    }

    /// Starts the machine and what serves it, and sets its guest up. A template of which no machine can be made is given up
    /// for a boot.
    async fn start_guest(
        &self,
        plan: &PodPlan,
        chosen: Option<Chosen>,
        groups: &Groups,
        steps: &mut Steps,
    ) -> Result<(Arc<dyn Machine>, Agent), SandboxError> {
        if let Some(chosen) = chosen {
            let mut branch = steps.branch();
            match self.start_from(plan, Some(&chosen.template), groups, &mut branch).await {
                Err(error) if may_be_templates(&error) => {
                    branch.undo().await;
                    self.templates().discard(&chosen, &error);
                }
                started => {
                    steps.join(branch);
                    return started;
                }
            }
        }
        self.start_from(plan, None, groups, steps).await
    }

    /// The same, of this template, or with a boot.
    async fn start_from(
        &self,
        plan: &PodPlan,
        template: Option<&Template>,
        groups: &Groups,
        steps: &mut Steps,
    ) -> Result<(Arc<dyn Machine>, Agent), SandboxError> {
        let began = Instant::now();
        let file_server = self.start_file_server(plan, steps).await?;
        groups.enter(Part::Vmm);
        let machine = self.start_machine(plan, template, steps).await;
        groups.enter(Part::Rest);
        let machine = machine?;
        if let Some(words) = file_server {
            end_with(&machine, words);
        }
        let vmm_ready = Instant::now();
        self.note("start the file server and the VMM", began).await;
        let guest = self
            .reach_agent(plan, machine.clone(), template.is_some(), vmm_ready, steps)
            .await?;
        Ok((machine, guest))
    }

    /// Makes the pod's cgroups and goes where everything begins that is not the guest.
    async fn make_cgroups(&self, plan: &PodPlan, steps: &mut Steps) -> Result<Groups, SandboxError> {
        steps.next("cgroups")?;
        let groups = Groups::make(&plan.cgroups, &self.hierarchies);
        let made = groups.clone();
        steps.done("cgroups", move || async move {
            made.leave();
            // The command line's stand-in may be in it a moment longer.
            recover::remove_cgroups_by_and_by(made.made()).await;
            Ok(())
        });
        let (pod, made) = (groups.of_the_pod(), groups.made().to_vec());
        self.ask(move |state| {
            state.record.pod_cgroups = pod;
            state.record.made_cgroups = made;
            state.home.write(&state.record)
        })
        .await??;
        groups.enter(Part::Rest);
        Ok(groups)
    }

    fn make_share(&self, steps: &mut Steps) -> Result<(), SandboxError> {
        let share = self.home.share();
        steps.next("share")?;
        namespace::make_share(&share).map_err(|source| SandboxError::Host {
            act: "make the share on",
            path: share.clone(),
            source,
        })?;
        steps.done("share", move || async move {
            namespace::drop_share(&share).map_err(|error| error.to_string())
        });
        Ok(())
    }

    /// Starts the daemon of a virtio-fs share. Answers what resolves with its last words when it ends by itself.
    async fn start_file_server(
        &self,
        plan: &PodPlan,
        steps: &mut Steps,
    ) -> Result<Option<oneshot::Receiver<String>>, SandboxError> {
        let SharePlan::VirtioFs {
            daemon,
            arguments,
            socket,
            ..
        } = &plan.share
        else {
            return Ok(None);
        };
        steps.next("file server")?;
        let (serving, words) = Serving::begin(FileServer::start(daemon, arguments, socket)?);
        let pid = serving.pid;
        let socket = socket.clone();
        steps.done("file server", move || async move {
            serving.stop().await;
            let _ = std::fs::remove_file(socket);
            Ok(())
        });
        if let Some(pid) = pid {
            self.ask(move |state| state.note_helper(pid)).await??;
        }
        Ok(Some(words))
    }

    async fn start_machine(
        &self,
        plan: &PodPlan,
        template: Option<&Template>,
        steps: &mut Steps,
    ) -> Result<Arc<dyn Machine>, SandboxError> {
        steps.next("machine")?;
        let label = plan.vmm_label.as_deref().map(NextLabel::set).transpose();
        let label = label.map_err(|source| SandboxError::Host {
            act: "give the VMM its label in",
            path: "/proc/thread-self/attr/exec".into(),
            source,
        })?;
        let expendable = Expendable::begin();
        let started = match template {
            Some(template) => self.vmm.restore(&plan.machine, template).await,
            None => self.vmm.boot(&plan.machine).await,
        };
        drop((label, expendable));
        let machine: Arc<dyn Machine> = Arc::from(started?);
        // There is one on few hosts.
        if let Err(error) = kata_ksm::kick() {
            tracing::debug!(%error, "no throttler of KSM is told of the machine");
        }
        let halted = machine.clone();
        steps.done("machine", move || async move {
            halted.halt(HALT_GRACE).await;
            Ok(())
        });
        let pid = machine.pid();
        self.ask(move |state| state.note_helper(pid)).await??;
        Ok(machine)
    }

    /// Sees to it that the end of the machine ends its containers.
    fn watch(&self, machine: &Arc<dyn Machine>) {
        let mut exit = machine.exit();
        let owner = self.owner.clone();
        let watched = machine.clone();
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
            // One that was told to end has no guest any more.
            let was_used = owner.ask(|state| state.guest.is_some()).await;
            if let (Ok(Some(exit)), Some(true)) = (ended, was_used) {
                let console = watched.console_tail();
                let (messages, console) = (exit.messages.trim(), console.trim());
                tracing::error!(status = ?exit.status, messages, console, "the machine has ended by itself");
            }
            owner.tell(|state| state.machine_lost());
        });
    }

    async fn reach_agent(
        &self,
        plan: &PodPlan,
        machine: Arc<dyn Machine>,
        is_clone: bool,
        booted: Instant,
        steps: &mut Steps,
    ) -> Result<Agent, SandboxError> {
        steps.next("agent")?;
        let mut exit = machine.exit();
        // A clone answers at once, or a boot is to follow.
        let limit = self.config.agent_answer_limit() / if is_clone { 3 } else { 1 };
        let reaching = async {
            let transport = machine.connect().await?;
            let console = || machine.console_tail();
            let agent = connect(transport, limit)
                .await
                .map_err(|source| SandboxError::NoAgent {
                    console: console(),
                    source,
                })?;
            let details = agent.set_up(set_up_request(plan)).await?;
            Ok::<_, SandboxError>((agent, details))
        };
        let (agent, details) = tokio::select! {
            reached = reaching => match reached {
                Ok(reached) => reached,
                // The channel breaks a moment before the end of the VMM is known; its words say more.
                Err(error) => match tokio::time::timeout(VMM_END, ended(&mut exit)).await {
                    Ok(exit) => return Err(ended_early(&*machine, exit)),
                    Err(_) => return Err(error),
                },
            },
            exit = ended(&mut exit) => return Err(ended_early(&*machine, exit)),
        };
        tracing::info!(
            agent = details.agent_version,
            kernel = details.kernel_release,
            "the guest is up"
        );
        if is_clone {
            self.note("reach and set up the clone", booted).await;
            return Ok(agent);
        }
        let kernel = Duration::from_micros(details.agent_started_usecs);
        let agent_start = Duration::from_micros(details.agent_ready_usecs.saturating_sub(details.agent_started_usecs));
        self.ask(move |state| {
            state
                .timeline
                .note_took("boot the guest's kernel (its clock)", booted, kernel);
            state
                .timeline
                .note_took("start the agent (its clock)", booted + kernel, agent_start);
            state.timeline.note("boot until the agent has set up the guest", booted);
        })
        .await?;
        Ok(agent)
    }

    /// The pod has started: its machine goes on as one among others when memory is wanting, and needs less of it.
    pub(crate) async fn has_started(&self) {
        let machine = self
            .ask(|state| {
                let machine = state.machine.as_ref()?;
                let its = state.record.helpers.iter().find(|helper| helper.pid == machine.pid());
                if let Some(its) = its {
                    spare(*its);
                }
                Some(Arc::downgrade(machine))
            })
            .await;
        if let (Ok(Some(machine)), true) = (machine, self.config.qemu.reclaim_guest_freed_memory) {
            tokio::spawn(forget_boot(machine, self.home.clone()));
        }
    }

    /// A channel that was closed says less than the machine's end, which is known a moment later.
    pub(crate) async fn explain_loss(&self, error: SandboxError) -> SandboxError {
        if !matches!(error, SandboxError::Agent(AgentError::Lost)) {
            return error;
        }
        let Ok(Some(mut exit)) = self.ask(|state| state.exit.clone()).await else {
            return error;
        };
        match tokio::time::timeout(VMM_END, ended(&mut exit)).await {
            Ok(exit) => SandboxError::Ended { exit },
            Err(_) => error,
        }
    }

    pub(crate) async fn note(&self, name: &'static str, from: Instant) {
        // Fails only while the process is going down, when times matter to nobody.
        let _ = self.ask(move |state| state.timeline.note(name, from)).await;
    }
}

/// What a damaged template leads to: a machine that cannot be made, falls, or stays silent. An agent that refuses is sound,
/// and a machine that was killed was not to blame: a boot would want even more memory.
pub(crate) fn may_be_templates(error: &SandboxError) -> bool {
    match error {
        SandboxError::Machine(MachineError::Died { exit, .. }) | SandboxError::EndedEarly { exit, .. } => {
            !exit.was_killed()
        }
        SandboxError::Machine(_) | SandboxError::NoAgent { .. } => true,
        _ => false,
    }
}

/// Lets the machine forget its boot, when its pod has come to rest.
async fn forget_boot(machine: Weak<dyn Machine>, home: Home) {
    tokio::time::sleep(REST).await;
    let Some(machine) = machine.upgrade() else { return };
    match machine.forget_boot(home.path()).await {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(mib = bytes >> 20, "the VMM has given back what it kept of the boot"),
        // It may have ended meanwhile.
        Err(error) if machine.exit().borrow().is_some() => tracing::debug!(%error, "the boot is not forgotten"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the VMM keeps memory for the boot that it has no use for");
        }
    }
}

/// Not every host can do it, and a pod can do without.
fn serve_localhost(guest: &Agent, steps: &mut Steps) -> Result<(), SandboxError> {
    steps.next("localhost")?;
    match localhost::serve(guest) {
        Ok(serving) => steps.done("localhost", move || async move {
            drop(serving);
            Ok(())
        }),
        Err(error) => tracing::warn!(%error, "connections to localhost in the pod's network namespace do not reach it"),
    }
    Ok(())
}

pub(crate) fn ended_early(machine: &dyn Machine, exit: Exit) -> SandboxError {
    SandboxError::EndedEarly {
        console: machine.console_tail(),
        exit,
    }
}

pub(crate) fn set_up_request(plan: &PodPlan) -> proto::SetupRequest {
    proto::SetupRequest {
        sandbox_id: plan.id.clone(),
        hostname: plan.hostname.clone(),
        network: Some(network::for_guest(&plan.network.nics)).into(),
        ..set_up_of_any(&plan.machine, &plan.share)
    }
}

/// The part that is not a pod's own.
pub(crate) fn set_up_of_any(machine: &MachineSpec, share: &SharePlan) -> proto::SetupRequest {
    proto::SetupRequest {
        clock_unix_nanos: now_unix_nanos(),
        entropy: random::bytes(64),
        shares: share_of(share).into_iter().collect(),
        balloon: machine.devices.contains(&Device::Balloon),
        ..Default::default()
    }
}

fn share_of(plan: &SharePlan) -> Option<proto::Share> {
    let (SharePlan::VirtioFs { mount, .. } | SharePlan::NineP { mount, .. }) = plan;
    let GuestMount {
        fs_type,
        tag,
        mount_point,
        options,
        read_only,
    } = mount.clone();
    Some(proto::Share {
        fs_type,
        tag,
        mount_point,
        options,
        read_only,
        ..Default::default()
    })
}
