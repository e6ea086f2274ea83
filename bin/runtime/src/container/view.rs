//! What a container looks like from outside: the state of the OCI runtime spec, and a line of `list`.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use containerd_shim_protos::api::Status;
use kata_bundle::Bundle;
use serde::Serialize;
use serde_json::Value;

use crate::cmd::version::OCI_VERSION;
use crate::container::client::Found;
use crate::container::stand_in;
use crate::report::rfc3339;

/// A container as `state` and `list --format json` print it. The names are those of the OCI runtime spec, and of runc
/// where that says more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Version of the runtime spec.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Pid of the process that stands in for the container; 0 once it is stopped.
    pub pid: u32,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Absolute path.
    pub bundle: String,
    /// Absolute path.
    pub rootfs: String,
    /// RFC 3339.
    pub created: String,
    /// Who owns the bundle's config.json.
    pub owner: String,
    /// Those of config.json.
    pub annotations: Value,
}

/// Looks at a container.
///
/// # Errors
/// A sandbox process that lives but does not answer.
pub async fn look(found: &Found) -> Result<View> {
    let status = match found.connect().await? {
        None => "stopped",
        Some(connection) => match connection.state().await {
            Ok(state) => match state.status.enum_value_or(Status::UNKNOWN) {
                Status::CREATED => "created",
                Status::RUNNING => "running",
                Status::PAUSED | Status::PAUSING => "paused",
                Status::STOPPED => "stopped",
                Status::UNKNOWN => "creating",
            },
            // Its process runs, and the container is not there yet.
            Err(_) => "creating",
        },
    };
    let bundle = Bundle::load(&found.record.bundle).ok();
    let rootfs = bundle.as_ref().map(|bundle| bundle.rootfs().display().to_string());
    let annotations = bundle.and_then(|bundle| bundle.spec().annotations().clone());
    Ok(View {
        oci_version: OCI_VERSION.to_owned(),
        id: found.id.clone(),
        pid: if status == "stopped" { 0 } else { pid_of(found) },
        status: status.to_owned(),
        bundle: found.record.bundle.display().to_string(),
        rootfs: rootfs.unwrap_or_default(),
        created: rfc3339(UNIX_EPOCH + Duration::from_secs(found.record.created_unix_secs)),
        owner: owner_of(&found.record.bundle),
        annotations: annotations.map_or(Value::Object(Default::default()), |map| serde_json::json!(map)),
    })
}

/// The stand-in's, or where there is none (run in the foreground, or by containerd) the sandbox process's.
fn pid_of(found: &Found) -> u32 {
    stand_in::noted(&found.home)
        .or_else(|| found.sandbox_home().read().ok()?.sandbox.map(|mark| mark.pid))
        .unwrap_or(0)
}

fn owner_of(bundle: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata(bundle).map(|data| data.uid()).unwrap_or_default();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten();
    user.map_or_else(|| format!("#{uid}"), |user| user.name)
}
