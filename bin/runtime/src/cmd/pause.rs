//! `kata-runtime pause`: freezes all processes of a container.

use std::process::ExitCode;

use containerd_shim_protos::api::PauseRequest;

use crate::cli::Globals;
use crate::container::client::{self, block_on, said, short};

/// Which container.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Container id
    id: String,
}

/// Freezes the container.
///
/// # Errors
/// An unknown container, or one that does not run.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = client::expect(globals, &args.id)?;
    let request = PauseRequest {
        id: args.id,
        ..Default::default()
    };
    block_on(async {
        let connection = found.connect_live().await?;
        connection.task.pause(short(), &request).await.map_err(said)
    })?;
    Ok(ExitCode::SUCCESS)
}
