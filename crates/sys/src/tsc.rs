//! How fast the CPU's time stamp counter counts, measured against the kernel's clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long is measured. Reading both clocks together is good to some 100 ns, so that this is good to some 10⁻⁵.
const SPAN: Duration = Duration::from_millis(10);

/// How often both clocks are read for one mark; the reading with the least time between is taken.
const READINGS: u32 = 8;

/// Measures, in kHz; blocks for 10 ms. `None` where there is no such counter.
#[must_use]
pub fn frequency_khz() -> Option<u32> {
    let start = mark()?;
    std::thread::sleep(SPAN);
    let end = mark()?;
    let ticks = u128::from(end.ticks.checked_sub(start.ticks)?);
    let nanos = end.time.checked_sub(start.time)?.as_nanos();
    let khz = (ticks * 1_000_000).checked_div(nanos)?;
    u32::try_from(khz).ok().filter(|&khz| khz > 0)
}

/// Both clocks, read as one.
struct Mark {
    time: Duration,
    ticks: u64,
}

fn mark() -> Option<Mark> {
    let mut best: Option<(Duration, Mark)> = None;
    for _ in 0..READINGS {
        let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?);
        let ticks = counter()?;
        let after = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?);
        let gap = after.checked_sub(before)?;
        if best.as_ref().is_none_or(|(least, _)| gap < *least) {
            best = Some((
                gap,
                Mark {
                    time: before + gap / 2,
                    ticks,
                },
            ));
        }
    }
    best.map(|(_, mark)| mark)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 CPU has the instruction; it reads a register and touches no memory.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let first = frequency_khz().expect("a counter");
        let second = frequency_khz().expect("a counter");
        assert!(first.abs_diff(second) < first / 200, "{first} kHz, then {second} kHz");
    }
}
