//! What was measured: series of numbers by their names, and why some could not be had.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kata_e2e::lab::Lab;
use kata_e2e::runtime::Kind;

/// The names of the two series that an act has.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds from begin to end.
    pub wall: &'static str,
    /// Seconds of user and system time of everything in the lab.
    pub cpu: &'static str,
}

/// Every number taken.
#[derive(Debug, Default)]
pub struct Samples {
    series: BTreeMap<(String, Kind), Vec<f64>>,
    lacking: BTreeMap<String, String>,
}

impl Samples {
    /// Adds a number to a series.
    pub fn add(&mut self, series: &str, kind: Kind, value: f64) {
        self.series.entry((series.to_owned(), kind)).or_default().push(value);
    }

    /// Adds seconds to a series.
    pub fn add_time(&mut self, series: &str, kind: Kind, time: Duration) {
        self.add(series, kind, time.as_secs_f64());
    }

    /// Says why a series has no numbers.
    pub fn lack(&mut self, series: &str, reason: &str) {
        self.lacking.insert(series.to_owned(), reason.to_owned());
    }

    /// Why a series has no numbers, if somebody said so.
    pub fn reason(&self, series: &str) -> Option<&str> {
        self.lacking.get(series).map(String::as_str)
    }

    /// The number below which this part of a series is; 0.5 is the median.
    pub fn quantile(&self, series: &str, kind: Kind, part: f64) -> Option<f64> {
        self.series
            .get(&(series.to_owned(), kind))
            .map(|values| quantile(values, part))
    }

    /// Does something and adds what it cost.
    pub fn time<T>(&mut self, lab: &Lab, kind: Kind, cost: Cost, act: impl FnOnce() -> T) -> T {
        let clock = Clock::start(lab);
        let result = act();
        clock.stop(self, kind, cost);
        result
    }
}

/// Counts wall and CPU time from when it was started.
#[derive(Debug)]
pub struct Clock<'lab> {
    lab: &'lab Lab,
    begun: Instant,
    cpu: Duration,
}

impl<'lab> Clock<'lab> {
    /// Starts it.
    pub fn start(lab: &'lab Lab) -> Self {
        let cpu = lab.cpu_time();
        let begun = Instant::now();
        Self { lab, begun, cpu }
    }

    /// Adds what it counted to the series of `cost`.
    pub fn stop(&self, samples: &mut Samples, kind: Kind, cost: Cost) {
        samples.add_time(cost.wall, kind, self.begun.elapsed());
        self.stop_cpu(samples, kind, cost);
    }

    /// The same for the CPU time alone.
    pub fn stop_cpu(&self, samples: &mut Samples, kind: Kind, cost: Cost) {
        samples.add_time(cost.cpu, kind, self.lab.cpu_time() - self.cpu);
    }
}

/// Between two values, a value between them.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}
