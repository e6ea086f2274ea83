//! What the tests of this crate share: a host that does not exist, and bundles out of JSON.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kata_bundle::Bundle;
use kata_machine::Accelerator;
use kata_netlink::Network;
use kata_plan::{Facts, RootFile, SourceKind, bind_sources};
use serde_json::{Value, json};

pub fn facts() -> Facts {
    Facts {
        accelerator: Accelerator::Tcg,
        accelerator_reason: "no /dev/kvm".into(),
        selinux: false,
        host_cpus: 4,
        host_memory_mib: 8192,
        vmm: "/usr/bin/qemu-system-x86_64".into(),
        kernel: "/assets/vmlinux".into(),
        root: RootFile::Initrd("/assets/initrd.img".into()),
        virtiofsd: Some("/usr/libexec/virtiofsd".into()),
        vhost_vsock: false,
        vsock_cid: None,
        vhost_net: false,
        network: Some(Network::default()),
        run_dir: "/run/kata/1f".into(),
        share_dir: "/run/kata/1f/share".into(),
        template_dir: "/run/vc/vm/template/.new".into(),
        has_spare: false,
        source_kinds: BTreeMap::new(),
        block_devices: BTreeMap::new(),
        disk_rootfs: None,
        memory: BTreeMap::new(),
        small_trees: BTreeSet::new(),
    }
}

/// Facts of a host where all that `bundle` binds is there: files if their name has a dot or begins with `host`, else directories.
pub fn facts_for(bundle: &Bundle) -> Facts {
    let is_file = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains('.') || name.starts_with("host")
    };
    let kind = |path: &PathBuf| {
        if is_file(path) {
            SourceKind::File
        } else {
            SourceKind::Directory
        }
    };
    Facts {
        source_kinds: bind_sources(bundle.spec())
            .into_iter()
            .map(|path| (path.clone(), kind(&path)))
            .collect(),
        ..facts()
    }
}

pub fn bundle(json: &Value) -> Bundle {
    Bundle::from_json(Path::new("/bundle"), &serde_json::to_vec(json).unwrap()).unwrap()
}

/// The least that is a specification.
pub fn small_spec() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]}
    })
}

/// A specification with one more mount.
pub fn spec_with_mount(mount: Value) -> Value {
    let mut spec = small_spec();
    spec["mounts"] = json!([mount]);
    spec
}

pub fn guest_spec(plan: &kata_plan::ContainerPlan) -> Value {
    serde_json::from_slice(&plan.guest.spec_json).unwrap()
}
