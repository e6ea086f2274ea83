//! `kata-runtime spec`: writes a config.json to begin with.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::Globals;

/// Where.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory to write config.json into
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

/// Writes the file; one that is there is not replaced.
///
/// # Errors
/// A file that is there, a directory that cannot be written.
pub fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    let path = args.bundle.join("config.json");
    let text = serde_json::to_vec_pretty(&kata_bundle::default_spec())?;
    std::fs::File::create_new(&path)
        .and_then(|mut file| file.write_all(&text))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
