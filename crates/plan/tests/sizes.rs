//! How large machines are: from what containers may use, and from what engines say of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use kata_config::{Config, CpuCount, SharedFs};
use kata_machine::{Accelerator, Device, Growth, MemoryGrowth, Size};
use kata_plan::{Demand, Facts, PlanError, PodPlan};
use serde_json::{Value, json};

fn plan(spec: &Value, config: &Config) -> Result<PodPlan, PlanError> {
    kata_plan::pod("p1", &support::bundle(spec), config, &support::facts())
}

fn configured(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

fn alone(resources: Value) -> Value {
    let mut spec = support::small_spec();
    spec["linux"]["resources"] = resources;
    spec
}

fn pod(annotations: Value) -> Value {
    let mut spec = support::small_spec();
    spec["annotations"] = annotations;
    spec["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
    spec
}

/// What the machine has when its first container begins.
fn size(spec: &Value, config: &Config) -> (u32, u32) {
    let plan = plan(spec, config).unwrap();
    let container = kata_plan::container("p1", &support::bundle(spec), config, &support::facts()).unwrap();
    let size = match plan.sizing.fixed {
        Some(_) => plan.sizing.boot,
        None => plan.sizing.size([container.demand]),
    };
    assert_eq!(plan.machine.memory_mib, size.memory_mib);
    (size.vcpus, size.memory_mib)
}

fn demand(cpu_millis: u64, memory_mib: u64) -> Demand {
    Demand {
        cpu_millis,
        memory_mib,
        ..Demand::default()
    }
}

const MIB: i64 = 1 << 20;

#[test]
fn a_container_alone_has_its_limits_on_top() {
    // The test's host has 4 CPUs and 8192 MiB; without KVM a machine has 1 and 256 of its own.
    for (resources, wanted) in [
        (json!({}), (1, 256)),
        (json!({"memory": {"limit": 64 * MIB}}), (1, 320)),
        (json!({"memory": {"limit": MIB + 1}}), (1, 258)),
        (json!({"memory": {"limit": -1}}), (1, 256)),
        (json!({"memory": {"limit": 9_223_372_036_854_771_712_i64}}), (1, 256)),
        (json!({"memory": {"limit": 64_i64 << 30}}), (1, 8192)),
        (json!({"cpu": {"quota": 50_000, "period": 100_000}}), (2, 256)),
        (json!({"cpu": {"quota": 200_000}}), (3, 256)),
        (json!({"cpu": {"quota": 150_000, "period": 50_000}}), (4, 256)),
        (json!({"cpu": {"quota": 99_000_000, "period": 100_000}}), (4, 256)),
        (json!({"cpu": {"quota": -1, "period": 100_000}}), (1, 256)),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 16 * MIB}, {"pageSize": "1GB", "limit": 0}]}),
            (1, 272),
        ),
        // Neither a share of time nor a choice of CPUs is a number of CPUs.
        (json!({"cpu": {"shares": 4096, "cpus": "0-3"}}), (1, 256)),
    ] {
        assert_eq!(
            size(&alone(resources.clone()), &Config::default()),
            wanted,
            "{resources}"
        );
    }
}

#[test]
fn of_a_pod_the_engine_tells_the_sum_beforehand() {
    let crio = |text: Value| json!({"pod-linux-resources.crio.io": text.to_string()});
    for (annotations, wanted) in [
        (json!({}), (1, 256)),
        (
            json!({
                "io.kubernetes.cri.sandbox-cpu-quota": "150000",
                "io.kubernetes.cri.sandbox-cpu-period": "100000",
                "io.kubernetes.cri.sandbox-cpu-shares": "1536",
                "io.kubernetes.cri.sandbox-memory": "209715200",
            }),
            (3, 456),
        ),
        (
            json!({
                "io.kubernetes.cri.sandbox-cpu-quota": "0",
                "io.kubernetes.cri.sandbox-cpu-period": "100000",
                "io.kubernetes.cri.sandbox-memory": "0",
            }),
            (1, 256),
        ),
        (
            crio(json!({"cpu_quota": 50000, "cpu_period": 100000, "memory_limit_in_bytes": 64 * MIB})),
            (2, 320),
        ),
        (
            crio(json!({"cpu": {"quota": 50000, "period": 100000}, "memory": {"limit": 64 * MIB}})),
            (2, 320),
        ),
        (
            json!({"io.kubernetes.cri-o.PodLinuxResources": "{\"cpu_quota\": 100000}"}),
            (2, 256),
        ),
    ] {
        assert_eq!(
            size(&pod(annotations.clone()), &Config::default()),
            wanted,
            "{annotations}"
        );
    }
    for (name, text) in [
        ("io.kubernetes.cri.sandbox-memory", "much"),
        ("pod-linux-resources.crio.io", "{"),
    ] {
        let error = plan(&pod(json!({name: text})), &Config::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(name) && error.contains(text), "{error}");
    }
}

#[test]
fn containers_that_come_later_count_once() {
    let told =
        json!({"io.kubernetes.cri.sandbox-cpu-quota": "100000", "io.kubernetes.cri.sandbox-memory": "209715200"});
    let sizing = plan(&pod(told), &Config::default()).unwrap().sizing;
    let of = demand;
    let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
    assert_eq!(sizing.size([]), size(2, 456), "what was announced");
    assert_eq!(
        sizing.size([of(500, 100), of(500, 100)]),
        size(2, 456),
        "what was announced has come"
    );
    assert_eq!(
        sizing.size([of(500, 100), of(500, 100), of(1, 50)]),
        size(3, 506),
        "and more"
    );
    assert_eq!(
        sizing.size([of(900_000, 900_000)]),
        size(4, 8192),
        "never more than the host has"
    );
}

#[test]
fn a_container_alone_may_want_less_later() {
    let sizing = plan(&alone(json!({"cpu": {"quota": 200_000}})), &Config::default())
        .unwrap()
        .sizing;
    assert_eq!(sizing.size([Demand::default()]).vcpus, 1);
}

#[test]
fn an_update_changes_what_it_speaks_of() {
    let resources = |json: Value| serde_json::from_value(json).unwrap();
    let old = demand(500, 64);
    for (json, cpu_millis, memory_mib) in [
        (json!({}), 500, 64),
        (json!({"cpu": {"shares": 5}, "memory": {"swap": 5}}), 500, 64),
        (json!({"cpu": {"quota": 200_000}}), 2000, 64),
        (json!({"cpu": {"quota": -1}, "memory": {"limit": 128 * MIB}}), 0, 128),
    ] {
        assert_eq!(
            old.updated(&resources(json.clone())),
            demand(cpu_millis, memory_mib),
            "{json}"
        );
    }
}

/// Under KVM a machine boots with all its CPUs, without it they come afterwards, unless it cannot grow.
#[test]
fn emulated_machines_boot_with_few_cpus() {
    let spec = alone(json!({"cpu": {"quota": 200_000}}));
    let fixed = configured(|config| config.runtime.static_sandbox_resource_mgmt = true);
    for (accelerator, config, wanted) in [
        (Accelerator::Kvm, Config::default(), 3),
        (Accelerator::Tcg, Config::default(), 1),
        (Accelerator::Tcg, fixed, 3),
    ] {
        let facts = Facts {
            accelerator,
            ..support::facts()
        };
        let plan = kata_plan::pod("p1", &support::bundle(&spec), &config, &facts).unwrap();
        assert_eq!(plan.machine.vcpus, wanted, "{accelerator}");
        let later = plan
            .sizing
            .fixed
            .is_none()
            .then(|| plan.sizing.size([demand(2000, 0)]).vcpus);
        assert!(later.is_none_or(|vcpus| vcpus == 3));
    }
}

#[test]
fn the_configuration_bounds_growth() {
    let config = configured(|config| {
        config.qemu.default_maxvcpus = CpuCount::Exactly(2);
        config.qemu.default_maxmemory = Some(300);
        config.qemu.memory_slots = 3;
    });
    let large = alone(json!({"memory": {"limit": 512 * MIB}, "cpu": {"quota": 400_000}}));
    assert_eq!(size(&large, &config), (2, 300));
    let growth = plan(&large, &config).unwrap().machine.growth;
    let (vcpus, memory_mib, memory) = (2, 300, MemoryGrowth::Slots { count: 3 });
    assert_eq!(
        growth,
        Some(Growth {
            vcpus,
            memory_mib,
            memory
        })
    );
    let virtio = configured(|config| config.qemu.enable_virtio_mem = true);
    let growth = plan(&large, &virtio).unwrap().machine.growth.unwrap();
    assert_eq!((growth.memory, growth.memory_mib), (MemoryGrowth::Virtio, 8192));
}

#[test]
fn memory_goes_back_by_a_balloon() {
    let has_balloon = |config: &Config| {
        let plan = plan(&alone(json!({})), config).unwrap();
        plan.machine.devices.contains(&Device::Balloon)
    };
    assert!(has_balloon(&configured(|_| {})));
    assert!(!has_balloon(&configured(|config| config
        .qemu
        .reclaim_guest_freed_memory =
        false)));
    let templates = |share| {
        configured(move |config| {
            config.factory.enable_template = true;
            config.qemu.shared_fs = Some(share);
        })
    };
    assert!(has_balloon(&templates(SharedFs::VirtioFs)));
    assert!(
        !has_balloon(&templates(SharedFs::Virtio9p)),
        "pages that others have, too"
    );
}

#[test]
fn machines_that_stay_as_they_are_are_made_large_enough() {
    let fixed = configured(|config| {
        config.runtime.static_sandbox_resource_mgmt = true;
        config.runtime.static_sandbox_default_workload_mem = 1000;
        config.runtime.static_sandbox_default_workload_vcpus = 2;
    });
    for (spec, wanted) in [
        (pod(json!({})), (3, 1256)),
        (pod(json!({"io.kubernetes.cri.sandbox-memory": "104857600"})), (3, 356)),
        (pod(json!({"io.kubernetes.cri.sandbox-cpu-quota": "50000"})), (2, 1256)),
        (
            alone(json!({"memory": {"limit": 100 * MIB}, "cpu": {"quota": 50000}})),
            (2, 356),
        ),
    ] {
        assert_eq!(size(&spec, &fixed), wanted, "{spec}");
        assert_eq!(plan(&spec, &fixed).unwrap().machine.growth, None);
    }
    let microvm = configured(|config| config.qemu.machine_type = "microvm".into());
    let plan = plan(&alone(json!({})), &microvm).unwrap();
    assert_eq!(plan.machine.growth, None);
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("a microvm takes neither CPUs nor memory")),
        "{:?}",
        plan.notes
    );
}
