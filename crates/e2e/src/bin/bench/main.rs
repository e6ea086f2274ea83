//! `make bench`: what a container in a VM costs, beside runc, in one run: the two take turns, and medians are compared. It
//! prints a table and writes `target/bench/latest.json`. It measures; whether a number is good enough is for the reader,
//! unless `--check` is given. What the rows are is in docs/performance.md.
//!
//!     bench [--rounds N] [--only SECTION,…] [--pods N] [--runc-only] [--check]

mod cache;
mod container;
mod density;
mod files;
mod floor;
mod network;
mod pod;
mod report;
mod samples;
mod yardstick;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::{Context, bail};
use kata_e2e::runtime::Kind;

use samples::Samples;

/// What is to be measured, and how often.
pub struct Flags {
    /// How often each thing is measured.
    rounds: usize,
    /// How many pods are started beside each other; their memory is measured at half of them.
    pods: usize,
    kinds: Vec<Kind>,
    sections: Vec<Section>,
    check: bool,
}

/// A section: its name, and what measures it.
type Section = (&'static str, fn(&Flags, &mut Samples));

const SECTIONS: [Section; 6] = [
    ("container", container::measure),
    ("cache", cache::measure),
    ("pod", pod::measure),
    ("network", network::measure),
    ("files", files::measure),
    ("density", density::measure),
];

impl Flags {
    fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut flags = Self {
            rounds: 5,
            pods: 100,
            kinds: vec![Kind::Runc, Kind::Kata],
            sections: SECTIONS.to_vec(),
            check: false,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--rounds" => flags.rounds = number(&arg, &value()?)?,
                "--pods" => flags.pods = number(&arg, &value()?)?,
                "--only" => flags.sections = value()?.split(',').map(section).collect::<anyhow::Result<_>>()?,
                "--runc-only" => flags.kinds = vec![Kind::Runc],
                "--check" => flags.check = true,
                _ => {
                    bail!("unknown flag {arg}; known are --rounds N, --only SECTION,…, --pods N, --runc-only, --check")
                }
            }
        }
        Ok(flags)
    }
}

/// A number of at least 1.
fn number(flag: &str, text: &str) -> anyhow::Result<usize> {
    let number = text.parse().with_context(|| format!("{flag} {text}: not a number"))?;
    if number == 0 {
        bail!("{flag} must be at least 1");
    }
    Ok(number)
}

fn section(name: &str) -> anyhow::Result<Section> {
    let found = SECTIONS.into_iter().find(|section| section.0 == name);
    found.with_context(|| {
        let names = SECTIONS.map(|section| section.0);
        format!("--only: no section {name}; there are {}", names.join(", "))
    })
}

fn main() -> anyhow::Result<ExitCode> {
    let flags = Flags::read(std::env::args().skip(1))?;
    let mut samples = Samples::default();
    let mut broken = Vec::new();
    for (name, measure) in &flags.sections {
        eprintln!("section {name}");
        // The harness panics when something fails, having said what. What the other sections measure is worth having.
        let run = AssertUnwindSafe(|| measure(&flags, &mut samples));
        if catch_unwind(run).is_err() {
            broken.push(*name);
        }
    }
    let report = report::Report::of(&samples, &flags);
    print!("{report}");
    let path = report.write().context("cannot write the report")?;
    println!("written to {}", path.display());
    if !broken.is_empty() {
        bail!("these sections broke off, see above: {}", broken.join(", "));
    }
    let failed = flags.check && !report.ok();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
