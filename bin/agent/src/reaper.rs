//! Takes the exit of every process that ends, ours and orphans, and tells whoever waits for it.

use std::io;
use std::sync::Arc;

use kata_sys::child;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::descriptor::watch_for;
use crate::pod::Pod;

/// What tells that children have ended.
#[derive(Debug)]
pub struct Ends(AsyncFd<SignalFd>);

impl Ends {
    /// Begins to listen. This process is to have one thread: another could take the signal.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub fn listen() -> io::Result<Self> {
        let ends = SigSet::from(Signal::SIGCHLD);
        ends.thread_block()?;
        let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(watch_for(signals, Interest::READABLE)?))
    }

    /// Waits until children have ended; one time may stand for many of them.
    async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        while self.0.get_ref().read_signal()?.is_some() {}
        ready.clear_ready();
        Ok(())
    }
}

/// Reaps for ever.
pub async fn run(pod: Arc<Pod>, ends: Ends) {
    loop {
        if let Err(error) = ends.next().await {
            tracing::error!("cannot hear of processes that end: {error}");
            return;
        }
        loop {
            match child::reap() {
                Ok(Some(child::Ended { pid, code })) => pod.process_ended(pid, code),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("cannot reap: {error}");
                    break;
                }
            }
        }
    }
}
