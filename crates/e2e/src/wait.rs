//! Waiting for what has no event to offer, with a limit.

use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; answers `None` when `limit` is over.
pub fn eventually<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        // Decided before it is asked: one whole look begins after the limit, however long the one before was held up.
        let last = Instant::now() >= end;
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if last {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When `limit` is over, with `what` was waited for.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        eventually(limit, || condition().then_some(())).is_some(),
        "waited {limit:?} in vain: {what}"
    );
}
