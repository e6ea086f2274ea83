//! `kata-runtime features`: what of the OCI runtime spec this runtime knows, for engines that ask before they use it.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::cmd::version::{COMMIT, VERSION};
use crate::report;

/// Nothing to say.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Prints the features object of the runtime spec.
///
/// # Errors
/// When stdout is gone.
pub fn run(_: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    let features = kata_plan::features(VERSION, COMMIT);
    report::print(&format!("{}\n", serde_json::to_string_pretty(&features)?))?;
    Ok(ExitCode::SUCCESS)
}
