//! Takes the exit of every process that ends, ours and orphans, and tells whoever waits for it.

use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::pod::Pod;

/// Begins to listen for ended children.
///
/// # Errors
/// When signals cannot be received.
pub fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps for ever.
pub async fn run(pod: Arc<Pod>, mut ended: Signal) {
    while ended.recv().await.is_some() {
        // One signal may stand for many.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status) => {
                    if let Some((pid, code)) = exit_of(status) {
                        pod.process_ended(pid, code);
                    }
                }
                Err(errno) => {
                    tracing::error!("cannot reap: {errno}");
                    break;
                }
            }
        }
    }
}

/// Who ended, and with which code: as a shell would say it.
fn exit_of(status: WaitStatus) -> Option<(u32, u32)> {
    let (pid, code) = match status {
        WaitStatus::Exited(pid, code) => (pid, code),
        WaitStatus::Signaled(pid, signal, _) => (pid, 128 + signal as i32),
        _ => return None,
    };
    Some((u32::try_from(pid.as_raw()).ok()?, u32::try_from(code).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

    #[test]
    fn codes_are_those_of_a_shell() {
        let pid = Pid::from_raw(7);
        assert_eq!(exit_of(WaitStatus::Exited(pid, 3)), Some((7, 3)));
        assert_eq!(
            exit_of(WaitStatus::Signaled(pid, Signal::SIGKILL, false)),
            Some((7, 137))
        );
        assert_eq!(exit_of(WaitStatus::Continued(pid)), None);
    }
}
