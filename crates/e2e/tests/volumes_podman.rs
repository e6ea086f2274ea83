//! Volumes and devices by Podman's flags, files copied to and from running containers, and guests that try to get out by
//! them.

use std::fs;
use std::path::PathBuf;

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::disk::LoopDevice;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::podman::Podman;
use kata_e2e::runtime::Kind;
use kata_e2e::task::Task;

against_both!(
    volumes_are_mounted_as_the_flags_say,
    files_are_copied_to_and_from_what_the_container_sees,
    a_privileged_container_is_given_what_there_is,
);

fn podman(kind: Kind) -> &'static Podman<'static> {
    static LABS: [Shared<Lab>; 2] = [const { Shared::new() }; 2];
    static PODMEN: [Shared<Podman>; 2] = [const { Shared::new() }; 2];
    let index = usize::from(kind == Kind::Kata);
    PODMEN[index].get(|| Podman::start(LABS[index].get(Lab::open), kind))
}

fn dir(kind: Kind, name: &str) -> PathBuf {
    let dir = podman(kind).lab().scratch().join(name);
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

fn volumes_are_mounted_as_the_flags_say(kind: Kind) {
    let (read_only, labelled) = (dir(kind, "read-only"), dir(kind, "labelled"));
    fs::write(read_only.join("file"), "kept\n").expect("file");
    let device = LoopDevice::new(&dir(kind, "disks").join("disk"), 1);
    device.write(b"a disk");
    let flags = [
        format!("-v={}:/read-only:ro", read_only.display()),
        format!("-v={}:/labelled:Z,U", labelled.display()),
        format!(
            "--mount=type=bind,src={},dst=/bound,ro=true",
            read_only.join("file").display()
        ),
        "--mount=type=tmpfs,dst=/scratch,tmpfs-size=1m,tmpfs-mode=0700".into(),
        "--tmpfs=/more:size=2m".into(),
        "-v=named:/named".into(),
        "-v=/anonymous".into(),
        "--shm-size=5m".into(),
        format!("--device={}:/dev/xvda:r", device.node().display()),
        "--device=/dev/fuse".into(),
    ];
    let script = "touch /read-only/x 2>/dev/null || echo read-only; cat /bound; stat -c %u /labelled; \
                  df -k /scratch /more /dev/shm | awk '/scratch|more|shm/ {print $2}'; stat -c %a /scratch; \
                  echo named >/named/file; touch /anonymous/file && head -c 6 /dev/xvda; \
                  dd if=/dev/zero of=/dev/xvda count=1 2>/dev/null || echo ' kept'; : <>/dev/fuse && echo fuse";
    let mut all = vec!["--rm", "--user=7:7", "--cap-add=dac_override"];
    all.extend(flags.iter().map(String::as_str));

    let outcome = podman(kind).run(&all, &["sh", "-c", script]).run();

    outcome
        .ok()
        .stdout("read-only\nkept\n7\n1024\n2048\n5120\n700\na disk kept\nfuse\n");
    let mut named = podman(kind)
        .podman(["volume", "inspect", "--format", "{{.Mountpoint}}", "named"])
        .run()
        .ok()
        .text();
    named.truncate(named.trim_end().len());
    assert_eq!(
        fs::read_to_string(PathBuf::from(named).join("file")).expect("file"),
        "named\n"
    );
    assert!(device.close(), "somebody still has the disk open");
}

fn files_are_copied_to_and_from_what_the_container_sees(kind: Kind) {
    let podman = podman(kind);
    let (volume, files) = (dir(kind, "copied"), dir(kind, "files"));
    fs::write(files.join("in"), "in\n").expect("file");
    let flag = format!("-v={}:/data/volume", volume.display());
    let script = "echo out >/data/volume/out; echo own >/data/own; ln -s /data/volume /link; sleep 1000";
    podman
        .run(&["-d", "--name", "copied", &flag], &["sh", "-c", script])
        .run()
        .ok();
    let exec = |script: &str| podman.podman(["exec", "copied", "sh", "-c", script]).run();
    exec("while [ ! -e /link ]; do sleep 0.1; done").ok();
    let copy = |from: &str, to: &str| podman.podman(["cp", from, to]).run();
    let local = |name: &str| files.join(name).display().to_string();

    copy(&local("in"), "copied:/data/volume/in").ok();
    copy(&local("in"), "copied:/data/in").ok();
    copy(&local("in"), "copied:/link/linked").ok();
    copy("copied:/data/volume/out", &local("out")).ok();
    copy("copied:/data/own", &local("own")).ok();

    exec("cat /data/volume/in /data/in /data/volume/linked")
        .ok()
        .stdout("in\nin\nin\n");
    let read = |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        (read(volume.join("in")), read(volume.join("linked"))),
        ("in\n".into(), "in\n".into())
    );
    assert_eq!(
        (read(files.join("out")), read(files.join("own"))),
        ("out\n".into(), "own\n".into())
    );
    podman.podman(["rm", "--force", "--time", "0", "copied"]).run().ok();
}

fn a_privileged_container_is_given_what_there_is(kind: Kind) {
    let outcome = podman(kind).run(
        &["--rm", "--privileged"],
        &["sh", "-c", "mknod /dev/x c 1 3 && echo x >/dev/x && echo ok"],
    );
    outcome.run().ok().stdout("ok\n");
}

/// Root in a guest, with all it can ask for, against its host: links, names that change, devices.
#[test]
fn a_hostile_guest_stays_inside() {
    let podman = podman(Kind::Kata);
    let (volume, secret) = (dir(Kind::Kata, "hostile"), dir(Kind::Kata, "secret"));
    fs::write(secret.join("file"), "secret").expect("file");
    let victim = LoopDevice::new(&secret.join("disk"), 1);
    victim.write(b"secret");
    let (major, minor) = victim.numbers();
    let flag = format!("-v={}:/volume", volume.display());
    let flags = ["-d", "--name", "hostile", "--privileged", &flag];
    let secret_path = secret.display();
    // The link and the directory change places as fast as they can, while the host acts on the path.
    let script = format!(
        "cd /volume; ln -s {secret_path} out; ln -s ../../../../../../../../..{secret_path} up; ln -s /proc/1/root root; \
         mkdir -p real; mknod disk b {major} {minor}; mknod /disk b {major} {minor}; chmod 666 disk /disk; \
         cat out/file up/file root/{secret_path}/file ../../../../../{secret_path}/file; head -c 6 disk; echo ready; \
         while :; do mv real dir; mv dir gone; ln -s {secret_path} dir; mv dir trap; mv gone real; rm trap; done"
    );
    podman.run(&flags, &["sh", "-c", &script]).run().ok();
    let ready = || podman.podman(["logs", "hostile"]).run().text();
    kata_e2e::wait::until("the guest has tried", std::time::Duration::from_secs(30), || {
        ready().contains("ready")
    });
    assert_eq!(ready(), "ready\n", "the guest has read what is the host's");

    // The host copies to and from paths that lead out.
    let files = dir(Kind::Kata, "hostile-files");
    fs::write(files.join("intruder"), "intruder").expect("file");
    let local = files.join("intruder").display().to_string();
    for path in ["out", "up", "dir"] {
        let inside = format!("hostile:/volume/{path}");
        podman.podman(["cp", &local, &format!("{inside}/intruder")]).run();
        let taken = files.join(path).display().to_string();
        podman.podman(["cp", &format!("{inside}/file"), &taken]).run();
    }
    let taken = podman.lab().command("grep").args(["-r", "secret"]).arg(&files).run();
    assert_eq!(
        taken.text(),
        "",
        "the guest's links have led the host to what is not the guest's"
    );

    // Another container is mounted where the links are, and below them.
    let inner = ["/volume/out/inner", "/volume/dir", "/volume/up/../x"];
    let inner = inner.map(|destination| format!("-v={}:{destination}", files.display()));
    let [out, dir, up] = inner.each_ref().map(String::as_str);
    podman.run(&["--rm", &flag, out, dir, up], &["true"]).run();

    let mut left: Vec<_> = fs::read_dir(&secret)
        .expect("list")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["disk", "file"], "nothing was made outside");
    assert_eq!(fs::read_to_string(secret.join("file")).expect("file"), "secret");
    assert_eq!(victim.bytes(6), b"secret");
    let node = volume.join("disk");
    assert!(
        fs::symlink_metadata(&node).is_err(),
        "a device of the host's number lies in a volume"
    );
    podman.podman(["rm", "--force", "--time", "0", "hostile"]).run().ok();
}

/// As a snapshotter of block devices hands it over.
#[test]
fn a_root_file_system_on_a_block_device_is_a_disk() {
    let lab = Lab::open();
    let script = "mount | head -n 1; echo written >/out; stat -f -c %T / >>/out; exit 7";
    let bundle = Bundle::script(&lab, "on-disk", script);
    let device = LoopDevice::new(&lab.scratch().join("rootfs.img"), 64);
    device.format(&bundle.rootfs());
    fs::remove_dir_all(bundle.rootfs()).expect("no root file system but the disk's");
    fs::create_dir(bundle.rootfs()).expect("mount point");
    // The directory of all sandboxes stays.
    lab.command("mkdir").args(["-m", "711", "/run/kata"]).run().ok();
    let before = Snapshot::take(&lab);
    let task = Task::start_sandbox(&lab, "on-disk", bundle.dir());

    assert_eq!(task.run("ext4", device.node(), &["noatime"]), Ok(7));

    assert_eq!(device.file("/out"), "written\next2/ext3\n");
    assert!(device.close(), "somebody still has the disk open");
    task.shut_down();
    before.expect_nothing_more(&lab, "a container on a disk");
}
