//! What the containers of a pod see of the host's files: every engine's kinds of mounts, in one pod that containerd runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::command::{Cmd, Outcome};
use kata_e2e::containerd::Containerd;
use kata_e2e::disk::LoopDevice;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::program;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::{Value, json};

against_both!(
    mounts_made_after_the_pod_was_started_are_found,
    a_block_device_is_read_and_written,
    a_block_device_is_what_its_rule_and_its_mount_say,
    memory_is_shared_by_the_containers_of_a_pod,
    a_volume_of_values_changes_and_who_watches_is_told,
    a_directory_that_is_replaced_is_seen_at_once,
    what_the_host_mounts_later_below_a_following_volume_is_seen,
    binds_may_lie_in_binds_and_on_what_is_not_there,
    a_missing_source_is_named,
);

#[test]
fn mounts_that_would_spread_to_the_host_are_refused() {
    let pod = pod(Kind::Kata);
    let [flag, value] = bind(&pod.dir("spreads"), "/data", "rbind:rshared");
    pod.run("spreads", &[&flag, &value], "true")
        .failed()
        .complains("Bidirectional");
}

#[test]
fn huge_pages_are_the_guests_own() {
    let pod = pod(Kind::Kata);
    let wanted = |mib: u64| {
        move |spec: &mut Value| {
            spec["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": mib << 20}]);
            let mount =
                json!({"destination": "/huge", "type": "hugetlbfs", "source": "hugetlbfs", "options": ["pagesize=2M"]});
            spec["mounts"].as_array_mut().expect("mounts").push(mount);
        }
    };
    let script = "grep HugePages_Total /proc/meminfo; mount | grep -c ' /huge type hugetlbfs'";
    let outcome = pod.run_spec("huge", script, wanted(8));
    outcome.ok().stdout("HugePages_Total:       4\n1\n");
    let outcome = pod.run_spec("huge-after", "grep HugePages_Total /proc/meminfo", |_| {});
    outcome.ok().stdout("HugePages_Total:       0\n");
    // A machine grows for them, as far as it may.
    let lab = Lab::configured("[hypervisor.qemu]\ndefault_maxmemory = 512\n");
    let runtime = Runtime::new(Kind::Kata, &lab);
    let bundle = Bundle::script(&lab, "too-huge", "true").edit(wanted(1024));
    runtime.create(&bundle, "too-huge").failed();
    let words = fs::read_to_string(bundle.dir().join("stderr")).expect("its words");
    let complaint = "wants 512 huge pages of 2048 KiB, and the guest's memory has";
    assert!(words.contains(complaint), "{words}");
}

/// Engines complete files as `/etc/hosts` when the container's network is there, which may be after its create.
#[test]
fn a_file_that_changes_between_create_and_start_is_seen_whole() {
    let lab = Lab::open();
    let runtime = Runtime::new(Kind::Kata, &lab);
    let hosts = lab.scratch().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("hosts");
    let bundle = Bundle::script(&lab, "late", "cat /etc/hosts").edit(|spec| {
        let mount = json!({"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind", "rw"]});
        spec["mounts"].as_array_mut().expect("mounts").push(mount);
    });
    runtime.create(&bundle, "late").ok();
    fs::write(&hosts, "127.0.0.1 localhost\n10.0.0.2 late\n").expect("hosts");
    runtime.start("late").ok();

    runtime.await_status("late", "stopped");
    let output = || fs::read_to_string(bundle.dir().join("stdout")).expect("output");
    wait::until("all of it is seen", Duration::from_secs(15), || {
        output() == "127.0.0.1 localhost\n10.0.0.2 late\n"
    });
    runtime.delete_force("late").ok();
}

fn containerd() -> &'static Containerd<'static> {
    static LAB: Shared<Lab> = Shared::new();
    static CONTAINERD: Shared<Containerd> = Shared::new();
    CONTAINERD.get(|| Containerd::start(LAB.get(Lab::open)))
}

/// A pod whose first container sleeps, and a directory on the host for its volumes.
struct Pod {
    kind: Kind,
    id: String,
    dir: PathBuf,
}

fn pod(kind: Kind) -> &'static Pod {
    static PODS: [Shared<Pod>; 2] = [const { Shared::new() }; 2];
    PODS[usize::from(kind == Kind::Kata)].get(|| Pod::start(kind))
}

impl Pod {
    #[track_caller]
    fn start(kind: Kind) -> Self {
        let id = format!("volumes-{kind:?}").to_lowercase();
        let dir = containerd().lab().scratch().join(&id);
        fs::create_dir_all(&dir).expect("folder");
        let pod = Self { kind, id, dir };
        let flags = ["--detach", "--annotation", "io.kubernetes.cri.container-type=sandbox"];
        containerd().run(kind, &flags, &pod.id, &["sleep", "10000"]).run().ok();
        pod
    }

    /// Runs one more container in the pod to its end.
    #[track_caller]
    fn run(&self, name: &str, flags: &[&str], script: &str) -> Outcome {
        self.command(name, flags, script).run()
    }

    /// One more container in the pod.
    #[track_caller]
    fn command(&self, name: &str, flags: &[&str], script: &str) -> Cmd {
        let pod = format!("io.kubernetes.cri.sandbox-id={}", self.id);
        let role = "io.kubernetes.cri.container-type=container";
        let mut all = vec!["--rm", "--annotation", role, "--annotation", &pod];
        all.extend(flags);
        let id = format!("{}-{name}", self.id);
        containerd().run(self.kind, &all, &id, &["sh", "-c", &lingering(script)])
    }

    /// Runs a container with a specification of its own in the pod to its end.
    #[track_caller]
    fn run_spec(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Outcome {
        let id = format!("{}-{name}", self.id);
        let bundle = Bundle::script(containerd().lab(), &id, &lingering(script));
        let root = bundle.rootfs();
        let bundle = bundle.edit(|spec| {
            spec["root"]["path"] = json!(root);
            spec["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": self.id,
            });
            change(spec);
        });
        let run = containerd().ctr(["run", "--rm", "--runtime", self.kind.containerd_name(), "--config"]);
        run.arg(bundle.dir().join("config.json")).arg(&id).run()
    }

    /// A new directory of the host.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        dir
    }
}

/// The script, and some time for its last words: ctr 1.6 closes its own ends when the container ends, whatever is on its way.
fn lingering(script: &str) -> String {
    format!("({script}); code=$?; sleep 1; exit $code")
}

/// A flag of `ctr run` for a bind mount, and its value.
fn bind(source: &Path, destination: &str, options: &str) -> [String; 2] {
    let source = source.display();
    [
        "--mount".into(),
        format!("type=bind,src={source},dst={destination},options={options}"),
    ]
}

fn mount_tmpfs(at: &Path, options: &str) {
    let mount = containerd()
        .lab()
        .command("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"]);
    mount.arg(at).run().ok();
}

/// As a kubelet makes the volumes of a container that joins a pod, on a host that shares no mounts.
fn mounts_made_after_the_pod_was_started_are_found(kind: Kind) {
    let pod = pod(kind);
    let late = pod.dir("late");
    mount_tmpfs(&late, "mode=755");
    let inside = containerd().lab().outside(&late);
    fs::write(inside.join("file"), "late\n").expect("file");
    let [flag, value] = bind(&late, "/late", "rbind:rw");

    let outcome = pod.run("late", &[&flag, &value], "cat /late/file; echo answer >/late/answer");

    outcome.ok().stdout("late\n");
    assert_eq!(fs::read_to_string(inside.join("answer")).expect("answer"), "answer\n");
}

fn a_block_device_is_read_and_written(kind: Kind) {
    let pod = pod(kind);
    let device = LoopDevice::new(&pod.dir.join("disk"), 8);
    device.write(b"outside");
    let node = device.node().display().to_string();
    let script = format!(
        "head -c 7 {node}; echo; blockdev --getsize64 {node}; printf inside. | dd of={node} conv=notrunc 2>/dev/null; sync"
    );

    let outcome = pod.run("disk", &["--device", &node], &script);

    outcome.ok().stdout("outside\n8388608\n");
    assert_eq!(device.bytes(8), b"inside.\0");
    assert!(device.close(), "somebody still has {node} open");
}

fn a_block_device_is_what_its_rule_and_its_mount_say(kind: Kind) {
    let pod = pod(kind);
    let device = LoopDevice::new(&pod.dir.join("read-only-disk"), 1);
    device.write(b"outside");
    let (major, minor) = device.numbers();
    let node = device.node().to_owned();
    let script = "head -c 7 /dev/given; echo; dd if=/dev/zero of=/dev/given count=1 2>&1 | grep -o 'Operation not permitted'; \
                  head -c 7 /dev/bound; [ -b /dev/bound ] && echo ' a block device'";

    let outcome = pod.run_spec("read-only-disk", script, |spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/given", "type": "b", "major": major, "minor": minor}]);
        let rules = spec["linux"]["resources"]["devices"].as_array_mut().expect("rules");
        rules.push(json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}));
        let mount = json!({"destination": "/dev/bound", "type": "bind", "source": node, "options": ["bind", "ro"]});
        spec["mounts"].as_array_mut().expect("mounts").push(mount);
    });

    outcome
        .ok()
        .stdout("outside\nOperation not permitted\noutside a block device\n");
    assert!(device.close(), "somebody still has it open");
}

/// As containerd's CRI plugin and a kubelet lay it out: `/dev/shm`, and an `emptyDir` of medium "Memory".
fn memory_is_shared_by_the_containers_of_a_pod(kind: Kind) {
    let pod = pod(kind);
    let shm = pod.dir("shm");
    let empty_dir = pod.dir("volumes/kubernetes.io~empty-dir/cache");
    mount_tmpfs(&shm, "mode=1777,size=3m");
    mount_tmpfs(&empty_dir, "mode=2770,gid=1000,size=2m");
    let flags: Vec<String> = [
        bind(&shm, "/dev/shm", "rbind:rw"),
        bind(&empty_dir, "/cache", "rbind:rw"),
    ]
    .concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();

    let script = "stat -c '%a %g' /cache; df -k /dev/shm /cache | awk '/dev.shm|cache/ {print $2}'; \
                  echo left >/cache/file; echo right >/dev/shm/file";
    pod.run("memory-1", &flags, script)
        .ok()
        .stdout("2770 1000\n3072\n2048\n");
    let outcome = pod.run(
        "memory-2",
        &flags,
        "cat /cache/file /dev/shm/file; stat -c %g /cache/file",
    );
    outcome.ok().stdout("left\nright\n1000\n");
}

/// Replaces a volume's content as a kubelet does.
fn publish(volume: &Path, version: &str, value: &str) {
    let data = volume.join(version);
    fs::create_dir(&data).expect("version");
    fs::write(data.join("key"), value).expect("value");
    let fresh = volume.join("..data_tmp");
    symlink(version, &fresh).expect("link");
    let old = fs::read_link(volume.join("..data"));
    fs::rename(fresh, volume.join("..data")).expect("swap");
    match old {
        Ok(old) => fs::remove_dir_all(volume.join(old)).expect("old version"),
        Err(_) => symlink("..data/key", volume.join("key")).expect("link"),
    }
}

/// Waits until a name is moved into a directory.
const WATCH: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char buffer[4096];
    int watch = inotify_init();
    if (argc < 3 || inotify_add_watch(watch, argv[1], IN_MOVED_TO) < 0) { perror("watch"); return 1; }
    puts("watching");
    fflush(stdout);
    for (;;) {
        ssize_t length = read(watch, buffer, sizeof buffer);
        for (char *at = buffer; at < buffer + length;) {
            struct inotify_event *event = (struct inotify_event *)at;
            if (!strcmp(event->name, argv[2])) return 0;
            at += sizeof *event + event->len;
        }
    }
}
"#;

fn a_volume_of_values_changes_and_who_watches_is_told(kind: Kind) {
    let pod = pod(kind);
    let volume = pod.dir("volumes/kubernetes.io~configmap/settings");
    publish(&volume, "..one", "old");
    let program = pod.dir.join("watch");
    program::compile(WATCH, &program);
    let flags: Vec<String> = [
        bind(&volume, "/settings", "rbind:ro"),
        bind(&program, "/watch", "rbind:ro"),
    ]
    .concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let script = "cat /settings/key; /watch /settings ..data && cat /settings/key; \
                  while [ -e /settings/..one ]; do sleep 0.1; done; ls -A /settings; \
                  touch /settings/x 2>/dev/null || echo read-only";
    let mut running = pod.command("values", &flags, script).start();
    running.read_until("oldwatching");

    publish(&volume, "..two", "new");

    let said = running.read_until("read-only");
    assert_eq!(said.trim_start(), "new..data\n..two\nkey\nread-only\n");
    running.finish().ok();
}

/// The same without its kind's name: a share must not remember for long what led where.
fn a_directory_that_is_replaced_is_seen_at_once(kind: Kind) {
    let pod = pod(kind);
    let volume = pod.dir("replaced");
    publish(&volume, "..one", "old");
    let [flag, value] = bind(&volume, "/replaced", "rbind:ro");
    let script = "cat /replaced/key; i=0; while [ \"$(cat /replaced/key)\" != new ]; do i=$((i+1)); sleep 0.1; done; \
                  [ $i -lt 300 ] && echo in time";
    let mut running = pod.command("replaced", &[&flag, &value], script).start();
    running.read_until("old");
    publish(&volume, "..two", "new");
    running.read_until("in time");
    running.finish().ok();
}

fn what_the_host_mounts_later_below_a_following_volume_is_seen(kind: Kind) {
    let pod = pod(kind);
    let volume = pod.dir("follows");
    mount_tmpfs(&volume, "mode=755");
    containerd()
        .lab()
        .command("mount")
        .arg("--make-shared")
        .arg(&volume)
        .run()
        .ok();
    containerd().lab().command("mkdir").arg(volume.join("later")).run().ok();
    let [flag, value] = bind(&volume, "/follows", "rbind:rslave");
    let script = "echo up; while [ ! -s /follows/later/file ]; do sleep 0.1; done; cat /follows/later/file";
    let mut running = pod.command("follows", &[&flag, &value], script).start();
    running.read_until("up");

    mount_tmpfs(&volume.join("later"), "mode=755");
    fs::write(containerd().lab().outside(volume.join("later/file")), "mounted later\n").expect("file");

    running.read_until("mounted later");
    running.finish().ok();
    containerd()
        .lab()
        .command("umount")
        .args(["-R"])
        .arg(&volume)
        .run()
        .ok();
}

fn binds_may_lie_in_binds_and_on_what_is_not_there(kind: Kind) {
    let pod = pod(kind);
    let (outer, inner) = (pod.dir("outer"), pod.dir("inner"));
    fs::create_dir_all(outer.join("deep")).expect("folder");
    fs::write(outer.join("deep/hidden"), "hidden").expect("file");
    fs::write(inner.join("file"), "inner\n").expect("file");
    fs::write(outer.join("hosts"), "127.0.0.1 me\n").expect("file");
    let flags: Vec<String> = [
        bind(&outer, "/outer", "rbind:rw"),
        bind(&inner, "/outer/deep", "rbind:ro"),
        bind(&outer.join("hosts"), "/etc/hosts", "rbind:ro"),
        bind(&inner.join("file"), "/new/place/of/a/file", "rbind:rw"),
    ]
    .concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let script = "ls /outer/deep; touch /outer/deep/x 2>&1 | grep -o 'Read-only.*'; cat /etc/hosts; \
                  echo changed >/new/place/of/a/file; echo made >/outer/made; cat /new/place/of/a/file";

    let outcome = pod.run("nested", &flags, script);

    outcome
        .ok()
        .stdout("file\nRead-only file system\n127.0.0.1 me\nchanged\n");
    assert_eq!(fs::read_to_string(outer.join("made")).expect("made"), "made\n");
    assert_eq!(fs::read_to_string(inner.join("file")).expect("file"), "changed\n");
}

fn a_missing_source_is_named(kind: Kind) {
    let pod = pod(kind);
    let missing = pod.dir.join("nowhere");
    let [flag, value] = bind(&missing, "/data", "rbind:rw");
    let outcome = pod.run("missing", &[&flag, &value], "true").failed();
    outcome
        .complains(&missing.display().to_string())
        .complains("no such file or directory");
}
