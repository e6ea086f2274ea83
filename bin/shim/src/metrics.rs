//! What a container has used, in the messages that containerd's clients know: those of cgroup v1 or v2, whichever the host
//! has. The numbers come from the guest's cgroup v2.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use kata_wire::proto::{InterfaceStat, StatsResponse};

/// Which messages the host's clients expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `io.containerd.cgroups.v1.Metrics`
    V1,
    /// `io.containerd.cgroups.v2.Metrics`
    V2,
}

impl Version {
    /// What this host uses.
    pub fn of_host() -> Self {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            Self::V2
        } else {
            Self::V1
        }
    }
}

/// Encodes `stats`.
pub fn encode(stats: &StatsResponse, version: Version) -> Any {
    let (type_url, value) = match version {
        Version::V1 => ("io.containerd.cgroups.v1.Metrics", to_v1(stats).write_to_bytes()),
        Version::V2 => ("io.containerd.cgroups.v2.Metrics", to_v2(stats).write_to_bytes()),
    };
    Any {
        type_url: type_url.to_owned(),
        // Fails only for messages with missing required fields, which proto3 does not have.
        value: value.unwrap_or_default(),
        ..Default::default()
    }
}

fn line(stats: &StatsResponse, name: &str) -> u64 {
    stats.memory_stat.get(name).copied().unwrap_or(0)
}

/// Adds what one container has used to the sum of several.
pub fn add(sum: &mut StatsResponse, stats: &StatsResponse) {
    let both = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    both(&mut sum.cpu_usage_usecs, stats.cpu_usage_usecs);
    both(&mut sum.cpu_user_usecs, stats.cpu_user_usecs);
    both(&mut sum.cpu_system_usecs, stats.cpu_system_usecs);
    both(&mut sum.cpu_periods, stats.cpu_periods);
    both(&mut sum.cpu_throttled_periods, stats.cpu_throttled_periods);
    both(&mut sum.cpu_throttled_usecs, stats.cpu_throttled_usecs);
    both(&mut sum.memory_bytes, stats.memory_bytes);
    both(&mut sum.memory_limit_bytes, stats.memory_limit_bytes);
    both(&mut sum.swap_bytes, stats.swap_bytes);
    both(&mut sum.memory_oom_events, stats.memory_oom_events);
    both(&mut sum.memory_oom_kills, stats.memory_oom_kills);
    both(&mut sum.pids, stats.pids);
    for (name, value) in &stats.memory_stat {
        both(sum.memory_stat.entry(name.clone()).or_default(), *value);
    }
    sum.io.extend(stats.io.iter().cloned());
}

const NANOS_PER_MICRO: u64 = 1000;

fn to_v1(stats: &StatsResponse) -> v1::Metrics {
    let cpu = v1::CPUStat {
        usage: MessageField::some(v1::CPUUsage {
            total: stats.cpu_usage_usecs.saturating_mul(NANOS_PER_MICRO),
            kernel: stats.cpu_system_usecs.saturating_mul(NANOS_PER_MICRO),
            user: stats.cpu_user_usecs.saturating_mul(NANOS_PER_MICRO),
            ..Default::default()
        }),
        throttling: MessageField::some(v1::Throttle {
            periods: stats.cpu_periods,
            throttled_periods: stats.cpu_throttled_periods,
            throttled_time: stats.cpu_throttled_usecs.saturating_mul(NANOS_PER_MICRO),
            ..Default::default()
        }),
        ..Default::default()
    };
    let (anon, file) = (line(stats, "anon"), line(stats, "file"));
    let memory = v1::MemoryStat {
        cache: file,
        rss: anon,
        rss_huge: line(stats, "anon_thp"),
        mapped_file: line(stats, "file_mapped"),
        dirty: line(stats, "file_dirty"),
        writeback: line(stats, "file_writeback"),
        pg_fault: line(stats, "pgfault"),
        pg_maj_fault: line(stats, "pgmajfault"),
        inactive_anon: line(stats, "inactive_anon"),
        active_anon: line(stats, "active_anon"),
        inactive_file: line(stats, "inactive_file"),
        active_file: line(stats, "active_file"),
        unevictable: line(stats, "unevictable"),
        hierarchical_memory_limit: stats.memory_limit_bytes,
        total_cache: file,
        total_rss: anon,
        total_inactive_anon: line(stats, "inactive_anon"),
        total_active_anon: line(stats, "active_anon"),
        total_inactive_file: line(stats, "inactive_file"),
        total_active_file: line(stats, "active_file"),
        usage: MessageField::some(v1::MemoryEntry {
            limit: stats.memory_limit_bytes,
            usage: stats.memory_bytes,
            max: stats.memory_peak_bytes,
            failcnt: stats.memory_max_events,
            ..Default::default()
        }),
        swap: MessageField::some(v1::MemoryEntry {
            limit: stats.swap_limit_bytes,
            usage: stats.swap_bytes,
            ..Default::default()
        }),
        kernel: MessageField::some(v1::MemoryEntry {
            usage: line(stats, "kernel"),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut blkio = v1::BlkIOStat::new();
    for io in &stats.io {
        let entry = |op: &str, value| v1::BlkIOEntry {
            op: op.to_owned(),
            major: io.major,
            minor: io.minor,
            value,
            ..Default::default()
        };
        blkio.io_service_bytes_recursive.push(entry("Read", io.read_bytes));
        blkio.io_service_bytes_recursive.push(entry("Write", io.write_bytes));
        blkio.io_serviced_recursive.push(entry("Read", io.reads));
        blkio.io_serviced_recursive.push(entry("Write", io.writes));
    }
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        blkio: MessageField::some(blkio),
        network: stats.interfaces.iter().map(network).collect(),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: stats.memory_oom_kills,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn network(interface: &InterfaceStat) -> v1::NetworkStat {
    v1::NetworkStat {
        name: interface.name.clone(),
        rx_bytes: interface.rx_bytes,
        rx_packets: interface.rx_packets,
        rx_errors: interface.rx_errors,
        rx_dropped: interface.rx_dropped,
        tx_bytes: interface.tx_bytes,
        tx_packets: interface.tx_packets,
        tx_errors: interface.tx_errors,
        tx_dropped: interface.tx_dropped,
        ..Default::default()
    }
}

fn to_v2(stats: &StatsResponse) -> v2::Metrics {
    let memory = v2::MemoryStat {
        anon: line(stats, "anon"),
        file: line(stats, "file"),
        kernel_stack: line(stats, "kernel_stack"),
        slab: line(stats, "slab"),
        sock: line(stats, "sock"),
        shmem: line(stats, "shmem"),
        file_mapped: line(stats, "file_mapped"),
        file_dirty: line(stats, "file_dirty"),
        file_writeback: line(stats, "file_writeback"),
        anon_thp: line(stats, "anon_thp"),
        inactive_anon: line(stats, "inactive_anon"),
        active_anon: line(stats, "active_anon"),
        inactive_file: line(stats, "inactive_file"),
        active_file: line(stats, "active_file"),
        unevictable: line(stats, "unevictable"),
        slab_reclaimable: line(stats, "slab_reclaimable"),
        slab_unreclaimable: line(stats, "slab_unreclaimable"),
        pgfault: line(stats, "pgfault"),
        pgmajfault: line(stats, "pgmajfault"),
        usage: stats.memory_bytes,
        usage_limit: stats.memory_limit_bytes,
        swap_usage: stats.swap_bytes,
        swap_limit: stats.swap_limit_bytes,
        ..Default::default()
    };
    let mut io = v2::IOStat::new();
    for device in &stats.io {
        io.usage.push(v2::IOEntry {
            major: device.major,
            minor: device.minor,
            rbytes: device.read_bytes,
            wbytes: device.write_bytes,
            rios: device.reads,
            wios: device.writes,
            ..Default::default()
        });
    }
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: stats.cpu_usage_usecs,
            user_usec: stats.cpu_user_usecs,
            system_usec: stats.cpu_system_usecs,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_usecs,
            ..Default::default()
        }),
        memory: MessageField::some(memory),
        io: MessageField::some(io),
        memory_events: MessageField::some(v2::MemoryEvents {
            max: stats.memory_max_events,
            oom: stats.memory_oom_events,
            oom_kill: stats.memory_oom_kills,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_reach_both_kinds_of_client() {
        let mut stats = StatsResponse {
            cpu_usage_usecs: 5,
            memory_bytes: 4096,
            memory_limit_bytes: u64::MAX,
            pids: 3,
            ..Default::default()
        };
        stats.memory_stat.insert("anon".into(), 1024);
        stats.interfaces.push(InterfaceStat {
            name: "eth0".into(),
            rx_bytes: 7,
            ..Default::default()
        });
        let one = encode(&stats, Version::V1);
        let metrics = v1::Metrics::parse_from_bytes(&one.value).expect("v1");
        assert_eq!(one.type_url, "io.containerd.cgroups.v1.Metrics");
        assert_eq!(metrics.cpu.usage.total, 5000, "nanoseconds");
        assert_eq!(
            (metrics.memory.usage.usage, metrics.memory.rss, metrics.pids.current),
            (4096, 1024, 3)
        );
        let network: Vec<(&str, u64)> = metrics
            .network
            .iter()
            .map(|one| (one.name.as_str(), one.rx_bytes))
            .collect();
        assert_eq!(network, [("eth0", 7)]);
        let two = encode(&stats, Version::V2);
        let metrics = v2::Metrics::parse_from_bytes(&two.value).expect("v2");
        assert_eq!(
            (metrics.cpu.usage_usec, metrics.memory.usage, metrics.memory.anon),
            (5, 4096, 1024)
        );
    }
}
