//! `kata-runtime state`: the state of a container as the OCI runtime spec has it.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::container::client::{self, block_on};
use crate::container::view;
use crate::report;

/// Which container.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Container id
    pub id: String,
}

/// Prints the state as JSON.
///
/// # Errors
/// An unknown container.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = client::expect(globals, &args.id)?;
    let view = block_on(view::look(&found))?;
    report::print(&format!("{}\n", serde_json::to_string_pretty(&view)?))?;
    Ok(ExitCode::SUCCESS)
}
