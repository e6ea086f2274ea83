//! Templates of machines: how one is made, and how a sandbox gets the one that it needs.
//!
//! A sandbox that finds none waits while it is made, and others that need the same wait with it. That costs the first a
//! boot, which it would have had anyway, and a rehearsal; those that come with it wait for one boot instead of each having
//! its own. The maker is a process of its own, outside the pod's namespaces and cgroups, and ends with who waits for it. What
//! it could not make is not tried again for a while.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kata_config::Config;
use kata_factory::{FactoryError, HalfMade, Recipe, Store};
use kata_machine::{Device, Draft, Template, TemplateFiles, Vmm, Wire};
use kata_net::{namespace as network_namespace, tap};
use kata_netlink::Socket;
use kata_plan::{PodPlan, SharePlan, TemplatePlan};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_storage::share::FileServer;
use kata_sys::process::die_with_parent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::boot::VMM_END;
use crate::error::{SandboxError, describe};
use crate::expendable::ended;
use crate::rehearsal::rehearse;
use crate::sandbox::Sandbox;

/// What a recipe names as its maker. The number counts the ways in which templates were made.
pub(crate) const BUILD: &str = concat!(
    "kata ",
    env!("CARGO_PKG_VERSION"),
    ", 3: rehearsed, an image of the VMM"
);

/// What the program of [`Surroundings::maker`](crate::Surroundings::maker) is told; the plan comes as JSON on its stdin.
pub const MAKER_ACTION: &str = "template";

/// How much of a maker's last words is listened to, bytes.
const WORDS_LIMIT: u64 = 4 << 10;

/// A packet as large as on most links, bytes.
const USUAL_MTU: u32 = 1500;

/// What making a template came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    Now,
    /// It was there.
    Before,
}

/// Who wants a template made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A pod, which can boot: what failed a while ago is not tried again.
    Pod,
    /// An operator, who is to see whether it can be made.
    Operator,
}

/// The recipe of a planned template, from the files as they are now.
///
/// # Errors
/// [`SandboxError::Machine`] for a machine that cannot be saved, [`SandboxError::Host`] for a file that is not there.
pub fn recipe(plan: &TemplatePlan, vmm: &dyn Vmm) -> Result<Recipe, SandboxError> {
    let machine = vmm.recipe(&plan.machine)?;
    Recipe::new(BUILD, machine, &plan.made_of).map_err(|(path, source)| SandboxError::Host {
        act: "look at",
        path,
        source,
    })
}

/// Makes the template in its store if it is not there; its guest may take `limit` to boot, and to rehearse. To be called in
/// a process of its own, on its main thread: it goes into another network namespace and stays there.
///
/// # Errors
/// See [`SandboxError`]; nothing is left then but the memory of a failure.
pub async fn make(
    plan: &TemplatePlan,
    vmm: &dyn Vmm,
    limit: Duration,
    occasion: Occasion,
) -> Result<Made, SandboxError> {
    let store = Store::at(plan.machine.run_dir.parent().unwrap_or(Path::new("/")));
    let recipe = recipe(plan, vmm)?;
    let locked = store.lock()?;
    match store.open(&recipe) {
        Ok(Some(_)) => return Ok(Made::Before),
        Ok(None) => {}
        Err(error @ FactoryError::Damaged { .. }) => tracing::warn!("{error}; it is made anew"),
        Err(error) => return Err(error.into()),
    }
    // Who held the lock before may have failed just now.
    if occasion == Occasion::Pod
        && let Some(failure) = store.failure(&recipe)
    {
        return Err(SandboxError::Template(failure.to_string()));
    }
    let half_made = locked.begin()?;
    if let Err(error) = make_in(half_made, plan, vmm, limit, &recipe).await {
        if let Err(error) = store.note_failure(&recipe, &describe(&error)) {
            tracing::warn!(%error, "the next pod tries again to make the template");
        }
        return Err(error);
    }
    if let Err(error) = locked.sweep(&recipe) {
        tracing::warn!(%error, "old templates are left");
    }
    Ok(Made::Now)
}

async fn make_in(
    half_made: HalfMade,
    plan: &TemplatePlan,
    vmm: &dyn Vmm,
    limit: Duration,
    recipe: &Recipe,
) -> Result<(), SandboxError> {
    enter_with_taps(plan)?;
    let failed = |act: &'static str| {
        let path = Path::new("/proc/thread-self/ns/mnt").to_owned();
        move |source| SandboxError::Host { act, path, source }
    };
    // What is mounted for the rehearsal ends with the namespace, whatever happens.
    let outside = namespace::enter().map_err(failed("make another mount namespace than"))?;
    let saved = save(&half_made.files(), plan, vmm, limit).await;
    outside.return_to().map_err(failed("leave"))?;
    saved?;
    tidy(plan);
    Ok(half_made.finish(recipe)?)
}

async fn save(files: &TemplateFiles, plan: &TemplatePlan, vmm: &dyn Vmm, limit: Duration) -> Result<(), SandboxError> {
    let (SharePlan::VirtioFs { source, .. } | SharePlan::NineP { source, .. }) = &plan.share;
    namespace::make_share(source).map_err(|error| SandboxError::Host {
        act: "make the share on",
        path: source.clone(),
        source: error,
    })?;
    let again = vmm.redrafts(&plan.machine);
    serve(plan, async {
        let mut draft = vmm.draft(&plan.machine, files, limit).await?;
        if !again {
            draft = rehearsed(draft, plan, limit).await?;
        }
        Ok(draft.save(limit).await?)
    })
    .await?;
    if !again {
        return Ok(());
    }
    let second = TemplateFiles {
        memory: files.memory.with_extension("again"),
        state: files.state.with_extension("again"),
    };
    let saved = save_again(files, &second, plan, vmm, limit).await;
    for file in [&second.memory, &second.state] {
        let _ = std::fs::remove_file(file);
    }
    saved
}

/// Makes a machine of the template that was saved, and puts what it is saved as in that one's place, if machines can be
/// made of it.
async fn save_again(
    first: &TemplateFiles,
    second: &TemplateFiles,
    plan: &TemplatePlan,
    vmm: &dyn Vmm,
    limit: Duration,
) -> Result<(), SandboxError> {
    let made = open(first)?;
    remove_sockets(plan);
    let saved = serve(plan, async {
        let draft = vmm.redraft(&plan.machine, &made, second).await?;
        Ok(rehearsed(draft, plan, limit).await?.save(limit).await)
    })
    .await?;
    let usable = match saved {
        Ok(()) => try_out(second, plan, vmm).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = usable {
        let why = describe(&error);
        tracing::warn!("the template is one of which machines are made with more work: {why}");
        return Ok(());
    }
    for (from, to) in [(&second.memory, &first.memory), (&second.state, &first.state)] {
        std::fs::rename(from, to).map_err(|source| SandboxError::Host {
            act: "rename",
            path: from.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Makes a machine of the template. That it cannot be done here is better known before there are pods.
async fn try_out(files: &TemplateFiles, plan: &TemplatePlan, vmm: &dyn Vmm) -> Result<(), SandboxError> {
    let made = open(files)?;
    remove_sockets(plan);
    serve(plan, async {
        let machine = vmm.restore(&plan.machine, &made).await?;
        machine.halt(Duration::ZERO).await;
        Ok(())
    })
    .await
}

fn open(files: &TemplateFiles) -> Result<Template, SandboxError> {
    let open = |path: &Path| {
        File::open(path).map_err(|source| SandboxError::Host {
            act: "open",
            path: path.to_owned(),
            source,
        })
    };
    Ok(Template {
        memory: open(&files.memory)?,
        state: open(&files.state)?,
    })
}

/// Does something while the share is served.
async fn serve<T>(plan: &TemplatePlan, act: impl Future<Output = Result<T, SandboxError>>) -> Result<T, SandboxError> {
    let server = start_file_server(plan)?;
    let done = act.await;
    if let Some(server) = server {
        server.stop().await;
    }
    done
}

/// The draft, after its rehearsal.
async fn rehearsed(
    mut draft: Box<dyn Draft>,
    plan: &TemplatePlan,
    limit: Duration,
) -> Result<Box<dyn Draft>, SandboxError> {
    let Err(error) = rehearse(&mut *draft, plan, limit).await else {
        return Ok(draft);
    };
    // A machine that has ended says more.
    let _ = tokio::time::timeout(VMM_END, ended(&mut draft.exit())).await;
    draft.discard().await?;
    Err(SandboxError::Rehearsal { source: error.into() })
}

/// Goes into a new network namespace and makes the machine's taps there. Both end with this process.
///
/// # Errors
/// [`SandboxError::Host`], [`SandboxError::Netlink`], [`SandboxError::Tap`]
pub(crate) fn enter_with_taps(plan: &TemplatePlan) -> Result<(), SandboxError> {
    network_namespace::enter_new().map_err(|source| SandboxError::Host {
        act: "make another network namespace than",
        path: "/proc/thread-self/ns/net".into(),
        source,
    })?;
    let socket = Socket::open()?;
    for device in &plan.machine.devices {
        if let Device::Nic {
            wire: Wire::Tap { name },
            queues,
            ..
        } = device
        {
            tap::make(&socket, name, *queues, USUAL_MTU)?;
        }
    }
    Ok(())
}

fn start_file_server(plan: &TemplatePlan) -> Result<Option<FileServer>, SandboxError> {
    match &plan.share {
        SharePlan::VirtioFs {
            daemon,
            arguments,
            socket,
            ..
        } => Ok(Some(FileServer::start(daemon, arguments, socket)?)),
        SharePlan::NineP { .. } => Ok(None),
    }
}

/// What was needed while it was made. What stays would be in nobody's way.
fn tidy(plan: &TemplatePlan) {
    let (SharePlan::VirtioFs { source, .. } | SharePlan::NineP { source, .. }) = &plan.share;
    let _ = std::fs::remove_dir(source);
    let _ = std::fs::remove_dir_all(&plan.rehearsal.directory);
    remove_sockets(plan);
}

fn remove_sockets(plan: &TemplatePlan) {
    for socket in ["agent.sock", "share.sock", "console.log"] {
        let _ = std::fs::remove_file(plan.machine.run_dir.join(socket));
    }
}

/// A template that a machine is about to be made of.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub template: Template,
    /// When it began to be waited for, if it had to be made.
    pub awaited: Option<Instant>,
    store: Store,
    recipe: Recipe,
}

/// From where and for what templates are chosen.
pub(crate) struct Templates<'a> {
    pub origin: &'a Origin,
    pub config: &'a Config,
    pub vmm: &'a dyn Vmm,
    /// See [`Surroundings::maker`](crate::Surroundings::maker).
    pub maker: Option<&'a Path>,
}

impl Sandbox {
    pub(crate) fn templates(&self) -> Templates<'_> {
        Templates {
            origin: &self.origin,
            config: &self.config,
            vmm: &*self.vmm,
            maker: self.maker.as_deref(),
        }
    }

    /// The template that the plan asks for, made if need be. Without one the machine boots, and the log says why.
    pub(crate) async fn choose_template(&self, plan: &PodPlan) -> Option<Chosen> {
        let chosen = self.templates().choose(plan.template.as_ref()?).await;
        if let Some(began) = chosen.as_ref().and_then(|chosen| chosen.awaited) {
            self.note("wait for the template", began).await;
        }
        chosen
    }
}

impl Templates<'_> {
    /// This template, made if need be, where templates are enabled. Without one the machine boots, and the log says why.
    pub async fn choose(&self, wanted: &TemplatePlan) -> Option<Chosen> {
        if !self.config.factory.enable_template {
            return None;
        }
        match self.find(wanted).await {
            Ok(chosen) => Some(chosen),
            Err(error) => {
                let why = describe(&error);
                tracing::warn!("no template, the machine boots: {why}");
                None
            }
        }
    }

    fn abroad<T>(&self, act: impl FnOnce() -> T) -> Result<T, SandboxError> {
        self.origin.visit(act).map_err(|source| SandboxError::Origin { source })
    }

    async fn find(&self, plan: &TemplatePlan) -> Result<Chosen, SandboxError> {
        let store = Store::at(&self.config.factory.template_path);
        let recipe = self.abroad(|| recipe(plan, self.vmm))??;
        let found = match self.abroad(|| store.open(&recipe))? {
            Err(error @ FactoryError::Damaged { .. }) => {
                // The next one finds none, and makes another.
                self.abroad(|| store.discard(&recipe))??;
                return Err(error.into());
            }
            found => found?,
        };
        let (template, awaited) = match found {
            Some(template) => (template, None),
            None => {
                if let Some(failure) = self.abroad(|| store.failure(&recipe))? {
                    return Err(SandboxError::Template(failure.to_string()));
                }
                let began = Instant::now();
                self.have_made(plan, &store, &recipe).await?;
                let made = self.abroad(|| store.open(&recipe))??;
                let gone = || SandboxError::Template("the one that was made is gone".into());
                (made.ok_or_else(gone)?, Some(began))
            }
        };
        Ok(Chosen {
            template,
            awaited,
            store,
            recipe,
        })
    }

    /// Has another process make it, on the engine's side of the host.
    async fn have_made(&self, plan: &TemplatePlan, store: &Store, recipe: &Recipe) -> Result<(), SandboxError> {
        let Some(maker) = self.maker else {
            return Err(SandboxError::Template("there is none, and nobody to make one".into()));
        };
        let failed = |source| SandboxError::Host {
            act: "run",
            path: maker.to_owned(),
            source,
        };
        let plan = serde_json::to_vec(plan).map_err(|error| failed(error.into()))?;
        let mut child = self.abroad(|| spawn(maker))?.map_err(failed)?;
        let limit = self.config.agent_answer_limit();
        let finished = async {
            if let Some(mut stdin) = child.stdin.take() {
                // One that has ended says why.
                let _ = stdin.write_all(&plan).await;
            }
            let mut words = Vec::new();
            if let Some(stderr) = child.stderr.take() {
                stderr.take(WORDS_LIMIT).read_to_end(&mut words).await?;
            }
            Ok((child.wait().await?, words))
        };
        let why = match tokio::time::timeout(limit, finished).await {
            Ok(Ok((status, _))) if status.success() => return Ok(()),
            Ok(Ok((status, words))) => {
                let words = String::from_utf8_lossy(&words).trim().to_owned();
                if status.code().is_some() {
                    return Err(SandboxError::Template(words));
                }
                format!("who made it was killed ({status}); {words}")
            }
            Ok(Err(error)) => return Err(failed(error)),
            // Dropping it kills it, and its own children die with it.
            Err(_) => format!("it was not made within {limit:?}"),
        };
        // Who was killed has not written it down.
        if let Err(error) = self.abroad(|| store.note_failure(recipe, &why))? {
            tracing::warn!(%error, "the next pod tries again to make the template");
        }
        Err(SandboxError::Template(why))
    }

    /// Takes away a template of which no machine can be made.
    pub fn discard(&self, chosen: &Chosen, error: &SandboxError) {
        let why = describe(error);
        tracing::warn!("no machine could be made of the template, which is discarded; the machine boots: {why}");
        match self.abroad(|| chosen.store.discard(&chosen.recipe)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the template stays"),
            Err(error) => tracing::warn!(%error, "the template stays"),
        }
    }
}

fn spawn(maker: &Path) -> std::io::Result<tokio::process::Child> {
    let mut command = std::process::Command::new(maker);
    command
        .arg(MAKER_ACTION)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    Command::from(command).kill_on_drop(true).spawn()
}
