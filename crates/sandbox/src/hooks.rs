//! The hooks of the OCI runtime spec (1.2, "POSIX-platform Hooks") that run on the host: programs that the engine wants run
//! at certain moments of a container's life, each with the container's state on its stdin.
//!
//! ```text
//!  prestart, createRuntime   before the pod's network is looked at and its machine booted   engine's namespaces
//!  createContainer           right after them                                               this process's own
//!  poststart                 after the container's program runs                             engine's namespaces
//!  poststop                  after the container is gone, also when its creation failed     engine's namespaces
//! ```
//!
//! This process's own namespaces are those nearest to a container's that the host has: the network of the pod, and the
//! engine's mounts with the container's root file system among them. `startContainer` hooks are the guest's business.
//! The pid in the state is this process's. The first hook that fails ends what was begun; of `poststop` all are run, and
//! failures are logged.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kata_bundle::Bundle;
use kata_bundle::oci::{Hook, Hooks};
use kata_sys::process::die_with_parent;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use kata_storage::origin::Origin;

/// When a hook is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Moment {
    /// The older word for [`Self::CreateRuntime`], and before it.
    Prestart,
    /// When the namespaces exist.
    CreateRuntime,
    /// Before the container is built.
    CreateContainer,
    /// After its program has been executed.
    Poststart,
    /// After it has been deleted.
    Poststop,
}

impl Moment {
    /// The state of the container then.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }

    /// The spec's word.
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A hook has failed.
#[derive(Debug, thiserror::Error)]
#[error("{} hook {} {fault}{}", moment.name(), path.display(), said(output))]
pub struct HookError {
    /// When it was run.
    pub moment: Moment,
    /// Its program.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: HookFault,
    /// The beginning of what it printed.
    pub output: String,
}

/// How a hook has failed.
#[derive(Debug)]
pub enum HookFault {
    /// It could not be run.
    Run(io::Error),
    /// It ended otherwise than with 0.
    Status(ExitStatus),
    /// It did not end in its time.
    Timeout(Duration),
}

impl fmt::Display for HookFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => write!(formatter, "cannot be run: {error}"),
            Self::Status(status) => write!(formatter, "has failed ({status})"),
            Self::Timeout(limit) => write!(formatter, "has not ended within its {limit:?}"),
        }
    }
}

fn said(output: &str) -> String {
    match output.trim() {
        "" => String::new(),
        text => format!("; it said: {text}"),
    }
}

/// The host's hooks of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHooks {
    container: String,
    bundle: PathBuf,
    oci_version: String,
    annotations: BTreeMap<String, String>,
    hooks: BTreeMap<Moment, Vec<Hook>>,
}

impl HostHooks {
    /// Those of a container; `None` if it has none.
    pub fn of(container: &str, bundle: &Bundle) -> Option<Self> {
        let spec = bundle.spec();
        let hooks = by_moment(spec.hooks().as_ref()?);
        if hooks.is_empty() {
            return None;
        }
        let annotations: HashMap<String, String> = spec.annotations().clone().unwrap_or_default();
        Some(Self {
            container: container.to_owned(),
            bundle: bundle.dir().to_owned(),
            oci_version: spec.version().clone(),
            annotations: annotations.into_iter().collect(),
            hooks,
        })
    }

    /// Id of the container.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Runs the hooks of a moment until one fails.
    ///
    /// # Errors
    /// [`HookError`] of the first that fails.
    pub async fn run(&self, moment: Moment, origin: &Origin) -> Result<(), HookError> {
        for hook in self.hooks.get(&moment).into_iter().flatten() {
            self.run_one(hook, moment, origin).await?;
        }
        Ok(())
    }

    /// Runs all `poststop` hooks and logs those that fail.
    pub async fn run_poststop(&self, origin: &Origin) {
        for hook in self.hooks.get(&Moment::Poststop).into_iter().flatten() {
            if let Err(error) = self.run_one(hook, Moment::Poststop, origin).await {
                tracing::warn!(container = self.container, "{error}");
            }
        }
    }

    /// The state object of the spec.
    fn state(&self, moment: Moment) -> Vec<u8> {
        let pid = if moment == Moment::Poststop {
            0
        } else {
            std::process::id()
        };
        let state = json!({
            "ociVersion": self.oci_version,
            "id": self.container,
            "status": moment.status(),
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        state.to_string().into_bytes()
    }

    async fn run_one(&self, hook: &Hook, moment: Moment, origin: &Origin) -> Result<(), HookError> {
        tracing::debug!(container = self.container, hook = %hook.path().display(), moment = moment.name(), "hook");
        let place = (moment != Moment::CreateContainer).then_some(origin);
        let mut output = Vec::new();
        let ended = run(hook, &self.state(moment), place, &self.bundle, &mut output).await;
        let fault = match ended {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => HookFault::Status(status),
            Err(fault) => fault,
        };
        Err(HookError {
            moment,
            path: hook.path().clone(),
            fault,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }
}

fn by_moment(hooks: &Hooks) -> BTreeMap<Moment, Vec<Hook>> {
    [
        (Moment::Prestart, hooks.prestart()),
        (Moment::CreateRuntime, hooks.create_runtime()),
        (Moment::CreateContainer, hooks.create_container()),
        (Moment::Poststart, hooks.poststart()),
        (Moment::Poststop, hooks.poststop()),
    ]
    .into_iter()
    .filter_map(|(moment, hooks)| Some((moment, hooks.clone().filter(|hooks| !hooks.is_empty())?)))
    .collect()
}

/// How much of a hook's output is kept, bytes.
const OUTPUT_LIMIT: usize = 4096;

/// How long its output may stay open after it has ended.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

async fn run(
    hook: &Hook,
    state: &[u8],
    place: Option<&Origin>,
    directory: &Path,
    output: &mut Vec<u8>,
) -> Result<ExitStatus, HookFault> {
    let (mut child, mut printed) = spawn(hook, place, directory).map_err(HookFault::Run)?;
    let stdin = child.stdin.take();
    let tell = async {
        if let Some(mut stdin) = stdin {
            // It need not read it.
            let _ = stdin.write_all(state).await;
        }
        std::future::pending::<()>().await;
    };
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    let limit = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let expire = async {
        match limit {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            // As runc: the engine that gave no limit wants none.
            None => std::future::pending().await,
        }
    };
    let listen = async {
        listen(&mut printed, output).await;
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        status = child.wait() => status.map_err(HookFault::Run),
        limit = expire => Err(HookFault::Timeout(limit)),
        () = tell => unreachable!("it waits for ever"),
        () = listen => unreachable!("it waits for ever"),
    };
    if ended.is_err() {
        kill_group(&mut child).await;
    }
    // One that leaves a daemon behind may leave its output open, too.
    let _ = tokio::time::timeout(OUTPUT_GRACE, self::listen(&mut printed, output)).await;
    ended
}

fn spawn(hook: &Hook, place: Option<&Origin>, directory: &Path) -> io::Result<(Child, pipe::Receiver)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(hook.path());
    let arguments = hook.args().as_deref().unwrap_or_default();
    if let Some(name) = arguments.first() {
        command.arg0(name);
    }
    command
        .args(arguments.iter().skip(1))
        .stdin(Stdio::piped())
        .stdout(Stdio::from(writer.try_clone()?))
        .stderr(Stdio::from(writer))
        .process_group(0)
        .kill_on_drop(true);
    // As runc: without a list it has ours.
    if let Some(variables) = hook.env() {
        command
            .env_clear()
            .envs(variables.iter().filter_map(|variable| variable.split_once('=')));
    }
    die_with_parent(command.as_std_mut());
    match place {
        Some(origin) => origin.enter(command.as_std_mut(), directory)?,
        None => {
            command.current_dir(directory);
        }
    }
    // The command holds the writing end, too, and is dropped here.
    Ok((command.spawn()?, pipe::Receiver::from_owned_fd(reader)?))
}

/// Reads to the end and keeps the beginning.
async fn listen(printed: &mut pipe::Receiver, output: &mut Vec<u8>) {
    let mut block = [0; 1024];
    while let Ok(length @ 1..) = printed.read(&mut block).await {
        let room = OUTPUT_LIMIT.saturating_sub(output.len());
        output.extend_from_slice(&block[..length.min(room)]);
    }
}

async fn kill_group(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Not waited for yet, so the group is still its own.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.wait().await;
}
