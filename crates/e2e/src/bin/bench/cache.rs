//! A container that takes a machine out of the cache: how long its user waits. The CPU time of that machine was spent before,
//! and its successor's is spent meanwhile, so there is none to be told.

use std::thread;

use kata_e2e::containerd::Containerd;
use kata_e2e::factory::{await_full, factory};
use kata_e2e::lab::Lab;
use kata_e2e::runtime::Kind;

use crate::Flags;
use crate::density::SETTLE;
use crate::samples::Samples;

/// `ctr run --rm busybox true`
pub const CACHE_RUN: &str = "from the cache: ctr run --rm busybox true, wall";

pub fn measure(flags: &Flags, samples: &mut Samples) {
    if !flags.kinds.contains(&Kind::Kata) {
        return;
    }
    let lab = Lab::configured("[factory]\nvm_cache_number = 1\n");
    let containerd = Containerd::start(&lab);
    factory(&lab, "init").ok();
    for round in 1..=flags.rounds {
        eprintln!("round {round} of {}: from the cache", flags.rounds);
        await_full(&lab, 1);
        thread::sleep(SETTLE);
        let run = containerd.run(Kind::Kata, &["--rm"], &format!("taken-{round}"), &["true"]);
        samples.add_time(CACHE_RUN, Kind::Kata, run.run().ok().took);
    }
    factory(&lab, "destroy").ok();
}
