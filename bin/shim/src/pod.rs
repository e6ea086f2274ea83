//! A pod that comes without a container: from what containerd says of it to the bundle that the sandbox is planned from.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use kata_bundle::{Bundle, BundleError};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::status;

#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated; the proto file carries the comments"
)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
    pub use pod::*;
}

use messages::{LinuxContainerResources, PodSandboxConfig};

/// The type of CRI's message.
const CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// Chooses a configuration file, which is the administrator's choice. containerd passes on all annotations of a pod here,
/// whoever wrote them.
const CONFIG_PATH: &str = "io.katacontainers.config_path";

/// The bundle of a pod: what is in its directory, or else what follows from CRI's configuration of the pod.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is neither, or asks for what cannot be had.
pub fn bundle_of(request: &CreateSandboxRequest) -> ttrpc::Result<Bundle> {
    let directory = Path::new(&request.bundle_path);
    match Bundle::load(directory) {
        Err(BundleError::NoConfig { .. }) => {}
        loaded => return loaded.map_err(|error| status::from_sandbox(error.into())),
    }
    let invalid = |text: String| status::with(Code::INVALID_ARGUMENT, text);
    let config = match request.options.as_ref() {
        None => PodSandboxConfig::default(),
        Some(options) if options.type_url.ends_with(CONFIG_TYPE) => PodSandboxConfig::parse_from_bytes(&options.value)
            .map_err(|error| invalid(format!("the pod's configuration: {error}")))?,
        Some(options) => return Err(invalid(format!("a pod's options of the type {:?}", options.type_url))),
    };
    if let Some(name) = config.linux.sysctls.keys().next() {
        return Err(invalid(format!(
            "sysctl {name:?}: a pod without a first container has no sysctls of its own"
        )));
    }
    let spec = spec_of(request, &config);
    Bundle::from_json(directory, spec.to_string().as_bytes()).map_err(|error| status::from_sandbox(error.into()))
}

/// The specification of a pod's first container, as far as it is the pod's.
fn spec_of(request: &CreateSandboxRequest, config: &PodSandboxConfig) -> Value {
    let mut annotations: BTreeMap<String, String> = config
        .annotations
        .iter()
        .filter(|(name, _)| *name != CONFIG_PATH)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    annotations.extend(request.annotations.clone());
    annotations.extend(size_of(&config.linux.resources, &config.linux.overhead));
    for (name, value) in [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.kubernetes.cri.sandbox-id", request.sandbox_id.as_str()),
        ("io.kubernetes.cri.sandbox-name", config.metadata.name.as_str()),
        (
            "io.kubernetes.cri.sandbox-namespace",
            config.metadata.namespace.as_str(),
        ),
        ("io.kubernetes.cri.sandbox-uid", config.metadata.uid.as_str()),
    ] {
        annotations.insert(name.to_owned(), value.to_owned());
    }
    let mut namespaces = vec![json!({"type": "uts"}), json!({"type": "ipc"})];
    // Without a path it is the host's network that is asked for.
    if !request.netns_path.is_empty() {
        namespaces.push(json!({"type": "network", "path": request.netns_path}));
    }
    let mut linux = json!({ "namespaces": namespaces });
    if !config.linux.cgroup_parent.is_empty() {
        linux["cgroupsPath"] = format!("{}/{}", config.linux.cgroup_parent, request.sandbox_id).into();
    }
    json!({
        "ociVersion": kata_plan::OCI_VERSION,
        "hostname": config.hostname,
        "annotations": annotations,
        // There is no process; every specification has one.
        "process": {"args": ["pod"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": linux,
    })
}

/// The size of the pod in the annotations by which CRI tells it with a first container.
fn size_of(
    resources: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
) -> impl Iterator<Item = (String, String)> {
    [
        ("cpu-period", resources.cpu_period.max(overhead.cpu_period)),
        ("cpu-quota", resources.cpu_quota),
        ("cpu-shares", resources.cpu_shares),
        ("memory", resources.memory_limit_in_bytes),
    ]
    .into_iter()
    .filter(|(_, value)| *value > 0)
    .map(|(name, value)| (format!("io.kubernetes.cri.sandbox-{name}"), value.to_string()))
}
