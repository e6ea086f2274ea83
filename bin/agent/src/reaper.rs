//! Takes the exit of every process that ends, ours and orphans, and tells whoever waits for it.

use std::sync::Arc;

use kata_sys::child;
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
