//! placeholder
use std::process::ExitCode;
/// x
#[derive(clap::Args, Debug)]
pub struct Args { #[arg(long)] json: bool, #[arg(short='n')] n: bool, #[arg(long)] strict: bool }
/// x
pub fn run(_: Args, _: &crate::cli::Globals) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
/// x
pub fn show_config_paths() -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
