//! The QEMU driver: a [`MachineSpec`] becomes a QEMU process that is driven by QMP.
//!
//! `render` decides (pure), `launch` starts and watches the process, `control` talks QMP, `disk` attaches disks, `channel` reaches the agent,
//! `accelerator` finds out whether KVM is usable. No file is written but `console.log`, and that only for debugging.

mod accelerator;
mod board;
mod channel;
mod control;
mod disk;
mod launch;
mod machine;
mod render;
mod room;
mod tail;
mod version;

use std::time::Duration;

use async_trait::async_trait;
use kata_machine::{Machine, MachineError, MachineSpec, Vmm};

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
        machine::command_line(spec)
    }

    async fn boot(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        Ok(Box::new(machine::boot(spec, GREETING_LIMIT).await?))
    }
}
