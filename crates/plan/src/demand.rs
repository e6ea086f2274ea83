//! What containers may use, as far as the size of their machine depends on it.

use kata_bundle::oci::{LinuxResources, Spec};
use kata_bundle::{Bundle, Role};
use serde::Serialize;
use serde_json::Value;

use crate::PlanError;
use crate::cgroup::DEFAULT_PERIOD;

/// As containerd says it of a whole pod.
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// As CRI-O says it, now and formerly: resources as JSON.
const RESOURCES: [&str; 2] = ["pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources"];

/// Limits from here on are other words for none, bytes.
const ENDLESS: u64 = 1 << 60;

/// CPU time and memory that containers may use; 0 of what has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// MiB, without huge pages.
    pub memory_mib: u64,
    /// Huge pages, MiB: the guest sets them aside.
    pub huge_pages_mib: u64,
}

impl Demand {
    /// Of one container.
    pub fn of(resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let huge = resources.hugepage_limits().iter().flatten();
        let huge = huge.map(|limit| mib(Some(limit.limit())));
        Self {
            huge_pages_mib: huge.fold(0, u64::saturating_add),
            ..Self::new(
                cpu.and_then(|cpu| cpu.quota()),
                cpu.and_then(|cpu| cpu.period()),
                resources.memory().as_ref().and_then(|memory| memory.limit()),
            )
        }
    }

    /// With what `newer` says in place of what this says; what it does not speak of stays.
    pub fn updated(self, newer: &LinuxResources) -> Self {
        let changed = Self::of(newer);
        let speaks_of_cpu = newer.cpu().as_ref().is_some_and(|cpu| cpu.quota().is_some());
        let speaks_of_memory = newer.memory().as_ref().is_some_and(|memory| memory.limit().is_some());
        Self {
            cpu_millis: if speaks_of_cpu {
                changed.cpu_millis
            } else {
                self.cpu_millis
            },
            memory_mib: if speaks_of_memory {
                changed.memory_mib
            } else {
                self.memory_mib
            },
            // They are settled when the container is made.
            huge_pages_mib: self.huge_pages_mib,
        }
    }

    /// Of several containers together.
    pub fn sum(demands: impl IntoIterator<Item = Self>) -> Self {
        demands.into_iter().fold(Self::default(), |sum, one| Self {
            cpu_millis: sum.cpu_millis.saturating_add(one.cpu_millis),
            memory_mib: sum.memory_mib.saturating_add(one.memory_mib),
            huge_pages_mib: sum.huge_pages_mib.saturating_add(one.huge_pages_mib),
        })
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_mib: self.memory_mib.max(other.memory_mib),
            huge_pages_mib: self.huge_pages_mib.max(other.huge_pages_mib),
        }
    }

    /// Whole CPUs.
    pub(crate) fn vcpus(self) -> u64 {
        self.cpu_millis.div_ceil(1000)
    }

    fn new(quota: Option<i64>, period: Option<u64>, memory: Option<i64>) -> Self {
        let period = period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD);
        Self {
            cpu_millis: positive(quota).saturating_mul(1000).div_ceil(period),
            memory_mib: mib(memory),
            huge_pages_mib: 0,
        }
    }
}

/// Of a container that is alone, or of all of a pod's, as far as its engine tells it beforehand.
///
/// # Errors
/// [`PlanError::Annotation`] for an annotation that is no number where one has to be.
pub(crate) fn at_boot(bundle: &Bundle) -> Result<Demand, PlanError> {
    let spec = bundle.spec();
    let own = of_spec(spec);
    match bundle.role() {
        Role::Single => Ok(own),
        Role::Pod | Role::Member { .. } => Ok(of_pod(bundle)?.max(own)),
    }
}

/// Of the container that a specification describes.
pub(crate) fn of_spec(spec: &Spec) -> Demand {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map(Demand::of).unwrap_or_default()
}

fn of_pod(bundle: &Bundle) -> Result<Demand, PlanError> {
    let annotation = |name| bundle.annotations().find(|(key, _)| *key == name).map(|(_, text)| text);
    for name in RESOURCES {
        if let Some(text) = annotation(name) {
            let json: Value = serde_json::from_str(text).map_err(|_| wrong(name, text))?;
            // CRI's own names, or those of the OCI specification.
            let find = |flat: &str, group: &str, member: &str| json.get(flat).or_else(|| json.get(group)?.get(member));
            return Ok(Demand::new(
                find("cpu_quota", "cpu", "quota").and_then(Value::as_i64),
                find("cpu_period", "cpu", "period").and_then(Value::as_u64),
                find("memory_limit_in_bytes", "memory", "limit").and_then(Value::as_i64),
            ));
        }
    }
    let number = |name| {
        let text = annotation(name).filter(|text| !text.is_empty());
        text.map(|text| text.parse::<i64>().map_err(|_| wrong(name, text)))
            .transpose()
    };
    let period = number(CPU_PERIOD)?.and_then(|period| u64::try_from(period).ok());
    Ok(Demand::new(number(CPU_QUOTA)?, period, number(MEMORY)?))
}

fn positive(value: Option<i64>) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

/// A limit in bytes as MiB; 0 for none.
fn mib(limit: Option<i64>) -> u64 {
    match positive(limit) {
        ENDLESS.. => 0,
        bytes => bytes.div_ceil(1 << 20),
    }
}

fn wrong(name: &str, text: &str) -> PlanError {
    PlanError::Annotation {
        name: name.to_owned(),
        found: text.to_owned(),
    }
}
