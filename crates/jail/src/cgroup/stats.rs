//! Reads the numbers of a cgroup. Parsing is pure; files that a kernel does not have count as zero.

use std::collections::HashMap;
use std::path::Path;

/// What a cgroup has used and may use. Names and units are those of cgroup v2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines of cpu.stat, microseconds and counts.
    pub cpu: HashMap<String, u64>,
    /// Bytes in use.
    pub memory_bytes: u64,
    /// Bytes allowed; `u64::MAX` for no limit.
    pub memory_limit_bytes: u64,
    /// Most bytes ever in use.
    pub memory_peak_bytes: u64,
    /// Bytes of swap in use.
    pub swap_bytes: u64,
    /// Bytes of swap allowed; `u64::MAX` for no limit.
    pub swap_limit_bytes: u64,
    /// Lines of memory.stat.
    pub memory: HashMap<String, u64>,
    /// Lines of memory.events.
    pub memory_events: HashMap<String, u64>,
    /// Tasks.
    pub pids: u64,
    /// Tasks allowed; `u64::MAX` for no limit.
    pub pids_limit: u64,
    /// One for each device used.
    pub io: Vec<DeviceIo>,
}

/// What was read from and written to one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `rbytes`, `wbytes`, `rios`, `wios` …
    pub values: HashMap<String, u64>,
}

impl Stats {
    /// Reads the cgroup at `directory`.
    pub fn read(directory: &Path) -> Self {
        let text = |file: &str| std::fs::read_to_string(directory.join(file)).unwrap_or_default();
        let limit = |file: &str| match text(file).trim() {
            "" | "max" => u64::MAX,
            number => number.parse().unwrap_or(u64::MAX),
        };
        let amount = |file: &str| text(file).trim().parse().unwrap_or(0);
        Self {
            cpu: flat(&text("cpu.stat")),
            memory_bytes: amount("memory.current"),
            memory_limit_bytes: limit("memory.max"),
            memory_peak_bytes: amount("memory.peak"),
            swap_bytes: amount("memory.swap.current"),
            swap_limit_bytes: limit("memory.swap.max"),
            memory: flat(&text("memory.stat")),
            memory_events: flat(&text("memory.events")),
            pids: amount("pids.current"),
            pids_limit: limit("pids.max"),
            io: devices(&text("io.stat")),
        }
    }
}

/// `key value` lines.
pub fn flat(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// `major:minor key=value …` lines.
fn devices(text: &str) -> Vec<DeviceIo> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let values = words
                .filter_map(|word| {
                    let (key, value) = word.split_once('=')?;
                    Some((key.to_owned(), value.parse().ok()?))
                })
                .collect();
            Some(DeviceIo {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                values,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_files_and_device_lines() {
        let events = flat("low 0\noom_kill 2\nodd\nworse x\n");
        assert_eq!(events.len(), 2);
        assert_eq!(events["oom_kill"], 2);
        let io = devices("8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353\n253:0\nnonsense\n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor, io[0].values["wios"]), (8, 16, 353));
        assert!(io[1].values.is_empty());
    }

    #[test]
    fn what_is_not_there_is_zero_or_unlimited() {
        let stats = Stats::read(Path::new("/nonexistent"));
        assert_eq!(
            (stats.memory_bytes, stats.memory_limit_bytes, stats.pids_limit),
            (0, u64::MAX, u64::MAX)
        );
    }
}
