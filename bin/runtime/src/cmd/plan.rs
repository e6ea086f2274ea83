//! `kata-runtime plan`: what would be run for a bundle. Nothing is started.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use kata_bundle::Bundle;
use kata_config::Config;
use kata_machine::Vmm;
use kata_plan::{Facts, Printout};
use kata_sandbox::record::Home;
use kata_sandbox::{network, survey};

use crate::cli::Globals;
use crate::report;

/// For what.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory with config.json and the root file system
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Print everything, as JSON
    #[arg(long)]
    json: bool,
    /// Container id to plan with
    #[arg(default_value = "example")]
    id: String,
}

/// Prints the plan: the pod, the container, and the VMM's command line.
///
/// # Errors
/// An unusable bundle or configuration, a host that lacks something.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(&args.bundle).with_context(|| format!("bundle {}", args.bundle.display()))?;
    let bundle = Bundle::load(&directory)?;
    bundle.check_rootfs()?;
    let (mut config, mut warnings) = Config::find(globals.kata_config.as_deref().or(bundle.config_path()))?;
    warnings.extend(config.annotate(bundle.annotations())?);
    for warning in &warnings {
        report::say(&format!("warning: {warning}"));
    }
    let home = Home::of(&crate::container::client::place_of(globals, &args.id)?);
    let facts = Facts {
        network: network::preview(&bundle, &config)?,
        ..survey::facts(&config, &home, bundle.spec(), &[])?
    };
    let pod = kata_plan::pod(&args.id, &bundle, &config, &facts)?;
    let container = kata_plan::container(&args.id, &bundle, &config, &facts)?;
    let command_line = kata_qemu::Qemu.command_line(&pod.machine)?;
    let printout = Printout {
        pod: &pod,
        container: &container,
        command_line: &command_line,
    };
    let text = if args.json {
        format!("{}\n", printout.to_json()?)
    } else {
        printout.to_string()
    };
    report::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
