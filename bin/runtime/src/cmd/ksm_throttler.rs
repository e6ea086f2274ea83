//! `kata-runtime ksm-throttler`: a service that has the kernel merge equal pages after machines were started, and less when none
//! are. In the foreground, for the host's init system.

use std::process::ExitCode;

use kata_ksm::{Places, Throttler};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Globals;
use crate::container::client::block_on;

/// It has no flags: what it does follows from what is started.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Serves until SIGTERM or SIGINT, and leaves the kernel's settings as they were.
///
/// # Errors
/// A kernel without KSM, or that does not let us; another throttler.
pub fn run(_: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    block_on(async {
        // Before anything is changed.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let throttler = Throttler::open(&Places::default())?;
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(throttler.run(told).await?)
    })?;
    Ok(ExitCode::SUCCESS)
}
