//! The configuration of containerd's CRI plug-in and of the pods' network, for both generations of the file.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::containerd::Release;
use crate::image::PAUSE;
use crate::lab::Lab;
use crate::places;

/// What the addresses of all pods begin with. It keeps clear of Podman's and Docker's own networks.
pub fn subnet_prefix() -> &'static str {
    "10.87."
}

/// Writes the network: a bridge with NAT and published ports.
///
/// # Panics
/// When a file cannot be written.
pub(super) fn write_network(lab: &Lab) {
    let dir = network_dir(lab);
    fs::create_dir_all(&dir).expect("CNI's folder");
    let subnet = format!("{}0.0/16", subnet_prefix());
    let network = json!({"cniVersion": "0.4.0", "name": "e2e", "plugins": [
        {"type": "bridge", "bridge": "cni-e2e", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    fs::write(dir.join("10-e2e.conflist"), network.to_string()).expect("CNI's configuration");
}

fn network_dir(lab: &Lab) -> PathBuf {
    lab.scratch().join("cni")
}

/// The sections of containerd's configuration.
#[track_caller]
pub(super) fn sections(lab: &Lab, release: Release) -> String {
    let network = network_dir(lab);
    // Where CAP_SYS_RESOURCE is missing, nobody may have a lower oom_score_adj than containerd itself.
    let common = "enable_selinux = false\n  disable_apparmor = true\n  restrict_oom_score_adj = true";
    let streaming = "stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"";
    match release {
        Release::V1 => {
            let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
            format!(
                "[{cri}]\n  {common}\n  {streaming}\n  sandbox_image = \"{PAUSE}\"\n[{cri}.cni]\n  bin_dir = \"/usr/lib/cni\"\n  \
                 conf_dir = {network:?}\n{}",
                handlers(cri)
            )
        }
        Release::V2 => {
            let (runtime, images) = (
                "plugins.\"io.containerd.cri.v1.runtime\"",
                "plugins.\"io.containerd.cri.v1.images\"",
            );
            format!(
                "[{images}.pinned_images]\n  sandbox = \"{PAUSE}\"\n[{runtime}]\n  {common}\n[{runtime}.cni]\n  bin_dirs = \
                 [\"/usr/lib/cni\"]\n  conf_dir = {network:?}\n{}[plugins.\"io.containerd.grpc.v1.cri\"]\n  {streaming}\n",
                handlers(runtime) + &pods_of_their_own(runtime)
            )
        }
    }
}

/// A handler `kata-pod`, whose pods are the machine itself, without a first container.
fn pods_of_their_own(plugin: &str) -> String {
    format!(
        "[{plugin}.containerd.runtimes.kata-pod]\n  runtime_type = \"io.containerd.kata.v2\"\n  sandboxer = \"shim\"\n  \
         privileged_without_host_devices = true\n"
    )
}

/// The handlers, below `plugin`: as the documentation tells users to set them up.
#[track_caller]
fn handlers(plugin: &str) -> String {
    let runtimes = format!("{plugin}.containerd.runtimes");
    format!(
        "[{plugin}.containerd]\n  default_runtime_name = \"runc\"\n[{runtimes}.runc]\n  runtime_type = \
         \"io.containerd.runc.v2\"\n[{runtimes}.runc.options]\n  BinaryName = {:?}\n[{runtimes}.kata]\n  runtime_type = \
         \"io.containerd.kata.v2\"\n  pod_annotations = [\"io.katacontainers.*\"]\n  container_annotations = \
         [\"io.katacontainers.*\"]\n  privileged_without_host_devices = true\n",
        places::tool("runc")
    )
}
