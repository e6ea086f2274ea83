//! `kata-runtime stand-in`: the process that stands in for one in a container. Started by this program only.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::container::client::block_on;
use crate::container::stand_in;

pub use crate::container::stand_in::Args;

/// What an engine sees as the exit code of a process whose sandbox died under it.
const LOST: u8 = 255;

/// Stands in until the process has ended; the exit code is the process's.
///
/// # Errors
/// None: whoever watches this process reads its exit code only.
pub fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    match block_on(stand_in::stand_in(args)) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            tracing::debug!(error = %format!("{error:#}"), "lost");
            Ok(ExitCode::from(LOST))
        }
    }
}
