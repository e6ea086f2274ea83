//! Spares: machines that were started before there is a pod for them. A spare has booted, or is a clone of a template, its agent
//! has answered, and it stands still, until a pod takes it that is planned as the very same machine.
//!
//! What is the pod's own comes to it then, as to a clone: its taps are carried into the pod's network namespace, its processes go
//! into the pod's cgroups, and the agent gets name, time, randomness and interfaces. A spare that does not fit, or fails, is given up
//! for a boot.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_agent_client::{Agent, AgentError, connect};
use kata_cgroup::{Groups, Part};
use kata_config::{Config, Internetworking};
use kata_factory::Recipe;
use kata_machine::{Machine, Template, Vmm};
use kata_net::namespace as network_namespace;
use kata_plan::{Facts, PlanError, PodPlan, SharePlan, TemplatePlan};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_storage::share::FileServer;
use kata_sys::process::descendants;

use crate::boot::{ended_early, may_be_templates, set_up_request};
use crate::error::{SandboxError, describe};
use crate::expendable::{Expendable, ended, spare as treat_alike};
use crate::record::{Home, Mark};
use crate::sandbox::Sandbox;
use crate::serving::{Serving, end_with};
use crate::step::Steps;
use crate::survey;
use crate::template::{self, Templates, enter_with_taps};

/// What starting a spare takes.
pub struct Needs<'a> {
    /// Its directory.
    pub home: &'a Home,
    /// For which configuration.
    pub config: &'a Config,
    /// The driver.
    pub vmm: &'a dyn Vmm,
    /// The engine's side of the host.
    pub origin: &'a Origin,
    /// See [`Surroundings::maker`](crate::Surroundings::maker).
    pub maker: Option<&'a Path>,
}

/// A machine that stands still until a pod takes it. Dropping it kills its processes.
pub struct Spare {
    recipe: String,
    machine: Arc<dyn Machine>,
    guest: Agent,
    serving: Option<Serving>,
    /// In which its taps are.
    network: File,
}

/// The name of what a spare of this configuration is made of; pods with the same name may take it.
///
/// # Errors
/// [`SandboxError`] for a machine that cannot be planned, or not be the same for all pods.
pub fn recipe(config: &Config, vmm: &dyn Vmm) -> Result<String, SandboxError> {
    check(config)?;
    let plan = kata_plan::template(config, &survey::host(config)?)?;
    name(&plan, config, vmm)
}

/// No machine of such a configuration would fit any pod.
fn check(config: &Config) -> Result<(), PlanError> {
    match config.runtime.internetworking_model {
        Internetworking::Macvtap => Err(PlanError::Unsupported {
            what: "internetworking_model = \"macvtap\" for machines that wait (a macvtap cannot be made before its link is there)"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// Unlike a template's, with the file server, which runs already.
fn name(plan: &TemplatePlan, config: &Config, vmm: &dyn Vmm) -> Result<String, SandboxError> {
    let mut machine = vmm.recipe(&plan.machine)?;
    machine.push(serde_json::to_string(&plan.share).unwrap_or_default());
    machine.push(format!("clone: {}", config.factory.enable_template));
    // A process of another program than the pod's would be another sandbox process.
    let mut made_of = plan.made_of.clone();
    made_of.push("/proc/self/exe".into());
    let recipe = Recipe::new(template::BUILD, machine, &made_of);
    let recipe = recipe.map_err(|(path, source)| SandboxError::Host {
        act: "look at",
        path,
        source,
    })?;
    Ok(recipe.name())
}

impl Spare {
    /// Starts one. This process goes into a network namespace of its own and stays there; like all processes of machines, the
    /// spare's end with the calling thread.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left then.
    pub async fn start(needs: &Needs<'_>) -> Result<Self, SandboxError> {
        check(needs.config)?;
        let look = || survey::host(needs.config);
        let facts = needs.origin.visit(look);
        let facts = facts.map_err(|source| SandboxError::Origin { source })??;
        let wanted = kata_plan::template(needs.config, &facts)?;
        let recipe = name(&wanted, needs.config, needs.vmm)?;
        let templates = Templates {
            origin: needs.origin,
            config: needs.config,
            vmm: needs.vmm,
            maker: needs.maker,
        };
        let chosen = templates.choose(&wanted).await;
        // The same machine, with its things in the spare's own directory.
        let mut own = kata_plan::template(
            needs.config,
            &Facts {
                template_dir: needs.home.path().to_owned(),
                ..facts
            },
        )?;
        own.machine.id = needs
            .home
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        enter_with_taps(&own)?;
        let share = needs.home.share();
        let failed = |act: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| SandboxError::Host { act, path, source }
        };
        let network = network_namespace::own().map_err(failed("open", Path::new("/proc/thread-self/ns/net")))?;
        namespace::make_share(&share).map_err(failed("make the share on", &share))?;
        let mut launched = launch(needs, &own, chosen.as_ref().map(|chosen| &chosen.template)).await;
        if let (Some(chosen), Err(error)) = (&chosen, &launched)
            && may_be_templates(error)
        {
            templates.discard(chosen, error);
            launched = launch(needs, &own, None).await;
        }
        let (machine, guest, serving) = launched.inspect_err(|_| {
            let _ = namespace::drop_share(&share);
        })?;
        Ok(Self {
            recipe,
            machine,
            guest,
            serving,
            network,
        })
    }

    /// The name of what it is made of.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// Its processes.
    pub fn helpers(&self) -> Vec<Mark> {
        let server = self.serving.as_ref().and_then(|serving| serving.pid);
        let pids = server.into_iter().chain([self.machine.pid()]);
        pids.filter_map(|pid| Mark::of(pid).ok()).collect()
    }

    /// Waits until its machine ends by itself; answers the last words.
    pub async fn ended(&self) -> String {
        ended(&mut self.machine.exit()).await.messages
    }

    /// Ends it. `home` is where its directory is now.
    pub async fn end(self, home: &Home) {
        self.machine.halt(Duration::ZERO).await;
        if let Some(serving) = self.serving {
            serving.stop().await;
        }
        remove_sockets(home.path());
        if let Err(error) = namespace::drop_share(&home.share()) {
            tracing::warn!(%error, "the share of a machine that waited stays");
        }
    }
}

/// They have moved with the directory, and another machine may need their names.
fn remove_sockets(directory: &Path) {
    for socket in ["agent.sock", "share.sock"] {
        let _ = std::fs::remove_file(directory.join(socket));
    }
}

/// Starts the machine, of this template or with a boot, and lets it stand still as soon as its agent has answered.
async fn launch(
    needs: &Needs<'_>,
    plan: &TemplatePlan,
    template: Option<&Template>,
) -> Result<(Arc<dyn Machine>, Agent, Option<Serving>), SandboxError> {
    let (serving, words) = match &plan.share {
        SharePlan::VirtioFs {
            daemon,
            arguments,
            socket,
            ..
        } => {
            let (serving, words) = Serving::begin(FileServer::start(daemon, arguments, socket)?);
            (Some(serving), Some(words))
        }
        SharePlan::NineP { .. } => (None, None),
    };
    let launched = async {
        // Nobody would miss it while it waits, and then it starts a pod.
        let expendable = Expendable::begin();
        let started = match template {
            Some(template) => needs.vmm.restore(&plan.machine, template).await,
            None => needs.vmm.boot(&plan.machine).await,
        };
        drop(expendable);
        let machine: Arc<dyn Machine> = Arc::from(started?);
        if let Err(error) = kata_ksm::kick() {
            tracing::debug!(%error, "no throttler of KSM is told of the machine");
        }
        let limit = needs.config.agent_answer_limit() / if template.is_some() { 3 } else { 1 };
        let mut exit = machine.exit();
        let reached = async {
            let guest = connect(machine.connect().await?, limit).await;
            guest.map_err(|source| SandboxError::NoAgent {
                console: machine.console_tail(),
                source,
            })
        };
        let reached = tokio::select! {
            reached = reached => reached,
            exit = ended(&mut exit) => Err(ended_early(&*machine, exit)),
        };
        let still = match reached {
            // It costs no time of the host's CPUs while it waits.
            Ok(guest) => machine.suspend().await.map(|()| guest).map_err(Into::into),
            Err(error) => Err(error),
        };
        match still {
            Ok(guest) => Ok((machine, guest)),
            Err(error) => {
                machine.halt(Duration::ZERO).await;
                Err(error)
            }
        }
    };
    match launched.await {
        Ok((machine, guest)) => {
            if let Some(words) = words {
                end_with(&machine, words);
            }
            Ok((machine, guest, serving))
        }
        Err(error) => {
            if let Some(serving) = serving {
                serving.stop().await;
            }
            Err(error)
        }
    }
}

impl Sandbox {
    /// Whether a machine waits for the pod of this plan. One that does not fit it is ended.
    pub(crate) async fn keep_if_fit(&self, plan: &PodPlan) -> Result<bool, SandboxError> {
        let waits = self.ask(|state| state.spare.as_ref().map(|spare| spare.recipe.clone()));
        let Some(recipe) = waits.await? else { return Ok(false) };
        let misfit = match &plan.template {
            // The log says why.
            None => Some("the pod needs another machine".to_owned()),
            Some(_) if plan.vmm_label.is_some() => Some("the pod's VMM has a label of its own".to_owned()),
            Some(template) => match self.abroad(|| name(template, &self.config, &*self.vmm))?? {
                name if name == recipe => None,
                _ => Some("it is of another configuration".to_owned()),
            },
        };
        let Some(why) = misfit else { return Ok(true) };
        tracing::warn!("the machine that waited does not fit: {why}");
        if let Some(spare) = self.ask(|state| state.spare.take()).await? {
            spare.end(&self.home).await;
        }
        Ok(false)
    }

    /// Makes the machine that waits the pod's; `None` if there is none, or none that works.
    pub(crate) async fn adopt(
        &self,
        plan: &PodPlan,
        groups: &Groups,
        steps: &mut Steps,
    ) -> Result<Option<(Arc<dyn Machine>, Agent)>, SandboxError> {
        let Some(spare) = self.ask(|state| state.spare.take()).await? else {
            return Ok(None);
        };
        let began = Instant::now();
        let mut branch = steps.branch();
        let adopted = match self.prepare(plan, &spare, groups, &mut branch).await {
            Ok(()) => self.take_over(plan, spare, &mut branch).await,
            Err(error) => {
                spare.end(&self.home).await;
                Err(error)
            }
        };
        match adopted {
            Ok(adopted) => {
                steps.join(branch);
                self.note("take the machine that waited", began).await;
                Ok(Some(adopted))
            }
            Err(error) if may_be_spares(&error) => {
                branch.undo().await;
                let why = describe(&error);
                tracing::warn!("the machine that waited is no good, another boots: {why}");
                Ok(None)
            }
            Err(error) => {
                steps.join(branch);
                Err(error)
            }
        }
    }

    /// Brings the spare where the pod is.
    async fn prepare(
        &self,
        plan: &PodPlan,
        spare: &Spare,
        groups: &Groups,
        steps: &mut Steps,
    ) -> Result<(), SandboxError> {
        self.make_network(&plan.network, Some(&spare.network), steps).await?;
        steps.next("cgroups of the machine that waits")?;
        groups.take(Part::Vmm, spare.machine.pid());
        if let Some(server) = spare.serving.as_ref().and_then(|serving| serving.pid) {
            for pid in descendants(server).into_iter().chain([server]) {
                groups.take(Part::Rest, pid);
                if let Ok(its) = Mark::of(pid) {
                    treat_alike(its);
                }
            }
        }
        let helpers = spare.helpers();
        self.ask(move |state| {
            state.record.helpers = helpers;
            state.home.write(&state.record)
        })
        .await??;
        Ok(())
    }

    /// From here on it is taken back as if it had been started now.
    async fn take_over(
        &self,
        plan: &PodPlan,
        spare: Spare,
        steps: &mut Steps,
    ) -> Result<(Arc<dyn Machine>, Agent), SandboxError> {
        let Spare {
            machine,
            guest,
            serving,
            ..
        } = spare;
        let (share, directory) = (self.home.share(), self.home.path().to_owned());
        steps.done("sockets", move || async move {
            remove_sockets(&directory);
            Ok(())
        });
        steps.done("share", move || async move {
            namespace::drop_share(&share).map_err(|error| error.to_string())
        });
        if let Some(serving) = serving {
            steps.done("file server", move || async move {
                serving.stop().await;
                Ok(())
            });
        }
        let halted = machine.clone();
        steps.done("machine", move || async move {
            halted.halt(Duration::ZERO).await;
            Ok(())
        });
        steps.next("set the machine up that waits")?;
        machine.resume().await?;
        let mut exit = machine.exit();
        let details = tokio::select! {
            details = guest.set_up(set_up_request(plan)) => details?,
            exit = ended(&mut exit) => return Err(ended_early(&*machine, exit)),
        };
        tracing::info!(
            agent = details.agent_version,
            kernel = details.kernel_release,
            "the guest, which waited, is the pod's"
        );
        Ok((machine, guest))
    }
}

/// What a spare that fell while it waited, or was killed then, leads to. An agent that refuses is sound.
fn may_be_spares(error: &SandboxError) -> bool {
    matches!(
        error,
        SandboxError::Machine(_)
            | SandboxError::EndedEarly { .. }
            | SandboxError::Agent(AgentError::Lost | AgentError::Silent { .. })
    )
}
