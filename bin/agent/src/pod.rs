//! What lives in the guest: containers, their processes, and the host's streams for them. One owner, one lock that is
//! never held while anything is awaited.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kata_jail::cgroup;
use kata_jail::link::Link;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::clock::{self, Boot};
use crate::modules::Modules;
use crate::process::Process;
use crate::sockets::Sockets;
use crate::table::Table;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0-255, or 128 and the signal.
    pub code: u32,
    /// Nanoseconds since 1970.
    pub at_unix_nanos: u64,
    /// The out-of-memory killer has ended something in its container.
    pub oom_killed: bool,
}

/// Where a container stands.
#[derive(Debug)]
pub enum Phase {
    /// Its init is prepared and waits at this link.
    Created(AsyncFd<Link>),
    /// Somebody is starting it.
    Starting,
    /// Its init was started. It may have ended since.
    Started,
}

/// A container and its processes.
#[derive(Debug)]
pub struct Container {
    /// Itself.
    pub jail: kata_jail::container::Container,
    /// Where it stands.
    pub phase: Phase,
    /// Its first process.
    pub init: Process,
    /// The others by their exec id; `None` for one that is being made.
    pub execs: HashMap<String, Option<Process>>,
    /// Files of the guest that it sees as its own, the host's among them.
    pub bound: Vec<PathBuf>,
    /// What stands in it for sockets of the host.
    pub _sockets: Sockets,
}

/// Everything that changes.
#[derive(Debug, Default)]
pub struct State {
    /// By id; `None` for one that is being made or taken away.
    pub containers: HashMap<String, Option<Container>>,
    /// Streams and those who wait for them.
    pub streams: Table<kata_wire::mux::Stream>,
    watched: HashMap<u32, Watched>,
}

#[derive(Debug)]
struct Watched {
    exit: watch::Sender<Option<Exit>>,
    cgroup: PathBuf,
    takes_all_with_it: bool,
}

/// The guest.
#[derive(Debug)]
pub struct Pod {
    /// Modules that can be loaded.
    pub modules: Modules,
    /// When we began.
    pub boot: Arc<Boot>,
    /// The guest's name until a pod has given it another.
    pub hostname: OsString,
    state: Mutex<State>,
}

impl Pod {
    /// An empty guest.
    pub fn new(modules: Modules, boot: Arc<Boot>) -> Self {
        Self {
            modules,
            boot,
            hostname: nix::unistd::gethostname().unwrap_or_default(),
            state: Mutex::default(),
        }
    }

    /// Looks at or changes the state.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells those who wait for this process, if it is anybody's.
    pub fn process_ended(&self, pid: u32, code: u32) {
        let Some(watched) = self.with(|state| state.watched.remove(&pid)) else {
            return;
        };
        if watched.takes_all_with_it
            && let Err(error) = cgroup::kill(&watched.cgroup)
        {
            tracing::warn!("a container's init ended, its other processes did not: {error}");
        }
        let oom_killed = cgroup::oom_kills(&watched.cgroup) > 0;
        tracing::debug!(pid, code, oom_killed, "process ended");
        watched.exit.send_replace(Some(Exit {
            code,
            at_unix_nanos: clock::unix_nanos(),
            oom_killed,
        }));
    }
}

impl State {
    /// From here on the end of child `pid` is waited for. To be called before anything is awaited after its birth, or
    /// the reaper could be faster. `takes_all_with_it`: all of `cgroup` is to end with it.
    pub fn watch(&mut self, pid: u32, cgroup: PathBuf, takes_all_with_it: bool) -> watch::Receiver<Option<Exit>> {
        let (exit, seen) = watch::channel(None);
        self.watched.insert(
            pid,
            Watched {
                exit,
                cgroup,
                takes_all_with_it,
            },
        );
        seen
    }
}
