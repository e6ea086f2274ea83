//! The machines and shares that are not the default: each runs a container that writes to its root file system and to a
//! volume.

use std::path::Path;
use std::time::{Duration, Instant};

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::{places, wait};

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

/// Assets with the distribution's generic kernel, which has 9p. Built outside the lab, which has no network.
fn generic_assets() -> &'static Path {
    static ASSETS: Shared<std::path::PathBuf> = Shared::new();
    ASSETS.get(|| {
        let out = lab().scratch().join("generic");
        let build = Cmd::new(places::ours("kata-runtime"))
            .args(["image", "build", "--kernel-package", "linux-image-amd64", "--out"])
            .arg(&out);
        build.limit(Duration::from_secs(300)).run().ok();
        out.join("current")
    })
}

/// Runs a container under a configuration; answers what it said.
fn run_with(name: &str, configuration: &str) -> String {
    let data = lab().scratch().join(format!("{name}-data"));
    std::fs::create_dir(&data).expect("data");
    std::fs::write(data.join("hello"), "from outside\n").expect("hello");
    let script = "grep ' / ' /proc/mounts; uname -r; cat /proc/cmdline; echo kept >/file; cat /file /data/hello; echo answer >/data/answer";
    let bundle = Bundle::script(lab(), name, script).mount("/data", "bind", &data, &["rbind", "rw"]);
    let file = lab().scratch().join(format!("{name}.toml"));
    std::fs::write(&file, configuration).expect("configuration");
    let run = lab()
        .command(places::ours("kata-runtime"))
        .arg("--kata-config")
        .arg(&file);
    let run = run
        .args(["--root", "/run/e2e-machines", "run", "--bundle"])
        .arg(bundle.dir())
        .arg(name);
    let said = run.run().ok().text();
    assert!(said.ends_with("kept\nfrom outside\n"), "{said}");
    let answer = std::fs::read_to_string(data.join("answer")).expect("written inside");
    assert_eq!(answer, "answer\n");
    assert_eq!(
        std::fs::read_to_string(bundle.rootfs().join("file")).expect("written inside"),
        "kept\n"
    );
    said
}

#[test]
fn a_share_by_9p() {
    let assets = generic_assets().display();
    let said = run_with(
        "ninep",
        &format!(
            "[hypervisor.qemu]\nkernel = \"{assets}/vmlinux\"\ninitrd = \"{assets}/initrd.img\"\nshared_fs = \"virtio-9p\"\n"
        ),
    );
    assert!(said.contains(" / 9p "), "{said}");
}

fn clone_with_9p() -> String {
    let assets = generic_assets().display();
    format!(
        "[factory]\nenable_template = true\n[hypervisor.qemu]\nkernel = \"{assets}/vmlinux\"\ninitrd = \"{assets}/initrd.img\"\n\
         shared_fs = \"virtio-9p\"\n"
    )
}

#[test]
fn a_clone_with_a_share_by_9p() {
    for name in ["ninep-made", "ninep-found"] {
        let said = run_with(name, &clone_with_9p());
        assert!(said.contains(" / 9p ") && said.contains("kata.load="), "{said}");
    }
}

/// The kernel's settings of KSM are the whole machine's: they are put back however this test ends.
struct KernelSettings(std::process::Child);

impl KernelSettings {
    const NAMES: [&str; 3] = ["run", "pages_to_scan", "sleep_millisecs"];

    fn guard(settings: &[String; 3]) -> Self {
        let script =
            "cd /sys/kernel/mm/ksm || exit; read -r _; echo $2 >pages_to_scan; echo $3 >sleep_millisecs; echo $1 >run";
        let mut shell = std::process::Command::new("setsid");
        shell
            .args(["sh", "-c", script, "sh"])
            .args(settings)
            .stdin(std::process::Stdio::piped());
        Self(shell.spawn().expect("setsid sh"))
    }

    fn now() -> [String; 3] {
        Self::NAMES
            .map(|name| std::fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}")).expect("a setting"))
            .map(|text| text.trim().to_owned())
    }
}

impl Drop for KernelSettings {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn equal_pages_of_machines_with_9p_are_merged() {
    let before = KernelSettings::now();
    let _guard = KernelSettings::guard(&before);
    let runtime = Runtime::new(Kind::Kata, lab());
    let throttler = runtime.program().args(["ksm-throttler"]).start();
    let listening = wait::eventually(Duration::from_secs(30), || {
        let its = |process: &pids::Process| process.line.ends_with(" ksm-throttler");
        let listens = lab().outside("/run/kata-ksm-throttler/ksm.sock").exists();
        pids::all(lab()).into_iter().find(its).filter(|_| listens)
    });
    let throttler_pid = listening.expect("it listens").pid;
    let ids = ["merged-1", "merged-2"];
    for id in ids {
        let bundle = Bundle::script(lab(), id, "yes | head -c 16000000 >/dev/shm/equal; sleep 1000");
        runtime.create_with(&bundle, id, &clone_with_9p()).ok();
        runtime.start(id).ok();
    }
    for id in ids {
        let file = format!("/proc/{}/ksm_merging_pages", pids::of_part(lab(), id, Part::Vmm)[0]);
        let mut pages = 0;
        let merged = wait::eventually(Duration::from_secs(120), || {
            let text = std::fs::read_to_string(lab().outside(&file)).expect("the VMM");
            pages = text.trim().parse::<u64>().expect("a number");
            (pages > 3000).then_some(())
        });
        assert!(merged.is_some(), "{id} shares {pages} pages");
    }
    let kill = lab().command("kill").args(["-TERM", &throttler_pid.to_string()]);
    kill.run().ok();
    throttler.finish().ok();
    assert_eq!(KernelSettings::now(), before);
    for id in ids {
        runtime.delete_force(id).ok();
    }
}

#[test]
fn a_clone_of_a_microvm() {
    let said = run_with(
        "micro-clone",
        "[factory]\nenable_template = true\n[hypervisor.qemu]\nmachine_type = \"microvm\"\n",
    );
    assert!(said.contains(" / virtiofs ") && said.contains("kata.load="), "{said}");
}

#[test]
fn another_kernel_of_the_distribution() {
    let assets = generic_assets().display();
    let said = run_with(
        "generic",
        &format!("[hypervisor.qemu]\nkernel = \"{assets}/vmlinux\"\ninitrd = \"{assets}/initrd.img\"\n"),
    );
    assert!(said.contains(" / virtiofs ") && !said.contains("cloud"), "{said}");
}

#[test]
fn a_microvm() {
    let said = run_with("micro", "[hypervisor.qemu]\nmachine_type = \"microvm\"\n");
    assert!(said.contains(" / virtiofs "), "{said}");
}

/// MiB of its guest's memory that a machine holds.
fn held(id: &str) -> u64 {
    let vmm = pids::of_part(lab(), id, Part::Vmm)[0];
    pids::shared_kib(lab(), vmm) / 1024
}

#[test]
fn memory_that_the_guest_frees_goes_back_and_a_start_is_traced() {
    let id = "reclaims";
    let runtime = Runtime::new(Kind::Kata, lab());
    // What a boot leaves is seen in a pod that keeps it: this one may have given it back before anybody looks.
    let bundle = Bundle::script(lab(), "reclaims-nothing", "sleep 1000 & wait");
    let keeps = "[hypervisor.qemu]\nreclaim_guest_freed_memory = false\n";
    runtime.create_with(&bundle, "reclaims-nothing", keeps).ok();
    runtime.start("reclaims-nothing").ok();
    let booted = held("reclaims-nothing");
    runtime.delete_force("reclaims-nothing").ok();
    let bundle = Bundle::script(lab(), id, "sleep 1000 & wait");
    runtime.create(&bundle, id).ok();
    runtime.start(id).ok();
    let trace = |format: &str| runtime.verb("trace").args(["--format", format, id]).run().ok();
    trace("table")
        .says("boot the guest's kernel")
        .says("start the container");
    let told = trace("otlp").json();
    let spans = told["resourceSpans"][0]["scopeSpans"][0]["spans"]
        .as_array()
        .expect("spans");
    assert!(
        spans.len() > 4 && spans[1]["parentSpanId"] == spans[0]["spanId"],
        "{told}"
    );
    runtime
        .verb("trace")
        .arg("nobody")
        .run()
        .failed()
        .complains("no container and no sandbox has the id \"nobody\"");

    let limit = Duration::from_secs(30);
    wait::until("what the boot has left is back", limit, || held(id) + 5 < booted);
    let fill = runtime.exec(id, "dd if=/dev/zero of=/dev/shm/large bs=1M count=50 2>/dev/null");
    fill.run().ok();
    let full = held(id);
    runtime.exec(id, "rm /dev/shm/large").run().ok();
    // In blocks of half a MiB: pages that are used keep their neighbours.
    wait::until("most of it is back", limit, || held(id) + 40 < full);
    runtime.delete_force(id).ok();
}

#[test]
fn files_of_the_host_are_read_in_large_pieces_once_a_pod_is_at_rest() {
    let id = "reads-ahead";
    let script = "while ! grep -qx 512 /sys/class/bdi/*/read_ahead_kb; do sleep 0.1; done; echo at rest";
    let bundle = Bundle::script(lab(), id, script);
    let run = Runtime::new(Kind::Kata, lab()).run(&bundle, id);
    run.run().ok().stdout("at rest\n");
}

/// With one CPU that can become more, with two that run at once, and with the other kind of machine; and a pod that is told to keep
/// it has it still when the others have forgotten.
#[test]
fn what_was_translated_of_the_boot_is_forgotten() {
    let runtime = Runtime::new(Kind::Kata, lab());
    let begin = |id: &str, configuration: &str| {
        let count = "while sleep 0.1; do echo >>/n; done";
        let bundle = Bundle::script(lab(), id, count);
        runtime
            .create_with(&bundle, id, &format!("[hypervisor.qemu]\n{configuration}\n"))
            .ok();
        runtime.start(id).ok();
        let full = pids::translated_mib(lab(), id);
        assert!(full > 30, "{id} has {full} MiB of translated code after its boot");
        full
    };
    let counted = |id: &str| -> u64 {
        let said = runtime.exec(id, "wc -l </n").run().ok().text();
        said.trim().parse().expect("a number")
    };
    let kept = begin("keeps", "reclaim_guest_freed_memory = false");
    let machines = [
        ("forgets", ""),
        ("forgets-two", "default_vcpus = 2\ndefault_maxvcpus = 2"),
        ("forgets-micro", "machine_type = \"microvm\""),
    ];
    for (id, full) in machines.map(|(id, configuration)| (id, begin(id, configuration))) {
        wait::until("the boot is forgotten", Duration::from_secs(60), || {
            pids::translated_mib(lab(), id) + 25 < full
        });
        let before = counted(id);
        wait::until("the container goes on", Duration::from_secs(20), || {
            counted(id) > before + 5
        });
        runtime.delete_force(id).ok();
    }
    assert!(
        pids::translated_mib(lab(), "keeps") >= kept,
        "a pod that is to keep it has forgotten"
    );
    runtime.delete_force("keeps").ok();
}

#[test]
fn time_passes_in_a_guest_as_it_does_outside() {
    let runtime = Runtime::new(Kind::Kata, lab());
    for (id, configuration) in [("time", ""), ("time-micro", "machine_type = \"microvm\"")] {
        let bundle = Bundle::args(lab(), id, &["sleep", "1000"]);
        let configuration = format!("[hypervisor.qemu]\n{configuration}\n");
        runtime.create_with(&bundle, id, &configuration).ok();
        runtime.start(id).ok();
        // What the guest's clock says, and that of the host before and after.
        let look = || {
            let before = Instant::now();
            let said = runtime.exec(id, "cut -d ' ' -f 1 /proc/uptime").run().ok().text();
            let uptime: f64 = said.trim().parse().expect("seconds");
            (before, uptime, Instant::now())
        };
        let (earliest, first, early) = look();
        std::thread::sleep(Duration::from_secs(3));
        let (late, last, latest) = look();
        // It stands still for some 10 ms while the machine forgets its boot.
        let least = (late - early).as_secs_f64() * 0.95;
        let most = (latest - earliest).as_secs_f64() * 1.05;
        let passed = last - first;
        assert!(
            (least..most).contains(&passed),
            "{id}: {passed} s in {least} to {most} s"
        );
        runtime.delete_force(id).ok();
    }
}

#[test]
fn two_cpus_and_more_memory() {
    let said = run_with("larger", "[hypervisor.qemu]\ndefault_vcpus = 2\ndefault_memory = 512\n");
    assert!(said.contains(" / virtiofs "), "{said}");
}
