//! Docker with storage, configuration and sockets of a lab's own, on the lab's containerd, and the busybox image.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::command::{Cmd, Running};
use crate::containerd::{self, Containerd, Release};
use crate::image;
use crate::lab::Lab;
use crate::runtime::Kind;
use crate::{places, wait};

/// Which Docker, and so by which door it comes to a runtime that is not runc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's, which knows OCI runtimes by their path.
    V20,
    /// The newest that the set-up could get, which knows shims.
    V28,
}

impl Version {
    #[track_caller]
    fn program(self, name: &str) -> PathBuf {
        let engine = match self {
            Self::V20 => "docker-20",
            Self::V28 => "docker-28",
        };
        places::unpacked(engine, name)
    }
}

/// The daemon, which lives as long as this.
#[derive(Debug)]
pub struct Docker<'lab> {
    containerd: Containerd<'lab>,
    version: Version,
    dir: PathBuf,
    daemon: Running,
}

const HOST: &str = "unix:///run/e2e-docker/docker.sock";

impl<'lab> Docker<'lab> {
    /// Starts the daemon and loads the image.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn start(lab: &'lab Lab, version: Version) -> Self {
        let containerd = Containerd::launch(
            lab,
            Release::V1,
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]",
            "",
        );
        let dir = lab.scratch().join("docker");
        fs::create_dir_all(&dir).expect("docker's folder");
        let ours = match version {
            Version::V20 => json!({"path": places::bin_dir().join("kata-runtime")}),
            Version::V28 => json!({"runtimeType": places::bin_dir().join("containerd-shim-kata-v2")}),
        };
        let config = json!({
            "data-root": dir.join("root"), "exec-root": "/run/e2e-docker/exec", "pidfile": "/run/e2e-docker/pid", "hosts": [HOST],
            "containerd": containerd::SOCKET, "storage-driver": "overlay2", "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "bip": "10.89.0.1/16", "userland-proxy-path": version.program("docker-proxy"),
            // Docker asks for more open files than root may give itself where CAP_SYS_RESOURCE is missing.
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 20000, "Soft": 20000}},
            "runtimes": {"kata": ours},
        });
        let (file, log) = (dir.join("daemon.json"), dir.join("log"));
        fs::write(&file, config.to_string()).expect("docker's configuration");
        let script = r#"mkdir -p /run/e2e-docker; exec "$0" --config-file "$1" >"$2" 2>&1"#;
        let daemon = lab.command("sh").args(["-c", script]);
        let daemon = daemon.arg(version.program("dockerd")).arg(&file).arg(&log);
        let docker = Self {
            containerd,
            version,
            daemon: daemon.start(),
            dir,
        };
        let answers = || docker.docker(["version"]).run().code() == 0;
        let up = wait::eventually(Duration::from_secs(40), || answers().then_some(()));
        assert!(up.is_some(), "docker does not answer; its log:\n{}", docker.log());
        let archive = image::busybox(&docker.dir);
        docker.docker(["load", "--quiet", "--input"]).arg(archive).run().ok();
        docker
    }

    /// The lab it runs in.
    pub fn lab(&self) -> &'lab Lab {
        self.containerd.lab()
    }

    /// `docker` with these arguments.
    #[track_caller]
    pub fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        let docker = self.lab().command(self.version.program("docker"));
        let docker = docker
            .env("DOCKER_HOST", HOST)
            .env("DOCKER_CONFIG", self.dir.join("client"));
        docker.args(args)
    }

    /// `docker run --runtime … FLAGS IMAGE COMMAND`.
    #[track_caller]
    pub fn run(&self, kind: Kind, flags: &[&str], command: &[&str]) -> Cmd {
        let runtime = match kind {
            Kind::Runc => "runc",
            Kind::Kata => "kata",
        };
        let run = self.docker(["run", "--runtime", runtime]).args(flags);
        run.arg(image::BUSYBOX).args(command)
    }

    /// `docker inspect --format FORMAT NAME`, without the newline.
    #[track_caller]
    pub fn inspect(&self, format: &str, name: &str) -> String {
        let inspected = self.docker(["inspect", "--format", format, name]).run().ok();
        inspected.text().trim_end().to_owned()
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("docker's log:\n{}", self.log());
        }
        self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
    }
}
