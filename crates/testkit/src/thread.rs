//! Tests that change what belongs to a thread, such as its namespaces.

use std::time::Duration;

/// Runs `enter` and then a test on a thread of their own, with a small runtime.
///
/// # Panics
/// As they do, and when the test takes longer than `limit`.
pub fn run<F: Future<Output = ()>>(limit: Duration, enter: impl FnOnce() + Send, test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let ended = runtime
                .expect("runtime")
                .block_on(async { tokio::time::timeout(limit, test()).await });
            ended.expect("the test hangs");
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
