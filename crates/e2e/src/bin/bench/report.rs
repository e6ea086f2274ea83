//! The report: medians beside runc's, beside the original Kata's, and beside what is to be reached; as a table and JSON.

use std::fmt;
use std::path::PathBuf;

use kata_e2e::command::Cmd;
use kata_e2e::places;
use serde_json::{Value, json};

use crate::measure::{Of, Samples, What};

/// What a number is compared with: Kata 1.13 on the same kind of machine without KVM, and what is to be reached.
struct Yardstick {
    what: What,
    of: Of,
    name: &'static str,
    unit: &'static str,
    kata_1: Option<f64>,
    target: Option<f64>,
}

const fn yardstick(what: What, of: Of, name: &'static str, kata_1: Option<f64>, target: Option<f64>) -> Yardstick {
    let unit = if matches!(of, Of::Pss) { "MiB" } else { "s" };
    Yardstick {
        what,
        of,
        name,
        unit,
        kata_1,
        target,
    }
}

/// Half of Kata 1.13's CPU for a cold start, a tenth of its time for an exec, 8 MiB for the sandbox process.
const YARDSTICKS: &[Yardstick] = &[
    yardstick(
        What::CtrRun,
        Of::Wall,
        "ctr run --rm busybox true, wall",
        Some(8.6),
        None,
    ),
    yardstick(
        What::CtrRun,
        Of::Cpu,
        "ctr run --rm busybox true, CPU",
        Some(7.4),
        Some(3.7),
    ),
    yardstick(What::CliRun, Of::Wall, "run true, wall", None, None),
    yardstick(What::CliRun, Of::Cpu, "run true, CPU", None, Some(3.7)),
    yardstick(
        What::CtrExec,
        Of::Wall,
        "ctr task exec true, wall",
        Some(2.3),
        Some(0.25),
    ),
    yardstick(What::CtrExec, Of::Cpu, "ctr task exec true, CPU", None, None),
    yardstick(What::CliExec, Of::Wall, "exec true, wall", Some(2.3), Some(0.25)),
    yardstick(What::CliExec, Of::Cpu, "exec true, CPU", None, None),
    yardstick(
        What::Memory("sandbox process"),
        Of::Pss,
        "sandbox process, PSS",
        Some(22.0),
        Some(8.0),
    ),
    yardstick(What::Memory("VMM"), Of::Pss, "VMM, PSS", None, None),
    yardstick(What::Memory("virtiofsd"), Of::Pss, "virtiofsd, PSS", None, None),
    yardstick(What::Memory("pod"), Of::Pss, "pod, PSS", Some(398.0), None),
];

struct Row {
    yardstick: &'static Yardstick,
    runc: Option<f64>,
    ours: Option<f64>,
}

impl Row {
    fn ok(&self) -> Option<bool> {
        Some(self.ours? <= self.yardstick.target?)
    }
}

/// All rows, and the host they were measured on.
pub struct Report {
    host: Value,
    rows: Vec<Row>,
}

impl Report {
    /// The medians of the samples.
    pub fn of(samples: &Samples, rounds: usize) -> Self {
        let middle = |yardstick: &Yardstick, ours: bool| {
            samples
                .get(&(yardstick.what, yardstick.of, ours))
                .map(|values| median(values))
        };
        let row = |yardstick| Row {
            yardstick,
            runc: middle(yardstick, false),
            ours: middle(yardstick, true),
        };
        let rows: Vec<Row> = YARDSTICKS.iter().map(row).collect();
        Self {
            host: host(rounds),
            rows,
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

/// One entry for ours and one for runc's, as far as they were measured.
fn json_rows(row: &Row) -> Vec<Value> {
    let Yardstick {
        name,
        unit,
        kata_1,
        target,
        ..
    } = row.yardstick;
    let ours = row.ours.map(|value| {
        json!({
            "name": name, "value": round(value), "unit": unit,
            "reference": kata_1, "runc": row.runc.map(round), "target": target, "ok": row.ok(),
        })
    });
    let runc = row.runc.map(|value| {
        let name = format!("runc: {name}");
        json!({"name": name, "value": round(value), "unit": unit, "reference": null, "target": null, "ok": null})
    });
    ours.into_iter().chain(runc).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let (kernel, load) = (&self.host["kernel"], &self.host["load"]);
        let (cpus, accelerator) = (&self.host["cpus"], &self.host["accelerator"]);
        writeln!(
            f,
            "kernel {kernel}, {cpus} CPUs, accelerator {accelerator}, load {load}; medians"
        )?;
        let heads = ["", "unit", "runc", "ours", "Kata 1.13", "target", ""];
        let [name, unit, runc, ours, kata_1, target, verdict] = heads;
        writeln!(
            f,
            "{name:34} {unit:4} {runc:>9} {ours:>9} {kata_1:>9} {target:>9} {verdict}"
        )?;
        for row in &self.rows {
            let Yardstick {
                name,
                unit,
                kata_1,
                target,
                ..
            } = row.yardstick;
            let verdict = row.ok().map_or("", |ok| if ok { "ok" } else { "MISSED" });
            let (runc, ours, kata_1, target) = (cell(row.runc), cell(row.ours), cell(*kata_1), cell(*target));
            writeln!(
                f,
                "{name:34} {unit:4} {runc:>9} {ours:>9} {kata_1:>9} {target:>9} {verdict}"
            )?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn host(rounds: usize) -> Value {
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
        "rounds": rounds,
    })
}
