//! `kata-runtime resume`: lets a frozen container go on.

use std::process::ExitCode;

use containerd_shim_protos::api::ResumeRequest;

use crate::cli::Globals;
use crate::container::client::{self, block_on, said, short};

/// Which container.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Container id
    id: String,
}

/// Thaws the container.
///
/// # Errors
/// An unknown container, or one that is not paused.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = client::expect(globals, &args.id)?;
    let request = ResumeRequest {
        id: args.id,
        ..Default::default()
    };
    block_on(async {
        let connection = found.connect_live().await?;
        connection.task.resume(short(), &request).await.map_err(said)
    })?;
    Ok(ExitCode::SUCCESS)
}
