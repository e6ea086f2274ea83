//! Memory of the host that does not do for one more pod: that pod fails, says why and leaves nothing, and the others live.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};

const MIB: u64 = 1 << 20;

/// The lab's cgroup as a host with little memory.
struct Memory(PathBuf);

impl Memory {
    /// Leaves so much room beside what is in use and cannot be reclaimed.
    fn leave_mib(&self, room: u64) {
        let write = |file: &str, text: &str| std::fs::write(self.0.join(file), text).expect(file);
        write("memory.limit_in_bytes", "-1");
        write("memory.force_empty", "0");
        let usage = std::fs::read_to_string(self.0.join("memory.usage_in_bytes")).expect("readable");
        let limit = usage.trim().parse::<u64>().expect("bytes") + room * MIB;
        write("memory.limit_in_bytes", &limit.to_string());
    }
}

/// How ready the kernel is to kill a part of a sandbox.
fn readiness(lab: &Lab, id: &str, part: Part) -> String {
    let file = format!("/proc/{}/oom_score_adj", pids::of_part(lab, id, part)[0]);
    let text = std::fs::read_to_string(lab.outside(file)).expect("readable");
    text.trim().to_owned()
}

/// What the memory of the only template takes.
fn template_mib(lab: &Lab) -> u64 {
    let store = std::fs::read_dir(lab.outside("/run/vc/vm/template")).expect("the store");
    let files = store.flatten().map(|entry| entry.path().join("memory"));
    let sizes: Vec<u64> = files
        .flat_map(std::fs::metadata)
        .map(|data| data.blocks() * 512)
        .collect();
    let [size] = sizes[..] else {
        panic!("one template: {sizes:?}")
    };
    size / MIB
}

#[test]
fn a_clone_without_memory_fails_and_the_others_live() {
    // With a filter, templates are QEMU's own: machines of them need more while they start, and there is time to be killed in.
    let filter = "[hypervisor.qemu]\nseccompsandbox = \"on,obsolete=deny\"\n";
    let lab = Lab::configured(&format!("[factory]\nenable_template = true\n{filter}"));
    let runtime = Runtime::new(Kind::Kata, &lab);
    let memory = Memory(lab.cgroup("memory"));
    let factory = |action: &str| {
        let command = runtime.program().args(["factory", action]);
        command.limit(Duration::from_secs(60)).run().ok()
    };
    factory("init");
    let bundle = |id: &str| Bundle::args(&lab, id, &["sleep", "1000"]);
    for id in ["one", "two"] {
        runtime.begin(&bundle(id), id);
    }
    let usual = std::fs::read_to_string("/proc/self/oom_score_adj").expect("readable");
    for part in [Part::Shim, Part::Vmm, Part::Virtiofsd] {
        assert_eq!(
            readiness(&lab, "one", part),
            usual.trim(),
            "{part:?} of a pod that has started"
        );
    }
    let third = bundle("third");
    let before = Snapshot::take(&lab);

    // Not enough for a copy of the template, for the machine, for what the guest does.
    let copy = template_mib(&lab);
    let by_kernel = "ended by signal 9 (so the kernel ends processes when memory is wanting)";
    for (room, said) in [
        (
            30,
            "the sandbox process was killed, as the kernel does when memory is wanting",
        ),
        (copy + 10, by_kernel),
        (copy + 24, by_kernel),
    ] {
        memory.leave_mib(room);
        runtime.create(&third, "third").failed();
        let words = std::fs::read_to_string(third.dir().join("stderr")).expect("its words");
        assert!(words.contains(said), "{room} MiB: {words}");
        for id in ["one", "two"] {
            let answer = runtime.exec(id, "echo $((6 * 7))").run().ok();
            answer.stdout("42\n");
        }
        before.expect_nothing_more_but(&lab, &format!("a failure with {room} MiB"), &["/e2e"]);
        factory("status").says("vm factory is on\n");
    }
    memory.leave_mib(400);
    runtime.begin(&third, "third");
    for id in ["one", "two", "third"] {
        runtime.delete_force(id).ok();
    }
}
