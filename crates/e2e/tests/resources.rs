//! What pods may use: in the guest by their own limits, on the host by cgroups, and by the size of their machine, which
//! follows them. And that one pod's ruin is nobody else's.

use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Outcome;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::podman::Podman;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Where limits are read: numbers of a cgroup's file on the host.
fn number(lab: &Lab, controller: &str, group: &str, file: &str) -> i64 {
    let path = lab.cgroup(controller).join(group).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{}: {text}", path.display()))
}

/// The processes or threads in a cgroup of the host, as the host numbers them.
fn inside(lab: &Lab, controller: &str, group: &str, file: &str) -> Vec<u32> {
    let path: PathBuf = lab.cgroup(controller).join(group).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| line.parse().expect("a pid")).collect()
}

/// The names of the threads in a cgroup of the host.
fn thread_names(lab: &Lab, controller: &str, group: &str) -> Vec<String> {
    let name = |thread: &u32| std::fs::read_to_string(format!("/proc/{thread}/comm")).unwrap_or_default();
    let threads = inside(lab, controller, group, "tasks");
    threads.iter().map(|thread| name(thread).trim().to_owned()).collect()
}

/// The names of the processes in a cgroup of the host, each kind once.
fn process_names(lab: &Lab, controller: &str, group: &str) -> Vec<String> {
    let processes = inside(lab, controller, group, "cgroup.procs");
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut names: Vec<String> = processes.iter().map(|pid| name(pid).trim().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// CPUs and MiB that a container's guest has.
fn guest_size(runtime: &Runtime, id: &str) -> (u64, u64) {
    let said = runtime.exec(id, "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo");
    let text = said.run().ok().text();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (cpus, kib) = (numbers.next().expect("CPUs"), numbers.next().expect("memory"));
    (cpus, kib / 1024)
}

/// Waits until a container's guest has that many CPUs and at least so many MiB, which it may take into use only some time
/// after it was given them; answers how many MiB.
#[track_caller]
fn await_size(runtime: &Runtime, id: &str, cpus: u64, mib: u64) -> u64 {
    let fits = |(has, memory): (u64, u64)| (has == cpus && memory >= mib).then_some(memory);
    let grown = wait::eventually(Duration::from_secs(30), || fits(guest_size(runtime, id)));
    grown.unwrap_or_else(|| panic!("{cpus} CPUs and {mib} MiB are due, not {:?}", guest_size(runtime, id)))
}

fn stats(runtime: &Runtime, id: &str) -> Value {
    runtime.verb("events").args(["--stats", id]).run().ok().json()["data"].clone()
}

fn update(runtime: &Runtime, id: &str, flags: &[&str]) -> Outcome {
    runtime.verb("update").args(flags).arg(id).run()
}

/// A container alone: limits at its start, in the guest and on the host; changed while it runs; nothing left of them.
#[test]
fn the_limits_of_a_container_hold_in_the_guest_and_on_the_host() {
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    lab.command("mkdir").args(["-p", "/run/kata"]).run().ok();
    let before = Snapshot::take(&lab);
    // Its first process takes care of orphans.
    let bundle = Bundle::script(&lab, "alone", "sleep 1000 & wait; exit").edit(|spec| {
        let resources = &mut spec["linux"]["resources"];
        resources["memory"] = json!({"limit": 64 * MIB, "swap": 64 * MIB, "swappiness": 60, "disableOOMKiller": false});
        resources["cpu"] = json!({"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"});
        resources["pids"] = json!({"limit": 40});
        resources["unified"] = json!({"memory.low": MIB.to_string()});
        resources["blockIO"] = json!({"weight": 500});
    });
    runtime.begin(&bundle, "alone");

    // The guest: one CPU more for half of one, and the memory on top.
    let small = await_size(&runtime, "alone", lab_cpus().min(2), 0);
    let told = stats(&runtime, "alone");
    assert_eq!(told["memory"]["usage"]["limit"], 64 * MIB);
    assert_eq!(told["pids"]["limit"], 40);
    guest_limits_hold(&runtime, "alone");

    // The host: the guest's CPUs in the container's cgroup, memory and what stands in for it, too; the rest apart.
    let group = "e2e/alone";
    let threads = thread_names(&lab, "cpu", group);
    // One thread for all of them, where the machine may get more.
    assert!(
        threads
            .iter()
            .any(|name| name == "ALL CPUs/TCG" || name.starts_with("CPU 0/")),
        "{threads:?}"
    );
    assert!(!threads.iter().any(|name| name.starts_with("qemu")), "{threads:?}");
    let rest = process_names(&lab, "cpu", "kata_overhead/alone");
    assert!(rest.iter().any(|name| name.starts_with("containerd-shim")), "{rest:?}");
    assert!(rest.iter().any(|name| name == "virtiofsd"), "{rest:?}");
    assert_eq!(number(&lab, "cpu", group, "cpu.shares"), 512);
    // The machine's own CPU comes on top.
    assert_eq!(number(&lab, "cpu", group, "cpu.cfs_quota_us"), 150_000);
    assert_eq!(number(&lab, "cpuset", group, "cpuset.cpus"), 0);
    assert!(
        number(&lab, "memory", group, "memory.usage_in_bytes") > 50 << 20,
        "the guest's memory counts"
    );
    assert!(
        number(&lab, "memory", group, "memory.limit_in_bytes") > 1 << 60,
        "and is not limited twice"
    );
    let stand_in = runtime.state("alone")["pid"].clone();
    let path = std::fs::read_to_string(lab.outside(format!("/proc/{stand_in}/cgroup"))).expect("the stand-in");
    assert!(
        path.contains("cpu:/e2e/alone\n") || path.contains("/e2e/alone"),
        "{path}"
    );

    // Changed while it runs: the machine grows, and gives back what it can.
    let more = [
        "--memory",
        "335544320",
        "--cpu-quota",
        "150000",
        "--pids-limit",
        "50",
        "--cpu-share",
        "256",
    ];
    update(&runtime, "alone", &more).ok();
    await_size(&runtime, "alone", lab_cpus().min(3), small + 240);
    let told = stats(&runtime, "alone");
    assert_eq!(
        (&told["memory"]["usage"]["limit"], &told["pids"]["limit"]),
        (&json!(320 * MIB), &json!(50))
    );
    assert_eq!(number(&lab, "cpu", group, "cpu.cfs_quota_us"), 250_000);
    assert_eq!(number(&lab, "cpu", group, "cpu.shares"), 256);
    update(&runtime, "alone", &["--cpu-quota", "-1"]).ok();
    await_size(&runtime, "alone", 1, 0);
    assert_eq!(number(&lab, "cpu", group, "cpu.cfs_quota_us"), -1);
    update(&runtime, "alone", &["--memory", "-5", "--memory-swap", "1"]).failed();

    runtime.delete_force("alone").ok();
    before.expect_nothing_more_but(&lab, "the container is gone", &["/run/e2e-oci"]);
}

/// How many CPUs this machine has.
fn lab_cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

fn guest_limits_hold(runtime: &Runtime, id: &str) {
    // A hog is killed, and its container goes on.
    let hog = runtime.exec(id, "tail /dev/zero").run();
    assert_eq!(hog.code(), 137, "{hog}");
    let told = stats(runtime, id);
    assert!(told["memory"]["usage"]["failcnt"].as_u64() > Some(0), "{told}");
    // What multiplies comes to an end.
    let many = "mkfifo /tmp/fifo; i=0; while [ $i -lt 100 ]; do (read -t 8 _ <>/tmp/fifo) & i=$((i + 1)); done";
    let many = runtime.exec(id, many).run();
    assert!(many.code() != 0 && many.errors().contains("can't fork"), "{many}");
    wait::until("they have ended", Duration::from_secs(60), || {
        stats(runtime, id)["pids"]["current"].as_u64() < Some(5)
    });
    // Half a CPU was not a whole one.
    let told = stats(runtime, id);
    let throttling = &told["cpu"]["throttling"];
    assert!(throttling["throttledPeriods"].as_u64() > Some(0), "{told}");
}

/// A pod of an orchestrator: configured by annotations, all of it in one cgroup below the pod's own, and its machine grown
/// by the members that nobody had announced.
#[test]
fn a_pod_is_configured_by_annotations_and_grows_with_its_members() {
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    lab.command("mkdir").args(["-p", "/run/kata"]).run().ok();
    let before = Snapshot::take(&lab);
    let annotated = |bundle: Bundle, annotations: Value| {
        bundle.edit(|spec| {
            spec["annotations"] = annotations;
            spec["annotations"]["io.kubernetes.cri-o.ContainerType"] = "sandbox".into();
            spec["linux"]["cgroupsPath"] = "kubepods-burstable-pod7.slice:crio:pod".into();
        })
    };
    let mut bundle = Bundle::script(&lab, "pod", "sleep 1000");
    for (name, value, complaint) in [
        (
            "hypervisor.memory_slots",
            "3",
            "no expression of hypervisor.qemu.enable_annotations matches",
        ),
        ("hypervisor.default_memory", "much", "must be a whole number of MiB"),
        ("runtime.no_such_thing", "1", "nobody knows it"),
    ] {
        let name = format!("io.katacontainers.config.{name}");
        bundle = annotated(bundle, json!({&name: value}));
        let refused = runtime.create(&bundle, "pod");
        let said = std::fs::read_to_string(lab.scratch().join("pod/stderr")).unwrap_or_default();
        assert!(
            refused.code() != 0 && said.contains(&name) && said.contains(complaint),
            "{name}: {said}"
        );
    }
    before.expect_nothing_more_but(&lab, "refusals", &["/run/e2e-oci"]);

    let annotations = json!({
        "io.katacontainers.config.hypervisor.default_memory": "192",
        "io.katacontainers.config.hypervisor.kernel_params": "e2e.mark=here",
        "io.katacontainers.config.runtime.sandbox_cgroup_only": "true",
        "pod-linux-resources.crio.io": json!({"memory_limit_in_bytes": 32 * MIB}).to_string(),
    });
    runtime.begin(&annotated(bundle, annotations), "pod");
    runtime
        .exec("pod", "cat /proc/cmdline")
        .run()
        .ok()
        .says("e2e.mark=here");
    let (_, small) = guest_size(&runtime, "pod");
    assert!(
        small > 140 && small < 224,
        "192 and 32 MiB, less what the kernel takes: {small}"
    );

    let group = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/kata_pod";
    for controller in ["cpu", "memory", "pids"] {
        let names = process_names(&lab, controller, group);
        for part in ["qemu-system", "containerd-shim", "virtiofsd"] {
            assert!(
                names.iter().any(|name| name.starts_with(part)),
                "{controller}: {part} in {names:?}"
            );
        }
    }
    assert!(!lab.cgroup("cpu").join("kata_overhead").exists());

    let member = Bundle::script(&lab, "member", "sleep 1000").edit(|spec| {
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": "pod",
        });
        spec["linux"]["resources"]["memory"] = json!({"limit": 160 * MIB});
        spec["linux"]["resources"]["cpu"] = json!({"quota": 30_000, "period": 100_000});
    });
    runtime.begin(&member, "member");
    // 128 MiB are missing, and memory comes in such blocks.
    await_size(&runtime, "member", lab_cpus().min(2), small + 120);
    // New memory is memory of the share, too: the file server must see what is read into it.
    runtime
        .exec(
            "member",
            "cat /bin/busybox /bin/busybox | wc -c; dd if=/dev/zero of=/file bs=1M count=64 2>/dev/null; wc -c </file",
        )
        .limit(Duration::from_secs(180))
        .run()
        .ok()
        .says("67108864");
    runtime.delete_force("member").ok();
    await_size(&runtime, "pod", 1, 0);

    // Whatever happens to the sandbox process, its cgroups go.
    pids::kill_part(&lab, "pod", Part::Shim);
    runtime.delete_force("pod").ok();
    before.expect_nothing_more_but(&lab, "the pod is gone", &["/run/e2e-oci"]);
}

/// Memory without an end, processes without an end, a kernel that falls: another pod does not notice.
#[test]
fn the_ruin_of_a_pod_is_its_own() {
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    let good = Bundle::script(&lab, "good", "sleep 1000");
    runtime.begin(&good, "good");
    let bad = Bundle::script(&lab, "bad", "sleep 1000");
    runtime.begin(&bad, "bad");
    let others_live = |after: &str| {
        let said = runtime.exec("good", "echo alive").limit(Duration::from_secs(30)).run();
        assert_eq!((said.code(), said.text().as_str()), (0, "alive\n"), "after {after}");
        lab.command("true").run().ok();
    };

    let hog = runtime
        .exec("bad", "tail /dev/zero")
        .limit(Duration::from_secs(120))
        .run();
    assert_ne!(hog.code(), 0, "{hog}");
    others_live("a memory hog");
    let bomb = runtime
        .verb("exec")
        .args(["--detach", "bad", "sh", "-c", "bomb() { bomb | bomb & }; bomb"]);
    bomb.limit(Duration::from_secs(180)).run().ok();
    others_live("a fork bomb");
    // A guest in this state answers nobody; it goes all the same.
    let delete = runtime.verb("delete").args(["--force", "bad"]);
    delete.limit(Duration::from_secs(180)).run().ok();

    let fallen = Bundle::script(&lab, "fallen", "sleep 1000").edit(|spec| {
        spec["linux"]["readonlyPaths"] = json!([]);
    });
    runtime.begin(&fallen, "fallen");
    let fall = runtime.exec("fallen", "echo c >/proc/sysrq-trigger; sleep 1000");
    fall.run().failed();
    wait::until("the guest has fallen", Duration::from_secs(60), || {
        runtime.status("fallen") == "stopped"
    });
    others_live("a kernel panic");
    for id in ["fallen", "good"] {
        runtime.delete_force(id).ok();
    }
}

/// What Podman's users see of it.
#[test]
fn podman_shows_and_changes_what_containers_use() {
    let lab = Lab::open();
    let podman = Podman::start(&lab, Kind::Kata);
    let flags = [
        "-d",
        "--name",
        "used",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "30",
    ];
    podman.run(&flags, &["sleep", "1000"]).run().ok();
    let shown = podman
        .podman([
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.MemUsageBytes}} {{.PIDs}}",
            "used",
        ])
        .run()
        .ok()
        .text();
    let memory = shown.split_whitespace().nth(1).expect("memory").to_owned();
    assert!(
        shown.starts_with("used ") && memory.ends_with("MiB"),
        "the machine's memory: {shown}"
    );
    podman.podman(["update", "--cpus", "1.5", "used"]).run().ok();
    wait::until("it has another CPU", Duration::from_secs(30), || {
        let told = podman.podman(["exec", "used", "cat", "/proc/cpuinfo"]).run().ok();
        told.text().matches("processor\t").count() as u64 == lab_cpus().min(3)
    });
    podman.podman(["rm", "-f", "-t", "0", "used"]).run().ok();
    let oom = podman
        .run(&["--name", "hog", "--memory", "32m"], &["tail", "/dev/zero"])
        .run();
    assert_eq!(oom.code(), 137, "{oom}");
    podman.podman(["rm", "hog"]).run().ok();
}
