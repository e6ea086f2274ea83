//! The cache of machines (`vm_cache_number`): sandbox processes that wait with a machine each for a pod to take them.
//!
//! `keeper` has them wait (`waiting` is one of them to it), `spare` is one that waits and then becomes a pod's sandbox process, `taker` is `start`, which takes one
//! instead of starting a process. What they say to each other is in [`kata_sandbox::cache`].

mod keeper;
mod spare;
mod taker;
mod waiting;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use kata_sandbox::record::Record;
use serde::{Deserialize, Serialize};

pub use keeper::keep;
pub use spare::wait;
pub use taker::{Taking, take};

/// The number under which one that waits finds its way to the keeper.
const CONTROL_FD: RawFd = 3;

/// How long either side of a taking may be silent.
const TALK_LIMIT: Duration = Duration::from_secs(10);

/// What a sandbox process is told that is taken: all that one that is started now would find.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Handover {
    /// The directory that it is to have, made by who takes it.
    home: PathBuf,
    /// The record in it.
    record: Record,
    /// The configuration file that the command line names.
    config: Option<PathBuf>,
    /// The configuration file that containerd's options name, or the environment.
    options_config: Option<PathBuf>,
    /// containerd's socket for events.
    events: Option<String>,
    /// Which messages are logged.
    log: String,
}

/// What one that was taken answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Taken;

/// What one that waits tells the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// It waits, with a machine of this recipe.
    Ready(String),
    /// It cannot, and why.
    Failed(String),
    /// Who wanted it has changed its mind.
    Back,
    /// It is a pod's.
    Taken,
}
