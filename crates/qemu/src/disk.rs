//! Disks of a machine that runs: SCSI disks on its virtio controller, which take and lose them without a slot of PCI
//! and without the guest's consent.
//!
//! QEMU gets each disk as a descriptor, so that it needs no path of the host. It is told nothing of locks: who may share a
//! disk with whom is the engine's decision, as it is for containers without a machine.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kata_machine::{Disk, DiskAddress, DiskAio, MachineError};
use serde_json::{Value, json};

use crate::machine::QemuMachine;

/// Targets of the controller.
const TARGETS: u8 = 255;

/// Which targets are taken.
#[derive(Debug, Default)]
pub(crate) struct Disks(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    targets: BTreeSet<u8>,
    /// The first to be tried. A target is not used again soon: the guest must have noticed that its disk has gone.
    next: u8,
}

impl Disks {
    pub(crate) async fn attach(&self, machine: &QemuMachine, disk: Disk) -> Result<DiskAddress, MachineError> {
        let target = self.take()?;
        let attached = plug(machine, target, disk).await;
        if attached.is_err() {
            self.give_back(target);
        }
        attached.map(|()| DiskAddress { target })
    }

    pub(crate) async fn detach(&self, machine: &QemuMachine, disk: DiskAddress) -> Result<(), MachineError> {
        let name = name(disk.target);
        machine.unplug(&name).await?;
        machine
            .execute_with("blockdev-del", json!({ "node-name": name }), None)
            .await?;
        machine
            .execute_with("remove-fd", json!({ "fdset-id": disk.target }), None)
            .await?;
        self.give_back(disk.target);
        Ok(())
    }

    fn take(&self) -> Result<u8, MachineError> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = taken.next;
        let free = (0..TARGETS)
            .map(|step| ((u16::from(next) + u16::from(step)) % u16::from(TARGETS)) as u8)
            .find(|target| !taken.targets.contains(target));
        let Some(target) = free else {
            let message = format!("a machine takes at most {TARGETS} disks");
            return Err(MachineError::Unsupported(message));
        };
        taken.targets.insert(target);
        taken.next = (target + 1) % TARGETS;
        Ok(target)
    }

    fn give_back(&self, target: u8) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.targets.remove(&target);
    }
}

/// Three commands; those done are taken back when a later one is refused.
async fn plug(machine: &QemuMachine, target: u8, disk: Disk) -> Result<(), MachineError> {
    let name = name(target);
    let node = node(&name, target, &disk);
    let set = json!({ "fdset-id": target });
    machine.execute_with("add-fd", set.clone(), Some(disk.file)).await?;
    if let Err(error) = machine.execute_with("blockdev-add", node, None).await {
        let _ = machine.execute_with("remove-fd", set, None).await;
        return Err(error);
    }
    let device = json!({
        "driver": "scsi-hd", "id": name, "bus": "scsi.0", "scsi-id": target, "lun": 0, "drive": name, "share-rw": true,
    });
    if let Err(error) = machine.execute_with("device_add", device, None).await {
        let _ = machine
            .execute_with("blockdev-del", json!({ "node-name": name }), None)
            .await;
        let _ = machine.execute_with("remove-fd", set, None).await;
        return Err(error);
    }
    Ok(())
}

fn node(name: &str, target: u8, disk: &Disk) -> Value {
    let aio = match disk.access.aio {
        DiskAio::Threads => "threads",
        DiskAio::Native => "native",
        DiskAio::IoUring => "io_uring",
    };
    json!({
        "driver": if disk.is_device { "host_device" } else { "file" },
        "node-name": name,
        "filename": format!("/dev/fdset/{target}"),
        "read-only": disk.read_only,
        "aio": aio,
        "cache": { "direct": disk.access.direct, "no-flush": disk.access.no_flush },
        "locking": "off",
        "discard": "unmap",
    })
}

fn name(target: u8) -> String {
    format!("disk{target}")
}
