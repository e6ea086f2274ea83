//! Which cgroups of the host a pod's processes belong in, and what holds there.
//!
//! As Kata: with `sandbox_cgroup_only` all processes are in one cgroup below the pod's; without, only the guest's CPUs are,
//! and everything else is in an overhead cgroup without limits, so that a pod whose overhead nobody has declared is not
//! killed for it. Of a container that is alone, the cgroup is its own, under the very name that its engine looks at.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use kata_bundle::oci::{LinuxResources, Spec};
use kata_bundle::{Bundle, Role};
use kata_config::Config;
use serde::Serialize;

/// Below it, every sandbox has its cgroup for what is not the guest.
const OVERHEAD: &str = "kata_overhead";

/// The kernel's own period, microseconds.
pub(crate) const DEFAULT_PERIOD: u64 = 100_000;

/// What the VMM, the file server and the sandbox process may need beside the guest's memory, MiB. Counts only where all of
/// them share one limit.
const OVERHEAD_MIB: u64 = 192;

/// The cgroups of a pod, relative to the root of each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CgroupPlan {
    /// The pod's.
    pub pod: PathBuf,
    /// What is in it.
    pub split: Split,
}

/// What is in the pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Every process.
    Whole,
    /// The guest.
    Guest {
        /// Where everything else is.
        overhead: PathBuf,
        /// Where the kernel counts memory and I/O for whole processes only, they count for the pod.
        counted: bool,
    },
}

/// What a container says of the host's CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuWish {
    /// Weight among others, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds in a period; negative for no limit.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// CPUs to run on.
    pub cpus: BTreeSet<u32>,
    /// Memory nodes to use.
    pub mems: BTreeSet<u32>,
}

/// What holds in the pod's cgroup. What is absent stays as the engine has made it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostLimits {
    /// Of the guest's CPUs.
    pub cpu: CpuWish,
    /// Of all processes together, bytes.
    pub memory_bytes: Option<u64>,
}

impl CpuWish {
    /// Of one container.
    pub fn of(resources: &LinuxResources) -> Self {
        Self::default().updated(resources)
    }

    /// With what `newer` says in place of what this says; what it does not speak of stays.
    pub fn updated(mut self, newer: &LinuxResources) -> Self {
        let Some(cpu) = newer.cpu() else { return self };
        let given = |value: Option<u64>| value.filter(|value| *value != 0);
        self.shares = given(cpu.shares()).or(self.shares);
        self.quota = cpu.quota().filter(|quota| *quota != 0).or(self.quota);
        self.period = given(cpu.period()).or(self.period);
        if let Some(cpus) = cpu.cpus() {
            self.cpus = numbers(cpus);
        }
        if let Some(mems) = cpu.mems() {
            self.mems = numbers(mems);
        }
        self
    }
}

/// The CPU wish of the container that a specification describes.
pub(crate) fn wish_of(spec: &Spec) -> CpuWish {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map(CpuWish::of).unwrap_or_default()
}

pub(crate) fn decide(id: &str, bundle: &Bundle, config: &Config) -> CgroupPlan {
    let wanted = bundle
        .spec()
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref());
    let own = path(wanted).unwrap_or_else(|| Path::new("kata").join(id));
    let alone = *bundle.role() == Role::Single;
    CgroupPlan {
        pod: match alone {
            true => own,
            false => own.with_file_name(format!("kata_{id}")),
        },
        split: match config.runtime.sandbox_cgroup_only {
            true => Split::Whole,
            false => Split::Guest {
                overhead: Path::new(OVERHEAD).join(id),
                counted: alone,
            },
        },
    }
}

impl CgroupPlan {
    /// What holds in the pod's cgroup of a machine of this size, `own_vcpus` of which are its own, with these containers: how
    /// each asks for CPUs, and whether its memory is limited. Limits of a whole pod are set by its engine, in the cgroup
    /// above; ours are only the CPUs to run on.
    ///
    /// The machine's own CPUs come on top of a quota, as they do in its size: a guest that is held to exactly what its
    /// container may use spins in its kernel while the other CPU is not let run (exec under TCG: 0.2 s, and 9 s).
    pub fn limits<'a>(
        &self,
        alone: bool,
        own_vcpus: u32,
        memory_mib: u32,
        containers: impl IntoIterator<Item = (&'a CpuWish, bool)>,
    ) -> HostLimits {
        let containers: Vec<_> = containers.into_iter().collect();
        if !alone {
            let union = |pick: fn(&CpuWish) -> &BTreeSet<u32>| -> BTreeSet<u32> {
                // One that may run anywhere must not be kept from it.
                match containers.iter().all(|(wish, _)| !pick(wish).is_empty()) {
                    true => containers.iter().flat_map(|(wish, _)| pick(wish)).copied().collect(),
                    false => BTreeSet::new(),
                }
            };
            return HostLimits {
                cpu: CpuWish {
                    cpus: union(|wish| &wish.cpus),
                    mems: union(|wish| &wish.mems),
                    ..CpuWish::default()
                },
                memory_bytes: None,
            };
        }
        let limited = containers.iter().any(|(_, memory_limited)| *memory_limited);
        let mut cpu = containers.first().map(|(wish, _)| (*wish).clone()).unwrap_or_default();
        let own = i64::try_from(u64::from(own_vcpus) * cpu.period.unwrap_or(DEFAULT_PERIOD)).unwrap_or(i64::MAX);
        cpu.quota = cpu
            .quota
            .map(|quota| if quota < 0 { quota } else { quota.saturating_add(own) });
        HostLimits {
            cpu,
            memory_bytes: (self.split == Split::Whole && limited).then(|| (u64::from(memory_mib) + OVERHEAD_MIB) << 20),
        }
    }
}

/// `linux.cgroupsPath` below the root of a hierarchy; `None` if it names nothing there.
///
/// systemd's form `SLICE:PREFIX:NAME` becomes the path that systemd would make of it: `a-b.slice` lies in `a.slice`.
fn path(wanted: Option<&Path>) -> Option<PathBuf> {
    let wanted = wanted?.to_str()?;
    let path = match wanted.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !wanted.contains('/') && !name.is_empty() => {
            let unit = match (prefix, name.ends_with(".slice")) {
                (_, true) => name.to_owned(),
                ("", false) => format!("{name}.scope"),
                (prefix, false) => format!("{prefix}-{name}.scope"),
            };
            slice_path(slice).join(unit)
        }
        _ => PathBuf::from(wanted),
    };
    let inside: PathBuf = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .collect();
    (!inside.as_os_str().is_empty()).then_some(inside)
}

/// `a-b.slice` is `a.slice/a-b.slice`; `-.slice` is the root.
fn slice_path(slice: &str) -> PathBuf {
    let name = match slice {
        "" => "system",
        slice => slice.strip_suffix(".slice").unwrap_or(slice),
    };
    let ends = name.match_indices('-').map(|(index, _)| index).chain([name.len()]);
    ends.map(|end| &name[..end])
        .filter(|name| !name.is_empty())
        .filter(|name| *name != "-")
        .map(|name| format!("{name}.slice"))
        .collect()
}

/// A list such as `0-3,7`; what is none counts for nothing.
fn numbers(list: &str) -> BTreeSet<u32> {
    /// Lists of hosts are shorter; a wrong one must not cost memory.
    const MOST: u32 = 8192;
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
            (last < MOST).then_some(first..=last)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_alone_limits_the_guests_cpus_and_a_pod_only_where_they_run() {
        let wish = CpuWish {
            shares: Some(512),
            quota: Some(50_000),
            period: None,
            cpus: [1, 2].into(),
            mems: BTreeSet::new(),
        };
        let free = CpuWish::default();
        let plan = |split| CgroupPlan { pod: "p".into(), split };
        let whole = plan(Split::Whole);
        let alone = whole.limits(true, 1, 320, [(&wish, true)]);
        assert_eq!((alone.cpu.quota, alone.cpu.shares), (Some(150_000), Some(512)));
        assert_eq!(alone.memory_bytes, Some((320 + OVERHEAD_MIB) << 20));
        assert_eq!(whole.limits(true, 1, 320, [(&wish, false)]).memory_bytes, None);
        let guest = plan(Split::Guest {
            overhead: "o".into(),
            counted: true,
        });
        assert_eq!(guest.limits(true, 1, 320, [(&wish, true)]).memory_bytes, None);

        let pod = whole.limits(false, 1, 320, [(&wish, true), (&wish, true)]);
        let cpus = CpuWish {
            cpus: [1, 2].into(),
            ..CpuWish::default()
        };
        assert_eq!(
            pod,
            HostLimits {
                cpu: cpus,
                memory_bytes: None
            }
        );
        assert_eq!(
            whole.limits(false, 1, 320, [(&wish, true), (&free, true)]),
            HostLimits::default()
        );
    }

    #[test]
    fn paths() {
        for (wanted, expected) in [
            (Some("/docker/c1"), Some("docker/c1")),
            (Some("libpod_parent/libpod-c1"), Some("libpod_parent/libpod-c1")),
            (Some("/a/../../b/./c"), Some("a/b/c")),
            (Some("system.slice:docker:c1"), Some("system.slice/docker-c1.scope")),
            (Some("machine.slice:libpod:c1"), Some("machine.slice/libpod-c1.scope")),
            (
                Some("kubepods-besteffort-pod1_2.slice:cri-containerd:c1"),
                Some(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-c1.scope",
                ),
            ),
            (Some(":x:c1"), Some("system.slice/x-c1.scope")),
            (Some("-.slice::c1"), Some("c1.scope")),
            (Some("a.slice::b.slice"), Some("a.slice/b.slice")),
            (Some("/"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(path(wanted.map(Path::new)), expected.map(PathBuf::from), "{wanted:?}");
        }
    }

    #[test]
    fn lists_of_numbers() {
        for (list, expected) in [
            ("0-2,5", &[0, 1, 2, 5][..]),
            ("", &[]),
            ("3", &[3]),
            ("x,1", &[1]),
            ("0-4294967295", &[]),
            ("2-1", &[]),
        ] {
            assert_eq!(numbers(list).into_iter().collect::<Vec<_>>(), expected, "{list}");
        }
    }
}
