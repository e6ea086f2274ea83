//! A container alone: from nothing to its end, one more process in it, its memory; and the floor under the cold start.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::containerd::Containerd;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;

use crate::Flags;
use crate::density::SETTLE;
use crate::floor;
use crate::samples::{Clock, Cost, Samples};

/// `ctr run --rm busybox true`
pub const CTR_RUN: Cost = Cost {
    wall: "ctr run --rm busybox true, wall",
    cpu: "ctr run --rm busybox true, CPU",
};
/// `RUNTIME run` of `true`
pub const CLI_RUN: Cost = Cost {
    wall: "run true, wall",
    cpu: "run true, CPU",
};
/// `ctr task exec … true`
pub const CTR_EXEC: Cost = Cost {
    wall: "ctr task exec true, wall",
    cpu: "ctr task exec true, CPU",
};
/// `RUNTIME exec … true`
pub const CLI_EXEC: Cost = Cost {
    wall: "exec true, wall",
    cpu: "exec true, CPU",
};
/// Starts in each round, each beside the floor: the machine's speed changes by half within a minute.
pub const TURNS: u32 = 3;
/// The memory of an idle pod, MiB.
pub const POD_PSS: &str = "pod, PSS";

pub fn measure(flags: &Flags, samples: &mut Samples) {
    let lab = Lab::open();
    let containerd = Containerd::start(&lab);
    let floor = flags.kinds.contains(&Kind::Kata).then(|| floor::command(&lab));
    for kind in &flags.kinds {
        run_once(&containerd, *kind, "warm-up", CTR_RUN, &mut Samples::default());
    }
    for round in 1..=flags.rounds {
        for turn in 1..=TURNS {
            eprintln!("round {round} of {}: cold start {turn}", flags.rounds);
            if let Some(floor) = &floor {
                samples.time(&lab, Kind::Kata, floor::COST, || floor.run().ok());
            }
            for kind in &flags.kinds {
                run_once(&containerd, *kind, &format!("bench-{round}-{turn}"), CTR_RUN, samples);
            }
        }
        for kind in &flags.kinds {
            eprintln!("round {round} of {}: {kind:?}", flags.rounds);
            run_by_command_line(&lab, *kind, &format!("bench-{round}"), samples);
            warm(&containerd, *kind, &format!("pod-{round}"), samples);
        }
    }
}

/// A container that only starts and ends, without a daemon.
fn run_by_command_line(lab: &Lab, kind: Kind, id: &str, samples: &mut Samples) {
    let bundle = Bundle::args(lab, &format!("{id}-cli-{kind:?}"), &["true"]);
    let cli = format!("{id}-cli");
    let run = Runtime::new(kind, lab).run(&bundle, &cli);
    time_to_the_end(lab, &cli, kind, CLI_RUN, &run, samples);
    std::fs::remove_dir_all(bundle.dir()).expect("remove the bundle");
}

/// A container of containerd's that only starts and ends.
pub fn run_once(containerd: &Containerd, kind: Kind, id: &str, cost: Cost, samples: &mut Samples) {
    let run = containerd.run(kind, &["--rm"], id, &["true"]);
    time_to_the_end(containerd.lab(), id, kind, cost, &run, samples);
}

/// What goes on in a container that is there.
fn warm(containerd: &Containerd, kind: Kind, id: &str, samples: &mut Samples) {
    let lab = containerd.lab();
    containerd.run(kind, &["-d"], id, &["sleep", "1000"]).run().ok();
    for turn in 0..2 {
        let exec = containerd.ctr(["task", "exec", "--exec-id", &format!("e{turn}"), id, "true"]);
        samples.time(lab, kind, CTR_EXEC, || exec.run().ok());
    }
    if kind == Kind::Kata {
        thread::sleep(SETTLE);
    }
    memory(lab, id, kind, samples);
    containerd.ctr(["task", "delete", "--force", id]).run().ok();
    containerd.ctr(["container", "delete", id]).run().ok();

    let runtime = Runtime::new(kind, lab);
    let bundle = Bundle::args(lab, &format!("{id}-cli-{kind:?}"), &["sleep", "1000"]);
    runtime.begin(&bundle, id);
    for _ in 0..2 {
        let exec = runtime.verb("exec").args([id, "true"]);
        samples.time(lab, kind, CLI_EXEC, || exec.run().ok());
    }
    runtime.delete_force(id).ok();
    std::fs::remove_dir_all(bundle.dir()).expect("remove the bundle");
}

/// Runs `command`: wall time ends with it, CPU time when the last process of the sandbox has ended.
fn time_to_the_end(lab: &Lab, id: &str, kind: Kind, cost: Cost, command: &Cmd, samples: &mut Samples) {
    let clock = Clock::start(lab);
    let took = command.run().ok().took;
    wait::until("the sandbox is gone", Duration::from_secs(30), || {
        pids::of_sandbox(lab, id).is_empty()
    });
    clock.stop_cpu(samples, kind, cost);
    samples.add_time(cost.wall, kind, took);
}

/// The host's memory behind an idle pod, process by process.
fn memory(lab: &Lab, id: &str, kind: Kind, samples: &mut Samples) {
    let mut parts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for process in pids::of_sandbox(lab, id) {
        let name = match process.part() {
            Some(Part::Shim) => "sandbox process, PSS",
            Some(Part::Vmm) => "VMM, PSS",
            Some(Part::Virtiofsd) => "virtiofsd, PSS",
            None => continue,
        };
        *parts.entry(name).or_default() += pids::pss_kib(lab, process.pid);
    }
    parts.insert(POD_PSS, parts.values().sum());
    for (name, kib) in parts {
        samples.add(name, kind, kib as f64 / 1024.0);
    }
}
