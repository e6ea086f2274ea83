//! The memory of a machine in QEMU's words: what there is, room for more, and where it lies.

use kata_machine::{MachineSpec, MemoryBacking, MemoryGrowth};

use crate::render::escape;

/// What memory comes in, MiB: the guest's kernel has its own in blocks of this size.
pub(crate) const BLOCK_MIB: u32 = 128;

/// Memory now, and room for more and for an image: the value of `-m`.
pub(crate) fn size(spec: &MachineSpec, image_mib: u64) -> String {
    let now = spec.memory_mib;
    let most = u64::from(now) + u64::from(room_mib(spec)) + image_mib;
    match spec.growth.map(|growth| growth.memory) {
        _ if most == u64::from(now) => format!("{now}M"),
        Some(MemoryGrowth::Slots { count }) if room_mib(spec) > 0 => format!("{now}M,slots={count},maxmem={most}M"),
        _ => format!("{now}M,maxmem={most}M"),
    }
}

/// Room for memory that may come while the machine runs, MiB; 0 where not even a block of it could.
pub(crate) fn room_mib(spec: &MachineSpec) -> u32 {
    let Some(growth) = spec.growth else { return 0 };
    let room = growth.memory_mib.saturating_sub(spec.memory_mib);
    match growth.memory {
        MemoryGrowth::Slots { count } if count > 0 && room >= BLOCK_MIB => room,
        MemoryGrowth::Slots { .. } => 0,
        MemoryGrowth::Virtio => virtio_room_mib(spec.memory_mib, growth.memory_mib),
    }
}

/// How much a virtio-mem device may give, MiB, whole blocks; 0 for no such device.
pub(crate) fn virtio_mib(spec: &MachineSpec) -> u32 {
    match spec.growth {
        Some(growth) if growth.memory == MemoryGrowth::Virtio => virtio_room_mib(spec.memory_mib, growth.memory_mib),
        _ => 0,
    }
}

/// Between the memory of the boot and the most, in whole blocks, MiB.
pub(crate) fn virtio_room_mib(boot_mib: u32, most_mib: u32) -> u32 {
    most_mib.saturating_sub(boot_mib) / BLOCK_MIB * BLOCK_MIB
}

/// Memory that is a file, as `-object` takes it.
pub(crate) fn file(path: &str, size_mib: u32, options: &str) -> String {
    format!(
        "memory-backend-file,id=ram,size={size_mib}M,mem-path={},{options}",
        escape(path)
    )
}

/// Memory of the kind that the machine has, as `-object` takes it.
pub(crate) fn backend(backing: MemoryBacking, id: &str, size_mib: u32) -> String {
    match backing {
        MemoryBacking::SharedMemfd => format!("memory-backend-memfd,id={id},size={size_mib}M,share=on"),
        MemoryBacking::Private => format!("memory-backend-ram,id={id},size={size_mib}M"),
    }
}
