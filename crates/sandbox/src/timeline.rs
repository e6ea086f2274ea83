//! When each phase of a start began and how long it took; written beside the record, for whoever asks where the time
//! went.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::record::Home;

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

/// The phases so far, in the order in which they ended.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin: Instant,
    spans: Vec<Span>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            spans: Vec::new(),
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
        self.spans.push(Span {
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
        std::fs::write(path(home), serde_json::to_vec(&self.spans)?)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// What reading failed with, `InvalidData` for what is no timeline.
    pub fn read(home: &Home) -> io::Result<Vec<Span>> {
        Ok(serde_json::from_slice(&std::fs::read(path(home))?)?)
    }
}

fn path(home: &Home) -> PathBuf {
    home.path().join("timeline.json")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
