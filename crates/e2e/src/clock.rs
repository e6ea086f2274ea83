//! The time of day, which guests must share.

use std::time::UNIX_EPOCH;

/// The host's, seconds since 1970.
fn now() -> u64 {
    UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

/// When a guest began to be asked for its time.
#[derive(Debug, Clone, Copy)]
pub struct Asked(u64);

impl Asked {
    /// It is asked from now on.
    pub fn now() -> Self {
        Self(now())
    }

    /// Expects that what it answered by now was the time.
    ///
    /// # Panics
    /// When it was not, by more than two seconds, or is no number of seconds.
    #[track_caller]
    pub fn expect_time(self, answer: &str) {
        let (earliest, latest) = (self.0, now());
        let time: u64 = answer.trim().parse().expect("seconds");
        assert!(
            (earliest - 2..=latest + 2).contains(&time),
            "it is between {earliest} and {latest}, and not {time}"
        );
    }
}
