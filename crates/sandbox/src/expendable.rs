//! Who goes when the host's memory does not do for one more pod: that pod, and not those that run. Left alone, the kernel would
//! kill what is largest, and a pod that starts is the smallest of all.
//!
//! Until a pod has started, its VMM is the first to be killed (`proc_pid_oom_score_adj(5)`), and before there is one, the
//! sandbox process, which may be copying a template. Later they are like all others.

use std::fs;

use kata_machine::{Exit, ExitWatch};

use crate::record::Mark;

/// The kernel kills these first.
const FIRST: &str = "1000";

const OWN: &str = "/proc/self/oom_score_adj";

/// As long as it lives, this process, and programs that it starts, are the first to be killed.
pub(crate) struct Expendable {
    usual: String,
}

impl Expendable {
    /// Without it the pod starts as well; the log says why.
    pub fn begin() -> Option<Self> {
        let begun = fs::read_to_string(OWN).and_then(|usual| {
            fs::write(OWN, FIRST)?;
            Ok(Self { usual })
        });
        begun
            .inspect_err(
                |error| tracing::debug!(%error, path = OWN, "a start is not the first to go when memory is wanting"),
            )
            .ok()
    }
}

impl Drop for Expendable {
    fn drop(&mut self) {
        if let Err(error) = fs::write(OWN, self.usual.trim()) {
            tracing::warn!(%error, path = OWN, "the sandbox process stays the first to go when memory is wanting");
        }
    }
}

/// From now on the process is like this one. One that has ended is left alone.
pub(crate) fn spare(process: Mark) {
    let path = format!("/proc/{}/oom_score_adj", process.pid);
    // Who is our child keeps its pid until we have seen its end, which cannot happen meanwhile.
    let Some(_its) = process.open() else { return };
    if let Err(error) = fs::read_to_string(OWN).and_then(|usual| fs::write(&path, usual.trim())) {
        tracing::warn!(%error, path, "the machine stays the first to go when memory is wanting");
    }
}

/// Waits until the watch shows the end.
pub(crate) async fn ended(exit: &mut ExitWatch) -> Exit {
    let seen = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
    // Its watcher went down with this process's runtime.
    seen.unwrap_or_else(|| Exit {
        status: Err(nix::libc::SIGKILL),
        messages: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing else in this test program depends on it.
    #[test]
    fn it_is_the_first_to_go_for_a_while() {
        let mut child = std::process::Command::new("sleep");
        let own = || fs::read_to_string(OWN).expect("readable").trim().to_owned();
        let usual = own();
        let begun = Expendable::begin().expect("raising is always allowed");
        assert_eq!(own(), FIRST);
        let mut child = child.arg("60").spawn().expect("sleep");
        drop(begun);
        assert_eq!(own(), usual);
        let path = format!("/proc/{}/oom_score_adj", child.id());
        let its = || fs::read_to_string(&path).expect("readable").trim().to_owned();
        assert_eq!(its(), FIRST);
        let mark = Mark::of(child.id()).expect("it runs");
        spare(Mark {
            start_ticks: mark.start_ticks + 1,
            ..mark
        });
        assert_eq!(its(), FIRST, "another process of that pid is left alone");
        spare(mark);
        assert_eq!(its(), usual);
        child.kill().expect("killed");
        child.wait().expect("ended");
        spare(mark);
    }
}
