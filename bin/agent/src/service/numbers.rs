//! What a container does and uses: its processes, and its cgroup's numbers.

use std::collections::HashMap;
use std::time::Duration;

use kata_jail::cgroup::stats::{DeviceIo, Stats};
use kata_jail::processes::Entry;
use kata_wire::proto::{InterfaceStat, IoStat, ProcessInfo, ProcessesResponse, StatsResponse};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::container::made;
use super::refusal::Refusal;
use crate::clock;
use crate::pod::Pod;

/// The processes of a container.
///
/// # Errors
/// [`Refusal::NotFound`].
pub fn processes(pod: &Pod, id: &str) -> Result<ProcessesResponse, Refusal> {
    let (pids, execs) = pod.with(|state| {
        let container = made(state.containers.get_mut(id), id)?;
        let execs: HashMap<u32, String> = container
            .execs
            .iter()
            .filter_map(|(exec, process)| Some((process.as_ref()?.pid, exec.clone())))
            .collect();
        Ok::<_, Refusal>((container.jail.cgroup().pids(), execs))
    })?;
    let units = Units::now();
    let processes = pids
        .into_iter()
        .filter_map(Entry::read)
        .map(|entry| {
            let exec = execs.get(&entry.pid).cloned().unwrap_or_default();
            units.describe(entry, exec)
        })
        .collect();
    Ok(ProcessesResponse {
        processes,
        ..Default::default()
    })
}

/// What the kernel counts in.
#[derive(Clone, Copy, Debug)]
struct Units {
    ticks_per_second: u64,
    page_kib: u64,
    booted_unix_secs: u64,
}

impl Units {
    fn now() -> Self {
        let ask = |what, usual| {
            sysconf(what)
                .ok()
                .flatten()
                .and_then(|value| u64::try_from(value).ok())
                .unwrap_or(usual)
        };
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map(Duration::from)
            .unwrap_or_default();
        let booted = Duration::from_nanos(clock::unix_nanos()).saturating_sub(since_boot);
        Self {
            ticks_per_second: ask(SysconfVar::CLK_TCK, 100).max(1),
            page_kib: ask(SysconfVar::PAGE_SIZE, 4096) / 1024,
            booted_unix_secs: booted.as_secs(),
        }
    }

    fn describe(self, entry: Entry, exec_id: String) -> ProcessInfo {
        ProcessInfo {
            pid: entry.pid,
            ppid: entry.ppid,
            uid: entry.uid,
            state: entry.state,
            terminal: entry.terminal,
            started_unix_secs: self.booted_unix_secs + entry.started_ticks / self.ticks_per_second,
            cpu_msecs: entry.cpu_ticks.saturating_mul(1000) / self.ticks_per_second,
            rss_kib: entry.rss_pages.saturating_mul(self.page_kib),
            virtual_kib: entry.virtual_bytes / 1024,
            command: entry.command,
            arguments: entry.arguments,
            exec_id,
            ..Default::default()
        }
    }
}

/// The numbers of a container's cgroup, and those of the pod's interfaces.
///
/// # Errors
/// [`Refusal::NotFound`].
pub fn stats(pod: &Pod, id: &str) -> Result<StatsResponse, Refusal> {
    let stats = pod.with(|state| Ok::<_, Refusal>(made(state.containers.get_mut(id), id)?.jail.cgroup().stats()))?;
    let links = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    Ok(StatsResponse {
        interfaces: interfaces(&links),
        ..answer(stats)
    })
}

fn answer(stats: Stats) -> StatsResponse {
    let cpu = |key: &str| stats.cpu.get(key).copied().unwrap_or(0);
    let event = |key: &str| stats.memory_events.get(key).copied().unwrap_or(0);
    StatsResponse {
        cpu_usage_usecs: cpu("usage_usec"),
        cpu_user_usecs: cpu("user_usec"),
        cpu_system_usecs: cpu("system_usec"),
        cpu_periods: cpu("nr_periods"),
        cpu_throttled_periods: cpu("nr_throttled"),
        cpu_throttled_usecs: cpu("throttled_usec"),
        memory_bytes: stats.memory_bytes,
        memory_limit_bytes: stats.memory_limit_bytes,
        memory_peak_bytes: stats.memory_peak_bytes,
        swap_bytes: stats.swap_bytes,
        swap_limit_bytes: stats.swap_limit_bytes,
        memory_oom_events: event("oom"),
        memory_oom_kills: event("oom_kill"),
        memory_max_events: event("max"),
        pids: stats.pids,
        pids_limit: if stats.pids_limit == u64::MAX {
            0
        } else {
            stats.pids_limit
        },
        io: stats.io.iter().map(device).collect(),
        memory_stat: stats.memory,
        ..Default::default()
    }
}

fn device(device: &DeviceIo) -> IoStat {
    let value = |key: &str| device.values.get(key).copied().unwrap_or(0);
    IoStat {
        major: device.major,
        minor: device.minor,
        read_bytes: value("rbytes"),
        write_bytes: value("wbytes"),
        reads: value("rios"),
        writes: value("wios"),
        ..Default::default()
    }
}

/// Reads `/proc/net/dev`: two lines of headings, then `NAME: eight numbers received, eight sent`.
fn interfaces(text: &str) -> Vec<InterfaceStat> {
    let read = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers[..]
        else {
            return None;
        };
        Some(InterfaceStat {
            name: name.trim().to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..Default::default()
        })
    };
    text.lines()
        .skip(2)
        .filter_map(read)
        .filter(|interface| interface.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_told_without_loopback() {
        let text = "Inter-|   Receive                |  Transmit\n \
                    face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    \
                    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
                    eth0: 5000      40    1    2    0     0          0         0     7000      50    3    4    0     0       0          0\n \
                    odd: 1 2\n";
        let told = interfaces(text);
        let [eth0] = &told[..] else { panic!("{told:?}") };
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_packets), ("eth0", 5000, 40));
        assert_eq!((eth0.rx_errors, eth0.rx_dropped), (1, 2));
        assert_eq!(
            (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped),
            (7000, 50, 3, 4)
        );
    }

    #[test]
    fn limits_and_units_are_those_of_the_wire() {
        let stats = Stats {
            pids_limit: u64::MAX,
            memory_limit_bytes: u64::MAX,
            ..Stats::default()
        };
        let told = answer(stats);
        assert_eq!((told.pids_limit, told.memory_limit_bytes), (0, u64::MAX));
        let units = Units {
            ticks_per_second: 100,
            page_kib: 4,
            booted_unix_secs: 1000,
        };
        let entry = Entry {
            started_ticks: 250,
            cpu_ticks: 7,
            rss_pages: 3,
            virtual_bytes: 8192,
            ..Entry::default()
        };
        let told = units.describe(entry, "e1".into());
        assert_eq!(
            (told.started_unix_secs, told.cpu_msecs, told.rss_kib, told.virtual_kib),
            (1002, 70, 12, 8)
        );
    }
}
