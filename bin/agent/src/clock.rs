//! The points of the agent's own start, and the time of day.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime, clock_settime};

/// When the agent began, and when it could first be spoken to.
#[derive(Debug)]
pub struct Boot {
    started_usecs: u64,
    ready_usecs: AtomicU64,
}

impl Boot {
    /// Now is the beginning.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self {
            started_usecs: since_boot_usecs(),
            ready_usecs: AtomicU64::new(0),
        })
    }

    /// Notes that the agent can be spoken to. Only the first time counts.
    pub fn mark_ready(&self) {
        let _ = self
            .ready_usecs
            .compare_exchange(0, since_boot_usecs(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Microseconds after the guest's boot at which the agent began.
    pub fn started_usecs(&self) -> u64 {
        self.started_usecs
    }

    /// Microseconds after the guest's boot at which the agent could first be spoken to; 0 before.
    pub fn ready_usecs(&self) -> u64 {
        self.ready_usecs.load(Ordering::Relaxed)
    }
}

fn since_boot_usecs() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(Duration::from(time).as_micros()).ok())
        .unwrap_or(0)
}

/// Nanoseconds since 1970.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Sets the time of day.
///
/// # Errors
/// What the kernel says.
pub fn set(unix_nanos: u64) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, Duration::from_nanos(unix_nanos).into())
}
