//! CPUs and memory of a running machine: added in the room that its command line has made, and taken back as far as the
//! guest gives them.
//!
//! CPUs are devices in the slots that QEMU names. Memory comes as DIMMs, which stay, or from a virtio-mem device, which is
//! only told how much there shall be.

use kata_machine::{Accelerator, MachineError, MachineSpec, MemoryBacking, MemoryGrowth, Size};
use serde_json::{Value, json};

use crate::machine::QemuMachine;
use crate::memory::{self, BLOCK_MIB};
use crate::render::VIRTIO_MEMORY;

const MIB: u64 = 1 << 20;

/// What a machine may be given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    boot: Size,
    most: Size,
    memory: MemoryGrowth,
    backing: MemoryBacking,
    /// CPUs can be taken back. Not under TCG: QEMU keeps what it has made for an emulated CPU, and aborts when it is to make it
    /// once more than there can be CPUs (10.0: `tcg_register_thread`).
    returns_cpus: bool,
}

impl Room {
    pub(crate) fn of(spec: &MachineSpec) -> Self {
        let boot = Size {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
        };
        Self {
            boot,
            most: spec.growth.map_or(boot, |growth| Size {
                vcpus: growth.vcpus,
                memory_mib: growth.memory_mib,
            }),
            memory: spec
                .growth
                .map_or(MemoryGrowth::Slots { count: 0 }, |growth| growth.memory),
            backing: spec.memory_backing,
            returns_cpus: spec.accelerator == Accelerator::Kvm,
        }
    }

    /// See [`kata_machine::Machine::resize`].
    pub(crate) async fn resize(&self, qemu: &QemuMachine, wish: Size) -> Result<Size, MachineError> {
        // Nothing that was there at the boot can be taken away.
        let within = |wish: u32, boot: u32, most: u32| wish.clamp(boot, most.max(boot));
        let memory = within(wish.memory_mib, self.boot.memory_mib, self.most.memory_mib);
        let vcpus = within(wish.vcpus, self.boot.vcpus, self.most.vcpus);
        let vcpus = self.resize_cpus(qemu, vcpus).await?;
        let memory_mib = match self.memory {
            MemoryGrowth::Slots { .. } => self.add_dimm(qemu, memory).await?,
            MemoryGrowth::Virtio => self.turn_virtio_memory(qemu, memory).await?,
        };
        Ok(Size { vcpus, memory_mib })
    }

    async fn resize_cpus(&self, qemu: &QemuMachine, wish: u32) -> Result<u32, MachineError> {
        let wish = wish as usize;
        let all = slots(&qemu.ask("query-hotpluggable-cpus", Value::Null).await?);
        let (taken, free): (Vec<&Slot>, Vec<&Slot>) = all.iter().partition(|slot| slot.device.is_some());
        for slot in free.iter().take(wish.saturating_sub(taken.len())) {
            let mut device = slot.properties.clone();
            device.insert("driver".into(), slot.kind.as_str().into());
            device.insert("id".into(), slot.name().into());
            qemu.ask("device_add", Value::Object(device)).await?;
        }
        let too_many = if self.returns_cpus {
            taken.len().saturating_sub(wish)
        } else {
            0
        };
        let given_back = taken.iter().rev().take(too_many);
        // Those of the boot have no name, and stay.
        for name in given_back.filter_map(|slot| slot.device.as_deref()?.strip_prefix("/machine/peripheral/")) {
            take_back(qemu, name).await?;
        }
        let now = slots(&qemu.ask("query-hotpluggable-cpus", Value::Null).await?);
        let count = now.iter().filter(|slot| slot.device.is_some()).count();
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Adds what is missing as one device, in whole blocks; answers what there is.
    async fn add_dimm(&self, qemu: &QemuMachine, wish_mib: u32) -> Result<u32, MachineError> {
        let sizes = dimms(&qemu.ask("query-memory-devices", Value::Null).await?);
        let now = self.boot.memory_mib + mib(sizes.iter().sum());
        let blocks = wish_mib.saturating_sub(now).div_ceil(BLOCK_MIB);
        let fitting = self.most.memory_mib.saturating_sub(now) / BLOCK_MIB;
        let added = blocks.min(fitting) * BLOCK_MIB;
        if added == 0 {
            return Ok(now);
        }
        let number = sizes.len();
        let (memory, dimm) = (format!("mem{number}"), format!("dimm{number}"));
        let (kind, shared) = match self.backing {
            MemoryBacking::SharedMemfd => ("memory-backend-memfd", true),
            MemoryBacking::Private => ("memory-backend-ram", false),
        };
        let bytes = u64::from(added) * MIB;
        let backend = json!({"qom-type": kind, "id": memory, "size": bytes, "share": shared});
        qemu.ask("object-add", backend).await?;
        let device = json!({"driver": "pc-dimm", "id": dimm, "memdev": memory});
        if let Err(error) = qemu.ask("device_add", device).await {
            // It is of no use without its device.
            let _ = qemu.ask("object-del", json!({"id": memory})).await;
            return Err(error);
        }
        Ok(now + added)
    }

    /// The guest follows by itself; answers what it shall have.
    async fn turn_virtio_memory(&self, qemu: &QemuMachine, wish_mib: u32) -> Result<u32, MachineError> {
        let room = memory::virtio_room_mib(self.boot.memory_mib, self.most.memory_mib);
        if room == 0 {
            return Ok(self.boot.memory_mib);
        }
        let blocks = (wish_mib - self.boot.memory_mib).div_ceil(BLOCK_MIB);
        let wanted = (blocks * BLOCK_MIB).min(room);
        let path = format!("/machine/peripheral/{VIRTIO_MEMORY}");
        let property = json!({"path": path, "property": "requested-size", "value": u64::from(wanted) * MIB});
        qemu.ask("qom-set", property).await?;
        Ok(self.boot.memory_mib + wanted)
    }
}

/// The sizes of the DIMMs among memory devices, bytes. An image is such a device, too, but no memory for the guest to take.
fn dimms(answer: &Value) -> Vec<u64> {
    let devices = answer.as_array().into_iter().flatten();
    let is_dimm = |device: &&Value| device.get("type").and_then(Value::as_str) == Some("dimm");
    let size = |device: &Value| device.pointer("/data/size")?.as_u64();
    devices.filter(is_dimm).filter_map(size).collect()
}

/// A place for a CPU.
#[derive(Debug, PartialEq, Eq)]
struct Slot {
    /// `[socket, die, core, thread]` and the like, as far as the machine has them: their order.
    position: Vec<u64>,
    kind: String,
    properties: serde_json::Map<String, Value>,
    /// The device in it.
    device: Option<String>,
}

/// Asks the guest for a CPU and waits until it has let go of it; a guest that does not keeps it.
async fn take_back(qemu: &QemuMachine, name: &str) -> Result<(), MachineError> {
    match qemu.unplug(name).await {
        Err(MachineError::Silent { limit, .. }) => {
            tracing::warn!(cpu = name, ?limit, "the guest does not give the CPU back");
            Ok(())
        }
        other => other,
    }
}

/// In the order in which they are taken.
fn slots(answer: &Value) -> Vec<Slot> {
    let mut slots: Vec<Slot> = answer.as_array().into_iter().flatten().filter_map(Slot::read).collect();
    slots.sort_by(|one, other| one.position.cmp(&other.position));
    slots
}

impl Slot {
    fn read(value: &Value) -> Option<Self> {
        let properties = value.get("props")?.as_object()?;
        let number = |name: &str| properties.get(name).and_then(Value::as_u64);
        let names = ["socket-id", "die-id", "module-id", "cluster-id", "core-id", "thread-id"];
        Some(Self {
            position: names.into_iter().filter_map(number).collect(),
            kind: value.get("type")?.as_str()?.to_owned(),
            properties: properties.clone(),
            device: value.get("qom-path").and_then(Value::as_str).map(str::to_owned),
        })
    }

    fn name(&self) -> String {
        let numbers: Vec<String> = self.position.iter().map(u64::to_string).collect();
        format!("cpu-{}", numbers.join("-"))
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_no_memory() {
        let answer = json!([
            {"type": "virtio-pmem", "data": {"memdev": "/objects/image", "memaddr": 0x1_3000_0000_u64, "size": 0xa0_0000}},
            {"type": "dimm", "data": {"id": "dimm0", "addr": 0x1_0000_0000_u64, "size": 0x1000_0000, "slot": 0, "node": 0}}
        ]);
        assert_eq!(dimms(&answer), [0x1000_0000]);
        assert!(dimms(&Value::Null).is_empty());
    }

    #[test]
    fn slots_are_ordered_by_their_position() {
        let answer = json!([
            {"props": {"core-id": 2, "thread-id": 0, "socket-id": 0, "die-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu"},
            {"props": {"core-id": 0, "thread-id": 0, "socket-id": 0, "die-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu",
             "qom-path": "/machine/unattached/device[0]"},
            {"props": {"core-id": 1, "thread-id": 0, "socket-id": 0, "die-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu",
             "qom-path": "/machine/peripheral/cpu-0-0-1-0"},
            {"type": "no properties"}, 7
        ]);
        let slots = slots(&answer);
        let names: Vec<String> = slots.iter().map(Slot::name).collect();
        assert_eq!(names, ["cpu-0-0-0-0", "cpu-0-0-1-0", "cpu-0-0-2-0"]);
        assert_eq!(slots[0].device.as_deref(), Some("/machine/unattached/device[0]"));
        assert_eq!((slots[2].kind.as_str(), &slots[2].device), ("max-x86_64-cpu", &None));
    }
}
