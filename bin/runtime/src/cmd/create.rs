//! `kata-runtime create`: a container, built and not started.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::container::client::block_on;
use crate::container::creation::{self, or_bury};

pub use crate::container::creation::Args;

/// Creates the container and leaves it to a process that stands in for it.
///
/// # Errors
/// Whatever keeps the container from being created; nothing of it is left then.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    block_on(async {
        let created = creation::create(&args, globals).await?;
        let home = created.home.clone();
        or_bury(created.leave_to_stand_in(&args), &home).await
    })?;
    Ok(ExitCode::SUCCESS)
}
