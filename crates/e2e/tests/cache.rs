//! The cache of machines: pods take sandbox processes that wait, which are then like any other; and what becomes of those that nobody
//! takes.

use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::clock::Asked;
use kata_e2e::containerd::{Containerd, Release};
use kata_e2e::cri::Cri;
use kata_e2e::factory::{REFILL, await_full, factory, ready};
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::pod;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::Value;

fn runtime(lab: &Lab) -> Runtime<'_> {
    Runtime::new(Kind::Kata, lab)
}

/// The directory of the sandbox of this id.
#[track_caller]
fn home(lab: &Lab, id: &str) -> (std::path::PathBuf, Value) {
    let homes = std::fs::read_dir(lab.outside("/run/kata"))
        .expect("/run/kata")
        .flatten();
    let mut its = homes.filter_map(|home| {
        let record = std::fs::read(home.path().join("record.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        (record["id"] == id).then(|| (home.path(), record))
    });
    its.next().expect("its directory")
}

/// The pid of a container's sandbox process.
#[track_caller]
fn sandbox(lab: &Lab, id: &str) -> u32 {
    let (_, record) = home(lab, id);
    u32::try_from(record["sandbox"]["pid"].as_u64().expect("a pid")).expect("a pid")
}

#[track_caller]
fn log(lab: &Lab, id: &str) -> String {
    std::fs::read_to_string(home(lab, id).0.join("sandbox.log")).expect("its log")
}

fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" WARN ")).collect()
}

#[track_caller]
fn inside(lab: &Lab, id: &str, script: &str) -> String {
    runtime(lab).exec(id, script).run().ok().text().trim().to_owned()
}

/// Starts a container; answers the pid of its sandbox process.
#[track_caller]
fn begin(lab: &Lab, id: &str) -> u32 {
    runtime(lab).begin(&Bundle::args(lab, id, &["sleep", "1000"]), id);
    sandbox(lab, id)
}

fn configure(lab: &Lab, text: &str) {
    std::fs::write(lab.outside("/etc/kata-containers/configuration.toml"), text).expect("configuration");
}

/// What there is once the directories are made that stay for the pods to come.
fn settled(lab: &Lab) -> Snapshot {
    let script = "mkdir -p /run/kata /run/vc/vm /sys/fs/cgroup/{cpu,cpuacct,cpuset}/kata_overhead";
    lab.command("bash").args(["-c", script]).run().ok();
    Snapshot::take(lab)
}

#[test]
fn a_pod_takes_a_machine_that_waits() {
    let lab = &Lab::configured("[factory]\nvm_cache_number = 1\n");
    let runtime = runtime(lab);
    let containerd = Containerd::start(lab);
    let before = settled(lab);
    factory(lab, "status").ok().stdout("vm cache is off\n");
    factory(lab, "destroy").ok().stdout("vm factory destroyed\n");
    let init = r#"for dir in /sys/fs/cgroup/*/; do
            mkdir $dir/keeper
            [ ! -e $dir/cpuset.cpus ] || for file in cpus mems; do cat $dir/cpuset.$file >$dir/keeper/cpuset.$file; done
            echo 0 >$dir/keeper/cgroup.procs
        done; exec "$0" factory init"#;
    let init = lab.command("bash").args(["-c", init]).arg(runtime.kind().program());
    init.limit(Duration::from_secs(60))
        .run()
        .ok()
        .says("vm factory initialized\n")
        .says("vm cache: 1 of 1 ready, pids ");
    let first = ready(lab);
    runtime.verb("list").args(["--kata-all", "-q"]).run().ok().stdout("");
    let data = lab.scratch().join("data");
    std::fs::create_dir(&data).expect("data");
    std::fs::write(data.join("from-outside"), "hello\n").expect("file");

    runtime.begin(&pod::on_a_bridge(lab, "pod"), "pod");
    assert_eq!(first, [sandbox(lab, "pod")], "{}", log(lab, "pod"));
    assert_eq!(warnings(&log(lab, "pod")), [] as [&str; 0]);
    runtime.begin(
        &pod::member(
            lab,
            "web",
            "pod",
            "echo served >/index.html; httpd -f -p 10.98.0.2:80 -h /",
        ),
        "web",
    );
    // Mounted after the process began to wait, in a directory that it does not see change.
    lab.command("sh")
        .args([
            "-c",
            "mkdir /run/late; mount -t tmpfs late /run/late; echo late >/run/late/file",
        ])
        .run()
        .ok();
    let side = pod::member(lab, "side", "pod", "sleep 1000").mount("/data", "bind", &data, &["rbind", "rw"]);
    let side = side.mount("/late", "bind", "/run/late", &["rbind", "ro"]);
    runtime.begin(&side, "side");
    let address = "10.98.0.2:80".parse().expect("address");
    wait::until("it is served", Duration::from_secs(30), || {
        lab.fetch(address, "index.html").is_ok_and(|page| page == "served\n")
    });
    let link = inside(lab, "side", "ip addr show eth0");
    for part in ["mtu 1400", "02:98:00:00:00:02", "inet 10.98.0.2/24"] {
        assert!(link.contains(part), "{part} in {link}");
    }
    let said = inside(
        lab,
        "side",
        "hostname; cat /data/from-outside /late/file; echo answer >/data/answer",
    );
    assert_eq!(said, "the-pod\nhello\nlate");
    assert_eq!(
        std::fs::read_to_string(data.join("answer")).expect("written"),
        "answer\n"
    );
    let total = inside(lab, "side", "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    assert!(
        total.parse::<u32>().expect("KiB") > 400 << 10,
        "it has grown: {total} KiB"
    );

    wait::until("its boot is forgotten", Duration::from_secs(60), || {
        pids::translated_mib(lab, "pod") < 30
    });

    // Another follows, and containerd takes it in the same way.
    let second = await_full(lab, 1);
    assert_ne!(first, second);
    containerd
        .run(Kind::Kata, &["-d"], "ctr", &["sleep", "1000"])
        .run()
        .ok();
    assert_eq!(second, [sandbox(lab, "ctr")], "{}", log(lab, "ctr"));
    for process in pids::of_sandbox(lab, "ctr") {
        let cgroups = std::fs::read_to_string(lab.outside(format!("/proc/{}/cgroup", process.pid)));
        let cgroups = cgroups.unwrap_or_default();
        let overhead = cgroups.contains("/kata_overhead/ctr");
        assert!(overhead && !cgroups.contains("/keeper"), "{}: {cgroups}", process.line);
    }
    let exec = |script: &str| {
        let exec = containerd.ctr(["task", "exec", "--exec-id", "e", "ctr", "sh", "-c", script]);
        exec.run().ok().text()
    };
    let drawn = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(inside(lab, "side", drawn), exec(drawn).trim());
    let asked = Asked::now();
    asked.expect_time(&exec("date +%s"));

    containerd.ctr(["task", "kill", "-s", "9", "ctr"]).run().ok();
    containerd.await_status("ctr", "STOPPED", Duration::from_secs(30));
    containerd.ctr(["task", "delete", "ctr"]).run();
    containerd.ctr(["container", "delete", "ctr"]).run().ok();
    await_full(lab, 1);
    // A pod outlives the cache that it came from.
    factory(lab, "destroy").ok();
    assert_eq!(inside(lab, "side", "echo sound"), "sound");
    for id in ["web", "side", "pod"] {
        runtime.delete_force(id).ok();
    }
    lab.command("sh")
        .args([
            "-c",
            "umount /run/late; rmdir /run/late /sys/fs/cgroup/*/keeper; ip netns del pod; ip link del br0",
        ])
        .run()
        .ok();
    before.expect_nothing_more_but(lab, "the cache and its pods", &["/e2e", "/run/e2e-", "/run/containerd"]);
}

#[test]
fn those_that_nobody_takes_are_replaced_or_leave_nothing() {
    const CONFIGURATION: &str = "[factory]\nenable_template = true\nvm_cache_number = 2\n";
    let lab = &Lab::configured(CONFIGURATION);
    let before = settled(lab);
    factory(lab, "init").ok().says("vm cache: 2 of 2 ready, pids ");
    let waiting = ready(lab);
    let vmms = || {
        let processes = pids::all(lab).into_iter();
        let vmms = processes.filter(|process| process.part() == Some(Part::Vmm) && process.state != 'Z');
        vmms.map(|vmm| (vmm.pid, vmm.line)).collect::<Vec<_>>()
    };
    assert!(vmms().iter().all(|(_, line)| line.contains("-incoming")), "clones wait");

    // Two at once get one each, and they are different machines.
    std::thread::scope(|scope| {
        let ids = ["a", "b"].map(|id| scope.spawn(move || begin(lab, id)));
        let mut taken = ids.map(|id| id.join().expect("begun"));
        taken.sort_unstable();
        let mut waiting = waiting.clone();
        waiting.sort_unstable();
        assert_eq!(taken[..], waiting, "{}", log(lab, "a"));
    });
    let drawn = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(inside(lab, "a", drawn), inside(lab, "b", drawn));
    runtime(lab).delete_force("b").ok();

    // The process is killed, then the machine of another.
    let [killed, other] = await_full(lab, 2)[..] else {
        panic!("two")
    };
    lab.kill(killed);
    wait::until("it is replaced", REFILL, || {
        let now = ready(lab);
        now.len() == 2 && !now.contains(&killed)
    });
    let its_parent = |pid: u32| {
        let stat = std::fs::read_to_string(lab.outside(format!("/proc/{pid}/stat"))).unwrap_or_default();
        let rest = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.to_owned())
            .unwrap_or_default();
        rest.split(' ').nth(1).and_then(|parent| parent.parse::<u32>().ok())
    };
    let vmm = vmms().into_iter().find(|(pid, _)| its_parent(*pid) == Some(other));
    lab.kill(vmm.expect("its machine").0);
    wait::until("it is replaced", REFILL, || {
        let now = ready(lab);
        now.len() == 2 && !now.contains(&other)
    });

    // What is of another configuration is not taken, and replaced.
    let outdated = ready(lab);
    configure(
        lab,
        &format!("{CONFIGURATION}[hypervisor.qemu]\ndefault_memory = 230\n"),
    );
    let own = begin(lab, "changed");
    let log_of_it = log(lab, "changed");
    assert!(!outdated.contains(&own), "{log_of_it}");
    let [warning] = &warnings(&log_of_it)[..] else {
        panic!("one warning: {log_of_it}")
    };
    assert!(warning.contains("no machine of the cache"), "{warning}");
    runtime(lab).delete_force("changed").ok();
    wait::until("others wait", REFILL, || {
        let now = ready(lab);
        now.len() == 2 && now.iter().all(|pid| !outdated.contains(pid))
    });
    let taken = begin(lab, "fits");
    assert!(
        log(lab, "fits").contains("taken out of the cache"),
        "{}",
        log(lab, "fits")
    );
    let total = inside(lab, "fits", "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    assert!(total.parse::<u32>().expect("KiB") < 230 << 10, "{total} KiB");

    // With the keeper end those who wait, and those who were taken live on.
    await_full(lab, 2);
    let keeper = pids::all(lab)
        .into_iter()
        .find(|process| process.line.ends_with(" keep"));
    lab.kill(keeper.expect("the keeper").pid);
    wait::until("nobody waits", Duration::from_secs(30), || vmms().len() == 2);
    assert_eq!(sandbox(lab, "fits"), taken);
    assert_eq!(inside(lab, "fits", "echo sound"), "sound");
    factory(lab, "status").ok().says("vm cache is off\n");
    begin(lab, "alone");
    assert!(warnings(&log(lab, "alone")).is_empty(), "{}", log(lab, "alone"));
    for id in ["a", "fits", "alone"] {
        assert_eq!(inside(lab, id, "echo sound"), "sound");
        runtime(lab).delete_force(id).ok();
    }
    factory(lab, "init").ok().says("vm cache: 2 of 2 ready, pids ");
    factory(lab, "destroy").ok().stdout("vm factory destroyed\n");
    before.expect_nothing_more_but(lab, "all of it", &["/e2e", "/run/e2e-oci"]);

    // One that cannot be started says why, and is no reason for a pod not to boot.
    configure(
        lab,
        "[factory]\nvm_cache_number = 1\n[hypervisor.qemu]\npath = \"/bin/false\"\n",
    );
    factory(lab, "init")
        .failed()
        .complains("no machine waits in the cache: ");
    factory(lab, "status").ok().says("vm cache: 0 of 1 ready");
    factory(lab, "destroy").ok();
    before.expect_nothing_more_but(lab, "a cache that could not be filled", &["/e2e", "/run/e2e-oci"]);
}

#[test]
fn pods_of_kubernetes_take_them_by_either_api() {
    let lab = &Lab::configured("[factory]\nenable_template = true\nvm_cache_number = 1\n");
    let cri = Cri::start(lab, Release::V2);
    factory(lab, "init").ok();
    for handler in ["kata", "kata-pod"] {
        let waiting = await_full(lab, 1);
        let pod = cri.try_pod(handler, handler, |_| ()).expect("a pod");
        assert_eq!(waiting, [sandbox(lab, pod.id())], "{}", log(lab, pod.id()));
        assert!(warnings(&log(lab, pod.id())).is_empty(), "{}", log(lab, pod.id()));
        let container = pod.run_container("one", &["sh", "-c", "hostname; exec sleep 1000"], |_| ());
        container.sh("hostname").ok().stdout(&format!("{handler}\n"));
        container.sh("ip -4 addr show eth0").ok().says(&pod.ip().to_string());
        pod.stop();
        pod.remove();
    }
    factory(lab, "destroy").ok();
}
