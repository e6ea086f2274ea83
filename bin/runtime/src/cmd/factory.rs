//! `kata-runtime factory`: makes the template of the configuration in force, tells what templates there are, removes them.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_config::Config;
use kata_factory::{Store, Trust};
use kata_plan::TemplatePlan;
use kata_qemu::Qemu;
use kata_sandbox::survey;
use kata_sandbox::template::{self, Made, Occasion};

use crate::cli::Globals;
use crate::container::client::block_on;
use crate::{report, settings};

/// What to do with templates.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Make the template of the configuration in force, unless it is there
    Init,
    /// Tell which templates there are
    Status,
    /// Remove all templates
    Destroy,
}

/// Does it.
///
/// # Errors
/// For `init`, templates that are not enabled and whatever keeps one from being made; what cannot be read or removed.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let config = settings::load(globals)?;
    let store = Store::at(&config.factory.template_path);
    let said = match args.action {
        Action::Init => init(&config)?,
        Action::Status => status(&config, &store)?,
        Action::Destroy => {
            store.lock()?.destroy()?;
            "vm factory destroyed\n".to_owned()
        }
    };
    report::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

fn plan(config: &Config) -> anyhow::Result<TemplatePlan> {
    let facts = survey::host(config)?;
    Ok(kata_plan::template(config, &facts)?)
}

fn init(config: &Config) -> anyhow::Result<String> {
    if !config.factory.enable_template {
        bail!("vm factory is not enabled (factory.enable_template)");
    }
    let plan = plan(config)?;
    let made = block_on(async {
        let made = template::make(&plan, &Qemu, config.agent_answer_limit(), Occasion::Operator).await;
        made.context("cannot make the template")
    })?;
    Ok(match made {
        Made::Now => "vm factory initialized\n".to_owned(),
        Made::Before => "vm factory initialized (it was before)\n".to_owned(),
    })
}

fn status(config: &Config, store: &Store) -> anyhow::Result<String> {
    let wanted = if config.factory.enable_template {
        let recipe = plan(config).and_then(|plan| Ok(template::recipe(&plan, &Qemu)?));
        Some(recipe.context("cannot tell which template is wanted")?.name())
    } else {
        None
    };
    let entries = store.list()?;
    let is_wanted = |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned()) == wanted;
    let is_on = entries
        .iter()
        .any(|entry| entry.trust == Trust::Current && is_wanted(&entry.path));
    let mut said = match (config.factory.enable_template, is_on) {
        (false, _) => "vm factory is not enabled\n",
        (true, true) => "vm factory is on\n",
        (true, false) => "vm factory is off\n",
    }
    .to_owned();
    for entry in &entries {
        let what = match entry.trust {
            Trust::Current if is_wanted(&entry.path) => "of this configuration",
            Trust::Current => "of another configuration",
            Trust::Outdated => "outdated",
            Trust::Damaged => "damaged",
        };
        let mib = entry.memory_bytes.div_ceil(1 << 20);
        said.push_str(&format!("{}  {mib} MiB  {what}\n", entry.path.display()));
    }
    for failure in store.failures()? {
        said.push_str(&format!("{}  {failure}\n", failure.path.display()));
    }
    Ok(said)
}
