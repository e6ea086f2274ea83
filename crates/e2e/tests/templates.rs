//! Machines that are clones of a template: pods like any other, all different, and a boot when the template is no good.

use std::time::Duration;

use kata_e2e::bundle::Bundle;
use kata_e2e::clock::Asked;
use kata_e2e::factory::factory;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::pod;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::wait;
use serde_json::{Value, json};

const STORE: &str = "/run/vc/vm/template";

/// A lab in which templates are enabled, and whatever else `configuration` says.
fn open(configuration: &str) -> Lab {
    let lab = Lab::open();
    let directory = lab.outside("/etc/kata-containers");
    std::fs::create_dir_all(&directory).expect("configuration directory");
    let text = format!("[factory]\nenable_template = true\n{configuration}");
    std::fs::write(directory.join("configuration.toml"), text).expect("configuration");
    lab
}

/// The lab of the tests that leave its template alone.
fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(|| {
        let lab = open("");
        factory(&lab, "init").ok().stdout("vm factory initialized\n");
        lab
    })
}

fn runtime(lab: &Lab) -> Runtime<'_> {
    Runtime::new(Kind::Kata, lab)
}

#[track_caller]
fn sh(lab: &Lab, script: &str) -> String {
    lab.command("sh").args(["-c", script]).run().ok().text()
}

#[track_caller]
fn inside(lab: &Lab, id: &str, script: &str) -> String {
    runtime(lab).exec(id, script).run().ok().text().trim().to_owned()
}

/// Whether the machine of this sandbox was made of a template.
#[track_caller]
fn is_clone(lab: &Lab, id: &str) -> bool {
    let processes = pids::of_sandbox(lab, id);
    let vmm = processes.iter().find(|process| process.part() == Some(Part::Vmm));
    vmm.expect("its VMM runs").line.contains("-incoming")
}

/// What the sandbox process of a container has logged.
#[track_caller]
fn log(lab: &Lab, id: &str) -> String {
    let homes = std::fs::read_dir(lab.outside("/run/kata"))
        .expect("/run/kata")
        .flatten();
    let its = homes.map(|home| home.path()).find(|home| {
        let record = std::fs::read(home.join("record.json")).unwrap_or_default();
        serde_json::from_slice::<Value>(&record).unwrap_or_default()["id"] == id
    });
    std::fs::read_to_string(its.expect("its directory").join("sandbox.log")).expect("its log")
}

/// The names in the store.
fn templates(lab: &Lab) -> Vec<String> {
    sh(lab, &format!("ls -A {STORE} 2>/dev/null || true"))
        .lines()
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn begin(lab: &Lab, id: &str) {
    runtime(lab).begin(&Bundle::args(lab, id, &["sleep", "1000"]), id);
}

/// Runs a container as long as it takes to see what its machine was made of; answers whether that was a template.
#[track_caller]
fn tried(lab: &Lab, id: &str) -> (bool, String) {
    begin(lab, id);
    let seen = (is_clone(lab, id), log(lab, id));
    assert_eq!(inside(lab, id, "echo sound"), "sound");
    runtime(lab).delete_force(id).ok();
    seen
}

#[test]
fn a_clone_is_a_pod_like_any_other() {
    let lab = lab();
    let runtime = runtime(lab);
    factory(lab, "status")
        .ok()
        .says("vm factory is on\n")
        .says("of this configuration");
    factory(lab, "init")
        .ok()
        .stdout("vm factory initialized (it was before)\n");
    let data = lab.scratch().join("data");
    std::fs::create_dir(&data).expect("data");
    std::fs::write(data.join("from-outside"), "hello\n").expect("file");

    runtime.begin(&pod::on_a_bridge(lab, "pod"), "pod");
    assert!(is_clone(lab, "pod"), "{}", log(lab, "pod"));
    let server = "echo served >/index.html; httpd -p 127.0.0.1:8080 -h /; httpd -f -p 10.98.0.2:80 -h /";
    runtime.begin(&pod::member(lab, "web", "pod", server), "web");
    let side = pod::member(lab, "side", "pod", "sleep 1000").mount("/data", "bind", &data, &["rbind", "rw"]);
    runtime.begin(&side, "side");

    let fetch = "until wget -qO- http://127.0.0.1:8080/index.html; do sleep 0.2; done";
    assert_eq!(inside(lab, "side", fetch), "served", "localhost is the pod's");
    let address = "10.98.0.2:80".parse().expect("address");
    let page = wait::eventually(Duration::from_secs(20), || lab.fetch(address, "index.html").ok());
    assert_eq!(page.as_deref(), Some("served\n"), "from the host");
    let link = inside(lab, "side", "ip addr show eth0");
    for part in ["mtu 1400", "02:98:00:00:00:02", "inet 10.98.0.2/24"] {
        assert!(link.contains(part), "{part} in {link}");
    }
    assert_eq!(
        inside(lab, "side", "hostname; cat /data/from-outside"),
        "the-pod\nhello"
    );
    inside(
        lab,
        "side",
        "echo from inside >/data/answer; echo kept >/file; head -c 3000000 /dev/zero >/data/large",
    );
    assert_eq!(
        std::fs::read_to_string(data.join("answer")).expect("written"),
        "from inside\n"
    );
    assert_eq!(std::fs::metadata(data.join("large")).expect("written").len(), 3_000_000);
    assert_eq!(
        std::fs::read_to_string(side.rootfs().join("file")).expect("written"),
        "kept\n"
    );
    let total = inside(lab, "side", "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    assert!(
        total.parse::<u32>().expect("KiB") > 400 << 10,
        "256 MiB and two limits: {total} KiB"
    );
    for id in ["web", "side", "pod"] {
        runtime.delete_force(id).ok();
    }
}

/// What a pod's guest holds, seen from a container that shares its processes: mounts, files and open files of the agent,
/// cgroups, processes; and the memory that is available, KiB.
fn guest(lab: &Lab, id: &str, annotations: Value) -> (String, u64) {
    let bundle = Bundle::args(lab, id, &["sleep", "1000"]).edit(|spec| {
        spec["annotations"] = annotations;
        spec["linux"]["cgroupsPath"] = json!("/e2e/guest");
        let kinds = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        kinds.retain(|kind| kind["type"] != "pid");
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
        }
    });
    runtime(lab).begin(&bundle, id);
    let script = "
        cut -d' ' -f5- /proc/1/mountinfo
        cd /proc/1/root && find run tmp -path run/kata/shared/*/* -prune -o -print
        find sys/fs/cgroup -type d
        ls -l /proc/1/fd | sed -n 's/.* -> //p' | sort
        set -- /proc/[0-9]*
        for process; do tr '\\0' ' ' <$process/cmdline; echo; done | grep . | sort";
    // Numbers of pipes and namespaces.
    let numbered = |word: &str| word.split_once(":[").map_or(word, |(kind, _)| kind).to_owned();
    let said = inside(lab, id, script).replace(id, "ID");
    let seen = said
        .lines()
        .map(|line| line.split(' ').map(numbered).collect::<Vec<_>>().join(" "));
    let seen = seen.collect::<Vec<_>>().join("\n");
    let available = inside(lab, id, "awk '/MemAvailable/ { print $2 }' /proc/meminfo");
    (seen, available.parse().expect("KiB"))
}

#[test]
fn nothing_of_the_rehearsal_is_seen_in_a_clone() {
    let lab = lab();
    let (clone, available) = guest(lab, "rehearsed", json!({}));
    assert!(is_clone(lab, "rehearsed"), "{}", log(lab, "rehearsed"));
    let script = "cd /sys/class/net; cat eth*/address eth*/mtu eth*/flags; ip -o addr | grep -v ' lo '; ip route";
    let links = inside(
        lab,
        "rehearsed",
        &format!("{script}; cat /proc/sys/net/ipv6/conf/eth*/accept_dad"),
    );
    let untouched = "02:00:00:00:00:00\n02:00:00:00:00:01\n1500\n1500\n0x1002\n0x1002\n1\n1";
    assert_eq!(links, untouched, "no names, addresses and routes of a pod");
    let file = lab.scratch().join("boots.toml");
    std::fs::write(&file, "[factory]\nenable_template = false\n").expect("configuration");
    let (boot, usual) = guest(lab, "booted", json!({"io.katacontainers.config_path": file}));
    assert!(!is_clone(lab, "booted"), "{}", log(lab, "booted"));
    for line in ["run/kata/shared/ID", "sys/fs/cgroup/e2e/guest", "sleep 1000"] {
        assert!(clone.contains(line), "{line} in {clone}");
    }
    assert_eq!(clone, boot);
    assert!(available + (4 << 10) > usual, "{available} of {usual} KiB are left");
    for id in ["rehearsed", "booted"] {
        runtime(lab).delete_force(id).ok();
    }
}

#[test]
fn many_clones_at_once_are_all_different() {
    let lab = lab();
    let ids: Vec<String> = (0..8).map(|number| format!("many-{number}")).collect();
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(move || {
                let bundle = Bundle::args(lab, id, &["sleep", "1000"]).edit(|spec| spec["hostname"] = json!(id));
                runtime(lab).begin(&bundle, id);
            });
        }
    });
    let mut drawn = std::collections::BTreeSet::new();
    for id in &ids {
        assert!(is_clone(lab, id), "{}", log(lab, id));
        let script = "hostname; date +%s; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
        let asked = Asked::now();
        let said = inside(lab, id, script);
        let [hostname, time, boot_id, random] = said.lines().collect::<Vec<_>>()[..] else {
            panic!("{said}")
        };
        assert_eq!(hostname, id);
        asked.expect_time(time);
        assert!(
            drawn.insert(boot_id.to_owned()) && drawn.insert(random.to_owned()),
            "twice: {said}"
        );
    }
    for id in &ids {
        runtime(lab).delete_force(id).ok();
    }
}

#[test]
fn a_template_that_is_no_good_is_given_up_for_a_boot() {
    let lab = open("");
    let warnings = |log: &str| log.lines().filter(|line| line.contains(" WARN ")).count();
    // Made by the first who needs it.
    let (cloned, log) = tried(&lab, "first");
    assert!(cloned && warnings(&log) == 0, "{log}");
    let [first] = &templates(&lab)[..] else {
        panic!("one template")
    };

    sh(&lab, &format!("echo more >>{STORE}/{first}/state"));
    factory(&lab, "status")
        .ok()
        .says("vm factory is off\n")
        .says("  damaged\n");
    let (cloned, log) = tried(&lab, "changed");
    assert!(
        !cloned && warnings(&log) == 1 && log.contains("its state was changed"),
        "{log}"
    );
    assert_eq!(templates(&lab), [] as [String; 0], "it was discarded");

    // And left half-made by another.
    sh(&lab, &format!("mkdir -p {STORE}/.new; echo half >{STORE}/.new/memory"));
    let (cloned, log) = tried(&lab, "anew");
    assert!(cloned && warnings(&log) == 0, "{log}");
    assert_eq!(templates(&lab), std::slice::from_ref(first));

    // What only QEMU finds out.
    let forge = format!(
        "cd {STORE}/{first}; truncate -s 50000 state; touch -d @1000000000 state; set $(sha256sum state)
        shape='\"state\":{{\"bytes\":50000,\"seconds\":1000000000,\"nanoseconds\":0}}'
        sed -i -e \"s/\\\"state_sha256\\\":\\\"[0-9a-f]*/\\\"state_sha256\\\":\\\"$1/\" -e \"s/\\\"state\\\":{{[^}}]*}}/$shape/\" manifest.json"
    );
    sh(&lab, &forge);
    factory(&lab, "status").ok().says("vm factory is on\n");
    let (cloned, log) = tried(&lab, "forged");
    assert!(
        !cloned && log.contains("no machine could be made of the template"),
        "{log}"
    );
    assert_eq!(templates(&lab), [] as [String; 0], "it was discarded");

    // No room for one: the second pod does not try any more, but an operator may.
    sh(&lab, &format!("mount -t tmpfs -o size=30m,mode=700 small {STORE}"));
    let failure = format!("{first}.failed");
    let (cloned, log) = tried(&lab, "full");
    assert!(!cloned && warnings(&log) == 1 && log.contains("No space left"), "{log}");
    assert_eq!(
        templates(&lab),
        std::slice::from_ref(&failure),
        "nothing half-made, and a reason"
    );
    let remembered = "it could not be made, which is tried again in ";
    factory(&lab, "status")
        .ok()
        .says("vm factory is off\n")
        .says(&format!("{STORE}/{first}  {remembered}"))
        .says("No space left");
    factory(&lab, "init")
        .failed()
        .complains("cannot make the template")
        .complains("No space left");
    sh(&lab, &format!("mount -o remount,size=400m {STORE}"));
    let (cloned, log) = tried(&lab, "remembering");
    assert!(!cloned && warnings(&log) == 1 && log.contains(remembered), "{log}");
    sh(&lab, &format!("touch -d '6 minutes ago' {STORE}/{failure}"));
    let (cloned, log) = tried(&lab, "forgetting");
    assert!(cloned && warnings(&log) == 0, "{log}");
    assert_eq!(templates(&lab), std::slice::from_ref(first), "the failure is forgotten");
    sh(&lab, &format!("umount {STORE}"));
}

/// Whether a template is an image of QEMU's process, not the state that QEMU writes.
fn is_process(lab: &Lab, name: &str) -> bool {
    let state = std::fs::read(lab.outside(STORE).join(name).join("state")).expect("a state");
    state.starts_with(b"KATAIMG")
}

#[test]
fn another_configuration_or_kernel_is_another_template() {
    let lab = open("");
    let assets = lab.scratch().join("assets");
    let copy = format!(
        "mkdir -p {0}; cp /var/cache/kata-containers/current/* {0}",
        assets.display()
    );
    sh(&lab, &copy);
    let configure = |memory: u32, more: &str| {
        let text = format!(
            "[factory]\nenable_template = true\n[hypervisor.qemu]\n{more}\ndefault_memory = {memory}\nkernel = \"{0}/vmlinux\"\ninitrd = \"{0}/initrd.img\"\n",
            assets.display()
        );
        std::fs::write(lab.outside("/etc/kata-containers/configuration.toml"), text).expect("configuration");
    };
    configure(200, "");
    // Two at once make one.
    let init = || {
        runtime(&lab)
            .program()
            .args(["factory", "init"])
            .limit(Duration::from_secs(60))
            .start()
    };
    let mut said: Vec<String> = [init(), init()].map(|one| one.finish().ok().text()).into();
    said.sort();
    assert_eq!(
        said,
        ["vm factory initialized\n", "vm factory initialized (it was before)\n"]
    );
    let [first] = &templates(&lab)[..] else {
        panic!("one template")
    };
    let (cloned, log) = tried(&lab, "first");
    assert!(cloned, "{log}");

    assert!(is_process(&lab, first), "without hardware virtualization");
    // A system call filter is the process's own.
    configure(220, "seccompsandbox = \"on,obsolete=deny,spawn=deny\"");
    factory(&lab, "status")
        .ok()
        .says("vm factory is off\n")
        .says("of another configuration");
    let (cloned, log) = tried(&lab, "larger");
    assert!(cloned, "{log}");
    let both = templates(&lab);
    assert_eq!(both.len(), 2, "configurations have their own");
    assert!(
        both.iter().all(|name| is_process(&lab, name) == (name == first)),
        "{both:?}"
    );

    // The same bytes, but another file, as far as can be told without reading it.
    sh(
        &lab,
        &format!("cd {}; cp initrd.img new; mv new initrd.img", assets.display()),
    );
    factory(&lab, "status")
        .ok()
        .says("vm factory is off\n")
        .says("outdated");
    factory(&lab, "init").ok().stdout("vm factory initialized\n");
    let [fresh] = &templates(&lab)[..] else {
        panic!("the outdated have gone")
    };
    assert_ne!(fresh, first);
    factory(&lab, "status").ok().says("vm factory is on\n");
}

#[test]
fn nothing_is_left_of_a_factory() {
    let lab = open("");
    // The directories above, and that of the sandboxes, stay.
    sh(&lab, "mkdir -p /run/vc/vm /run/kata");
    let before = Snapshot::take(&lab);
    factory(&lab, "status").ok().stdout("vm factory is off\n");
    factory(&lab, "destroy").ok().stdout("vm factory destroyed\n");

    // Who is killed while it makes one leaves what the next maker removes, and nothing that runs.
    let half_made = || lab.outside(STORE).join(".new/memory").exists();
    let is_making =
        |process: &pids::Process| process.part() == Some(Part::Vmm) || process.part() == Some(Part::Virtiofsd);
    let nobody_makes = || !pids::all(&lab).iter().any(is_making);
    let maker = runtime(&lab).program().args(["factory", "init"]).start();
    wait::until("it is being made", Duration::from_secs(60), || {
        half_made() && !nobody_makes()
    });
    let its = pids::all(&lab)
        .into_iter()
        .find(|process| process.line.ends_with("factory init"));
    lab.kill(its.expect("the maker").pid);
    maker.finish().failed();
    wait::until("the maker's machine has ended", Duration::from_secs(30), nobody_makes);
    factory(&lab, "status").ok().stdout("vm factory is off\n");

    // So with a sandbox that has one made.
    let bundle = Bundle::args(&lab, "killed", &["sleep", "1000"]);
    let waiting = runtime(&lab).run(&bundle, "killed").start();
    wait::until("it is being made", Duration::from_secs(60), || {
        half_made() && !nobody_makes()
    });
    pids::kill_part(&lab, "killed", Part::Shim);
    waiting.finish().failed();
    wait::until("the maker's machine has ended", Duration::from_secs(30), nobody_makes);
    runtime(&lab).delete_force("killed").ok();

    // A machine that ends while its guest rehearses.
    let maker = runtime(&lab).program().args(["factory", "init"]).start();
    let its = wait::eventually(Duration::from_secs(60), || {
        let rehearses = lab.outside(STORE).join(".new/bundle/rootfs/bin/rehearse").exists();
        let mut all = pids::all(&lab).into_iter();
        all.find(|process| rehearses && process.part() == Some(Part::Vmm))
    });
    lab.kill(its.expect("the maker's machine rehearses").pid);
    maker
        .finish()
        .failed()
        .complains("cannot make the template")
        .complains("ended by signal 9");
    wait::until("the maker's machine has ended", Duration::from_secs(30), nobody_makes);
    let [failure] = &templates(&lab)[..] else {
        panic!("nothing but a reason")
    };
    assert!(failure.ends_with(".failed"), "{failure}");

    // Clones outlive their template.
    factory(&lab, "init").ok().stdout("vm factory initialized\n");
    begin(&lab, "outlives");
    assert!(is_clone(&lab, "outlives"), "{}", log(&lab, "outlives"));
    factory(&lab, "destroy").ok().stdout("vm factory destroyed\n");
    assert_eq!(inside(&lab, "outlives", "echo sound; ls / | grep -c bin"), "sound\n1");
    runtime(&lab).delete_force("outlives").ok();
    before.expect_nothing_more_but(&lab, "all of it", &["/e2e", "/run/e2e-oci"]);
}

#[test]
fn a_directory_on_a_disk_gets_a_file_system_in_memory() {
    // Of its own: what the others have in theirs is not to be seen in it.
    let lab = Lab::open();
    let path = lab.scratch().join("on-disk");
    let file = lab.scratch().join("on-disk.toml");
    let configure = |text: &str| {
        std::fs::write(
            &file,
            format!("[factory]\n{text}\ntemplate_path = \"{}\"\n", path.display()),
        )
    };
    configure("enable_template = true").expect("configuration");
    let factory = |action: &str| {
        let command = runtime(&lab).program().arg("--kata-config").arg(&file);
        command.args(["factory", action]).limit(Duration::from_secs(60)).run()
    };
    let before = Snapshot::take(&lab);
    factory("init").ok();
    assert!(sh(&lab, "cat /proc/mounts").contains("kata-templates"), "it is mounted");
    factory("destroy").ok();
    assert!(!path.exists());
    before.expect_nothing_more(&lab, "a template on a disk");

    configure("enable_template = false").expect("configuration");
    factory("init").failed().complains("vm factory is not enabled");
    factory("status").ok().stdout("vm factory is not enabled\n");
}
