//! What a kubelet does, without the kubelet: pods through the CRI socket of a real containerd, on a network that real CNI
//! plug-ins make. Requests and answers are JSON by the contract's own names, as they are in crictl's files; the handles
//! ([`Pod`], [`Container`]) only know ids and what was asked for.

mod config;
mod container;
mod contract;
mod grpc;
mod node;
mod pod;
mod stream;
mod websocket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

pub use config::subnet_prefix;
pub use container::{Container, LogLine};
pub use grpc::Refusal;
pub use node::Node;
pub use pod::Pod;
pub use stream::{Forward, Stream};

use crate::command::Cmd;
use crate::containerd::{Containerd, Release, SOCKET};
use crate::image;
use crate::lab::Lab;
use crate::leak::Snapshot;
use crate::runtime::Kind;
use crate::wait;

/// How long a call may take: a VM boots in seconds even on a busy machine without KVM.
const LIMIT: Duration = Duration::from_secs(60);

/// A containerd with CRI and CNI, and the images of busybox and of a pod's first container.
#[derive(Debug)]
pub struct Cri<'lab> {
    containerd: Containerd<'lab>,
    release: Release,
    socket: PathBuf,
}

impl<'lab> Cri<'lab> {
    /// Starts it.
    ///
    /// # Panics
    /// When it is not ready in time.
    #[track_caller]
    pub fn start(lab: &'lab Lab, release: Release) -> Self {
        config::write_network(lab);
        let containerd = Containerd::launch(lab, release, "", &config::sections(lab, release));
        let cri = Self {
            containerd,
            release,
            socket: lab.outside(SOCKET),
        };
        let images = lab.scratch().join("images");
        for archive in [image::busybox(&images), image::pause(&images)] {
            cri.import(&archive);
        }
        let ready = || {
            let status = cri.ask("Status", &json!({})).ok()?;
            let conditions = status["status"]["conditions"].as_array()?.clone();
            conditions
                .iter()
                .all(|condition| condition["status"] == true)
                .then_some(())
        };
        let up = wait::eventually(Duration::from_secs(30), ready);
        assert!(up.is_some(), "CRI is not ready: {:?}", cri.ask("Status", &json!({})));
        cri
    }

    /// Gives it an image.
    ///
    /// # Panics
    /// When it does not take it.
    #[track_caller]
    pub fn import(&self, archive: &Path) {
        let import = self.containerd.ctr(["-n", "k8s.io", "image", "import"]);
        import.arg(archive).run().ok();
        let manifest = Cmd::new("tar").arg("-xOf").arg(archive).arg("./manifest.json");
        let name = &manifest.run().ok().json()[0]["RepoTags"][0];
        let request = json!({"image": {"image": name}});
        // CRI hears of it by an event, and answers nothing at all before it is initialized.
        let known = || {
            self.ask("ImageStatus", &request)
                .is_ok_and(|status| !status["image"].is_null())
        };
        wait::until(&format!("CRI knows the image {name}"), LIMIT, known);
    }

    /// The lab it runs in.
    pub fn lab(&self) -> &'lab Lab {
        self.containerd.lab()
    }

    /// The daemon.
    pub fn containerd(&self) -> &Containerd<'lab> {
        &self.containerd
    }

    /// Which containerd it is.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Calls a method of the contract.
    ///
    /// # Errors
    /// What containerd says instead of an answer.
    ///
    /// # Panics
    /// When the contract has no such method, or the request does not fit it.
    #[track_caller]
    pub fn ask(&self, method: &str, request: &Value) -> Result<Value, Refusal> {
        let method = contract::Method::named(method);
        let answer = grpc::call(&self.socket, &method.path, &method.request(request), LIMIT)?;
        Ok(method.response(&answer))
    }

    /// Calls a method that must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn call(&self, method: &str, request: &Value) -> Value {
        self.ask(method, request)
            .unwrap_or_else(|refusal| panic!("{method}: {refusal}\n{request:#}"))
    }

    /// Runs a pod with the handler of `kind`, its configuration changed by `edit`.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn pod(&self, kind: Kind, name: &str, edit: impl FnOnce(&mut Value)) -> Pod<'_> {
        let handler = kind.cri_handler();
        self.try_pod(handler, name, edit)
            .unwrap_or_else(|refusal| panic!("pod {name} by {handler}: {refusal}"))
    }

    /// Runs a pod, or says why it does not run.
    ///
    /// # Errors
    /// What containerd says.
    #[track_caller]
    pub fn try_pod(&self, handler: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Result<Pod<'_>, Refusal> {
        Pod::run(self, handler, name, edit)
    }

    /// What the lab holds; taken after a first pod has come and gone, which makes bridges, rules and folders that stay.
    ///
    /// # Panics
    /// When that pod does not run.
    #[track_caller]
    pub fn snapshot(&self, kind: Kind) -> Snapshot {
        let ports = json!([{"container_port": 1, "host_port": 12999}]);
        let name = format!("first-{}", kind.cri_handler());
        let pod = self.pod(kind, &name, |config| config["port_mappings"] = ports);
        pod.run_container("first", &["true"], |_| ()).await_exit();
        pod.remove();
        Snapshot::take(self.lab())
    }
}

impl Kind {
    /// The name of the handler in containerd's configuration, as a RuntimeClass would give it.
    pub fn cri_handler(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Kata => "kata",
        }
    }
}
