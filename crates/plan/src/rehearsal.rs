//! What a template's guest does before it is saved: it starts a container as pods do, and all of it is undone.
//!
//! A clone has the memory of its template, and with it whatever the guest has done once and need not do again. The
//! container is an ordinary one, with a volume; its program is the maker's.

use std::path::{Path, PathBuf};

use kata_bundle::{Bundle, default_spec};
use kata_config::Config;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::container::{container, exec_process};
use crate::{Facts, PlanError, RootfsPlan, SourceKind};

/// Names the container, and the guest while it is there.
const ID: &str = "rehearsal";

/// Where the container has its program: without arguments it waits, with one it copies its input to its output.
const PROGRAM: &str = "/bin/rehearsal";

/// A link to it, as programs often have.
const LINK: &str = "/bin/rehearse";

/// Where engines put files of their own.
const VOLUME: &str = "/etc/hosts";

/// A container that starts and goes. What it is made of lies in the directory in which the template is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RehearsalPlan {
    /// Its id, and the pod's.
    pub id: String,
    /// The directory of all that it is made of, on the host.
    pub directory: PathBuf,
    /// The directories in it, parents first.
    pub directories: Vec<PathBuf>,
    /// Files in it; there is nothing in them.
    pub files: Vec<PathBuf>,
    /// Its program, in it.
    pub program: PathBuf,
    /// A link to it, beside it.
    pub link: PathBuf,
    /// What it sees of the host, and where it is bound, relative to the share's directory.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// As [`GuestContainer::spec_json`](crate::GuestContainer::spec_json).
    pub spec_json: String,
    /// As [`GuestContainer::seccomp_filter`](crate::GuestContainer::seccomp_filter).
    pub seccomp_filter: Vec<u8>,
    /// As [`GuestContainer::seccomp_flags`](crate::GuestContainer::seccomp_flags).
    pub seccomp_flags: u64,
    /// One more process in it, as the agent takes it.
    pub exec_json: String,
}

/// The rehearsal in a template that is made in [`Facts::template_dir`].
///
/// # Errors
/// As for a container, see [`PlanError`].
pub(crate) fn rehearsal(config: &Config, facts: &Facts) -> Result<RehearsalPlan, PlanError> {
    let directory = facts.template_dir.join("bundle");
    let volume = directory.join("hosts");
    let spec = spec(&volume)?;
    let bundle = Bundle::from_json(&directory, &serde_json::to_vec(&spec)?).map_err(|error| PlanError::Rehearsal {
        reason: error.to_string(),
    })?;
    let facts = Facts {
        source_kinds: [(volume.clone(), SourceKind::File)].into(),
        disk_rootfs: None,
        ..facts.clone()
    };
    let plan = container(ID, &bundle, config, &facts)?;
    let RootfsPlan::Shared {
        source: rootfs,
        share_path,
    } = plan.rootfs
    else {
        return Err(PlanError::Rehearsal {
            reason: "a root file system on a disk".into(),
        });
    };
    let below = |path: &str| rootfs.join(path.trim_start_matches('/'));
    let mut exec = bundle.spec().process().clone().unwrap_or_default();
    exec.set_args(Some(vec![LINK.into(), "copy".into()]));
    let text = |json: Vec<u8>| String::from_utf8_lossy(&json).into_owned();
    Ok(RehearsalPlan {
        id: plan.id,
        directories: ["", "/bin", "/etc", "/dev", "/proc", "/sys"].map(below).into(),
        files: vec![volume, below(VOLUME)],
        program: below(PROGRAM),
        link: below(LINK),
        binds: std::iter::once((rootfs, share_path))
            .chain(
                plan.volumes
                    .into_iter()
                    .map(|volume| (volume.source, volume.share_path)),
            )
            .collect(),
        directory,
        spec_json: text(plan.guest.spec_json),
        seccomp_filter: plan.guest.seccomp_filter,
        seccomp_flags: plan.guest.seccomp_flags,
        exec_json: text(exec_process("copy", &exec)?),
    })
}

/// What engines ask for, in the usual order of mounts.
fn spec(volume: &Path) -> Result<Value, PlanError> {
    let mut spec = serde_json::to_value(default_spec())?;
    spec["process"]["args"] = json!([LINK]);
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    // Engines put containers below a cgroup of their own.
    spec["linux"]["cgroupsPath"] = json!("/engine/rehearsal");
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["kexec_load", "reboot"], "action": "SCMP_ACT_ERRNO"}],
    });
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({
            "destination": VOLUME, "type": "bind", "source": volume, "options": ["rbind", "rprivate", "rw"],
        }));
    }
    Ok(spec)
}
