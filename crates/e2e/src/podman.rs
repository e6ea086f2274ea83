//! Podman with storage, configuration and runtime of a lab's own, and the images of busybox and of a
//! pod's first container.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Cmd;
use crate::image;
use crate::lab::Lab;
use crate::places;
use crate::runtime::Kind;

/// Podman that runs its containers by one runtime.
#[derive(Debug)]
pub struct Podman<'lab> {
    lab: &'lab Lab,
    kind: Kind,
    dir: PathBuf,
}

impl<'lab> Podman<'lab> {
    /// Makes the storage and loads the image.
    ///
    /// # Panics
    /// When podman cannot do it.
    #[track_caller]
    pub fn start(lab: &'lab Lab, kind: Kind) -> Self {
        let dir = lab.scratch().join(format!("podman-{kind:?}").to_lowercase());
        fs::create_dir_all(&dir).expect("podman's folder");
        // Podman asks for more open files than root may give itself where CAP_SYS_RESOURCE is missing.
        let networks = dir.join("networks");
        let conf = format!(
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\nlog_driver = \
             \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \
             \"cni\"\nnetwork_config_dir = {networks:?}\ncni_plugin_dirs = [\"/usr/lib/cni\"]\n"
        );
        fs::write(dir.join("containers.conf"), conf).expect("podman's configuration");
        let podman = Self { lab, kind, dir };
        for archive in [image::busybox(&podman.dir), image::pause(&podman.dir)] {
            podman.load(&archive);
        }
        podman
    }

    /// Gives it an image.
    ///
    /// # Panics
    /// When it does not take it.
    #[track_caller]
    pub fn load(&self, archive: &Path) {
        self.podman(["load", "--quiet", "--input"]).arg(archive).run().ok();
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab it runs in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// How a mount table begins the path of what Podman mounts on itself while it is at work. When several of its processes
    /// are, as after `rm --force` of what conmon cleans up at the same time, none may feel called to unmount it.
    pub fn own_mount(&self) -> String {
        format!(" {}/root/overlay ", self.dir.display())
    }

    /// `podman` with these arguments.
    #[track_caller]
    pub fn podman<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        let run_root = format!("/run/e2e-podman-{:?}", self.kind).to_lowercase();
        let podman = self
            .lab
            .command(places::tool("podman"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        let podman = podman
            .arg("--root")
            .arg(self.dir.join("root"))
            .args(["--runroot", &run_root]);
        let podman = podman.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]);
        podman
            .args(["--events-backend", "file", "--runtime"])
            .arg(self.kind.program())
            .args(args)
    }

    /// `podman pod create FLAGS` with a first container of our own image.
    #[track_caller]
    pub fn pod(&self, flags: &[&str]) -> Cmd {
        let create = self.podman([
            "pod",
            "create",
            "--infra-image",
            image::PAUSE,
            "--infra-command",
            "/pause",
        ]);
        create.args(flags)
    }

    /// `podman run FLAGS IMAGE COMMAND`, on Podman's own network unless the flags say otherwise.
    #[track_caller]
    pub fn run_on_network(&self, flags: &[&str], command: &[&str]) -> Cmd {
        self.podman(["run"]).args(flags).arg(image::BUSYBOX).args(command)
    }

    /// `podman run --network none FLAGS IMAGE COMMAND`.
    #[track_caller]
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Cmd {
        self.podman(["run", "--network", "none"])
            .args(flags)
            .arg(image::BUSYBOX)
            .args(command)
    }
}
