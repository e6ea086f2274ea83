//! Why a sandbox did not do what it was asked.

use std::path::PathBuf;

use kata_agent_client::{AgentError, ConnectError};
use kata_bundle::BundleError;
use kata_config::ConfigError;
use kata_factory::FactoryError;
use kata_machine::{Exit, MachineError};
use kata_net::macvtap::MacvtapError;
use kata_net::tap::TapError;
use kata_net::tc::JoinError;
use kata_netlink::NetlinkError;
use kata_plan::PlanError;
use kata_storage::bind::BindError;
use kata_storage::mount::MountError;
use kata_storage::share::ShareError;
use kata_storage::socket::SocketError;

use crate::hooks::HookError;
use crate::lifecycle::Refusal;
use crate::record::RecordError;
use crate::stdio::StdioError;
use crate::step::Injected;
use crate::survey::SurveyError;

/// Why a sandbox did not do what it was asked. The chain of sources tells the whole story.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Not now, or not this.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The bundle is unusable.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host lacks something.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// What is asked for cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The machine did not start or obey.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The store of templates is unusable.
    #[error(transparent)]
    Factory(#[from] FactoryError),
    /// A template was not made; in the words of who tried.
    #[error("{0}")]
    Template(String),
    /// The guest of a template did not do what the guests of pods are to do.
    #[error("the rehearsal of a pod in the template's machine failed")]
    Rehearsal {
        /// In what.
        #[source]
        source: Box<SandboxError>,
    },
    /// The machine runs, but nobody answers in it.
    #[error("no agent in the guest{}", said(console))]
    NoAgent {
        /// The last lines of the guest's console.
        console: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// The machine ended while its agent was waited for.
    #[error("the machine ended {exit} before its agent answered{}{}", said(console), vmm_said(&exit.messages))]
    EndedEarly {
        /// The last lines of the guest's console.
        console: String,
        /// How, and the VMM's own last words.
        exit: Exit,
    },
    /// The machine ended while something was done in it.
    #[error("the machine ended {exit}{}", vmm_said(&exit.messages))]
    Ended {
        /// How.
        exit: Exit,
    },
    /// The agent refused or failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A container was asked for, but its pod has no running machine.
    #[error("the pod \"{id}\" has no running machine")]
    NoMachine {
        /// Sandbox id.
        id: String,
    },
    /// The pod's network namespace cannot be read or changed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// An interface of the machine has no end on the host.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The same, on top of a link.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// A link of the pod is not joined to one of the machine.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// More links than the machine was booted for.
    #[error("the link {name} has appeared after the machine was booted, which has no interface left for it")]
    NoSpareInterface {
        /// Its name.
        name: String,
    },
    /// A disk cannot be opened.
    #[error("cannot open the {disk}")]
    Disk {
        /// Which.
        disk: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The namespace that engines speak of cannot be visited.
    #[error("cannot visit the mount namespace that the sandbox process came from")]
    Origin {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A bind mount failed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket of the host is unusable.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The engine's mount of the root file system failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The file server did not start.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A fifo is unusable.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A hook of the engine failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The record cannot be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The host failed.
    #[error("cannot {act} {}", path.display())]
    Host {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A test made a step fail.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// The process is shutting down.
    #[error("the sandbox is shutting down")]
    Closing,
}

fn said(console: &str) -> String {
    match console.trim() {
        "" => "; its console is empty".to_owned(),
        text => format!("; the last lines of its console:\n{text}"),
    }
}

fn vmm_said(messages: &str) -> String {
    match messages.trim() {
        "" => String::new(),
        text => format!("\nthe VMM said: {text}"),
    }
}

/// The whole chain of an error, outermost first, in one line of words.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // A source that its error has quoted already adds nothing.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
