//! Something costly that the tests of a file share. When making it fails, it fails once: the others are told, not made to
//! wait for the same failure.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

/// A place for a shared thing.
#[derive(Debug)]
pub struct Shared<T>(OnceLock<Option<T>>);

impl<T> Shared<T> {
    /// An empty place.
    #[expect(
        clippy::new_without_default,
        reason = "it is made in statics, where Default cannot be called"
    )]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The thing, made by the first who asks.
    ///
    /// # Panics
    /// When making it panicked, now or before.
    #[track_caller]
    pub fn get(&self, make: impl FnOnce() -> T) -> &T {
        let mut cause = None;
        let made = self.0.get_or_init(|| {
            catch_unwind(AssertUnwindSafe(make))
                .map_err(|panic| cause = Some(panic))
                .ok()
        });
        if let Some(cause) = cause {
            resume_unwind(cause);
        }
        made.as_ref()
            .expect("what the tests of this file share could not be made: see the first failure")
    }
}
