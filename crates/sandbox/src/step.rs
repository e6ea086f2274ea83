//! Host-side acts, each with its undo beside it.
//!
//! A [`Steps`] is the list of what was done so far. [`Steps::undo`] takes all of it back, last first; an undo that
//! fails is logged and the rest go on. Tests let the k-th step fail ([`Faults`]) and look at what is left.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

type Undo = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send>;

/// Counts the steps of a sandbox, and lets a chosen one fail; in production none does. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    fail_at: Option<usize>,
    asked: Arc<AtomicUsize>,
}

/// The error of a step that a test made fail.
#[derive(Debug, thiserror::Error)]
#[error("step {number} ({name}) was made to fail")]
pub struct Injected {
    number: usize,
    name: &'static str,
}

impl Faults {
    /// No step fails.
    pub fn none() -> Self {
        Self::default()
    }

    /// The step with this number (from 0) fails instead of being done.
    pub fn at(number: usize) -> Self {
        Self {
            fail_at: Some(number),
            ..Self::default()
        }
    }

    /// How many steps were asked for so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn admit(&self, name: &'static str) -> Result<(), Injected> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        if self.fail_at == Some(number) {
            return Err(Injected { number, name });
        }
        Ok(())
    }
}

/// What was done and how to take it back.
pub struct Steps {
    done: Vec<(&'static str, Undo)>,
    faults: Faults,
}

impl Steps {
    /// Nothing done yet.
    pub fn new(faults: Faults) -> Self {
        Self {
            done: Vec::new(),
            faults,
        }
    }

    /// Asks whether the next step may be done; to be called right before doing it.
    ///
    /// # Errors
    /// [`Injected`] if a test chose this step to fail.
    pub fn next(&mut self, name: &'static str) -> Result<(), Injected> {
        self.faults.admit(name)?;
        tracing::debug!(step = name, "doing");
        Ok(())
    }

    /// Notes how the step just done is taken back.
    pub fn done<F, U>(&mut self, name: &'static str, undo: F)
    where
        F: FnOnce() -> U + Send + 'static,
        U: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.done.push((name, Box::new(move || Box::pin(undo()))));
    }

    /// What these steps are counted with.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// An empty list, counted with this one: for what may be taken back while the rest stays.
    pub fn branch(&self) -> Self {
        Self::new(self.faults.clone())
    }

    /// What was done on a branch stays, and is taken back before what was done here.
    pub fn join(&mut self, branch: Self) {
        self.done.extend(branch.done);
    }

    /// Takes everything back, last first.
    pub async fn undo(mut self) {
        while let Some((name, undo)) = self.done.pop() {
            tracing::debug!(step = name, "undoing");
            if let Err(error) = undo().await {
                tracing::warn!(step = name, %error, "could not be undone");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn steps_are_undone_last_first_even_if_one_cannot_be() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut steps = Steps::new(Faults::none());
        for name in ["a", "b", "c"] {
            steps.next(name).expect("no faults");
            let order = order.clone();
            steps.done(name, move || async move {
                order.lock().expect("lock").push(name);
                if name == "b" { Err("stuck".to_owned()) } else { Ok(()) }
            });
        }
        steps.undo().await;
        assert_eq!(*order.lock().expect("lock"), ["c", "b", "a"]);
    }

    #[tokio::test]
    async fn a_branch_is_taken_back_alone_or_with_the_rest() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |steps: &mut Steps, name: &'static str| {
            let order = order.clone();
            steps.done(name, move || async move {
                order.lock().expect("lock").push(name);
                Ok(())
            });
        };
        let mut steps = Steps::new(Faults::none());
        note(&mut steps, "a");
        let mut branch = steps.branch();
        note(&mut branch, "b");
        branch.undo().await;
        assert_eq!(*order.lock().expect("lock"), ["b"]);
        let mut branch = steps.branch();
        note(&mut branch, "c");
        steps.join(branch);
        note(&mut steps, "d");
        steps.undo().await;
        assert_eq!(*order.lock().expect("lock"), ["b", "d", "c", "a"]);
    }

    #[test]
    fn a_chosen_step_fails() {
        let mut steps = Steps::new(Faults::at(1));
        assert!(steps.next("a").is_ok());
        let error = steps.next("b").expect_err("chosen").to_string();
        assert_eq!(error, "step 1 (b) was made to fail");
        assert!(steps.next("c").is_ok());
        assert_eq!(steps.faults().asked(), 3);
    }
}
