//! Annotations of a pod, laid over the files: `io.katacontainers.config.{hypervisor,runtime,agent}.NAME`.
//!
//! Whoever may start pods writes them, so that what they may say is for the files to decide: of the hypervisor's only what
//! `enable_annotations` names, and paths only where a `valid_…` pattern covers them. Their values are read as those of
//! the files are. Refused is what nobody knows and what is not allowed; what Kata knows and this project does not use is
//! a warning, as in a file.

use std::path::Path;

use regex_lite::Regex;

use crate::error::{ConfigError, Oddity, Place, Warning};
use crate::file::{self, Item};
use crate::glob;
use crate::key::{self, AGENT, QEMU, RUNTIME};
use crate::known;
use crate::settings::Config;
use crate::value::{Allowed, Value};

const PREFIX: &str = "io.katacontainers.config.";

/// An annotation whose name differs from the key's is followed by it.
const HYPERVISOR: &[&str] = &[
    // programs and files
    "path",
    "jailer_path",
    "ctlpath",
    "kernel",
    "image",
    "initrd",
    "firmware",
    "firmware_volume",
    "kernel_params",
    "kernel_verity_params",
    "guest_hook_path",
    // the machine
    "machine_type",
    "machine_accelerators",
    "cpu_features",
    "default_vcpus",
    "default_max_vcpus=default_maxvcpus",
    "default_memory",
    "memory_slots",
    "memory_offset",
    "enable_virtio_mem",
    "enable_mem_prealloc",
    "enable_hugepages",
    "hugepage_type",
    "file_mem_backend",
    "reclaim_guest_freed_memory",
    "enable_guest_swap",
    "enable_swap",
    "enable_iommu",
    "enable_iommu_platform",
    "entropy_source",
    "use_legacy_serial",
    "use_vsock",
    "rootless",
    // input and output
    "block_device_driver",
    "block_device_aio",
    "block_device_cache_set",
    "block_device_cache_direct",
    "block_device_cache_noflush",
    "block_device_num_queues=num_queues",
    "block_device_queue_size=queue_size",
    "blk_logical_sector_size",
    "blk_physical_sector_size",
    "disable_block_device_use",
    "disable_image_nvdimm",
    "enable_iothreads",
    "enable_vhost_user_store",
    "vhost_user_store_path",
    "vhost_user_reconnect_timeout_sec",
    "shared_fs",
    "msize_9p",
    "virtio_fs_daemon",
    "virtio_fs_cache",
    "virtio_fs_cache_size",
    "virtio_fs_extra_args",
    "disable_vhost_net",
    "rx_rate_limiter_max_rate",
    "tx_rate_limiter_max_rate",
    "pcie_root_port",
    "pcie_switch_port",
    "cold_plug_vfio",
    "hot_plug_vfio",
    "hotplug_vfio_on_root_bus",
];

const OF_THE_RUNTIME: &[&str] = &[
    "name",
    "hypervisor_name",
    "agent_name",
    "experimental",
    "disable_guest_seccomp",
    "disable_new_netns",
    "internetworking_model",
    "sandbox_cgroup_only",
    "enable_vcpus_pinning",
    "enable_pprof",
    "create_container_timeout",
    "experimental_force_guest_pull",
    "guest_selinux_label",
    "vfio_mode",
    "sandbox_bind_mounts",
    "shared_mounts",
];

const OF_THE_AGENT: &[&str] = &[
    "enable_tracing",
    "container_pipe_size",
    "kernel_modules",
    "cdh_api_timeout",
    "cdh_api_timeout_ms",
    "policy",
    "trace_mode",
    "trace_type",
];

/// An expression that has to match a whole name.
pub(crate) fn expression(text: &str) -> Result<Regex, regex_lite::Error> {
    // On its own first: an expression must not close the bracket that is put around it.
    Regex::new(text)?;
    Regex::new(&format!("^(?:{text})$"))
}

impl Config {
    /// Lays the annotations of a pod over what is there, in the order of their names. Annotations of others are passed
    /// over.
    ///
    /// # Errors
    /// [`ConfigError::Annotation`] for what is unknown or not allowed, [`ConfigError::Value`] for what a key does not take,
    /// [`ConfigError::TwoRoots`].
    pub fn annotate<'a>(
        &mut self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<Warning>, ConfigError> {
        let mut ours: Vec<_> = annotations
            .into_iter()
            .filter_map(|(name, text)| Some((name, name.strip_prefix(PREFIX)?, text)))
            .collect();
        ours.sort_unstable();
        // What an annotation says must not decide what the next one may.
        let files = self.clone();
        let mut warnings = Vec::new();
        for (name, rest, text) in ours {
            let refused = |reason: String| ConfigError::Annotation {
                name: name.to_owned(),
                reason,
            };
            let (section, key) = known(rest).ok_or_else(|| refused("nobody knows it".to_owned()))?;
            if section == QEMU {
                allow(&files, rest, text).map_err(refused)?;
            }
            warnings.extend(self.lay(name, section, key, text)?);
        }
        self.check()?;
        Ok(warnings)
    }

    fn lay(&mut self, name: &str, section: &str, key: &str, text: &str) -> Result<Option<Warning>, ConfigError> {
        let place = Place::Annotation { name: name.to_owned() };
        let full = format!("{section}.{key}");
        let Some(row) = key::find(section, key) else {
            let default = known::default_of(section, key).unwrap_or("?");
            let asks = !candidates(text).iter().any(|value| value.to_string() == default);
            return Ok(asks.then_some(Warning {
                place,
                oddity: Oddity::KeyNotYet { key: full },
            }));
        };
        let earlier = self.qemu.kernel_params.clone();
        let mut outcome = Err(Allowed(String::new()));
        for value in candidates(text) {
            outcome = (row.set)(self, &value);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map_err(|allowed| ConfigError::Value {
            place,
            key: full,
            found: text.to_owned(),
            allowed: allowed.0,
        })?;
        if key == "kernel_params" {
            // As Kata: they are added to those of the files.
            self.qemu.kernel_params.splice(0..0, earlier);
        }
        Ok(None)
    }
}

/// Section and key of what an annotation names.
fn known(rest: &str) -> Option<(&'static str, &'static str)> {
    let (kind, name) = rest.split_once('.')?;
    let (section, names) = match kind {
        "hypervisor" => (QEMU, HYPERVISOR),
        "runtime" => (RUNTIME, OF_THE_RUNTIME),
        "agent" => (AGENT, OF_THE_AGENT),
        _ => return None,
    };
    let pairs = names.iter().map(|pair| pair.split_once('=').unwrap_or((pair, pair)));
    pairs
        .into_iter()
        .find(|(annotation, _)| *annotation == name)
        .map(|(_, key)| (section, key))
}

/// Whether the files let a pod say this of the hypervisor; if not, why.
fn allow(files: &Config, rest: &str, text: &str) -> Result<(), String> {
    let name = rest.split_once('.').map_or(rest, |(_, name)| name);
    let enabled = files.qemu.enable_annotations.iter();
    if !enabled
        .filter_map(|text| expression(text).ok())
        .any(|regex| regex.is_match(name))
    {
        return Err(format!("no expression of {QEMU}.enable_annotations matches {name:?}"));
    }
    let (list, patterns) = match name {
        "path" => ("valid_hypervisor_paths", &files.qemu.valid_hypervisor_paths),
        "virtio_fs_daemon" => ("valid_virtio_fs_daemon_paths", &files.qemu.valid_virtio_fs_daemon_paths),
        "entropy_source" => ("valid_entropy_sources", &files.qemu.valid_entropy_sources),
        _ => return Ok(()),
    };
    match patterns.iter().any(|pattern| glob::covers(pattern, text)) {
        true => Ok(()),
        false => Err(format!("no pattern of {QEMU}.{list} covers {text:?}")),
    }
}

/// What a text may stand for, the most particular first: annotations have no quotes that would tell.
fn candidates(text: &str) -> Vec<Value> {
    let mut candidates = Vec::new();
    if let Ok([Item::Entry(entry)]) = file::parse(Path::new(""), &format!("value = {text}")).as_deref()
        && !matches!(entry.value, Value::Text(_) | Value::Other(_))
        && entry.key == "value"
    {
        candidates.push(entry.value.clone());
    }
    candidates.push(Value::Text(text.to_owned()));
    candidates.push(Value::List(text.split_whitespace().map(Value::from).collect()));
    candidates
}
