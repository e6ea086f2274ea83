//! Disks of containers: opened where the engine has them, attached to the machine while a container has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use kata_machine::{Disk, DiskAccess, DiskAddress, Machine};
use kata_plan::{DiskPlan, DiskSource};
use kata_storage::disk::{open_device, open_image};
use kata_wire::proto;
use tokio::sync::watch;

use crate::error::SandboxError;
use crate::sandbox::{Sandbox, State};
use crate::step::Steps;

/// A disk that was opened and is not attached yet.
pub(crate) struct OpenDisk {
    plan: DiskPlan,
    file: File,
}

/// Attached disks. Containers that bring the same device share one disk of the guest, or its page cache would show each of
/// them another content.
#[derive(Default)]
pub(crate) struct Disks(BTreeMap<Key, Attached>);

type Key = (DiskSource, bool);

struct Attached {
    users: usize,
    /// `None` while it is being attached.
    address: watch::Sender<Option<DiskAddress>>,
}

/// What is to be done about a disk that a container wants.
enum Turn {
    /// It is there.
    Done(DiskAddress),
    /// Somebody attaches it.
    Wait(watch::Receiver<Option<DiskAddress>>),
    /// It is to be attached.
    Act(Arc<dyn Machine>),
}

impl Disks {
    fn want(&mut self, key: &Key, machine: Arc<dyn Machine>) -> Turn {
        let Some(disk) = self.0.get_mut(key) else {
            let (users, address) = (1, watch::Sender::new(None));
            self.0.insert(key.clone(), Attached { users, address });
            return Turn::Act(machine);
        };
        match *disk.address.borrow() {
            Some(address) => {
                disk.users += 1;
                Turn::Done(address)
            }
            None => Turn::Wait(disk.address.subscribe()),
        }
    }

    fn attached(&mut self, key: &Key, address: Option<DiskAddress>) {
        match (self.0.get(key), address) {
            (Some(disk), Some(_)) => drop(disk.address.send_replace(address)),
            _ => drop(self.0.remove(key)),
        }
    }

    /// One user less; answers where it was when that was the last.
    fn release(&mut self, key: &Key) -> Option<DiskAddress> {
        let disk = self.0.get_mut(key)?;
        disk.users -= 1;
        if disk.users > 0 {
            return None;
        }
        let disk = self.0.remove(key)?;
        *disk.address.borrow()
    }
}

impl Sandbox {
    /// Whether the machine has disks: what the guest has not written to them yet would be lost with the machine, so it
    /// must let go of them first.
    pub(crate) async fn has_disks(&self) -> bool {
        self.ask(|state| !state.disks.0.is_empty()).await.unwrap_or(false)
    }

    /// Has the guest let go of all its disks.
    pub(crate) async fn settle_disks(&self) {
        if !self.has_disks().await {
            return;
        }
        let Ok(guest) = self.guest().await else { return };
        for container in self.containers().await {
            if let Err(error) = guest.delete_container(&container).await {
                tracing::warn!(container, %error, "the guest may not have written everything to its disks");
            }
        }
    }

    /// Opens the disks of a container.
    pub(crate) fn open_disks(&self, disks: &[DiskPlan]) -> Result<Vec<OpenDisk>, SandboxError> {
        if disks.is_empty() {
            return Ok(Vec::new());
        }
        let open = |plan: &DiskPlan| {
            let opened = match &plan.source {
                DiskSource::Device { major, minor } => open_device(*major, *minor, plan.read_only, self.home.path()),
                DiskSource::File { path } => open_image(path, plan.read_only),
            };
            let failed = |source| SandboxError::Disk {
                disk: plan.source.to_string(),
                source,
            };
            Ok(OpenDisk {
                plan: plan.clone(),
                file: opened.map_err(failed)?,
            })
        };
        self.abroad_in_copy(|| disks.iter().map(open).collect())?
    }

    /// Attaches them; answers what the agent must know of them.
    pub(crate) async fn attach_disks(
        &self,
        disks: Vec<OpenDisk>,
        access: DiskAccess,
        own: &mut Steps,
    ) -> Result<Vec<proto::Disk>, SandboxError> {
        let mut told = Vec::with_capacity(disks.len());
        for OpenDisk { plan, file } in disks {
            own.next("disk")?;
            let key = (plan.source.clone(), plan.read_only);
            let disk = Disk {
                file: file.into(),
                is_device: matches!(plan.source, DiskSource::Device { .. }),
                read_only: plan.read_only,
                access,
            };
            let address = self.attach_disk(&key, disk).await?;
            let this = self.clone();
            own.done("disk", move || async move { this.detach_disk(key).await });
            told.push(describe(plan, address));
        }
        Ok(told)
    }

    async fn attach_disk(&self, key: &Key, disk: Disk) -> Result<DiskAddress, SandboxError> {
        let machine = loop {
            let wanted = key.clone();
            let turn = self
                .ask(move |state| Some(state.disks.want(&wanted, state.machine.clone()?)))
                .await?;
            match turn.ok_or_else(|| self.no_machine())? {
                Turn::Done(address) => return Ok(address),
                Turn::Act(machine) => break machine,
                // An error says that it was not attached: then it is our turn.
                Turn::Wait(mut address) => drop(address.wait_for(Option::is_some).await),
            }
        };
        let attached = machine.attach(disk).await;
        let (key, address) = (key.clone(), attached.as_ref().ok().copied());
        self.ask(move |state| state.disks.attached(&key, address)).await?;
        Ok(attached?)
    }

    async fn detach_disk(&self, key: Key) -> Result<(), String> {
        let released = move |state: &mut State| Some((state.disks.release(&key)?, state.machine.clone()?));
        match self.ask(released).await {
            Ok(Some((address, machine))) => machine.detach(address).await.map_err(|error| error.to_string()),
            // Others use it, or it went with the machine.
            _ => Ok(()),
        }
    }
}

fn describe(plan: DiskPlan, address: DiskAddress) -> proto::Disk {
    let (host_major, host_minor) = match plan.source {
        DiskSource::Device { major, minor } => (major, minor),
        DiskSource::File { .. } => (0, 0),
    };
    let mut disk = proto::Disk {
        name: plan.name,
        target: address.target.into(),
        host_major,
        host_minor,
        ..Default::default()
    };
    if let Some(mount) = plan.mount {
        disk.mount_point = mount.mount_point;
        disk.fs_type = mount.fs_type;
        disk.options = mount.options;
    }
    disk
}
