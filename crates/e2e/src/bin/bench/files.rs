//! Files of a container: in a folder of the host that is bound into it, and in its root file system. Beside runc's and ours
//! stands virtio-9p as QEMU serves it, which nothing of ours may be slower than.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::command::Cmd;
use kata_e2e::containerd::Release;
use kata_e2e::cri::{Container, Cri, Pod};
use kata_e2e::lab::Lab;
use kata_e2e::runtime::Kind;
use kata_e2e::{places, program};
use serde_json::json;

use crate::Flags;
use crate::samples::Samples;

/// Where in a container it is measured, and what the series are named after it.
const PLACES: [(&str, &str); 2] = [("/volume", "volume"), ("/var", "root")];

/// What the names of virtio-9p's series begin with.
pub const RIVAL: &str = "9p: ";

pub fn measure(flags: &Flags, samples: &mut Samples) {
    let lab = Lab::open();
    let cri = Cri::start(&lab, Release::V1);
    let rival_lab = flags.kinds.contains(&Kind::Kata).then(|| Lab::configured(&with_9p()));
    let rival = rival_lab.as_ref().map(|lab| Cri::start(lab, Release::V1));
    let pod = |kind: Kind| cri.pod(kind, &format!("files-{}", kind.cri_handler()), |_| ());
    let mut pods: Vec<_> = flags.kinds.iter().map(|kind| (*kind, "", pod(*kind))).collect();
    if let Some(rival) = &rival {
        pods.push((Kind::Kata, RIVAL, rival.pod(Kind::Kata, "files-9p", |_| ())));
    }
    let containers: Vec<_> = pods
        .iter()
        .map(|(kind, prefix, pod)| (*kind, *prefix, container(pod)))
        .collect();
    for number in 1..=flags.rounds {
        for (kind, prefix, container) in &containers {
            eprintln!("round {number} of {}: {prefix}{kind:?}", flags.rounds);
            for (dir, place) in PLACES {
                let said = container.exec(&["/volume/files", dir]).ok().text();
                for (name, value) in said.lines().filter_map(|line| line.split_once(' ')) {
                    let value = value.parse().expect("a number");
                    samples.add(&format!("{prefix}{place} {name}"), *kind, value);
                }
            }
        }
    }
}

/// A container with a volume in which the measuring program lies.
fn container<'pod>(pod: &'pod Pod<'_>) -> Container<'pod> {
    let folder = pod.cri().lab().scratch().join(pod.id());
    fs::create_dir(&folder).expect("a folder for the volume");
    program::compile(include_str!("files.c"), &folder.join("files"));
    let volume = json!([{"container_path": "/volume", "host_path": folder}]);
    pod.run_container("files", &["sleep", "10000"], |config| config["mounts"] = volume)
}

/// A configuration with 9p, and with the distribution's generic kernel, which has it. That is built outside of labs,
/// which have no network, and kept.
fn with_9p() -> String {
    let out: PathBuf = places::workspace().join("target/bench/generic-kernel");
    let build = Cmd::new(places::ours("kata-runtime"));
    let build = build.args(["image", "build", "--kernel-package", "linux-image-amd64", "--out"]);
    build.arg(&out).limit(Duration::from_secs(300)).run().ok();
    let assets = out.join("current");
    let assets = assets.display();
    format!(
        "[hypervisor.qemu]\nkernel = \"{assets}/vmlinux\"\ninitrd = \"{assets}/initrd.img\"\nshared_fs = \"virtio-9p\"\n"
    )
}
