//! `template`: makes a template for a sandbox process that found none, and ends with it.

use std::io::Read;

use anyhow::{Context, Result};
use kata_config::Config;
use kata_plan::TemplatePlan;
use kata_sandbox::template::{self, Occasion};

use crate::drivers;

/// Makes the template whose plan is on stdin.
///
/// # Errors
/// What is no plan; whatever keeps the template from being made.
pub fn make() -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let plan: TemplatePlan = serde_json::from_slice(&text).context("started by hand? There is no plan on stdin")?;
    // Who started it knows how long it may take, and ends it then.
    let limit = std::time::Duration::from_secs(600);
    let vmm = drivers::driver(&Config::default());
    // One thread: the machine's processes die with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(template::make(&plan, &*vmm, limit, Occasion::Pod))?;
    Ok(())
}
