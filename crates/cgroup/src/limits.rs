//! Limits as writes to the files of a hierarchy. Pure.

use kata_plan::HostLimits;

use crate::Hierarchy;

/// The writes that bring the limits about in a cgroup of this hierarchy, in order.
pub(crate) fn writes(limits: &HostLimits, hierarchy: &Hierarchy) -> Vec<(&'static str, String)> {
    let mut writes = Vec::new();
    let HostLimits { cpu, memory_bytes } = limits;
    let list = |numbers: &std::collections::BTreeSet<u32>| {
        let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
        words.join(",")
    };
    if hierarchy.has(&["cpuset"]) {
        for (file, numbers) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if !numbers.is_empty() {
                writes.push((file, list(numbers)));
            }
        }
    }
    if hierarchy.has(&["cpu"]) {
        let period = cpu.period.unwrap_or(100_000);
        match (hierarchy.unified, cpu.shares) {
            (false, Some(shares)) => writes.push(("cpu.shares", shares.to_string())),
            (true, Some(shares)) => writes.push(("cpu.weight", weight_of_shares(shares).to_string())),
            (_, None) => {}
        }
        match (hierarchy.unified, cpu.quota) {
            (false, Some(quota)) => {
                writes.push(("cpu.cfs_period_us", period.to_string()));
                writes.push(("cpu.cfs_quota_us", quota.max(-1).to_string()));
            }
            (true, Some(quota)) if quota < 0 => writes.push(("cpu.max", format!("max {period}"))),
            (true, Some(quota)) => writes.push(("cpu.max", format!("{quota} {period}"))),
            (_, None) => {}
        }
    }
    if let Some(bytes) = memory_bytes.filter(|_| hierarchy.has(&["memory"])) {
        let file = if hierarchy.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        writes.push((file, bytes.to_string()));
    }
    writes
}

/// cpu.shares (2 to 262144) on the scale of cpu.weight (1 to 10000).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_plan::CpuWish;

    fn told(limits: &HostLimits, controllers: &[&str], unified: bool) -> Vec<String> {
        let hierarchy = Hierarchy {
            root: "/".into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            unified,
            own: "".into(),
        };
        let writes = writes(limits, &hierarchy);
        writes
            .into_iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect()
    }

    #[test]
    fn each_hierarchy_gets_what_it_knows_in_its_own_words() {
        let limits = HostLimits {
            cpu: CpuWish {
                shares: Some(512),
                quota: Some(50_000),
                period: None,
                cpus: [0, 2].into(),
                mems: [0].into(),
            },
            memory_bytes: Some(4096),
        };
        assert_eq!(
            told(&limits, &["cpu", "cpuacct"], false),
            ["cpu.shares=512", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"]
        );
        assert_eq!(told(&limits, &["cpuset"], false), ["cpuset.cpus=0,2", "cpuset.mems=0"]);
        assert_eq!(told(&limits, &["memory"], false), ["memory.limit_in_bytes=4096"]);
        assert_eq!(
            told(&limits, &["cpuset", "cpu", "memory"], true),
            [
                "cpuset.cpus=0,2",
                "cpuset.mems=0",
                "cpu.weight=20",
                "cpu.max=50000 100000",
                "memory.max=4096"
            ]
        );
        assert!(told(&HostLimits::default(), &["cpuset", "cpu", "memory"], true).is_empty());
        let free = HostLimits {
            cpu: CpuWish {
                quota: Some(-7),
                ..CpuWish::default()
            },
            memory_bytes: None,
        };
        assert_eq!(
            told(&free, &["cpu"], false),
            ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=-1"]
        );
        assert_eq!(told(&free, &["cpu"], true), ["cpu.max=max 100000"]);
    }
}
