//! Placement in trees of plain files that stand for cgroup file systems.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use kata_cgroup::{Groups, Hierarchies, Hierarchy, Part, join, remove};
use kata_plan::{CgroupPlan, CpuWish, HostLimits, Split};
use tempfile::TempDir;

/// A hierarchy in which the files that are written to are there before.
fn hierarchy(dir: &TempDir, name: &str, unified: bool, groups: &[&str]) -> Hierarchy {
    let root = dir.path().join(name);
    let files = [
        "cgroup.procs",
        "tasks",
        "cgroup.subtree_control",
        "cpu.shares",
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.limit_in_bytes",
    ];
    for group in groups.iter().chain([&"", &"own"]) {
        fs::create_dir_all(root.join(group)).unwrap();
        for file in files {
            fs::write(root.join(group).join(file), "").unwrap();
        }
    }
    if unified {
        fs::write(root.join("cgroup.controllers"), "cpu memory\n").unwrap();
    }
    Hierarchy {
        root,
        controllers: if unified {
            vec!["cpu".into(), "memory".into()]
        } else {
            vec![name.to_owned()]
        },
        unified,
        own: "own".into(),
    }
}

fn plan(split: Split) -> CgroupPlan {
    CgroupPlan {
        pod: "engine/c1".into(),
        split,
    }
}

fn guest(counted: bool) -> Split {
    Split::Guest {
        overhead: "kata_overhead/c1".into(),
        counted,
    }
}

const GROUPS: [&str; 2] = ["engine/c1", "kata_overhead/c1"];

fn said(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Which of the two cgroups the file server, the VMM and the guest's CPUs are put in.
fn placed(split: Split, hierarchy: &Hierarchy) -> [&'static str; 3] {
    let groups = Groups::make(&plan(split), &Hierarchies(vec![hierarchy.clone()]));
    let who = |file: &str| {
        let mut found = "nowhere";
        for group in GROUPS {
            let path = hierarchy.root.join(group).join(file);
            if !said(path.clone()).is_empty() {
                found = group;
                fs::write(path, "").unwrap();
            }
        }
        found
    };
    groups.enter(Part::Rest);
    let rest = who("cgroup.procs");
    groups.enter(Part::Vmm);
    let vmm = who("cgroup.procs");
    groups.take_threads(&[7]);
    let threads = who("tasks");
    groups.leave();
    assert_eq!(said(hierarchy.root.join("own/cgroup.procs")), "0", "back where it was");
    [rest, vmm, threads]
}

#[test]
fn each_part_has_its_place() {
    let [pod, overhead] = GROUPS;
    let dir = TempDir::new().unwrap();
    let cpu = hierarchy(&dir, "cpu", false, &GROUPS);
    let memory = hierarchy(&dir, "memory", false, &GROUPS);
    let unified = hierarchy(&dir, "unified", true, &GROUPS);
    for (split, hierarchy, expected) in [
        (Split::Whole, &cpu, [pod, pod, "nowhere"]),
        (Split::Whole, &memory, [pod, pod, "nowhere"]),
        (Split::Whole, &unified, [pod, pod, "nowhere"]),
        (guest(false), &cpu, [overhead, overhead, pod]),
        (guest(false), &memory, [overhead, overhead, "nowhere"]),
        (guest(false), &unified, [overhead, pod, "nowhere"]),
        (guest(true), &cpu, [overhead, overhead, pod]),
        (guest(true), &memory, [pod, pod, "nowhere"]),
        (guest(true), &unified, [overhead, pod, "nowhere"]),
    ] {
        assert_eq!(
            placed(split.clone(), hierarchy),
            expected,
            "{split:?} in {}",
            hierarchy.root.display()
        );
    }
}

#[test]
fn only_what_was_made_is_removed_and_only_when_nobody_uses_it() {
    let dir = TempDir::new().unwrap();
    let memory = hierarchy(&dir, "memory", false, &["engine"]);
    let root = memory.root.clone();
    let groups = Groups::make(&plan(guest(true)), &Hierarchies(vec![memory]));
    assert_eq!(groups.made(), [root.join("engine/c1")], "the engine has made the rest");
    assert_eq!(groups.of_the_pod(), [root.join("engine/c1")]);
    // A plain directory with a file in it cannot be removed, as a cgroup with a process cannot.
    fs::write(root.join("engine/c1/cgroup.procs"), "").unwrap();
    join(&groups.of_the_pod(), 42);
    assert_eq!(said(root.join("engine/c1/cgroup.procs")), "42");
    assert!(!remove(groups.made()), "somebody is in it");
    fs::remove_file(root.join("engine/c1/cgroup.procs")).unwrap();
    assert!(remove(groups.made()));
    assert!(root.join("engine").exists() && !root.join("engine/c1").exists());
    assert!(remove(groups.made()), "gone already");
}

#[test]
fn a_directory_that_others_use_stays() {
    let dir = TempDir::new().unwrap();
    let memory = hierarchy(&dir, "memory", false, &[]);
    let root = memory.root.clone();
    let groups = Groups::make(&plan(guest(false)), &Hierarchies(vec![memory]));
    let expected = ["engine", "engine/c1", "kata_overhead", "kata_overhead/c1"].map(|path| root.join(path));
    assert_eq!(groups.made(), expected);
    fs::create_dir(root.join("kata_overhead/other")).unwrap();
    assert!(remove(groups.made()));
    assert!(!root.join("engine").exists() && root.join("kata_overhead/other").exists());
}

#[test]
fn new_cpusets_take_over_what_is_above_and_controllers_are_offered_down() {
    let dir = TempDir::new().unwrap();
    let cpuset = hierarchy(&dir, "cpuset", false, &GROUPS);
    for group in ["", "engine", "engine/c1", "kata_overhead", "kata_overhead/c1"] {
        let value = if group.is_empty() { "0-3\n" } else { "\n" };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(cpuset.root.join(group).join(file), value).unwrap();
        }
    }
    let unified = hierarchy(&dir, "unified", true, &[]);
    let groups = Groups::make(&plan(guest(true)), &Hierarchies(vec![cpuset.clone(), unified.clone()]));
    assert_eq!(groups.of_the_pod().len(), 2);
    assert_eq!(said(cpuset.root.join("kata_overhead/c1/cpuset.mems")).trim(), "0-3");
    // The last of the writes; a plain file keeps no more.
    assert!(said(unified.root.join("cgroup.subtree_control")).starts_with("+"));
}

#[test]
fn limits_are_set_and_what_cannot_be_had_is_passed_over() {
    let dir = TempDir::new().unwrap();
    let cpu = hierarchy(&dir, "cpu", false, &GROUPS);
    let missing = Hierarchy {
        root: Path::new("/proc/self/no/such").into(),
        ..cpu.clone()
    };
    let groups = Groups::make(&plan(Split::Whole), &Hierarchies(vec![missing, cpu.clone()]));
    assert_eq!(groups.of_the_pod(), [cpu.root.join("engine/c1")]);
    let limits = HostLimits {
        cpu: CpuWish {
            shares: Some(512),
            // A plain tree has no such files.
            quota: Some(1000),
            ..CpuWish::default()
        },
        memory_bytes: None,
    };
    groups.limit(&limits);
    assert_eq!(said(cpu.root.join("engine/c1/cpu.shares")), "512");
}
