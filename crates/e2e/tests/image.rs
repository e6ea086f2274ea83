//! A guest whose root is an image: as persistent memory that is the host's one copy, as a disk, in a template, and what is
//! said when there is no way into it. With the distribution's kernel, whose drivers for it are modules.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::json;

/// The image of the assets under test, as the lab sees it.
const IMAGE: &str = "/var/cache/kata-containers/current/image.erofs";

fn lab() -> Lab {
    let lab = Lab::open();
    // Made by the first pod, and left.
    fs::create_dir(lab.outside("/run/kata")).expect("the sandboxes' place");
    lab
}

fn configuration(more: &str) -> String {
    format!("[hypervisor.qemu]\nimage = \"{IMAGE}\"\n{more}")
}

/// KiB of the image that the machine of `id` has mapped and the guest has used.
fn used_kib(lab: &Lab, id: &str) -> Option<u64> {
    let vmm = pids::of_part(lab, id, Part::Vmm)[0];
    pids::rss_kib(lab, vmm, |_, name| name.ends_with("/image.erofs"))
}

/// What the container `id` answers to a shell's words.
fn ask(runtime: Runtime<'_>, id: &str, script: &str) -> String {
    runtime.verb("exec").args([id, "sh", "-c", script]).run().ok().text()
}

fn memory_mib(runtime: Runtime<'_>, id: &str) -> u64 {
    let text = ask(runtime, id, "grep MemTotal /proc/meminfo");
    let kib = text.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    kib.expect("MemTotal") / 1024
}

#[test]
fn the_hosts_one_copy_is_the_root() {
    let lab = &lab();
    let runtime = Runtime::new(Kind::Kata, lab);
    let before = Snapshot::take(lab);
    let bundle = Bundle::args(lab, "memory", &["sleep", "1000"]).edit(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
        }
        spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    });
    runtime.create_with(&bundle, "memory", &configuration("")).ok();
    runtime.start("memory").ok();

    assert_eq!(ask(runtime, "memory", "cat /sys/block/pmem0/queue/dax"), "1\n");
    // The agent alone has more.
    let used = used_kib(lab, "memory").expect("the VMM has mapped the image");
    assert!(used > 1024, "{used} KiB of the image were used");
    // Sectors: what goes by the device and not by its memory is the file system's own.
    let read = ask(runtime, "memory", "awk '{print $3}' /sys/block/pmem0/stat");
    assert!(
        read.trim().parse::<u64>().expect("sectors") < 1024,
        "{read} sectors were read"
    );

    // A guest may write what it likes: neither the file nor another guest sees it.
    let file = || fs::read(lab.outside(IMAGE)).expect("the image");
    let image = file();
    ask(
        runtime,
        "memory",
        "mknod /dev/p b $(tr : ' ' </sys/block/pmem0/dev) && dd if=/dev/zero of=/dev/p bs=4096 count=1 conv=fsync",
    );
    assert!(file() == image, "the guest has written to the image");

    // Memory that comes later has its place before the image.
    let first = memory_mib(runtime, "memory");
    runtime
        .verb("update")
        .args(["--memory", "419430400", "memory"])
        .run()
        .ok();
    wait::until("more memory", Duration::from_secs(20), || {
        memory_mib(runtime, "memory") >= first + 128
    });

    runtime.verb("kill").args(["memory", "KILL"]).run().ok();
    runtime.verb("delete").args(["--force", "memory"]).run().ok();
    before.expect_nothing_more(lab, "an image as memory");
}

#[test]
fn as_a_disk_it_is_the_guests_own_copy() {
    let lab = &lab();
    let runtime = Runtime::new(Kind::Kata, lab);
    for (name, more) in [
        ("disk", "disable_image_nvdimm = true\n"),
        ("micro", "machine_type = \"microvm\"\n"),
    ] {
        let bundle = Bundle::args(lab, name, &["sleep", "1000"]);
        runtime.create_with(&bundle, name, &configuration(more)).ok();
        runtime.start(name).ok();

        assert_eq!(
            ask(
                runtime,
                name,
                "cat /sys/block/vda/ro; ls /sys/block | grep -c pmem || true"
            ),
            "1\n0\n"
        );
        assert_eq!(used_kib(lab, name), None);
        runtime.verb("delete").args(["--force", name]).run().ok();
    }
}

#[test]
fn a_clone_has_the_templates_image() {
    let lab = &lab();
    let runtime = Runtime::new(Kind::Kata, lab);
    let more = "[factory]\nenable_template = true\n";
    for name in ["made", "found"] {
        let bundle = Bundle::args(lab, name, &["sleep", "1000"]);
        runtime.create_with(&bundle, name, &configuration(more)).ok();
        runtime.start(name).ok();

        let line = ask(runtime, name, "cat /proc/cmdline");
        assert!(
            line.contains("root=/dev/pmem0") && line.contains("kata.load="),
            "{line}"
        );
        assert!(used_kib(lab, name).is_some());
        runtime.verb("delete").args(["--force", name]).run().ok();
    }
}

#[test]
fn what_cannot_be_the_root_is_named() {
    let lab = &lab();
    let runtime = Runtime::new(Kind::Kata, lab);
    let before = Snapshot::take(lab);
    let bundle = Bundle::args(lab, "wrong", &["true"]);
    let create = |configuration: &str| runtime.create_with(&bundle, "wrong", configuration).failed();
    let words = || fs::read_to_string(bundle.dir().join("stderr")).expect("its words");
    let says = |part: &str| assert!(words().contains(part), "{}", words());

    create(&configuration("initrd = \"/r\"\n"));
    says("initrd is /r: a guest has one of them as its root");

    create("[hypervisor.qemu]\nimage = \"/no/such/image\"\n");
    says("no guest image at /no/such/image");

    let image = |name: &str, bytes: u64, loader: bool| -> PathBuf {
        let path = lab.scratch().join(name);
        fs::File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .expect("an image");
        if loader {
            fs::copy(lab.outside(format!("{IMAGE}.initrd")), path.with_extension("initrd")).expect("its initramfs");
        }
        path
    };
    let odd = image("odd", 5000, false);
    create(&format!("[hypervisor.qemu]\nimage = \"{}\"\n", odd.display()));
    says("has 5000 bytes: as persistent memory it has to be a multiple of 2097152");

    // Without a file system in it, and what leads to it says so.
    let empty = image("empty", 2 << 20, true);
    create(&format!("[hypervisor.qemu]\nimage = \"{}\"\n", empty.display()));
    says("mount /dev/pmem0 as erofs");
    before.expect_nothing_more(lab, "images that are none");
}
