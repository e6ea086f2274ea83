//! How hard is looked for equal pages, and when that changes. Pure: it is told what time it is.
//!
//! ```text
//!           kick            30 s            120 s         120 s
//!   rest ─────────► aggressive ───► standard ───► slow ───────► rest
//!                    ▲    a kick, at any pace   │
//!                    └──────────────────────────┘
//! ```

use std::time::{Duration, Instant};

/// How hard is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As before there was a throttler.
    Rest,
    /// A machine was started just now.
    Aggressive,
    /// Most of what can be merged has been.
    Standard,
    /// What changes slowly.
    Slow,
}

/// What a pace means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effort {
    /// How long the kernel sleeps between two looks, milliseconds.
    pub sleep_millis: u32,
    /// One look is at the anonymous pages of the host, divided by this.
    pub divisor: u64,
    /// How long it goes on like that.
    lasts: Duration,
}

impl Pace {
    /// None at rest.
    pub(crate) fn effort(self) -> Option<Effort> {
        let (sleep_millis, divisor, seconds) = match self {
            Self::Rest => return None,
            Self::Aggressive => (1, 10, 30),
            Self::Standard => (10, 100, 120),
            Self::Slow => (100, 500, 120),
        };
        Some(Effort {
            sleep_millis,
            divisor,
            lasts: Duration::from_secs(seconds),
        })
    }

    fn next(self) -> Self {
        match self {
            Self::Aggressive => Self::Standard,
            Self::Standard => Self::Slow,
            Self::Slow | Self::Rest => Self::Rest,
        }
    }
}

/// Where a throttler stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycle {
    pace: Pace,
    due: Option<Instant>,
}

impl Default for Cycle {
    fn default() -> Self {
        Self {
            pace: Pace::Rest,
            due: None,
        }
    }
}

impl Cycle {
    /// How hard is looked now.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// When that changes if nothing happens; never at rest.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A machine was started.
    pub fn kick(&mut self, now: Instant) {
        self.enter(Pace::Aggressive, now);
    }

    /// Time has passed. Answers whether the pace has changed.
    pub fn pass(&mut self, now: Instant) -> bool {
        let is_over = self.due.is_some_and(|due| due <= now);
        if is_over {
            self.enter(self.pace.next(), now);
        }
        is_over
    }

    fn enter(&mut self, pace: Pace, now: Instant) {
        self.pace = pace;
        self.due = pace.effort().map(|effort| now + effort.lasts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens at a second: a kick, or nothing but time. And the pace afterwards.
    type Event = (u64, bool, Pace);

    const KICK: bool = true;
    const TIME: bool = false;

    #[test]
    fn it_slows_down_until_the_next_kick() {
        use Pace::{Aggressive, Rest, Slow, Standard};
        let stories: [&[Event]; 5] = [
            &[(0, TIME, Rest), (1_000_000, TIME, Rest)],
            &[
                (0, KICK, Aggressive),
                (29, TIME, Aggressive),
                (30, TIME, Standard),
                (149, TIME, Standard),
                (150, TIME, Slow),
                (269, TIME, Slow),
                (270, TIME, Rest),
                (1000, TIME, Rest),
            ],
            // Each kick has its 30 seconds.
            &[
                (0, KICK, Aggressive),
                (25, KICK, Aggressive),
                (54, TIME, Aggressive),
                (55, TIME, Standard),
                (100, KICK, Aggressive),
                (130, TIME, Standard),
                (250, TIME, Slow),
                (300, KICK, Aggressive),
            ],
            &[(270, TIME, Rest), (400, KICK, Aggressive), (430, TIME, Standard)],
            // Who sleeps long goes on where it was.
            &[
                (0, KICK, Aggressive),
                (500, TIME, Standard),
                (619, TIME, Standard),
                (620, TIME, Slow),
            ],
        ];
        let begin = Instant::now();
        for story in stories {
            let mut cycle = Cycle::default();
            for &(second, is_kick, expected) in story {
                let (now, before) = (begin + Duration::from_secs(second), cycle.pace());
                if is_kick {
                    cycle.kick(now);
                } else {
                    assert_eq!(cycle.pass(now), before != expected, "{second} s of {story:?}");
                }
                assert_eq!(cycle.pace(), expected, "{second} s of {story:?}");
                assert_eq!(cycle.due().is_none(), expected == Rest, "{second} s of {story:?}");
            }
        }
    }
}
