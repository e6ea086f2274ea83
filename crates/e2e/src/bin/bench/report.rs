//! The report: medians beside runc's, beside a reference, and beside what is to be reached; as a table and JSON.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use kata_e2e::command::Cmd;
use kata_e2e::places;
use kata_e2e::runtime::Kind;
use serde_json::{Value, json};

use crate::Flags;
use crate::files::RIVAL;
use crate::samples::Samples;
use crate::yardstick::{Better, Bounds, Figure, YARDSTICKS, Yardstick};

struct Row {
    yardstick: &'static Yardstick,
    reference: Option<f64>,
    target: Option<f64>,
    runc: Option<f64>,
    ours: Option<f64>,
    /// Why there is no number of ours.
    reason: Option<String>,
}

impl Row {
    fn of(yardstick: &'static Yardstick, samples: &Samples) -> Self {
        let ours = figure(samples, yardstick.figure, Kind::Kata);
        let reason = ours.is_none().then(|| samples.reason(yardstick.figure.series()));
        let (reference, target) = match yardstick.bounds {
            Bounds::Fixed { reference, target } => (reference, target),
            Bounds::Rival => {
                let rival = format!("{RIVAL}{}", yardstick.figure.series());
                let reached = samples.quantile(&rival, Kind::Kata, 0.5);
                (reached, reached)
            }
        };
        Self {
            yardstick,
            reference,
            target,
            runc: figure(samples, yardstick.figure, Kind::Runc),
            ours,
            reason: reason.flatten().map(str::to_owned),
        }
    }

    fn ok(&self) -> Option<bool> {
        let (ours, target) = (self.ours?, self.target?);
        Some(match self.yardstick.better {
            Better::Less => ours <= target,
            Better::More => ours >= target,
        })
    }

    fn is_empty(&self) -> bool {
        self.runc.is_none() && self.ours.is_none() && self.reason.is_none()
    }
}

/// The number that a figure shows of what was measured of one kind.
fn figure(samples: &Samples, figure: Figure, kind: Kind) -> Option<f64> {
    let median = |series, kind| samples.quantile(series, kind, 0.5);
    match figure {
        Figure::Median(series) => median(series, kind),
        Figure::P99(series) => samples.quantile(series, kind, 0.99),
        Figure::Floors(series, floor) => Some(median(series, kind)? / median(floor, Kind::Kata)?),
        Figure::TimesRunc(series) => Some(median(series, kind)? / median(series, Kind::Runc)?),
    }
}

/// All rows, and the host they were measured on.
pub struct Report {
    host: Value,
    rows: Vec<Row>,
}

impl Report {
    /// What the samples come to. Rows of which nothing was measured are left out.
    pub fn of(samples: &Samples, flags: &Flags) -> Self {
        let rows = YARDSTICKS.iter().map(|yardstick| Row::of(yardstick, samples));
        Self {
            host: host(flags),
            rows: rows.filter(|row| !row.is_empty()).collect(),
        }
    }

    /// Whether every target is met.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(|row| row.ok() != Some(false))
    }

    /// Writes the JSON; answers where.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self) -> std::io::Result<PathBuf> {
        let dir = places::workspace().join("target/bench");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("latest.json");
        let rows: Vec<Value> = self.rows.iter().flat_map(json_rows).collect();
        std::fs::write(&path, format!("{:#}\n", json!({"host": self.host, "rows": rows})))?;
        Ok(path)
    }
}

/// One entry for ours and one for runc's, as far as they were measured, or why ours was not.
fn json_rows(row: &Row) -> Vec<Value> {
    let Yardstick { name, unit, .. } = row.yardstick;
    let (reference, target) = (row.reference.map(round), row.target.map(round));
    let ours = (row.ours.is_some() || row.reason.is_some()).then(|| {
        let mut entry = json!({
            "name": name, "value": row.ours.map(round), "unit": unit,
            "reference": reference, "runc": row.runc.map(round), "target": target, "ok": row.ok(),
        });
        if let Some(reason) = &row.reason {
            entry["reason"] = json!(reason);
        }
        entry
    });
    let runc = row.runc.map(|value| {
        let name = format!("runc: {name}");
        json!({"name": name, "value": round(value), "unit": unit, "reference": null, "target": null, "ok": null})
    });
    ours.into_iter().chain(runc).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kernel, load) = (&self.host["kernel"], &self.host["load"]);
        let (cpus, accelerator) = (&self.host["cpus"], &self.host["accelerator"]);
        writeln!(
            f,
            "kernel {kernel}, {cpus} CPUs, accelerator {accelerator}, load {load}; medians"
        )?;
        line(f, ["", "unit", "runc", "ours", "reference", "target", ""])?;
        for row in &self.rows {
            let Yardstick { name, unit, better, .. } = row.yardstick;
            let verdict = row.ok().map_or("", |ok| if ok { "ok" } else { "MISSED" });
            let bound = if *better == Better::Less { "≤" } else { "≥" };
            let target = row
                .target
                .map_or_else(|| cell(None), |target| format!("{bound} {}", cell(Some(target))));
            let (runc, ours, reference) = (cell(row.runc), cell(row.ours), cell(row.reference));
            line(f, [name, unit, &runc, &ours, &reference, &target, verdict])?;
        }
        let reasons: BTreeSet<&String> = self.rows.iter().filter_map(|row| row.reason.as_ref()).collect();
        reasons.iter().try_for_each(|reason| writeln!(f, "-: {reason}"))
    }
}

fn line(f: &mut fmt::Formatter<'_>, cells: [&str; 7]) -> fmt::Result {
    let [name, unit, runc, ours, reference, target, verdict] = cells;
    let text = format!("{name:48} {unit:6} {runc:>9} {ours:>9} {reference:>9} {target:>10} {verdict}");
    writeln!(f, "{}", text.trim_end())
}

/// Three digits after the point, fewer where the number is large.
fn cell(value: Option<f64>) -> String {
    let digits = |value: f64| match value.abs() {
        ..100.0 => 3,
        ..1000.0 => 1,
        _ => 0,
    };
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.*}", digits(value)))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn host(flags: &Flags) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let runtime = places::bin_dir().join("kata-runtime");
    let env = runtime
        .is_file()
        .then(|| Cmd::new(runtime).args(["env", "--json"]).run());
    let env = env
        .and_then(|outcome| serde_json::from_slice::<Value>(&outcome.stdout).ok())
        .unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "load": read("/proc/loadavg").split(' ').next(),
        "accelerator": env.pointer("/Accelerator/Name"),
        "accelerator_reason": env.pointer("/Accelerator/Reason"),
        "version": env.pointer("/Runtime/Version/Version/Semver"),
        "rounds": flags.rounds,
        "pods": flags.pods,
    })
}
