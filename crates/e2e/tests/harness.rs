//! The harness itself: that it tells what is left behind, ends what hangs, and leaves nothing of its own.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use kata_e2e::command::Cmd;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::wait;

#[test]
fn whatever_is_left_behind_is_told() {
    let lab = Lab::open();
    let before = Snapshot::take(&lab);
    let script = "sleep 4711 & mkdir /sys/fs/cgroup/pids/left /run/left; mount -t tmpfs left-mount /run/left; \
                  touch /tmp/left; ip tuntap add mode tap name left0; ip netns add kept; \
                  ip -n kept tuntap add mode tap name left1; mkdir -p /var/lib/cni/networks; \
                  touch /var/lib/cni/networks/10.87.0.9; iptables -A FORWARD -s 10.87.0.9 -j ACCEPT";
    lab.command("bash")
        .args(["-c", &format!("({script}) >/dev/null 2>&1 </dev/null")])
        .run()
        .ok();

    let more = before.more_in(&Snapshot::take(&lab));

    for part in [
        "sleep 4711",
        "mount left-mount /run/left",
        "link left0",
        "link left1 of network namespace kept",
        "file /var/lib/cni/networks/10.87.0.9",
        "rule -A FORWARD -s 10.87.0.9/32 -j ACCEPT",
        "cgroup /sys/fs/cgroup/pids/left",
        "/tmp/left",
    ] {
        assert!(more.contains(part), "{part} is not told:\n{more}");
    }
}

#[test]
fn a_lab_takes_everything_along() {
    let lab = Lab::open();
    let (anchor, scratch, cgroup) = (
        lab.anchor(),
        lab.scratch().to_path_buf(),
        lab.cgroup("pids").join("made"),
    );
    let script = "setsid sleep 4712 >/dev/null 2>&1 </dev/null & mkdir /sys/fs/cgroup/pids/made; echo started";
    lab.command("bash").args(["-c", script]).run().ok().stdout("started\n");
    assert!(cgroup.is_dir());

    drop(lab);

    assert!(!std::path::Path::new(&format!("/proc/{anchor}")).exists());
    assert!(!scratch.exists(), "{}", scratch.display());
    let name = scratch.file_name().expect("name").to_string_lossy().into_owned();
    Cmd::new("find")
        .args(["/sys/fs/cgroup", "-name", &name])
        .run()
        // Its exit code tells of others' directories, too, which may vanish under it.
        .stdout("");
    Cmd::new("pgrep").args(["-f", "^sleep 4712"]).run().exit(1);
}

#[test]
fn a_command_that_hangs_is_ended() {
    let lab = Lab::open();
    let begun = Instant::now();
    let hang = || lab.command("sleep").arg("4713").limit(Duration::from_secs(1)).run();
    assert!(
        catch_unwind(std::panic::AssertUnwindSafe(hang)).is_err(),
        "it must fail"
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
    let gone = || Cmd::new("pgrep").args(["-f", "^sleep 4713"]).run().code() == 1;
    wait::until("the command is gone", Duration::from_secs(30), gone);
}

#[test]
fn cpu_time_counts_what_runs_inside() {
    let lab = Lab::open();
    let before = lab.cpu_time();
    lab.command("sh")
        .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"])
        .run()
        .ok();
    let used = lab.cpu_time() - before;
    assert!(
        used > Duration::from_millis(50) && used < Duration::from_secs(10),
        "{used:?}"
    );
}
