//! `kata-runtime check`: can this host run sandboxes, and what mends it where it cannot.

use std::process::ExitCode;

use anyhow::Context;

use crate::check::survey;
use crate::cli::Globals;
use crate::report;

/// How to tell it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Say of everything what it is for
    #[arg(long, short = 'v')]
    verbose: bool,
    /// Fail if anything is degraded
    #[arg(long, short = 's')]
    strict: bool,
    /// Accepted for compatibility; nothing here uses the network
    #[arg(long, short = 'n', hide = true)]
    no_network_checks: bool,
}

/// Looks and tells. The exit code is 0 if nothing is missing.
///
/// # Errors
/// When stdout is gone.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let report = survey(globals);
    let text = if args.json {
        format!(
            "{}\n",
            serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?
        )
    } else {
        report.table(args.verbose)
    };
    report::print(&text)?;
    Ok(if report.passes(args.strict) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
