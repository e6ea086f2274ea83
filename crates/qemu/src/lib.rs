//! The QEMU driver: a [`MachineSpec`] becomes a QEMU process that is driven by QMP.
//!
//! `render` decides (pure), `launch` starts and watches the process, `control` talks QMP, `disk` attaches disks, `image`
//! the guest's root, `memory` its memory, `channel` reaches the agent, `draft` makes templates, `template` makes machines
//! of them, `imprint` both in another way, `translation` forgets what only the boot had use for, `accelerator` finds out whether KVM is usable. No file is written but
//! `console.log`, and that only for debugging.

mod accelerator;
mod board;
mod channel;
mod control;
mod debugger;
mod disk;
mod draft;
mod image;
mod imprint;
mod launch;
mod machine;
mod memory;
mod news;
mod render;
mod room;
mod tail;
mod template;
mod translation;
mod version;
mod vhost_user;

use std::time::Duration;

use async_trait::async_trait;
use kata_machine::{Draft, Machine, MachineError, MachineSpec, Template, TemplateFiles, Vmm};

pub use accelerator::{AcceleratorChoice, probe};
pub use version::{VersionError, version};

/// How long QEMU may take to greet: some 60 ms, or a thousand times that on a host with a hundred machines starting.
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// The driver. It has no state: all of it is in the machines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qemu;

#[async_trait]
impl Vmm for Qemu {
    fn command_line(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError> {
        machine::command_line(spec, render::Start::Boot)
    }

    async fn boot(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        Ok(Box::new(machine::boot(spec, GREETING_LIMIT).await?))
    }

    fn recipe(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError> {
        template::recipe(spec)
    }

    async fn draft(
        &self,
        spec: &MachineSpec,
        files: &TemplateFiles,
        limit: Duration,
    ) -> Result<Box<dyn Draft>, MachineError> {
        Ok(Box::new(draft::draft(spec, files, GREETING_LIMIT, limit).await?))
    }

    fn redrafts(&self, spec: &MachineSpec) -> bool {
        imprint::suits(spec)
    }

    async fn redraft(
        &self,
        spec: &MachineSpec,
        template: &Template,
        files: &TemplateFiles,
    ) -> Result<Box<dyn Draft>, MachineError> {
        Ok(Box::new(draft::redraft(spec, template, files, GREETING_LIMIT).await?))
    }

    async fn restore(&self, spec: &MachineSpec, template: &Template) -> Result<Box<dyn Machine>, MachineError> {
        Ok(Box::new(template::restore(spec, template, GREETING_LIMIT).await?))
    }
}
