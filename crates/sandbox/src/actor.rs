//! One task that owns a state; everybody else sends it short, synchronous pieces of work and gets the answer back.
//!
//! A piece of work never waits for I/O, so the owner is always ready. What takes long is done by the asker between two
//! pieces: ask (and mark), do, report.

use tokio::sync::{mpsc, oneshot};

type Work<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A way to the owner. Cheap to clone; the owner ends with the last of them.
pub struct Owner<S>(mpsc::UnboundedSender<Work<S>>);

impl<S> Clone for Owner<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Send + 'static> Owner<S> {
    /// Gives `state` to a task of its own.
    pub fn start(mut state: S) -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel::<Work<S>>();
        tokio::spawn(async move {
            while let Some(work) = inbox.recv().await {
                work(&mut state);
            }
        });
        Self(sender)
    }

    /// Has `work` done on the state and answers what it returned; `None` only while the runtime is shutting down.
    pub async fn ask<R, F>(&self, work: F) -> Option<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut S) -> R + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: Work<S> = Box::new(move |state| {
            // An asker that has gone needs no answer.
            let _ = reply.send(work(state));
        });
        self.0.send(work).ok()?;
        answer.await.ok()
    }

    /// Has `work` done on the state, sooner or later, after all that was sent before.
    pub fn tell(&self, work: impl FnOnce(&mut S) + Send + 'static) {
        // Fails only while the runtime is shutting down.
        let _ = self.0.send(Box::new(work));
    }
}
