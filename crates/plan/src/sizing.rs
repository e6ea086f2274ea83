//! How many CPUs and how much memory a machine gets, at its boot and later.

use kata_bundle::{Bundle, Role};
use kata_config::{Config, CpuCount};
use kata_machine::{Accelerator, Size};
use serde::Serialize;

use crate::demand::{self, Demand};
use crate::{Facts, PlanError};

/// Less does not boot.
const LEAST_MEMORY_MIB: u64 = 64;

/// Without hardware virtualization machines are small and many.
const TCG_MEMORY_MIB: u32 = 256;

/// Kata's default.
const KVM_MEMORY_MIB: u32 = 2048;

/// From what the size of a machine follows, now and whenever its containers change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sizing {
    /// What the machine has for itself.
    pub base: Size,
    /// What it boots with.
    pub boot: Size,
    /// The most that it may have.
    pub most: Size,
    /// What the engine has said of the whole pod.
    pub announced: Demand,
    /// The machine keeps the size that it boots with, and why; `None` if it may grow.
    pub fixed: Option<&'static str>,
}

impl Sizing {
    /// The size for containers of these demands.
    pub fn size(&self, containers: impl IntoIterator<Item = Demand>) -> Size {
        self.size_for(Demand::sum(containers).max(self.announced))
    }

    /// The machine boots with what it needs for itself, and gets the rest when its containers come. One that keeps its size
    /// stays as it is.
    pub(crate) fn begin_small(&mut self) {
        if self.fixed.is_none() {
            self.boot = self.base;
        }
    }

    fn size_for(&self, demand: Demand) -> Size {
        let add = |base: u32, more: u64, most: u32| {
            let sum = u64::from(base).saturating_add(more);
            u32::try_from(sum).unwrap_or(u32::MAX).min(most)
        };
        Size {
            vcpus: add(self.base.vcpus, demand.vcpus(), self.most.vcpus),
            memory_mib: add(
                self.base.memory_mib,
                demand.memory_mib.saturating_add(demand.huge_pages_mib),
                self.most.memory_mib,
            ),
        }
    }
}

/// The sizing and what to tell people of it.
///
/// # Errors
/// [`PlanError::TooLittleMemory`], [`PlanError::Annotation`]
pub(crate) fn decide(bundle: &Bundle, config: &Config, facts: &Facts) -> Result<(Sizing, String), PlanError> {
    let at_boot = complete(demand::at_boot(bundle)?, config);
    let announced = match bundle.role() {
        // What a container alone asks for is known from itself, and may become less.
        Role::Single => Demand::default(),
        Role::Pod | Role::Member { .. } => at_boot,
    };
    size_of(at_boot, announced, config, facts)
}

/// The sizing of a pod that asks for nothing.
///
/// # Errors
/// [`PlanError::TooLittleMemory`]
pub(crate) fn usual(config: &Config, facts: &Facts) -> Result<Sizing, PlanError> {
    let at_boot = complete(Demand::default(), config);
    let (sizing, _) = size_of(at_boot, Demand::default(), config, facts)?;
    Ok(sizing)
}

fn size_of(at_boot: Demand, announced: Demand, config: &Config, facts: &Facts) -> Result<(Sizing, String), PlanError> {
    let host_cpus = facts.host_cpus.max(1);
    let host_memory = u32::try_from(facts.host_memory_mib).unwrap_or(u32::MAX);
    let (wish, why) = match (config.qemu.default_memory, facts.accelerator) {
        (Some(memory), _) => (memory, "configured"),
        (None, Accelerator::Kvm) => (KVM_MEMORY_MIB, "the default under kvm"),
        (None, Accelerator::Tcg) => (TCG_MEMORY_MIB, "the default under tcg"),
    };
    let base = Size {
        vcpus: count(config.qemu.default_vcpus, host_cpus),
        memory_mib: wish.min(host_memory),
    };
    if u64::from(base.memory_mib) < LEAST_MEMORY_MIB {
        return Err(PlanError::TooLittleMemory {
            memory_mib: base.memory_mib.into(),
            least_mib: LEAST_MEMORY_MIB,
        });
    }
    let most = Size {
        vcpus: count(config.qemu.default_maxvcpus, host_cpus).max(base.vcpus),
        memory_mib: config
            .qemu
            .default_maxmemory
            .map_or(host_memory, |most| most.min(host_memory))
            .max(base.memory_mib),
    };
    let fixed = fixed(config);
    let mut sizing = Sizing {
        base,
        boot: base,
        most,
        announced,
        fixed,
    };
    let size = sizing.size_for(at_boot);
    sizing.boot = match (facts.accelerator, fixed) {
        // Emulated, a second CPU makes the boot half again as dear (1.3 s of CPU time, and many times the wall time on a
        // busy host); added afterwards it costs 0.3 s.
        (Accelerator::Tcg, None) => Size {
            vcpus: base.vcpus,
            ..size
        },
        _ => size,
    };
    let note = format!(
        "size: {} of {host_cpus} CPUs, {} MiB ({} {why}{}); {}",
        size.vcpus,
        size.memory_mib,
        base.memory_mib,
        match (size.memory_mib - base.memory_mib, size.memory_mib == host_memory) {
            (0, false) => String::new(),
            (0, true) => ", all the host has".to_owned(),
            (more, _) => format!(", {more} for the containers"),
        },
        match fixed {
            Some(why) => format!("stays so: {why}"),
            None => format!("may grow to {} CPUs, {} MiB", most.vcpus, most.memory_mib),
        }
    );
    Ok((sizing, note))
}

/// With what is added for containers that do not say.
fn complete(mut announced: Demand, config: &Config) -> Demand {
    if config.runtime.static_sandbox_resource_mgmt {
        // What nobody has spoken of cannot be added later.
        if announced.cpu_millis == 0 {
            announced.cpu_millis = u64::from(config.runtime.static_sandbox_default_workload_vcpus) * 1000;
        }
        if announced.memory_mib == 0 {
            announced.memory_mib = config.runtime.static_sandbox_default_workload_mem.into();
        }
    }
    announced
}

fn fixed(config: &Config) -> Option<&'static str> {
    if config.runtime.static_sandbox_resource_mgmt {
        Some("static_sandbox_resource_mgmt")
    } else if config.qemu.machine_type.starts_with("microvm") {
        Some("a microvm takes neither CPUs nor memory while it runs")
    } else {
        None
    }
}

fn count(wish: CpuCount, host: u32) -> u32 {
    match wish {
        CpuCount::Host => host,
        CpuCount::Exactly(count) => count.clamp(1, host),
    }
}
