//! `serve`: the sandbox process itself.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use kata_bundle::Bundle;
use kata_cgroup::Hierarchies;
use kata_config::{Config, ConfigError, Warning};
use kata_machine::Vmm;
use kata_sandbox::record::{Home, Mark};
use kata_sandbox::spare::Spare;
use kata_sandbox::step::Faults;
use kata_sandbox::{Sandbox, SandboxError, Surroundings};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_sys::process::take_fd;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use crate::flags::Flags;
use crate::guest::GuestQuestions;
use crate::sandbox::SandboxService;
use crate::task::TaskService;
use crate::{drivers, event};

/// The number under which the process finds its listening socket.
pub const LISTENER_FD: RawFd = 3;

/// The name under which containerd < 2 asks for the same service.
const TASK_V2: &str = "containerd.task.v2.Task";

/// What a sandbox process begins with.
pub struct Beginning {
    /// containerd's namespace, or the `--root` of the command line.
    pub namespace: String,
    /// The sandbox's directory, with its record in it.
    pub home: Home,
    /// The configuration file that the command line names.
    pub config: Option<PathBuf>,
    /// The configuration file that containerd's options name.
    pub options_config: Option<PathBuf>,
    /// containerd's socket for events.
    pub events: Option<String>,
    /// Where the APIs are served.
    pub listener: StdListener,
    /// The engine's side of the host.
    pub origin: Origin,
    /// A machine that was started ahead.
    pub spare: Option<Spare>,
}

/// Serves until it is told to shut down, then takes everything back.
///
/// # Errors
/// What keeps it from serving at all.
pub fn run(flags: &Flags) -> Result<()> {
    let listener = take_fd(LISTENER_FD).context("started by hand? There is no listening socket")?;
    // Its own session: what the engine sends to its own process group is not meant for the pod.
    nix::unistd::setsid().context("setsid")?;
    let origin = namespace::enter().context("cannot make a mount namespace of its own")?;
    let bundle = flags.bundle.clone().context("-bundle is missing")?;
    let home = Home::of(flags.place.as_deref().unwrap_or(&bundle));
    if let Some(why) = &flags.passed_over {
        tracing::warn!("no machine of the cache: {why}");
    }
    let beginning = Beginning {
        namespace: flags.namespace.clone(),
        home: home.clone(),
        config: flags.config.clone(),
        options_config: flags.options_config.clone(),
        events: events_address(None),
        listener: StdListener::from(listener),
        origin,
        spare: None,
    };
    // One thread: the machine's processes die with the thread that started them, and it is the smallest, too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(beginning))?;
    home.remove().context("cannot remove the sandbox's directory")
}

/// containerd's socket for events: the one that it has named, else the environment's.
pub fn events_address(named: Option<&str>) -> Option<String> {
    let environments = || std::env::var("TTRPC_ADDRESS").ok();
    let address = named.map(str::to_owned).or_else(environments);
    address.filter(|address| !address.is_empty())
}

/// Serves until it is told to shut down, then takes everything back but the directory.
///
/// # Errors
/// What keeps it from serving at all.
pub async fn serve(beginning: Beginning) -> Result<()> {
    let Beginning {
        namespace,
        home,
        config,
        options_config,
        events: address,
        listener,
        origin,
        spare,
    } = beginning;
    listener.set_nonblocking(true)?;
    let (events, happened) = mpsc::unbounded_channel();
    let opening = Opening {
        home: home.clone(),
        config,
        options_config,
        origin: Arc::new(origin),
        hierarchies: find_hierarchies,
        events,
        driver: Box::new(drivers::driver),
        spare: Mutex::new(spare),
    };
    let publisher = tokio::spawn(event::publish(happened, address, namespace));
    let closing = Arc::new(Notify::new());
    let service = Arc::new(TaskService::new(opening, closing.clone()));
    let mut server = Server::new()
        .add_listener(Listener::from(UnixListener::from_std(listener)?))
        .register_service(services(&service, &closing));
    server.start().await?;
    tracing::info!(pid = std::process::id(), home = %home.path().display(), "sandbox process serves");

    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = closing.notified() => {}
        _ = terminated.recv() => tracing::info!("terminated"),
        _ = interrupted.recv() => tracing::info!("interrupted"),
    }
    service.close().await;
    let _ = server.shutdown().await;
    drop((server, service));
    // What has happened last is still being told.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), publisher).await;
    Ok(())
}

/// A host without cgroups, or one that hides them, runs pods all the same.
fn find_hierarchies() -> Hierarchies {
    Hierarchies::find().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot tell which cgroups the host has");
        Hierarchies::default()
    })
}

/// Everything that is served, by its name.
pub fn services(tasks: &Arc<TaskService>, closing: &Arc<Notify>) -> HashMap<String, Service> {
    let mut services = create_task(tasks.clone());
    let pod = SandboxService::new(tasks.clone(), closing.clone());
    services.extend(create_sandbox(Arc::new(pod)));
    for (_, v2) in create_task(tasks.clone()) {
        services.insert(TASK_V2.to_owned(), v2);
    }
    let questions = Arc::new(GuestQuestions::new(tasks.clone()));
    services.extend(kata_wire::proto::create_agent(questions));
    services
}

/// Answers the driver for a configuration.
pub type ChooseDriver = dyn Fn(&Config) -> Arc<dyn Vmm> + Send + Sync;

/// What is needed to open the sandbox once the first container says how.
pub struct Opening {
    /// The sandbox's directory, with its record in it.
    pub home: Home,
    /// The configuration file that the command line names.
    pub config: Option<PathBuf>,
    /// The configuration file that the options name with which containerd started this process.
    pub options_config: Option<PathBuf>,
    /// The engine's side of the host.
    pub origin: Arc<Origin>,
    /// Looks for the host's cgroups.
    pub hierarchies: fn() -> Hierarchies,
    /// Where events go.
    pub events: mpsc::UnboundedSender<kata_sandbox::Event>,
    /// The driver for a configuration.
    pub driver: Box<ChooseDriver>,
    /// A machine that was started ahead, until the sandbox is opened.
    pub spare: Mutex<Option<Spare>>,
}

impl Opening {
    /// Opens the sandbox. Which configuration it gets: the command line's, else the pod's annotation, else that of
    /// containerd's options (`from_options`), else the environment's, else the first default file there is; and over it the
    /// annotations that it allows.
    ///
    /// # Errors
    /// [`SandboxError`] for an unusable configuration or network.
    pub fn open(&self, bundle: &Bundle, from_options: Option<PathBuf>) -> Result<Sandbox, SandboxError> {
        let explicit = self
            .config
            .clone()
            .or_else(|| bundle.config_path().map(Path::to_owned))
            .or(from_options)
            .or_else(|| self.options_config.clone());
        let (config, network) = self.abroad(|| {
            let (config, warnings) = configuration(explicit.as_deref(), Some(bundle))?;
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            let network = kata_sandbox::network::enter(bundle, &config)?;
            Ok::<_, SandboxError>((config, network))
        })??;
        let mut record = self.home.read()?;
        record.sandbox = Mark::of(std::process::id()).ok();
        Ok(Sandbox::new(Surroundings {
            home: self.home.clone(),
            record,
            vmm: (self.driver)(&config),
            network,
            config: Arc::new(config),
            origin: self.origin.clone(),
            hierarchies: (self.hierarchies)(),
            events: self.events.clone(),
            // This program, wherever it lies.
            maker: Some("/proc/self/exe".into()),
            spare: self.take_spare(),
            faults: Faults::none(),
        }))
    }

    /// Does `act` where the engine's paths mean something: what was mounted there since this process began may not be seen here.
    ///
    /// # Errors
    /// [`SandboxError::Origin`]
    pub fn abroad<T>(&self, act: impl FnOnce() -> T) -> Result<T, SandboxError> {
        self.origin.visit(act).map_err(|source| SandboxError::Origin { source })
    }

    /// Ends the machine that no sandbox was opened for.
    pub async fn close(&self) {
        if let Some(spare) = self.take_spare() {
            spare.end(&self.home).await;
        }
    }

    fn take_spare(&self) -> Option<Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The configuration in the file that is `named`, or else found, and over it the annotations of the pod that it allows; with
/// what in it has no effect.
///
/// # Errors
/// An unusable file, an annotation that is not allowed.
pub fn configuration(named: Option<&Path>, pod: Option<&Bundle>) -> Result<(Config, Vec<Warning>), ConfigError> {
    let (mut config, mut warnings) = Config::find(named)?;
    if let Some(pod) = pod {
        warnings.extend(config.annotate(pod.annotations())?);
    }
    Ok((config, warnings))
}
