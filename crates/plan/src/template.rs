//! What the machines of pods can be clones of: one template for each configuration, whatever the pods ask for.
//!
//! What differs between pods comes to a running machine: files by the share, links to interfaces that wait for them, disks,
//! CPUs and memory by hotplug. A machine that differs in anything else boots, and the log says why.

use std::path::{Path, PathBuf};

use kata_config::{Config, Internetworking};
use kata_machine::{Channel, Device, MachineSpec};
use kata_netlink::Network;
use kata_wire::names::LOAD_PARAMETER;
use serde::{Deserialize, Serialize};

use crate::pod::{self, Parts};
use crate::rehearsal::{RehearsalPlan, rehearsal};
use crate::share::{self, SharePlan};
use crate::{Facts, PlanError, network, sizing};

/// A template, complete before anything is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePlan {
    /// The machine that is saved. Its things on the host lie in the directory in which it is made.
    pub machine: MachineSpec,
    /// Its share, in which there is nothing.
    pub share: SharePlan,
    /// What its guest does before it is saved.
    pub rehearsal: RehearsalPlan,
    /// The files that make it what it is.
    pub made_of: Vec<PathBuf>,
}

/// The template for all pods of this configuration, made in [`Facts::template_dir`].
///
/// # Errors
/// As for a pod, see [`PlanError`].
pub fn template(config: &Config, facts: &Facts) -> Result<TemplatePlan, PlanError> {
    let has_network = config.runtime.internetworking_model != Internetworking::None;
    let facts = Facts {
        run_dir: facts.template_dir.clone(),
        share_dir: facts.template_dir.join("share"),
        network: has_network.then(Network::default),
        ..facts.clone()
    };
    let sizing = sizing::usual(config, &facts)?;
    let (share, _) = share::decide(config, &facts)?;
    let (channel, _) = pod::channel(config, &facts)?;
    let (network, _) = network::decide(config, &facts, sizing.boot.vcpus, true);
    let mut machine = Parts {
        size: sizing.boot,
        growth: pod::growth(&sizing, config),
        share: &share,
        network: &network,
        channel,
    }
    .assemble("template", config, &facts);
    // Each clone would load them for itself.
    let drivers = match &share {
        SharePlan::VirtioFs { .. } => ["virtiofs"].as_slice(),
        SharePlan::NineP { .. } => &["9pnet_virtio", "9p"],
    };
    let network_driver = has_network.then_some("virtio_net");
    let drivers: Vec<&str> = drivers.iter().copied().chain(network_driver).collect();
    let load = format!("{LOAD_PARAMETER}={}", drivers.join(","));
    machine.boot.parameters.insert(0, load);
    let daemon = match &share {
        SharePlan::VirtioFs { daemon, .. } => Some(daemon.clone()),
        SharePlan::NineP { .. } => None,
    };
    let made_of = [facts.vmm.clone(), facts.kernel.clone()];
    Ok(TemplatePlan {
        made_of: made_of
            .into_iter()
            .chain(facts.root.files())
            .chain(machine.firmware.clone())
            .chain(daemon)
            .collect(),
        rehearsal: rehearsal(config, &facts)?,
        machine,
        share,
    })
}

impl TemplatePlan {
    /// Itself, if `machine` can be a clone of it.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn fit(self, machine: &MachineSpec) -> Result<Self, String> {
        let own = &self.machine;
        if (machine.vcpus, machine.memory_mib) != (own.vcpus, own.memory_mib) {
            return Err(format!(
                "it needs {} CPUs and {} MiB from the start, and the template has {} and {}",
                machine.vcpus, machine.memory_mib, own.vcpus, own.memory_mib
            ));
        }
        let devices: Vec<Device> = machine
            .devices
            .iter()
            .map(|device| moved(device, &own.run_dir))
            .collect();
        if devices != own.devices {
            return Err("its network interfaces are not those of the template".to_owned());
        }
        let same = MachineSpec {
            id: own.id.clone(),
            run_dir: own.run_dir.clone(),
            boot: own.boot.clone(),
            channel: match &machine.channel {
                Channel::Serial { port, socket } => Channel::Serial {
                    port: port.clone(),
                    socket: moved_path(socket, &own.run_dir),
                },
                other @ Channel::Vsock { .. } => other.clone(),
            },
            devices,
            ..machine.clone()
        };
        if same != *own {
            return Err("it is another machine than the template".to_owned());
        }
        Ok(self)
    }
}

/// The same device with its end in another directory of the host.
fn moved(device: &Device, directory: &Path) -> Device {
    match device.clone() {
        Device::VirtioFs {
            tag,
            socket,
            queue_size,
        } => Device::VirtioFs {
            tag,
            socket: moved_path(&socket, directory),
            queue_size,
        },
        Device::NineP { tag, source } => Device::NineP {
            tag,
            source: moved_path(&source, directory),
        },
        other => other,
    }
}

fn moved_path(path: &Path, directory: &Path) -> PathBuf {
    directory.join(path.file_name().unwrap_or_default())
}
