//! The measuring: the same acts by each runtime in turn, in one lab whose cgroup counts the CPU time of everything that
//! takes part, the daemon included.

use std::collections::BTreeMap;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::containerd::Containerd;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// `ctr run --rm busybox true`, seconds.
    CtrRun,
    /// `RUNTIME run` of `true`, seconds.
    CliRun,
    /// `ctr task exec … true`, seconds.
    CtrExec,
    /// `RUNTIME exec … true`, seconds.
    CliExec,
    /// A part of an idle pod, MiB.
    Memory(&'static str),
}

/// Wall or CPU time, or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// Wall time.
    Wall,
    /// CPU time, user and system, of everything.
    Cpu,
    /// Proportional set size.
    Pss,
}

/// Every sample taken, by what it is of; runc is `false`, ours `true`.
pub type Samples = BTreeMap<(What, Of, bool), Vec<f64>>;

/// Measures everything `rounds` times by each runtime.
pub fn all(rounds: usize, kinds: &[Kind]) -> Samples {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    let mut samples = Samples::new();
    for kind in kinds {
        cold(&containerd, *kind, "warm-up", &mut Samples::new());
    }
    for round in 1..=rounds {
        for kind in kinds {
            eprintln!("round {round} of {rounds}: {kind:?}");
            cold(&containerd, *kind, &format!("bench-{round}"), &mut samples);
            warm(&containerd, *kind, &format!("pod-{round}"), &mut samples);
        }
    }
    samples
}

/// Containers that only start and end.
fn cold(containerd: &Containerd, kind: Kind, id: &str, samples: &mut Samples) {
    let lab = containerd.lab();
    let run = containerd.run(kind, &["--rm"], id, &["true"]);
    time(lab, Some(id), kind, What::CtrRun, &run, samples);
    let bundle = Bundle::args(lab, &format!("{id}-cli-{kind:?}"), &["true"]);
    let cli = format!("{id}-cli");
    time(
        lab,
        Some(&cli),
        kind,
        What::CliRun,
        &Runtime::new(kind, lab).run(&bundle, &cli),
        samples,
    );
    std::fs::remove_dir_all(bundle.dir()).expect("remove the bundle");
}

/// What goes on in a container that is there.
fn warm(containerd: &Containerd, kind: Kind, id: &str, samples: &mut Samples) {
    let lab = containerd.lab();
    containerd.run(kind, &["-d"], id, &["sleep", "1000"]).run().ok();
    for turn in 0..2 {
        let exec = containerd.ctr(["task", "exec", "--exec-id", &format!("e{turn}"), id, "true"]);
        time(lab, None, kind, What::CtrExec, &exec, samples);
    }
    memory(lab, id, kind, samples);
    containerd.ctr(["task", "delete", "--force", id]).run().ok();
    containerd.ctr(["container", "delete", id]).run().ok();

    let runtime = Runtime::new(kind, lab);
    let bundle = Bundle::args(lab, &format!("{id}-cli-{kind:?}"), &["sleep", "1000"]);
    runtime.begin(&bundle, id);
    for _ in 0..2 {
        let exec = runtime.verb("exec").args([id, "true"]);
        time(lab, None, kind, What::CliExec, &exec, samples);
    }
    runtime.delete_force(id).ok();
    std::fs::remove_dir_all(bundle.dir()).expect("remove the bundle");
}

/// Runs `command`; its CPU time ends with it, or when the last process of the sandbox `ending` has ended.
fn time(lab: &Lab, ending: Option<&str>, kind: Kind, what: What, command: &Cmd, samples: &mut Samples) {
    let before = lab.cpu_time();
    let outcome = command.run().ok();
    if let Some(id) = ending {
        wait::until("the sandbox is gone", Duration::from_secs(30), || {
            pids::of_sandbox(lab, id).is_empty()
        });
    }
    let cpu = lab.cpu_time() - before;
    let mut add = |of, time: Duration| {
        samples
            .entry((what, of, kind == Kind::Kata))
            .or_default()
            .push(time.as_secs_f64());
    };
    add(Of::Wall, outcome.took);
    add(Of::Cpu, cpu);
}

/// The host's memory behind an idle pod, process by process.
fn memory(lab: &Lab, id: &str, kind: Kind, samples: &mut Samples) {
    let mut parts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for process in pids::of_sandbox(lab, id) {
        let name = match process.part() {
            Some(Part::Shim) => "sandbox process",
            Some(Part::Vmm) => "VMM",
            Some(Part::Virtiofsd) => "virtiofsd",
            None if process.name.starts_with("containerd-shim") => "sandbox process",
            None => continue,
        };
        *parts.entry(name).or_default() += pids::pss_kib(lab, process.pid);
    }
    parts.insert("pod", parts.values().sum());
    for (name, kib) in parts {
        let key = (What::Memory(name), Of::Pss, kind == Kind::Kata);
        samples.entry(key).or_default().push(kib as f64 / 1024.0);
    }
}
