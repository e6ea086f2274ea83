//! The throttler of KSM: what it asks of the kernel as pods start, and that it leaves the kernel as it was. The kernel's settings are
//! files of the lab here; that the real kernel merges is seen in `machines.rs`.

use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Running;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::{pids, wait};

const KERNEL: &str = "/sys/kernel/mm/ksm";
const SOON: Duration = Duration::from_secs(30);

/// Settings as they may be on a host: nothing is merged.
const USUAL: [(&str, &str); 3] = [("run", "0"), ("pages_to_scan", "100"), ("sleep_millisecs", "20")];

struct Host {
    lab: Lab,
    kernel: PathBuf,
}

impl Host {
    fn open() -> Self {
        let lab = Lab::open();
        let kernel = lab.scratch().join("ksm");
        std::fs::create_dir(&kernel).expect("directory");
        for (name, value) in USUAL {
            std::fs::write(kernel.join(name), format!("{value}\n")).expect("setting");
        }
        let mount = lab.command("mount").arg("--bind").arg(&kernel).arg(KERNEL);
        mount.run().ok();
        Self { lab, kernel }
    }

    fn runtime(&self) -> Runtime<'_> {
        Runtime::new(Kind::Kata, &self.lab)
    }

    fn setting(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.kernel.join(name)).expect("setting");
        text.trim().to_owned()
    }

    /// Starts a throttler and waits until it hears.
    fn throttler(&self) -> (Running, u32) {
        let running = self.runtime().program().args(["--debug", "ksm-throttler"]).start();
        let its = || {
            let mut all = pids::all(&self.lab).into_iter();
            all.find(|process| process.line.ends_with(" ksm-throttler"))
        };
        let socket = self.lab.outside("/run/kata-ksm-throttler/ksm.sock");
        let listening = wait::eventually(SOON, || its().filter(|_| socket.exists()));
        (running, listening.expect("it listens").pid)
    }

    fn signal(&self, pid: u32, signal: &str) {
        let kill = self.lab.command("kill").args([signal, &pid.to_string()]);
        kill.run().ok();
    }

    #[track_caller]
    fn expect_at_rest(&self) {
        let now = USUAL.map(|(name, _)| self.setting(name));
        assert_eq!(now, ["0", "100", "20"]);
    }
}

#[test]
fn a_pod_that_starts_raises_the_pace_and_the_end_of_the_throttler_restores_it() {
    let host = Host::open();
    let runtime = host.runtime();
    let second = || runtime.program().arg("ksm-throttler").run();
    let before = Snapshot::take(&host.lab);

    let (running, pid) = host.throttler();
    second().failed().complains("another throttler runs");
    assert_eq!(host.setting("run"), "0", "no pod has started");
    runtime.begin(&Bundle::args(&host.lab, "merged", &["sleep", "1000"]), "merged");
    wait::until("the kernel merges, and fast", SOON, || {
        (host.setting("run"), host.setting("sleep_millisecs")) == ("1".into(), "1".into())
    });
    // A file that is just being written may be empty.
    wait::until("a tenth of the host's anonymous pages is scanned", SOON, || {
        host.setting("pages_to_scan")
            .parse()
            .is_ok_and(|pages: u64| pages > 100)
    });

    // After a kill the next one knows what was before.
    host.signal(pid, "-KILL");
    running.finish().failed();
    assert_eq!(host.setting("run"), "1");
    let (running, pid) = host.throttler();
    wait::until("the settings are put back", SOON, || host.setting("run") == "0");
    host.signal(pid, "-TERM");
    running.finish().ok().complains("a throttler was killed");
    host.expect_at_rest();
    runtime.delete_force("merged").ok();
    before.expect_nothing_more_but(
        &host.lab,
        "throttlers and a pod",
        &["/e2e", "/run/e2e-oci", "/run/kata ", "file /run/kata"],
    );

    // A kernel that does not let us, and one without.
    for option in ["ro", "rw"] {
        let script = format!("mount -o remount,bind,{option} {KERNEL}");
        host.lab.command("sh").args(["-c", &script]).run().ok();
        if option == "ro" {
            second().failed().complains("cannot write /sys/kernel/mm/ksm/");
            assert!(!host.lab.outside("/run/kata-ksm-throttler").exists());
        }
    }
    let hide = host
        .lab
        .command("sh")
        .args(["-c", "mount -t tmpfs none /sys/kernel/mm"]);
    hide.run().ok();
    second().failed().complains("the kernel cannot merge pages");
}
