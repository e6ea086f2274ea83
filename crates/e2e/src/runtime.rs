//! An OCI runtime on its command line: ours, or runc, which shows whether a test asks for what is right.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{Cmd, Outcome};
use crate::lab::Lab;
use crate::{places, wait};

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The reference implementation, without a VM.
    Runc,
    /// `kata-runtime`.
    Kata,
}

impl Kind {
    /// The program that engines are given.
    #[track_caller]
    pub fn program(self) -> PathBuf {
        match self {
            Self::Runc => places::tool("runc"),
            Self::Kata => places::ours("kata-runtime"),
        }
    }

    /// The name of containerd's runtime.
    pub fn containerd_name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Kata => "io.containerd.kata.v2",
        }
    }
}

/// A runtime in a lab, with a state directory of its own.
#[derive(Debug, Clone, Copy)]
pub struct Runtime<'lab> {
    kind: Kind,
    lab: &'lab Lab,
}

/// The directory of its own.
const ROOT: &str = "/run/e2e-oci";

/// How fast a state that is due must show.
const DUE: Duration = Duration::from_secs(15);

impl<'lab> Runtime<'lab> {
    /// The runtime in this lab.
    pub fn new(kind: Kind, lab: &'lab Lab) -> Self {
        Self { kind, lab }
    }

    /// Which runtime this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The lab it works in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// The program without any argument.
    #[track_caller]
    pub fn program(&self) -> Cmd {
        self.lab.command(self.kind.program())
    }

    /// A verb, after the global flags.
    #[track_caller]
    pub fn verb(&self, verb: &str) -> Cmd {
        self.program().args(["--root", ROOT, verb])
    }

    /// `run`, in the foreground.
    #[track_caller]
    pub fn run(&self, bundle: &Bundle, id: &str) -> Cmd {
        self.verb("run").arg("--bundle").arg(bundle.dir()).arg(id)
    }

    /// `create`; the container's output goes to the bundle's files `stdout` and `stderr`.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle, id: &str) -> Outcome {
        Self::create_by(self.verb("create"), bundle, id)
    }

    /// The same under a configuration, which becomes the bundle's file `kata.toml`.
    #[track_caller]
    pub fn create_with(&self, bundle: &Bundle, id: &str, configuration: &str) -> Outcome {
        let file = bundle.dir().join("kata.toml");
        std::fs::write(&file, configuration).expect("configuration");
        let program = self.program().arg("--kata-config").arg(file);
        Self::create_by(program.args(["--root", ROOT, "create"]), bundle, id)
    }

    fn create_by(create: Cmd, bundle: &Bundle, id: &str) -> Outcome {
        let create = create.arg("--bundle").arg(bundle.dir()).arg(id);
        create.run_into(&bundle.dir().join("stdout"), &bundle.dir().join("stderr"))
    }

    /// `create` and `start`.
    ///
    /// # Panics
    /// When either fails.
    #[track_caller]
    pub fn begin(&self, bundle: &Bundle, id: &str) {
        self.create(bundle, id).ok();
        self.start(id).ok();
    }

    /// `start`.
    #[track_caller]
    pub fn start(&self, id: &str) -> Outcome {
        self.verb("start").arg(id).run()
    }

    /// `exec` of `sh -c SCRIPT`.
    #[track_caller]
    pub fn exec(&self, id: &str, script: &str) -> Cmd {
        self.verb("exec").args([id, "sh", "-c", script])
    }

    /// `kill`.
    #[track_caller]
    pub fn kill(&self, id: &str, signal: &str) -> Outcome {
        self.verb("kill").args([id, signal]).run()
    }

    /// `delete`.
    #[track_caller]
    pub fn delete(&self, id: &str) -> Outcome {
        self.verb("delete").arg(id).run()
    }

    /// `delete --force`.
    #[track_caller]
    pub fn delete_force(&self, id: &str) -> Outcome {
        self.verb("delete").args(["--force", id]).run()
    }

    /// `state`, parsed.
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        self.verb("state").arg(id).run().ok().json()
    }

    /// The `status` of `state`.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the container has this status.
    ///
    /// # Panics
    /// When it has not in time.
    #[track_caller]
    pub fn await_status(&self, id: &str, status: &str) {
        wait::until(&format!("{id} is {status}"), DUE, || self.status(id) == status);
    }
}
