//! A container image made without a registry: one archive that is at once an OCI layout and a `docker save` file, so that
//! `ctr image import` and `podman load` both read it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::Cmd;
use crate::{places, rootfs};

/// The name under which the engines know the image of busybox.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";

/// The name under which the engines know the image of a pod's first container.
pub const PAUSE: &str = "registry.local/e2e/pause:1";

/// The name under which the engines know the image of Debian with real programs.
pub const DEBIAN: &str = "registry.local/e2e/debian:1";

/// Makes the archive of a busybox image, with everything it needs on the way, below `dir`.
///
/// # Panics
/// When a file cannot be written.
pub fn busybox(dir: &Path) -> PathBuf {
    let dir = dir.join("busybox");
    let root = dir.join("rootfs");
    rootfs::make(&root);
    make(
        &dir,
        &root,
        BUSYBOX,
        &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"}),
    )
}

/// Makes the archive of the pause image below `dir`: one static program, an ordinary user.
///
/// # Panics
/// When it cannot be compiled or a file cannot be written.
pub fn pause(dir: &Path) -> PathBuf {
    let dir = dir.join("pause");
    let root = dir.join("rootfs");
    fs::create_dir_all(&root).expect("the pause image's root");
    let source = dir.join("pause.c");
    fs::write(&source, include_str!("pause.c")).expect("pause.c");
    let compiler = Cmd::new(places::tool("musl-gcc")).args(["-Os", "-static", "-s", "-o"]);
    compiler.arg(root.join("pause")).arg(&source).run().ok();
    make(
        &dir,
        &root,
        PAUSE,
        &json!({"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/"}),
    )
}

/// Makes the archive of Debian with real programs below `dir`.
///
/// # Panics
/// When the set-up has not made the root file system, or a file cannot be written.
pub fn debian(dir: &Path) -> PathBuf {
    let dir = dir.join("debian");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    make(
        &dir,
        &places::debian_root(),
        DEBIAN,
        &json!({"Cmd": ["bash"], "Env": [path], "WorkingDir": "/"}),
    )
}

/// Packs `root` as an image with this name and configuration, below `dir`.
fn make(dir: &Path, root: &Path, name: &str, process: &Value) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("blobs");

    let layer_tar = dir.join("layer.tar");
    pack(root, &layer_tar);
    let layer = store(&blobs, &fs::read(&layer_tar).expect("layer"));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": process,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.0)]},
    });
    let config = store(&blobs, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = store(&blobs, manifest.to_string().as_bytes());
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"});
    let blob = |(digest, _): &(String, usize)| format!("blobs/sha256/{digest}");
    let files = [
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ("index.json", json!({"schemaVersion": 2, "manifests": [entry]})),
        (
            "manifest.json",
            json!([{"Config": blob(&config), "RepoTags": [name], "Layers": [blob(&layer)]}]),
        ),
    ];
    for (name, value) in files {
        fs::write(layout.join(name), value.to_string()).expect(name);
    }
    let archive = dir.join("image.tar");
    pack(&layout, &archive);
    archive
}

fn pack(dir: &Path, archive: &Path) {
    let fixed = ["--sort=name", "--mtime=@0", "--numeric-owner"];
    Cmd::new("tar")
        .args(fixed)
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .run()
        .ok();
}

fn store(blobs: &Path, bytes: &[u8]) -> (String, usize) {
    let digest = hex(&Sha256::digest(bytes));
    fs::write(blobs.join(&digest), bytes).expect("blob");
    (digest, bytes.len())
}

fn descriptor(media_type: &str, (digest, size): &(String, usize)) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
