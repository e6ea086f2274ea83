//! `kata-runtime factory`: makes the template of the configuration in force and has machines wait, as far as it says so; tells what
//! there is of both, and removes it.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_config::Config;
use kata_factory::{Store, Trust};
use kata_plan::TemplatePlan;
use kata_qemu::Qemu;
use kata_sandbox::survey;
use kata_sandbox::template::{self, Made, Occasion};
use nix::sched::{CloneFlags, setns};

use crate::cli::Globals;
use crate::container::client::block_on;
use crate::{keeper, report, settings};

/// What to do with templates and the cache.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Make the template of the configuration in force, unless it is there, and fill the cache
    Init,
    /// Tell which templates there are, and which machines wait
    Status,
    /// Remove all templates, and end the cache
    Destroy,
}

/// Does it.
///
/// # Errors
/// For `init`, neither templates nor a cache enabled, and whatever keeps one from being made; what cannot be read or removed.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let config = settings::load(globals)?;
    let store = Store::at(&config.factory.template_path);
    let said = match args.action {
        Action::Init => init(&config, globals)?,
        Action::Status => status(&config, &store)?,
        Action::Destroy => {
            keeper::end(&config)?;
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

fn init(config: &Config, globals: &Globals) -> anyhow::Result<String> {
    let factory = &config.factory;
    if !factory.enable_template && factory.vm_cache_number == 0 {
        bail!("vm factory is not enabled (factory.enable_template, factory.vm_cache_number)");
    }
    // Those who wait are clones of it.
    let made = match factory.enable_template {
        true => make_template(config)?,
        false => Made::Now,
    };
    let mut said = match made {
        Made::Now => "vm factory initialized\n".to_owned(),
        Made::Before => "vm factory initialized (it was before)\n".to_owned(),
    };
    if factory.vm_cache_number > 0 {
        let status = keeper::fill(config, globals)?;
        said.push_str(&keeper::describe(&status));
    }
    Ok(said)
}

fn make_template(config: &Config) -> anyhow::Result<Made> {
    let plan = plan(config)?;
    let here = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
    let made = block_on(async {
        let made = template::make(&plan, &Qemu, config.agent_answer_limit(), Occasion::Operator).await;
        made.context("cannot make the template")
    })?;
    // That has gone into another network namespace, and the cache is to be in this one.
    setns(here, CloneFlags::CLONE_NEWNET).context("cannot return to the network namespace")?;
    Ok(made)
}

fn status(config: &Config, store: &Store) -> anyhow::Result<String> {
    let wanted = if config.factory.enable_template {
        let recipe = plan(config).and_then(|plan| Ok(template::recipe(&plan, &Qemu)?));
        Some(recipe.context("cannot tell which template is wanted")?.name())
    } else {
        None
    };
    let entries = store.list()?;
    let cache = keeper::ask(config)?;
    let is_wanted = |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned()) == wanted;
    let is_on = entries
        .iter()
        .any(|entry| entry.trust == Trust::Current && is_wanted(&entry.path));
    let mut said = match (config.factory.enable_template, is_on) {
        (false, _) if config.factory.vm_cache_number > 0 => "",
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
    match cache {
        Some(status) => said.push_str(&keeper::describe(&status)),
        None if config.factory.vm_cache_number > 0 => said.push_str("vm cache is off\n"),
        None => {}
    }
    Ok(said)
}
