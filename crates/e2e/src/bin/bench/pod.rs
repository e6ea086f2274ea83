//! A pod as a kubelet makes it, through CRI with a real network: sandbox, then container; a second container; one process
//! more; numbers.

use std::time::Instant;

use kata_e2e::containerd::Release;
use kata_e2e::cri::Cri;
use kata_e2e::lab::Lab;
use kata_e2e::runtime::Kind;

use crate::Flags;
use crate::samples::{Clock, Cost, Samples};

/// The sandbox alone, and with its first container.
pub const SANDBOX: Cost = Cost {
    wall: "CRI sandbox, wall",
    cpu: "CRI sandbox, CPU",
};
/// Sandbox and first container.
pub const POD: Cost = Cost {
    wall: "CRI sandbox and container, wall",
    cpu: "CRI sandbox and container, CPU",
};
/// A container that only starts and ends, in a pod that runs.
pub const SECOND: Cost = Cost {
    wall: "CRI second container true, wall",
    cpu: "CRI second container true, CPU",
};
/// Seconds of one ExecSync.
pub const EXEC: &str = "CRI exec true";
/// Seconds of one ContainerStats.
pub const STATS: &str = "CRI stats";

/// How many execs a kind has in all rounds together: enough for a 99th percentile.
const EXECS: usize = 100;
/// How many questions for numbers a round has.
const QUESTIONS: usize = 10;

pub fn measure(flags: &Flags, samples: &mut Samples) {
    let lab = Lab::open();
    let cri = Cri::start(&lab, Release::V1);
    for kind in &flags.kinds {
        // The first pod makes bridges, rules and folders that stay.
        round(&cri, *kind, 0, 1, &mut Samples::default());
    }
    for number in 1..=flags.rounds {
        for kind in &flags.kinds {
            eprintln!("round {number} of {}: {kind:?}", flags.rounds);
            round(&cri, *kind, number, EXECS.div_ceil(flags.rounds), samples);
        }
    }
}

fn round(cri: &Cri, kind: Kind, number: usize, execs: usize, samples: &mut Samples) {
    let clock = Clock::start(cri.lab());
    let name = format!("bench-{}-{number}", kind.cri_handler());
    let pod = cri.pod(kind, &name, |_| ());
    clock.stop(samples, kind, SANDBOX);
    let first = pod.run_container("first", &["sleep", "1000"], |_| ());
    clock.stop(samples, kind, POD);

    samples.time(cri.lab(), kind, SECOND, || {
        let ended = pod.run_container("second", &["true"], |_| ()).await_exit();
        assert_eq!(ended["exit_code"], 0, "{ended:#}");
    });
    for _ in 0..execs {
        let exec = first.exec(&["true"]).ok();
        samples.add_time(EXEC, kind, exec.took);
    }
    for _ in 0..QUESTIONS {
        let begun = Instant::now();
        first.stats();
        samples.add_time(STATS, kind, begun.elapsed());
    }
    pod.remove();
}
