//! The keys that have an effect: one row each, how it is read and how it is shown.

use std::path::PathBuf;

use crate::annotation;
use crate::settings::{BlockAio, Config, CpuCount, Internetworking, RootfsType, SharedFs, VirtioFsCache};
use crate::value::{Allowed, Shown, Value};

/// A key that has an effect.
pub(crate) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    /// Takes the value over into the configuration.
    pub set: fn(&mut Config, &Value) -> Result<(), Allowed>,
    /// The value in force; `None` if it is decided from the host.
    pub get: fn(&Config) -> Option<Value>,
}

pub(crate) const QEMU: &str = "hypervisor.qemu";
pub(crate) const AGENT: &str = "agent.kata";
pub(crate) const RUNTIME: &str = "runtime";
pub(crate) const FACTORY: &str = "factory";

/// The least memory that a guest boots with, MiB.
const LEAST_MEMORY_MIB: u32 = 64;

pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// A row: section, name, the field, how a value is read and, where its type does not settle it, how it is shown.
macro_rules! key {
    ($section:expr, $name:literal, $($field:ident).+, $read:expr) => {
        key!($section, $name, $($field).+, $read, Shown::shown)
    };
    ($section:expr, $name:literal, $($field:ident).+, $read:expr, $show:expr) => {
        Key {
            section: $section,
            name: $name,
            set: |config, value| {
                let read: fn(&Value) -> Result<_, Allowed> = $read;
                config.$($field).+ = read(value)?;
                Ok(())
            },
            get: |config| $show(&config.$($field).+),
        }
    };
}

/// In the order in which they are shown.
pub(crate) const KEYS: &[Key] = &[
    key!(QEMU, "path", qemu.path, Value::path),
    key!(QEMU, "enable_annotations", qemu.enable_annotations, read_expressions),
    key!(
        QEMU,
        "valid_hypervisor_paths",
        qemu.valid_hypervisor_paths,
        read_patterns
    ),
    key!(QEMU, "kernel", qemu.kernel, Value::optional_path),
    key!(QEMU, "initrd", qemu.initrd, Value::optional_path),
    key!(QEMU, "image", qemu.image, Value::optional_path, |image: &Option<
        PathBuf,
    >| {
        image.clone().unwrap_or_default().shown()
    }),
    key!(
        QEMU,
        "rootfs_type",
        qemu.rootfs_type,
        read_rootfs_type,
        |kind: &RootfsType| { Some(Value::from(kind.as_str())) }
    ),
    key!(QEMU, "disable_image_nvdimm", qemu.disable_image_nvdimm, Value::boolean),
    key!(QEMU, "kernel_params", qemu.kernel_params, read_words, show_words),
    key!(QEMU, "machine_type", qemu.machine_type, read_machine_type),
    key!(QEMU, "machine_accelerators", qemu.machine_accelerators, Value::text),
    key!(QEMU, "cpu_features", qemu.cpu_features, |value| value.text().map(Some)),
    key!(QEMU, "firmware", qemu.firmware, Value::optional_path),
    key!(QEMU, "default_vcpus", qemu.default_vcpus, read_vcpus, show_vcpus),
    key!(
        QEMU,
        "default_maxvcpus",
        qemu.default_maxvcpus,
        read_max_vcpus,
        show_max_vcpus
    ),
    key!(QEMU, "default_memory", qemu.default_memory, read_memory),
    key!(
        QEMU,
        "default_maxmemory",
        qemu.default_maxmemory,
        read_max_memory,
        |most: &Option<u32>| most.unwrap_or(0).shown()
    ),
    key!(QEMU, "memory_slots", qemu.memory_slots, |value| value
        .number("slots", 0, 256)),
    key!(QEMU, "enable_virtio_mem", qemu.enable_virtio_mem, Value::boolean),
    key!(
        QEMU,
        "reclaim_guest_freed_memory",
        qemu.reclaim_guest_freed_memory,
        Value::boolean
    ),
    key!(QEMU, "shared_fs", qemu.shared_fs, read_shared_fs, |kind: &Option<
        SharedFs,
    >| {
        kind.map(|kind| Value::from(kind.as_str()))
    }),
    key!(QEMU, "virtio_fs_daemon", qemu.virtio_fs_daemon, Value::optional_path),
    key!(
        QEMU,
        "valid_virtio_fs_daemon_paths",
        qemu.valid_virtio_fs_daemon_paths,
        read_patterns
    ),
    key!(
        QEMU,
        "virtio_fs_cache",
        qemu.virtio_fs_cache,
        read_cache,
        |cache: &VirtioFsCache| { Some(Value::from(cache.as_str())) }
    ),
    key!(QEMU, "virtio_fs_queue_size", qemu.virtio_fs_queue_size, read_queue_size),
    key!(QEMU, "virtio_fs_extra_args", qemu.virtio_fs_extra_args, Value::texts),
    key!(QEMU, "msize_9p", qemu.msize_9p, |value| value.number(
        "bytes",
        4096,
        1 << 24
    )),
    key!(
        QEMU,
        "disable_block_device_use",
        qemu.disable_block_device_use,
        Value::boolean
    ),
    key!(
        QEMU,
        "block_device_aio",
        qemu.block_device_aio,
        read_aio,
        |aio: &BlockAio| { Some(Value::from(aio.as_str())) }
    ),
    key!(
        QEMU,
        "block_device_cache_set",
        qemu.block_device_cache_set,
        Value::boolean
    ),
    key!(
        QEMU,
        "block_device_cache_direct",
        qemu.block_device_cache_direct,
        Value::boolean
    ),
    key!(
        QEMU,
        "block_device_cache_noflush",
        qemu.block_device_cache_noflush,
        Value::boolean
    ),
    key!(QEMU, "entropy_source", qemu.entropy_source, Value::path),
    key!(QEMU, "valid_entropy_sources", qemu.valid_entropy_sources, read_patterns),
    key!(QEMU, "seccompsandbox", qemu.seccompsandbox, Value::text),
    key!(QEMU, "disable_selinux", qemu.disable_selinux, Value::boolean),
    key!(QEMU, "disable_vhost_net", qemu.disable_vhost_net, Value::boolean),
    key!(QEMU, "network_queues", qemu.network_queues, read_network_queues),
    key!(QEMU, "enable_debug", qemu.enable_debug, Value::boolean),
    key!(QEMU, "use_vsock", qemu.use_vsock, |value| value.boolean().map(Some)),
    key!(AGENT, "enable_debug", agent.enable_debug, Value::boolean),
    key!(AGENT, "dial_timeout", agent.dial_timeout, Value::seconds),
    key!(RUNTIME, "enable_debug", runtime.enable_debug, Value::boolean),
    key!(
        RUNTIME,
        "disable_guest_seccomp",
        runtime.disable_guest_seccomp,
        Value::boolean
    ),
    key!(
        RUNTIME,
        "sandbox_cgroup_only",
        runtime.sandbox_cgroup_only,
        Value::boolean
    ),
    key!(
        RUNTIME,
        "static_sandbox_resource_mgmt",
        runtime.static_sandbox_resource_mgmt,
        Value::boolean
    ),
    key!(
        RUNTIME,
        "static_sandbox_default_workload_mem",
        runtime.static_sandbox_default_workload_mem,
        |value| value.number("MiB", 0, u32::MAX)
    ),
    key!(
        RUNTIME,
        "static_sandbox_default_workload_vcpus",
        runtime.static_sandbox_default_workload_vcpus,
        read_workload_vcpus
    ),
    key!(
        RUNTIME,
        "enable_vcpus_pinning",
        runtime.enable_vcpus_pinning,
        Value::boolean
    ),
    key!(
        RUNTIME,
        "internetworking_model",
        runtime.internetworking_model,
        read_internetworking,
        |model: &Internetworking| { Some(Value::from(model.as_str())) }
    ),
    key!(RUNTIME, "disable_new_netns", runtime.disable_new_netns, Value::boolean),
    key!(
        RUNTIME,
        "disable_guest_empty_dir",
        runtime.disable_guest_empty_dir,
        Value::boolean
    ),
    key!(RUNTIME, "experimental", runtime.experimental, Value::texts),
    key!(
        RUNTIME,
        "create_container_timeout",
        runtime.create_container_timeout,
        Value::seconds
    ),
    key!(FACTORY, "enable_template", factory.enable_template, Value::boolean),
    key!(FACTORY, "template_path", factory.template_path, Value::path),
    key!(FACTORY, "vm_cache_number", factory.vm_cache_number, read_cache_number),
    key!(FACTORY, "vm_cache_endpoint", factory.vm_cache_endpoint, Value::path),
];

fn show_words(words: &[String]) -> Option<Value> {
    Some(Value::from(words.join(" ").as_str()))
}

fn show_vcpus(count: &CpuCount) -> Option<Value> {
    Some(show_count(*count, -1))
}

fn show_max_vcpus(count: &CpuCount) -> Option<Value> {
    Some(show_count(*count, 0))
}

fn show_count(count: CpuCount, host: i64) -> Value {
    match count {
        CpuCount::Host => Value::Integer(host),
        CpuCount::Exactly(count) => Value::Integer(count.into()),
    }
}

fn read_words(value: &Value) -> Result<Vec<String>, Allowed> {
    Ok(value.text()?.split_whitespace().map(str::to_owned).collect())
}

fn read_machine_type(value: &Value) -> Result<String, Allowed> {
    match value.text() {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(Allowed("a machine type in quotes, such as \"q35\"".to_owned())),
    }
}

fn read_memory(value: &Value) -> Result<Option<u32>, Allowed> {
    value.number("MiB", LEAST_MEMORY_MIB, u32::MAX).map(Some)
}

/// As Kata: negative is all of the host, 0 is the default, parts of a CPU are rounded up.
fn read_vcpus(value: &Value) -> Result<CpuCount, Allowed> {
    let count = match value {
        Value::Integer(count) => Some(*count as f64),
        Value::Float(count) if count.is_finite() => Some(count.ceil()),
        _ => None,
    };
    match count {
        Some(count) if count < 0.0 => Ok(CpuCount::Host),
        Some(0.0) => Ok(CpuCount::Exactly(1)),
        Some(count) if count <= f64::from(u32::MAX) => Ok(CpuCount::Exactly(count as u32)),
        _ => Err(Allowed("a number of CPUs, or -1 for all of the host".to_owned())),
    }
}

fn read_max_memory(value: &Value) -> Result<Option<u32>, Allowed> {
    match value.number("MiB", 0, u32::MAX) {
        Ok(0) => Ok(None),
        Ok(most) if most >= LEAST_MEMORY_MIB => Ok(Some(most)),
        _ => Err(Allowed(format!(
            "a whole number of MiB, at least {LEAST_MEMORY_MIB}, or 0 for all of the host"
        ))),
    }
}

/// Parts of a CPU are rounded up.
fn read_workload_vcpus(value: &Value) -> Result<u32, Allowed> {
    let whole = match value {
        Value::Float(count) if count.is_finite() => &Value::Integer(count.ceil() as i64),
        other => other,
    };
    whole.number("CPUs", 0, u32::MAX)
}

fn read_expressions(value: &Value) -> Result<Vec<String>, Allowed> {
    let texts = value.texts()?;
    match texts.iter().all(|text| annotation::expression(text).is_ok()) {
        true => Ok(texts),
        false => Err(Allowed("a list of regular expressions in quotes".to_owned())),
    }
}

fn read_patterns(value: &Value) -> Result<Vec<String>, Allowed> {
    let texts = value.texts()?;
    // Kata's files have empty ones, which match nothing.
    match texts.iter().all(|text| text.is_empty() || text.starts_with('/')) {
        true => Ok(texts),
        false => Err(Allowed(
            "a list of absolute paths or patterns of them in quotes".to_owned(),
        )),
    }
}

fn read_max_vcpus(value: &Value) -> Result<CpuCount, Allowed> {
    match value {
        Value::Integer(0) => Ok(CpuCount::Host),
        Value::Integer(count) if (1..=i64::from(u32::MAX)).contains(count) => {
            Ok(CpuCount::Exactly(u32::try_from(*count).unwrap_or(u32::MAX)))
        }
        _ => Err(Allowed("a whole number of CPUs, or 0 for all of the host".to_owned())),
    }
}

fn read_rootfs_type(value: &Value) -> Result<RootfsType, Allowed> {
    let types = [RootfsType::Erofs, RootfsType::Ext4, RootfsType::Xfs];
    value.choice(&types.map(|kind| (kind.as_str(), kind)))
}

fn read_shared_fs(value: &Value) -> Result<Option<SharedFs>, Allowed> {
    let kinds = [SharedFs::VirtioFs, SharedFs::Virtio9p, SharedFs::None];
    value.choice(&kinds.map(|kind| (kind.as_str(), kind))).map(Some)
}

fn read_internetworking(value: &Value) -> Result<Internetworking, Allowed> {
    let models = [
        Internetworking::Tcfilter,
        Internetworking::Macvtap,
        Internetworking::None,
    ];
    value.choice(&models.map(|model| (model.as_str(), model)))
}

/// As many as the kernel gives a tap.
fn read_network_queues(value: &Value) -> Result<Option<u32>, Allowed> {
    value.number("queues", 1, 256).map(Some)
}

fn read_cache(value: &Value) -> Result<VirtioFsCache, Allowed> {
    if *value == Value::from("none") {
        // Kata's old word for it.
        return Ok(VirtioFsCache::Never);
    }
    let caches = [
        VirtioFsCache::Never,
        VirtioFsCache::Metadata,
        VirtioFsCache::Auto,
        VirtioFsCache::Always,
    ];
    value.choice(&caches.map(|cache| (cache.as_str(), cache)))
}

fn read_aio(value: &Value) -> Result<BlockAio, Allowed> {
    let kinds = [BlockAio::Threads, BlockAio::Native, BlockAio::IoUring];
    value.choice(&kinds.map(|kind| (kind.as_str(), kind)))
}

/// Each takes memory all the time.
fn read_cache_number(value: &Value) -> Result<u32, Allowed> {
    value.number("machines", 0, 1000)
}

fn read_queue_size(value: &Value) -> Result<u32, Allowed> {
    match value.number("entries", 2, 1024) {
        Ok(size) if size.is_power_of_two() => Ok(size),
        _ => Err(Allowed("a power of two from 2 to 1024".to_owned())),
    }
}
