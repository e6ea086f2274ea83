//! A pod that runs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::container::Container;
use super::{Cri, Forward, Refusal};
use crate::wait;

/// A pod. Dropping it removes it, with whatever runs in it.
#[derive(Debug)]
pub struct Pod<'cri> {
    cri: &'cri Cri<'cri>,
    id: String,
    config: Value,
}

impl<'cri> Pod<'cri> {
    /// Runs it with a configuration like a kubelet's.
    #[track_caller]
    pub(super) fn run(
        cri: &'cri Cri<'_>,
        handler: &str,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Self, Refusal> {
        let logs = cri.lab().scratch().join("logs").join(name);
        let mut config = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "e2e", "attempt": 0},
            "hostname": name,
            "log_directory": logs,
            "labels": {"app": name},
            "annotations": {"e2e/note": "kept"},
            "linux": {
                "cgroup_parent": "/e2e-pods",
                "security_context": {"namespace_options": {"network": "POD", "pid": "CONTAINER", "ipc": "POD"}},
            },
        });
        edit(&mut config);
        std::fs::create_dir_all(&logs).expect("the pod's folder for logs");
        let answer = cri.ask("RunPodSandbox", &json!({"config": config, "runtime_handler": handler}))?;
        let id = answer["pod_sandbox_id"].as_str().expect("an id").to_owned();
        Ok(Self { cri, id, config })
    }

    /// The CRI that it came by.
    pub fn cri(&self) -> &'cri Cri<'cri> {
        self.cri
    }

    /// The id that containerd gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The configuration it was run with.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The folder of its containers' logs.
    pub(super) fn logs(&self) -> PathBuf {
        PathBuf::from(self.config["log_directory"].as_str().expect("a path"))
    }

    /// The `status` of PodSandboxStatus.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.cri.call("PodSandboxStatus", &self.named())["status"].take()
    }

    /// Its address.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn ip(&self) -> IpAddr {
        let status = self.status();
        let ip = status["network"]["ip"].as_str().unwrap_or_default();
        ip.parse()
            .unwrap_or_else(|_| panic!("the pod has no address: {status:#}"))
    }

    /// A port at its address.
    #[track_caller]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// The `stats` of PodSandboxStats.
    ///
    /// # Panics
    /// When there is no answer in time.
    #[track_caller]
    pub fn stats(&self) -> Value {
        // containerd asks each container it has just listed, and fails when another test's goes meanwhile.
        let ask = || self.cri.ask("PodSandboxStats", &self.named()).ok();
        let answer = wait::eventually(Duration::from_secs(30), ask);
        answer.unwrap_or_else(|| self.cri.call("PodSandboxStats", &self.named()))["stats"].take()
    }

    /// Creates a container of the busybox image, its configuration changed by `edit`.
    ///
    /// # Panics
    /// When it cannot be created.
    #[track_caller]
    pub fn container(&self, name: &str, command: &[&str], edit: impl FnOnce(&mut Value)) -> Container<'_> {
        self.try_container(name, command, edit)
            .unwrap_or_else(|refusal| panic!("container {name}: {refusal}"))
    }

    /// Creates a container, or says why it cannot be.
    ///
    /// # Errors
    /// What containerd says.
    #[track_caller]
    pub fn try_container(
        &self,
        name: &str,
        command: &[&str],
        edit: impl FnOnce(&mut Value),
    ) -> Result<Container<'_>, Refusal> {
        Container::create(self, name, command, edit)
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// When either fails.
    #[track_caller]
    pub fn run_container(&self, name: &str, command: &[&str], edit: impl FnOnce(&mut Value)) -> Container<'_> {
        let container = self.container(name, command, edit);
        container.start();
        container
    }

    /// Connects to a port of the pod through containerd.
    ///
    /// # Panics
    /// When the connection cannot be had.
    #[track_caller]
    pub fn forward(&self, port: u16) -> Forward {
        let answer = self
            .cri
            .call("PortForward", &json!({"pod_sandbox_id": self.id, "port": [port]}));
        Forward::open(self.cri.lab(), answer["url"].as_str().unwrap_or_default(), port)
    }

    /// Stops it: what runs in it ends, its network goes.
    #[track_caller]
    pub fn stop(&self) {
        self.cri.call("StopPodSandbox", &self.named());
    }

    /// Stops and removes it.
    ///
    /// # Panics
    /// When either fails.
    #[track_caller]
    pub fn remove(self) {
        self.stop();
        self.cri.call("RemovePodSandbox", &self.named());
    }

    fn named(&self) -> Value {
        json!({"pod_sandbox_id": self.id})
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // After `remove` both answer that there is nothing to do; after a failed assertion this frees the VM.
        let _ = self.cri.ask("StopPodSandbox", &self.named());
        let _ = self.cri.ask("RemovePodSandbox", &self.named());
    }
}
