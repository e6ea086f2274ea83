//! How many CPUs and how much memory a machine gets.

use kata_config::{Config, CpuCount};
use kata_machine::Accelerator;

use crate::{Facts, PlanError};

/// Less does not boot.
const LEAST_MEMORY_MIB: u64 = 64;

/// Without hardware virtualization machines are small and many.
const TCG_MEMORY_MIB: u32 = 256;

/// Kata's default.
const KVM_MEMORY_MIB: u32 = 2048;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub vcpus: u32,
    /// At least `vcpus`.
    pub max_vcpus: u32,
    pub memory_mib: u32,
    /// Why.
    pub note: String,
}

/// # Errors
/// [`PlanError::TooLittleMemory`]
pub(crate) fn decide(config: &Config, facts: &Facts) -> Result<Size, PlanError> {
    let host = facts.host_cpus.max(1);
    let vcpus = count(config.qemu.default_vcpus, host);
    let max_vcpus = count(config.qemu.default_maxvcpus, host).max(vcpus);
    let (wish, why) = match (config.qemu.default_memory, facts.accelerator) {
        (Some(memory), _) => (memory, "configured".to_owned()),
        (None, Accelerator::Kvm) => (KVM_MEMORY_MIB, "the default under kvm".to_owned()),
        (None, Accelerator::Tcg) => (TCG_MEMORY_MIB, "the default under tcg".to_owned()),
    };
    let (memory_mib, why) = match u32::try_from(facts.host_memory_mib) {
        Ok(all) if all < wish => (all, format!("all the host has; {wish} {why}")),
        _ => (wish, why),
    };
    if u64::from(memory_mib) < LEAST_MEMORY_MIB {
        return Err(PlanError::TooLittleMemory {
            memory_mib: memory_mib.into(),
            least_mib: LEAST_MEMORY_MIB,
        });
    }
    Ok(Size {
        vcpus,
        max_vcpus,
        memory_mib,
        note: format!("size: {vcpus} of {host} CPUs, {memory_mib} MiB ({why})"),
    })
}

fn count(wish: CpuCount, host: u32) -> u32 {
    match wish {
        CpuCount::Host => host,
        CpuCount::Exactly(count) => count.clamp(1, host),
    }
}
