//! A file server that is watched while a machine has it.

use std::sync::Arc;
use std::time::Duration;

use kata_machine::Machine;
use kata_storage::share::FileServer;
use tokio::sync::oneshot;

use crate::boot::VMM_END;

/// A file server that is watched.
pub(crate) struct Serving {
    /// `None` if it has ended already.
    pub pid: Option<u32>,
    stop: oneshot::Sender<oneshot::Sender<()>>,
}

impl Serving {
    /// Watches it. With it comes what resolves with its last words when it ends by itself.
    pub fn begin(mut server: FileServer) -> (Self, oneshot::Receiver<String>) {
        let pid = server.pid();
        let (stop, stopped) = oneshot::channel::<oneshot::Sender<()>>();
        let (last_words, words) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                words = server.ended() => {
                    // The receiver is gone when the machine has ended first.
                    let _ = last_words.send(words);
                }
                Ok(done) = stopped => {
                    server.stop().await;
                    let _ = done.send(());
                }
            }
        });
        (Self { pid, stop }, words)
    }

    /// Ends it, if it has not ended.
    pub async fn stop(self) {
        let (done, finished) = oneshot::channel();
        if self.stop.send(done).is_ok() {
            let _ = finished.await;
        }
    }
}

/// Sees to it that the machine ends when its file server does, whose last words come then.
pub(crate) fn end_with(machine: &Arc<dyn Machine>, file_server: oneshot::Receiver<String>) {
    let machine = machine.clone();
    tokio::spawn(async move {
        let Ok(words) = file_server.await else { return };
        // It ends when the VMM has closed its connection, a moment before the end of the VMM is known.
        let mut exit = machine.exit();
        if tokio::time::timeout(VMM_END, exit.wait_for(Option::is_some))
            .await
            .is_err()
        {
            tracing::error!("{words}; the machine cannot go on without it");
            machine.halt(Duration::ZERO).await;
        }
    });
}
