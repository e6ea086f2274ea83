//! What the containers of a pod see of the host's files: every engine's kinds of mounts, in one pod that containerd runs.

use std::fs;
use std::path::{Path, PathBuf};

use kata_e2e::against_both;
use kata_e2e::command::Outcome;
use kata_e2e::containerd::Containerd;
use kata_e2e::disk::LoopDevice;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::runtime::Kind;

against_both!(
    mounts_made_after_the_pod_was_started_are_found,
    a_block_device_is_read_and_written,
);

fn containerd() -> &'static Containerd<'static> {
    static LAB: Shared<Lab> = Shared::new();
    static CONTAINERD: Shared<Containerd> = Shared::new();
    CONTAINERD.get(|| Containerd::start(LAB.get(Lab::open)))
}

/// A pod whose first container sleeps, and a directory on the host for its volumes.
struct Pod {
    kind: Kind,
    id: String,
    dir: PathBuf,
}

fn pod(kind: Kind) -> &'static Pod {
    static PODS: [Shared<Pod>; 2] = [const { Shared::new() }; 2];
    PODS[usize::from(kind == Kind::Kata)].get(|| Pod::start(kind))
}

impl Pod {
    #[track_caller]
    fn start(kind: Kind) -> Self {
        let id = format!("volumes-{kind:?}").to_lowercase();
        let dir = containerd().lab().scratch().join(&id);
        fs::create_dir_all(&dir).expect("folder");
        let pod = Self { kind, id, dir };
        let flags = ["--detach", "--annotation", "io.kubernetes.cri.container-type=sandbox"];
        containerd().run(kind, &flags, &pod.id, &["sleep", "10000"]).run().ok();
        pod
    }

    /// Runs one more container in the pod to its end.
    #[track_caller]
    fn run(&self, name: &str, flags: &[&str], script: &str) -> Outcome {
        let pod = format!("io.kubernetes.cri.sandbox-id={}", self.id);
        let role = "io.kubernetes.cri.container-type=container";
        let mut all = vec!["--rm", "--annotation", role, "--annotation", &pod];
        all.extend(flags);
        let id = format!("{}-{name}", self.id);
        containerd().run(self.kind, &all, &id, &["sh", "-c", script]).run()
    }

    /// A new directory of the host.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        dir
    }
}

/// A flag of `ctr run` for a bind mount, and its value.
fn bind(source: &Path, destination: &str, options: &str) -> [String; 2] {
    let source = source.display();
    [
        "--mount".into(),
        format!("type=bind,src={source},dst={destination},options={options}"),
    ]
}

fn mount_tmpfs(at: &Path) {
    let mount = containerd().lab().command("mount").args(["-t", "tmpfs", "tmpfs"]);
    mount.arg(at).run().ok();
}

/// As a kubelet makes the volumes of a container that joins a pod, on a host that shares no mounts.
fn mounts_made_after_the_pod_was_started_are_found(kind: Kind) {
    let pod = pod(kind);
    let late = pod.dir("late");
    mount_tmpfs(&late);
    let inside = containerd().lab().outside(&late);
    fs::write(inside.join("file"), "late\n").expect("file");
    let [flag, value] = bind(&late, "/late", "rbind:rw");

    let outcome = pod.run("late", &[&flag, &value], "cat /late/file; echo answer >/late/answer");

    outcome.ok().stdout("late\n");
    assert_eq!(fs::read_to_string(inside.join("answer")).expect("answer"), "answer\n");
}

fn a_block_device_is_read_and_written(kind: Kind) {
    let pod = pod(kind);
    let device = LoopDevice::new(&pod.dir.join("disk"), 8);
    device.write(b"outside");
    let node = device.node().display().to_string();
    let script = format!(
        "head -c 7 {node}; echo; blockdev --getsize64 {node}; printf inside. | dd of={node} conv=notrunc 2>/dev/null; sync"
    );

    let outcome = pod.run("disk", &["--device", &node], &script);

    outcome.ok().stdout("outside\n8388608\n");
    assert_eq!(device.bytes(8), b"inside.\0");
    assert!(device.close(), "somebody still has {node} open");
}
