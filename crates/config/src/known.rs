//! What Kata Containers has in its configuration and this project does not use yet.
//!
//! Each key stands with Kata's default as TOML writes it: a file that only spells out a default asks for nothing.

use crate::key::{self, AGENT, FACTORY, QEMU, RUNTIME};

/// How a section or key stands with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Used,
    NotYet,
    Unknown,
}

const SECTIONS_NOT_YET: &[&str] = &[
    "hypervisor.clh",
    "hypervisor.cloud-hypervisor",
    "hypervisor.firecracker",
    "hypervisor.acrn",
    "hypervisor.dragonball",
    "hypervisor.stratovirt",
    "hypervisor.remote",
    "hypervisor.qemu.factory",
    "agent.kata.mem_agent",
    "proxy.kata",
    "shim.kata",
    "netmon",
];

/// Keys whose default differs between Kata's versions or builds have a `?`: any value of theirs is reported.
const KEYS_NOT_YET: &[(&str, &[(&str, &str)])] = &[
    (
        QEMU,
        &[
            ("vm_rootfs_driver", "?"),
            ("firmware_volume", "\"\""),
            ("pflashes", "[]"),
            ("kernel_verity_params", "\"\""),
            ("jailer_path", "\"\""),
            ("valid_jailer_paths", "?"),
            ("ctlpath", "?"),
            ("valid_ctlpaths", "?"),
            ("enable_numa", "false"),
            ("numa_mapping", "[]"),
            ("memory_offset", "0"),
            ("enable_mem_prealloc", "false"),
            ("enable_hugepages", "false"),
            ("hugepage_type", "?"),
            ("file_mem_backend", "\"\""),
            ("valid_file_mem_backends", "?"),
            ("enable_swap", "false"),
            ("enable_guest_swap", "false"),
            ("guest_swap_path", "\"/run/kata-containers/swap\""),
            ("guest_swap_size_percent", "100"),
            ("guest_swap_create_threshold_secs", "60"),
            ("overhead_vcpus", "?"),
            ("overhead_memory", "?"),
            ("default_bridges", "1"),
            ("hotplug_vfio_on_root_bus", "false"),
            ("pcie_root_port", "0"),
            ("pcie_switch_port", "0"),
            ("cold_plug_vfio", "\"no-port\""),
            ("hot_plug_vfio", "\"no-port\""),
            ("enable_iommu", "false"),
            ("enable_iommu_platform", "false"),
            ("block_device_driver", "\"virtio-scsi\""),
            ("enable_iothreads", "false"),
            ("queue_size", "?"),
            ("num_queues", "?"),
            ("blk_logical_sector_size", "?"),
            ("blk_physical_sector_size", "?"),
            ("disk_rate_limiter_bw_max_rate", "0"),
            ("disk_rate_limiter_bw_one_time_burst", "0"),
            ("disk_rate_limiter_ops_max_rate", "0"),
            ("disk_rate_limiter_ops_one_time_burst", "0"),
            ("enable_vhost_user_store", "false"),
            ("vhost_user_store_path", "\"/var/run/kata-containers/vhost-user\""),
            ("valid_vhost_user_store_paths", "?"),
            ("vhost_user_reconnect_timeout_sec", "0"),
            ("virtio_fs_cache_size", "0"),
            ("virtio_fs_is_dax", "false"),
            ("prefetch_list_path", "\"\""),
            ("rx_rate_limiter_max_rate", "0"),
            ("tx_rate_limiter_max_rate", "0"),
            ("net_rate_limiter_bw_max_rate", "0"),
            ("net_rate_limiter_bw_one_time_burst", "0"),
            ("net_rate_limiter_ops_max_rate", "0"),
            ("net_rate_limiter_ops_one_time_burst", "0"),
            ("use_legacy_serial", "false"),
            ("hypervisor_loglevel", "1"),
            ("log_level", "\"info\""),
            ("extra_monitor_socket", "\"\""),
            ("disable_nesting_checks", "?"),
            ("guest_memory_dump_path", "\"\""),
            ("guest_memory_dump_paging", "false"),
            ("confidential_guest", "false"),
            ("sev_snp_guest", "false"),
            ("snp_id_block", "\"\""),
            ("snp_id_auth", "\"\""),
            ("tdx_quote_generation_service_socket_port", "4050"),
            ("measurement_algo", "?"),
            ("rootless", "false"),
            ("rootless_user", "?"),
            ("seccomp_sandbox", "\"\""),
            ("disable_seccomp", "false"),
            ("disable_guest_selinux", "true"),
            ("guest_hook_path", "\"\""),
            ("boot_to_be_template", "false"),
            ("boot_from_template", "false"),
            ("memory_path", "\"\""),
            ("device_state_path", "\"\""),
            ("remote_hypervisor_socket", "?"),
            ("remote_hypervisor_timeout", "?"),
        ],
    ),
    (
        AGENT,
        &[
            ("enable_tracing", "false"),
            ("debug_console_enabled", "false"),
            ("kernel_modules", "[]"),
            ("dial_timeout_ms", "?"),
            ("reconnect_timeout_ms", "?"),
            ("cdh_api_timeout", "50"),
            ("cdh_api_timeout_ms", "?"),
            ("create_container_timeout", "?"),
            ("log_level", "\"info\""),
            ("server_port", "1024"),
            ("log_port", "1025"),
            ("passfd_listener_port", "1027"),
            ("health_check_request_timeout_ms", "?"),
            ("request_timeout_ms", "?"),
            ("container_pipe_size", "0"),
            ("policy", "\"\""),
            ("initdata", "\"\""),
            ("trace_mode", "\"dynamic\""),
            ("trace_type", "\"isolated\""),
        ],
    ),
    (
        RUNTIME,
        &[
            ("enable_tracing", "false"),
            ("jaeger_endpoint", "\"\""),
            ("jaeger_user", "\"\""),
            ("jaeger_password", "\"\""),
            ("sandbox_workload_mem_min", "128"),
            ("sandbox_bind_mounts", "[]"),
            ("vfio_mode", "\"guest-kernel\""),
            ("enable_pprof", "false"),
            ("guest_selinux_label", "\"system_u:system_r:container_t\""),
            ("dan_conf", "\"/run/kata-containers/dans\""),
            ("experimental_force_guest_pull", "false"),
            ("kubelet_root_dir", "?"),
            ("pod_resource_api_sock", "\"\""),
            ("enable_agent_pidns", "false"),
            ("name", "\"virt_container\""),
            ("hypervisor_name", "\"qemu\""),
            ("agent_name", "\"kata\""),
            ("log_level", "\"info\""),
            ("keep_abnormal", "false"),
            ("shared_mounts", "[]"),
            ("use_passfd_io", "?"),
            ("passfd_listener_port", "1027"),
        ],
    ),
    (FACTORY, &[]),
];

pub(crate) fn section(name: &str) -> Standing {
    if SECTIONS_NOT_YET.contains(&name) {
        Standing::NotYet
    } else if KEYS_NOT_YET.iter().any(|(section, _)| *section == name) {
        Standing::Used
    } else {
        Standing::Unknown
    }
}

/// Kata's default of a key that is not used yet; `None` if Kata has no such key.
pub(crate) fn default_of(section: &str, name: &str) -> Option<&'static str> {
    keys_of(section)
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, default)| *default)
}

/// A key of the section that differs from `name` by two letters at most.
pub(crate) fn similar(section: &str, name: &str) -> Option<&'static str> {
    let used = key::KEYS
        .iter()
        .filter(|key| key.section == section)
        .map(|key| key.name);
    used.chain(keys_of(section).iter().map(|(key, _)| *key))
        .map(|key| (distance(key, name), key))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, key)| key)
}

fn keys_of(section: &str) -> &'static [(&'static str, &'static str)] {
    KEYS_NOT_YET
        .iter()
        .find(|(name, _)| *name == section)
        .map_or(&[], |(_, keys)| *keys)
}

/// How many letters must be added, removed or replaced to make one word from the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &its) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != its);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
