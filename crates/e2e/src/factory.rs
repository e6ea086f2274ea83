//! `kata-runtime factory`: templates, and the cache of machines.

use std::time::Duration;

use crate::command::Outcome;
use crate::lab::Lab;
use crate::runtime::{Kind, Runtime};
use crate::wait;

/// How long a machine that is taken may take to be replaced.
pub const REFILL: Duration = Duration::from_secs(60);

/// `kata-runtime factory ACTION`.
#[track_caller]
pub fn factory(lab: &Lab, action: &str) -> Outcome {
    let command = Runtime::new(Kind::Kata, lab).program().args(["factory", action]);
    command.limit(Duration::from_secs(90)).run()
}

/// The machines that wait, by the pids of their sandbox processes.
///
/// # Panics
/// When the cache is off.
#[track_caller]
pub fn ready(lab: &Lab) -> Vec<u32> {
    let said = factory(lab, "status").ok().text();
    let line = said.lines().find(|line| line.starts_with("vm cache")).expect("a line");
    let words = line.split([' ', ',']).skip_while(|word| *word != "pids").skip(1);
    words.map_while(|word| word.parse().ok()).collect()
}

/// Waits until so many machines wait.
///
/// # Panics
/// When they do not in time.
#[track_caller]
pub fn await_full(lab: &Lab, count: usize) -> Vec<u32> {
    wait::until("all wait that are to wait", REFILL, || ready(lab).len() == count);
    ready(lab)
}
