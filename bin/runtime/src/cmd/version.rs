//! `kata-runtime version`: what this program is, in the lines that tools of Kata Containers read.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::report;

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, where the build said so.
pub const COMMIT: &str = match option_env!("KATA_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// The OCI runtime specification that it follows.
pub const OCI_VERSION: &str = kata_plan::OCI_VERSION;

/// Nothing to say.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Prints the version.
///
/// # Errors
/// When stdout is gone.
pub fn run(_: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    report::print(&format!(
        "kata-runtime  : {VERSION}\n   commit   : {COMMIT}\n   OCI specs: {OCI_VERSION}\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
