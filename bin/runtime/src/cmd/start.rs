//! `kata-runtime start`: executes the process of a created container.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::container::client::{self, block_on};

/// Which container.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Container id
    pub id: String,
}

/// Starts the container.
///
/// # Errors
/// An unknown container, one that is not in the state created, a program that cannot be executed.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = client::expect(globals, &args.id)?;
    block_on(async { found.connect_live().await?.start("").await })?;
    Ok(ExitCode::SUCCESS)
}
