//! Fifty rounds of create, start, exec, kill and delete, some with a `kill -9` of the sandbox process, of the VMM, or of both
//! in the middle. After each round the lab holds nothing more than before the first.

use std::sync::atomic::{AtomicUsize, Ordering};

use kata_e2e::bundle::Bundle;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};

/// Rounds in all; `KATA_E2E_ROUNDS` asks for another number, for hunting rare leaks.
const ROUNDS: usize = 50;

/// Labs at work at once: a machine of CI has two cores.
const WORKERS: usize = 2;

/// What befalls a round.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Peace,
    ShimKilled,
    VmmKilled,
    BothKilled,
    KilledBeforeStart,
}

/// Fates take turns: a known mix, not a random one.
const FATES: [Fate; 7] = [
    Fate::Peace,
    Fate::ShimKilled,
    Fate::Peace,
    Fate::VmmKilled,
    Fate::Peace,
    Fate::BothKilled,
    Fate::KilledBeforeStart,
];

fn round(runtime: &Runtime, bundle: &Bundle, id: &str, fate: Fate) {
    let lab = runtime.lab();
    runtime.create(bundle, id).ok();
    if let Fate::KilledBeforeStart = fate {
        pids::kill_part(lab, id, Part::Shim);
        runtime.delete_force(id).ok();
        return;
    }
    runtime.start(id).ok();
    runtime.exec(id, "echo here").run().ok().stdout("here\n");
    match fate {
        Fate::Peace => {
            runtime.kill(id, "KILL").ok();
            runtime.await_status(id, "stopped");
            runtime.delete(id).ok();
        }
        Fate::ShimKilled => pids::kill_part(lab, id, Part::Shim),
        Fate::VmmKilled => pids::kill_part(lab, id, Part::Vmm),
        Fate::BothKilled => {
            for process in pids::of_sandbox(lab, id)
                .iter()
                .filter(|process| process.part().is_some())
            {
                lab.kill(process.pid);
            }
        }
        Fate::KilledBeforeStart => unreachable!("handled above"),
    }
    runtime.delete_force(id).ok();
    runtime.verb("state").arg(id).run().failed();
}

fn rounds(kind: Kind, count: usize, fates: &[Fate]) {
    let next = AtomicUsize::new(0);
    let work = || {
        let lab = Lab::open();
        let runtime = Runtime::new(kind, &lab);
        let bundle = Bundle::args(&lab, "leak", &["sleep", "1000"]);
        round(&runtime, &bundle, "leak-first", Fate::Peace);
        let before = Snapshot::take(&lab);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let fate = fates[index % fates.len()];
            round(&runtime, &bundle, &format!("leak-{index}"), fate);
            before.expect_nothing_more(&lab, &format!("round {index}, {fate:?}"));
        }
    };
    std::thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn runc_leaves_nothing_behind() {
    rounds(Kind::Runc, 10, &[Fate::Peace]);
}

#[test]
fn kata_leaves_nothing_behind_whatever_is_killed() {
    let asked = std::env::var("KATA_E2E_ROUNDS").ok();
    let count = asked.map_or(ROUNDS, |text| text.parse().expect("KATA_E2E_ROUNDS is a number"));
    rounds(Kind::Kata, count, &FATES);
}
