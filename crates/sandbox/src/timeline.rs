//! When each phase of a start began and how long it took; written beside the record, for whoever asks where the time
//! went.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::record::Home;

/// How many phases are remembered: the last ones of a pod in which many containers start.
const MOST: usize = 256;

/// One phase of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// Microseconds from the start of the sandbox process's work to the beginning of the phase.
    pub from_usecs: u64,
    /// Microseconds that it took.
    pub took_usecs: u64,
}

/// What a sandbox process has noted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// When it began its work, nanoseconds since 1970-01-01 UTC.
    pub began_unix_nanos: u64,
    /// The phases, in the order in which they ended.
    pub spans: Vec<Span>,
}

/// The phases so far.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin: Instant,
    trace: Trace,
}

impl Default for Timeline {
    fn default() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            origin: Instant::now(),
            trace: Trace {
                began_unix_nanos: u64::try_from(began.as_nanos()).unwrap_or(u64::MAX),
                spans: Vec::new(),
            },
        }
    }
}

impl Timeline {
    /// Notes a phase that began at `from` and ends now.
    pub fn note(&mut self, name: &str, from: Instant) {
        self.note_took(name, from, from.elapsed());
    }

    /// Notes a phase that began at `from` and took `took`.
    pub fn note_took(&mut self, name: &str, from: Instant, took: Duration) {
        let spans = &mut self.trace.spans;
        if spans.len() == MOST {
            spans.remove(0);
        }
        spans.push(Span {
            name: name.to_owned(),
            from_usecs: micros(from.saturating_duration_since(self.origin)),
            took_usecs: micros(took),
        });
    }

    /// Writes the phases so far.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn write(&self, home: &Home) -> io::Result<()> {
        std::fs::write(path(home), serde_json::to_vec(&self.trace)?)
    }
}

impl Trace {
    /// Reads what [`Timeline::write`] wrote.
    ///
    /// # Errors
    /// What reading failed with, `InvalidData` for what is no timeline.
    pub fn read(home: &Home) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path(home))?)?)
    }
}

fn path(home: &Home) -> PathBuf {
    home.path().join("timeline.json")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_phases_are_remembered() {
        let mut timeline = Timeline::default();
        let from = timeline.origin;
        for number in 0..MOST + 2 {
            timeline.note_took(
                &number.to_string(),
                from + Duration::from_millis(2),
                Duration::from_secs(1),
            );
        }
        let spans = &timeline.trace.spans;
        assert_eq!((spans.len(), spans[0].name.as_str()), (MOST, "2"));
        assert_eq!((spans[0].from_usecs, spans[0].took_usecs), (2000, 1_000_000));
    }
}
