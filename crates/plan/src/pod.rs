//! The plan of a pod: its machine and its share, complete before anything is started.

use std::path::{Path, PathBuf};

use kata_bundle::{Bundle, Role};
use kata_config::Config;
use kata_machine::{
    Accelerator, Boot, Channel, Device, Growth, Image, MachineSpec, MemoryBacking, MemoryGrowth, Root, Size,
};
use kata_wire::names::{CHANNEL_PORT, CHANNEL_VSOCK_PORT, LOG_PARAMETER};
use serde::Serialize;

use crate::cgroup::{self, CgroupPlan};
use crate::network::{self, NetworkPlan};
use crate::share::{self, SharePlan};
use crate::sizing::{self, Sizing};
use crate::template::{self, TemplatePlan};
use crate::{Facts, PlanError, RootFile};

/// Bytes of a path that fit into a unix socket's address.
const SOCKET_PATH_LIMIT: usize = 107;

/// Longer ids do not fit into the channel's stream headers.
const ID_LIMIT: usize = 255;

/// A pod that is not yet running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodPlan {
    /// Sandbox id.
    pub id: String,
    /// It is one container that its engine knows as such.
    pub alone: bool,
    /// The machine.
    pub machine: MachineSpec,
    /// The machine that is the same for all pods, of which it can be a clone, or that waits for it; `None` if it boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplatePlan>,
    /// SELinux label of the VMM.
    pub vmm_label: Option<String>,
    /// From what its size follows.
    pub sizing: Sizing,
    /// Where its processes belong.
    pub cgroups: CgroupPlan,
    /// The share.
    pub share: SharePlan,
    /// The network.
    pub network: NetworkPlan,
    /// Of the guest itself; may be empty.
    pub hostname: String,
    /// What was chosen and why, for people: the first lines of the sandbox's log.
    pub notes: Vec<String>,
}

/// Plans the pod of a container that is alone or the first of its pod.
///
/// # Errors
/// See [`PlanError`].
pub fn pod(id: &str, bundle: &Bundle, config: &Config, facts: &Facts) -> Result<PodPlan, PlanError> {
    check_id(id)?;
    if let Role::Member { pod_id } = bundle.role() {
        return Err(PlanError::MemberWithoutPod {
            id: id.into(),
            pod_id: pod_id.clone(),
        });
    }
    let template = (config.factory.enable_template || facts.has_spare)
        .then(|| template::template(config, facts))
        .transpose()?;
    let (mut sizing, size_note) = sizing::decide(bundle, config, facts)?;
    if template.is_some() {
        sizing.begin_small();
    }
    let size = sizing.boot;
    let (share, share_note) = share::decide(config, facts)?;
    let (channel, channel_note) = channel(config, facts)?;
    let (network, network_notes) = network::decide(config, facts, size.vcpus, template.is_some());
    let mut notes = vec![
        format!("accelerator: {} ({})", facts.accelerator, facts.accelerator_reason),
        guest(facts),
        size_note,
        share_note,
        channel_note,
    ];
    notes.extend(network_notes);
    let machine = Parts {
        size,
        growth: growth(&sizing, config),
        share: &share,
        network: &network,
        channel,
    }
    .assemble(id, config, facts);
    let template = match template.map(|template| template.fit(&machine)) {
        Some(Ok(template)) => {
            notes.push(match facts.has_spare {
                true => "start: the machine that waits (configured)".into(),
                false => "start: a clone of a template (configured)".into(),
            });
            Some(template)
        }
        Some(Err(why)) => {
            let without = if facts.has_spare {
                "the machine that waits"
            } else {
                "a template"
            };
            notes.push(format!("start: a boot, without {without}: {why}"));
            None
        }
        None => None,
    };
    Ok(PodPlan {
        id: id.into(),
        alone: *bundle.role() == Role::Single,
        machine,
        template,
        vmm_label: vmm_label(bundle, config, facts),
        sizing,
        cgroups: cgroup::decide(id, bundle, config),
        share,
        network,
        hostname: bundle.spec().hostname().clone().unwrap_or_default(),
        notes,
    })
}

/// What a machine is put together from, beside the configuration.
pub(crate) struct Parts<'a> {
    pub size: Size,
    pub growth: Option<Growth>,
    pub share: &'a SharePlan,
    pub network: &'a NetworkPlan,
    pub channel: Channel,
}

impl Parts<'_> {
    pub(crate) fn assemble(self, id: &str, config: &Config, facts: &Facts) -> MachineSpec {
        let mut devices = vec![
            self.share.device(config),
            Device::Rng {
                source: config.qemu.entropy_source.clone(),
            },
            Device::DiskController,
        ];
        // Clones that share the template's pages cannot give them back.
        let shares_pages = config.factory.enable_template && self.share.memory_backing() == MemoryBacking::Private;
        if config.qemu.reclaim_guest_freed_memory && !shares_pages {
            devices.push(Device::Balloon);
        }
        devices.extend(self.network.devices(config, facts));
        MachineSpec {
            id: id.into(),
            vmm: facts.vmm.clone(),
            machine_type: machine_type(config),
            firmware: config.qemu.firmware.clone(),
            accelerator: facts.accelerator,
            cpu_features: cpu_features(config, facts.accelerator),
            vcpus: self.size.vcpus,
            memory_mib: self.size.memory_mib,
            growth: self.growth,
            memory_backing: self.share.memory_backing(),
            boot: Boot {
                kernel: facts.kernel.clone(),
                root: root(config, facts),
                parameters: parameters(config),
            },
            channel: self.channel,
            devices,
            run_dir: facts.run_dir.clone(),
            seccomp_sandbox: config.qemu.seccompsandbox.clone(),
            debug: config.qemu.enable_debug,
        }
    }
}

/// Ids become names of directories, mounts and streams.
pub(crate) fn check_id(id: &str) -> Result<(), PlanError> {
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"_+-.".contains(&letter);
    if id.is_empty() || id.len() > ID_LIMIT || id == "." || id == ".." || !id.bytes().all(plain) {
        return Err(PlanError::Id { id: id.into() });
    }
    Ok(())
}

/// A socket in the sandbox's directory.
pub(crate) fn socket(run_dir: &Path, name: &str) -> Result<PathBuf, PlanError> {
    let path = run_dir.join(name);
    if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(PlanError::SocketPath {
            path,
            most: SOCKET_PATH_LIMIT,
        });
    }
    Ok(path)
}

pub(crate) fn channel(config: &Config, facts: &Facts) -> Result<(Channel, String), PlanError> {
    if config.qemu.use_vsock != Some(true) {
        let channel = Channel::Serial {
            port: CHANNEL_PORT.into(),
            socket: socket(&facts.run_dir, "agent.sock")?,
        };
        return Ok((channel, "channel: virtio-serial (works on every host)".into()));
    }
    match facts.vsock_cid {
        Some(cid) if facts.vhost_vsock => Ok((
            Channel::Vsock {
                cid,
                port: CHANNEL_VSOCK_PORT,
            },
            format!("channel: vsock with context id {cid} (configured)"),
        )),
        _ => Err(PlanError::NoVsock),
    }
}

fn root(config: &Config, facts: &Facts) -> Root {
    match &facts.root {
        RootFile::Initrd(path) => Root::Initrd(path.clone()),
        RootFile::Image { path, bytes, loader } => Root::Image(Image {
            path: path.clone(),
            bytes: *bytes,
            file_system: config.qemu.rootfs_type.as_str().into(),
            dax: !config.qemu.disable_image_nvdimm,
            loader: loader.clone(),
        }),
    }
}

fn guest(facts: &Facts) -> String {
    let kernel = facts.kernel.display();
    match &facts.root {
        RootFile::Initrd(path) => format!("guest: kernel {kernel}, initrd {}", path.display()),
        RootFile::Image { path, loader, .. } => {
            let by = if loader.is_some() {
                ", its drivers loaded first"
            } else {
                ""
            };
            format!("guest: kernel {kernel}, image {}{by}", path.display())
        }
    }
}

/// The label of the pod's first container, where it means something.
fn vmm_label(bundle: &Bundle, config: &Config, facts: &Facts) -> Option<String> {
    let process = bundle.spec().process().as_ref()?;
    let label = process.selinux_label().clone().filter(|label| !label.is_empty());
    label.filter(|_| facts.selinux && !config.qemu.disable_selinux)
}

/// What the machine is prepared for.
pub(crate) fn growth(sizing: &Sizing, config: &Config) -> Option<Growth> {
    let Sizing { most, fixed: None, .. } = sizing else {
        return None;
    };
    Some(Growth {
        vcpus: most.vcpus,
        memory_mib: most.memory_mib,
        memory: match (config.qemu.enable_virtio_mem, config.qemu.memory_slots) {
            (true, _) => MemoryGrowth::Virtio,
            (false, slots) => MemoryGrowth::Slots { count: slots },
        },
    })
}

fn machine_type(config: &Config) -> String {
    match config.qemu.machine_accelerators.trim_matches(',') {
        "" => config.qemu.machine_type.clone(),
        options => format!("{},{options}", config.qemu.machine_type),
    }
}

fn cpu_features(config: &Config, accelerator: Accelerator) -> String {
    match (&config.qemu.cpu_features, accelerator) {
        (Some(features), _) => features.clone(),
        // Saves the guest the emulation of performance counters; TCG has none anyway.
        (None, Accelerator::Kvm) => "pmu=off".into(),
        (None, Accelerator::Tcg) => String::new(),
    }
}

fn parameters(config: &Config) -> Vec<String> {
    let mut parameters = Vec::new();
    if config.agent.enable_debug {
        parameters.push(format!("{LOG_PARAMETER}=debug"));
    }
    // Last, so that they win over ours.
    parameters.extend(config.qemu.kernel_params.iter().cloned());
    parameters
}
