//! `kata-runtime delete`: removes a container and all that was made for it.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::container::client::{self, block_on};
use crate::container::removal;

/// Which container, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Kill it if it runs; a container that does not exist is no error
    #[arg(long, short = 'f')]
    force: bool,
    /// Container id
    id: String,
}

/// Removes the container.
///
/// # Errors
/// Without `--force`, an unknown or running container; processes or files that do not go away.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = match client::find(globals, &args.id) {
        Ok(Some(found)) => found,
        Ok(None) if args.force => return Ok(ExitCode::SUCCESS),
        Ok(None) => anyhow::bail!("container \"{}\" does not exist", args.id),
        // What is left behind a damaged record is removed, too.
        Err(error) if args.force => {
            let home = client::home_of(globals, &args.id)?;
            block_on(async {
                removal::bury(&home).await;
                Ok(())
            })?;
            tracing::warn!(error = %format!("{error:#}"), "removed by force");
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    block_on(removal::remove(&found, args.force))?;
    Ok(ExitCode::SUCCESS)
}
