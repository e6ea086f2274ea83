//! `make bench`: what a container in a VM costs, beside runc, in one run: the two take turns, and medians are compared. It
//! prints a table and writes `target/bench/latest.json`. It measures; whether a number is good enough is for the reader,
//! unless `--check` is given.
//!
//!     bench [--rounds N] [--runc-only] [--check]

mod measure;
mod report;

use std::process::ExitCode;

use anyhow::{Context, bail};
use kata_e2e::runtime::Kind;

struct Flags {
    rounds: usize,
    kinds: Vec<Kind>,
    check: bool,
}

fn flags(args: impl Iterator<Item = String>) -> anyhow::Result<Flags> {
    let mut flags = Flags {
        rounds: 5,
        kinds: vec![Kind::Runc, Kind::Kata],
        check: false,
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => {
                let count = args.next().context("--rounds needs a number")?;
                flags.rounds = count
                    .parse()
                    .with_context(|| format!("--rounds {count}: not a number"))?;
            }
            "--runc-only" => flags.kinds = vec![Kind::Runc],
            "--check" => flags.check = true,
            _ => bail!("unknown flag {arg}; known are --rounds N, --runc-only, --check"),
        }
    }
    if flags.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    Ok(flags)
}

fn main() -> anyhow::Result<ExitCode> {
    let flags = flags(std::env::args().skip(1))?;
    let samples = measure::all(flags.rounds, &flags.kinds);
    let report = report::Report::of(&samples, flags.rounds);
    print!("{report}");
    let path = report.write().context("cannot write the report")?;
    println!("written to {}", path.display());
    let failed = flags.check && !report.ok();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
