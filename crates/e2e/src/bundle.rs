//! An OCI bundle for a test: a busybox root file system and a `config.json` like `runc spec` writes it, without a terminal.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::rootfs;

/// A bundle that is being put together. Each change is written at once.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    spec: Value,
}

impl Bundle {
    /// A bundle in the lab's scratch folder whose process is `sh -c SCRIPT`.
    pub fn script(lab: &Lab, name: &str, script: &str) -> Self {
        Self::args(lab, name, &["sh", "-c", script])
    }

    /// A bundle in the lab's scratch folder with these arguments.
    pub fn args(lab: &Lab, name: &str, args: &[&str]) -> Self {
        let dir = lab.scratch().join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        rootfs::make(&dir.join("rootfs"));
        let mut spec = plain_spec();
        spec["process"]["args"] = json!(args);
        spec["linux"]["cgroupsPath"] = json!(format!("/e2e/{name}"));
        let bundle = Self { dir, spec };
        bundle.write();
        bundle
    }

    /// Changes the spec.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self.write();
        self
    }

    /// Adds a mount.
    pub fn mount(self, destination: &str, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Self {
        let source = source.as_ref().display().to_string();
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.edit(|spec| spec["mounts"].as_array_mut().expect("mounts").push(mount))
    }

    /// The bundle's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root file system's directory.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The spec as it is.
    pub fn spec(&self) -> &Value {
        &self.spec
    }

    fn write(&self) {
        let path = self.dir.join("config.json");
        fs::write(&path, self.spec.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The spec of an ordinary container: own namespaces, the usual mounts and few capabilities.
pub fn plain_spec() -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2-dev",
        "hostname": "e2e",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
