//! OCI resources, which speak cgroup v1, as writes to cgroup v2 files. Pure: what is in the files now is asked of the
//! caller.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// File in the cgroup directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Whether a kernel without this file is good enough.
    pub optional: bool,
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Swap includes memory in OCI, so it cannot be less.
    #[error("linux.resources.memory.swap: {swap} is less than the memory limit {limit}")]
    SwapBelowMemory {
        /// memory and swap, bytes
        swap: i64,
        /// memory, bytes
        limit: i64,
    },
    /// Swap includes memory in OCI, so it means nothing without.
    #[error("linux.resources.memory.swap: {swap} needs a memory limit")]
    SwapWithoutMemory {
        /// memory and swap, bytes
        swap: i64,
    },
    /// Only files of the cgroup itself can be named.
    #[error("linux.resources.unified: {file:?} is not the name of a cgroup file")]
    NotAFile {
        /// The name given.
        file: String,
    },
}

/// The writes that bring `resources` about, in order; absent members change nothing. `now` reads a file of the cgroup.
///
/// # Errors
/// See [`LimitError`].
pub fn writes(resources: &LinuxResources, now: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Write>, LimitError> {
    let mut out = Writes::default();
    if let Some(memory) = resources.memory() {
        out.memory(memory, now)?;
    }
    if let Some(cpu) = resources.cpu() {
        out.cpu(cpu, now);
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit => out.must("pids.max", amount(limit)),
        }
    }
    if let Some(io) = resources.block_io() {
        out.io(io);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        out.must(&format!("hugetlb.{}.max", limit.page_size()), amount(limit.limit()));
        out.may(
            &format!("hugetlb.{}.rsvd.max", limit.page_size()),
            amount(limit.limit()),
        );
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(LimitError::NotAFile { file: file.clone() });
        }
        out.must(file, value.clone());
    }
    Ok(out.0)
}

/// Negative amounts are "no limit" in OCI.
fn amount(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

#[derive(Default)]
struct Writes(Vec<Write>);

impl Writes {
    fn must(&mut self, file: &str, value: String) {
        self.0.push(Write {
            file: file.to_owned(),
            value,
            optional: false,
        });
    }

    fn may(&mut self, file: &str, value: String) {
        self.0.push(Write {
            file: file.to_owned(),
            value,
            optional: true,
        });
    }

    fn memory(&mut self, memory: &LinuxMemory, now: &dyn Fn(&str) -> Option<String>) -> Result<(), LimitError> {
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
            let only_swap = if swap < 0 {
                "max".to_owned()
            } else {
                let beside = limit
                    .or_else(|| now("memory.max")?.trim().parse().ok())
                    .filter(|limit| *limit > 0);
                match beside {
                    None => return Err(LimitError::SwapWithoutMemory { swap }),
                    Some(limit) if swap < limit => return Err(LimitError::SwapBelowMemory { swap, limit }),
                    Some(limit) => (swap - limit).to_string(),
                }
            };
            // A kernel without swap has no such file, and no swap to limit.
            self.may("memory.swap.max", only_swap);
        } else if limit.is_some_and(|limit| limit < 0) {
            self.may("memory.swap.max", "max".to_owned());
        }
        if let Some(limit) = limit {
            self.must("memory.max", amount(limit));
        }
        if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
            self.must("memory.low", amount(reservation));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu, now: &dyn Fn(&str) -> Option<String>) {
        if let Some(idle) = cpu.idle() {
            self.may("cpu.idle", idle.to_string());
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0)
            && cpu.idle() != Some(1)
        {
            self.must("cpu.weight", weight_of_shares(shares).to_string());
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let current = now("cpu.max").unwrap_or_default();
            let mut current = current.split_whitespace();
            let (old_quota, old_period) = (current.next().unwrap_or("max"), current.next().unwrap_or("100000"));
            let quota = quota.map_or_else(|| old_quota.to_owned(), amount);
            let period = period.map_or_else(|| old_period.to_owned(), |period| period.to_string());
            self.must("cpu.max", format!("{quota} {period}"));
        }
        if let Some(burst) = cpu.burst() {
            self.may("cpu.max.burst", burst.to_string());
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                self.must(file, list.clone());
            }
        }
    }

    fn io(&mut self, io: &LinuxBlockIo) {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            // Schedulers differ in which of the two they offer; neither is no reason to fail.
            self.may("io.bfq.weight", weight.to_string());
            self.may("io.weight", weight_of_blkio(weight).to_string());
        }
        for device in io.weight_device().iter().flatten() {
            if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
                self.may(
                    "io.bfq.weight",
                    format!("{}:{} {weight}", device.major(), device.minor()),
                );
            }
        }
        for (key, devices) in [
            ("rbps", io.throttle_read_bps_device()),
            ("wbps", io.throttle_write_bps_device()),
            ("riops", io.throttle_read_iops_device()),
            ("wiops", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                let rate = if device.rate() == 0 {
                    "max".to_owned()
                } else {
                    device.rate().to_string()
                };
                self.must("io.max", format!("{}:{} {key}={rate}", device.major(), device.minor()));
            }
        }
    }
}

/// cpu.shares (2 to 262144) on the scale of cpu.weight (1 to 10000).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// blkio.weight (10 to 1000) on the scale of io.weight (1 to 10000).
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9_999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(json: &str, now: &[(&str, &str)]) -> Result<Vec<String>, LimitError> {
        let resources: LinuxResources = serde_json::from_str(json).expect("resources");
        let now = |file: &str| {
            now.iter()
                .find(|(name, _)| *name == file)
                .map(|(_, value)| value.to_string())
        };
        Ok(writes(&resources, &now)?
            .into_iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect())
    }

    #[test]
    fn resources_become_files() {
        let cases: &[(&str, &[&str])] = &[
            ("{}", &[]),
            (r#"{"memory":{"limit":1048576}}"#, &["memory.max=1048576"]),
            (r#"{"memory":{"limit":-1}}"#, &["memory.swap.max=max", "memory.max=max"]),
            (
                r#"{"memory":{"limit":100,"swap":150}}"#,
                &["memory.swap.max=50", "memory.max=100"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":-1}}"#,
                &["memory.swap.max=max", "memory.max=100"],
            ),
            (r#"{"memory":{"limit":0,"swap":0,"reservation":7}}"#, &["memory.low=7"]),
            (r#"{"cpu":{"shares":1024}}"#, &["cpu.weight=39"]),
            (r#"{"cpu":{"shares":2}}"#, &["cpu.weight=1"]),
            (r#"{"cpu":{"shares":262144}}"#, &["cpu.weight=10000"]),
            (r#"{"cpu":{"quota":50000,"period":100000}}"#, &["cpu.max=50000 100000"]),
            (r#"{"cpu":{"quota":-1}}"#, &["cpu.max=max 100000"]),
            (
                r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#,
                &["cpuset.cpus=0-1", "cpuset.mems=0"],
            ),
            (r#"{"pids":{"limit":10}}"#, &["pids.max=10"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            (
                r#"{"blockIO":{"weight":1000}}"#,
                &["io.bfq.weight=1000", "io.weight=10000"],
            ),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]}}"#,
                &["io.max=8:0 rbps=5"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#,
                &["hugetlb.2MB.max=9", "hugetlb.2MB.rsvd.max=9"],
            ),
            (
                r#"{"unified":{"memory.high":"5","cpu.weight":"7"}}"#,
                &["cpu.weight=7", "memory.high=5"],
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(convert(json, &[]).expect(json), *expected, "{json}");
        }
    }

    #[test]
    fn an_update_of_one_half_keeps_the_other() {
        let now = [("cpu.max", "50000 200000\n"), ("memory.max", "100\n")];
        assert_eq!(
            convert(r#"{"cpu":{"quota":70000}}"#, &now).expect("quota"),
            ["cpu.max=70000 200000"]
        );
        assert_eq!(
            convert(r#"{"cpu":{"period":100000}}"#, &now).expect("period"),
            ["cpu.max=50000 100000"]
        );
        assert_eq!(
            convert(r#"{"memory":{"swap":130}}"#, &now).expect("swap"),
            ["memory.swap.max=30"]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(
            convert(r#"{"memory":{"limit":100,"swap":50}}"#, &[]),
            Err(LimitError::SwapBelowMemory { swap: 50, limit: 100 })
        ));
        assert!(matches!(
            convert(r#"{"memory":{"swap":50}}"#, &[]),
            Err(LimitError::SwapWithoutMemory { .. })
        ));
        for file in ["../x.y", "a/b.c", "plain", ".hidden.x"] {
            let json = format!(r#"{{"unified":{{"{file}":"1"}}}}"#);
            assert!(
                matches!(convert(&json, &[]), Err(LimitError::NotAFile { .. })),
                "{file}"
            );
        }
    }
}
