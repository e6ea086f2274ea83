//! The mounts of a sandbox, made for real (as root) in a mount namespace of the test's own.

use std::path::Path;

use kata_storage::bind::{Bind, bind, unbind};
use kata_storage::mount::{EngineMount, mount_engine, unmount};
use kata_storage::namespace;

/// Runs `test` on a thread with its own mount namespace: whatever it mounts ends with the thread.
fn in_own_namespace(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().expect("tempdir");
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            namespace::enter().expect("these tests need root");
            test(dir.path());
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
    // The thread's mounts are not the host's: the directory can be removed as a whole.
    dir.close().expect("nothing is mounted here");
}

const PLAIN: Bind = Bind {
    directory: true,
    recursive: true,
    read_only: false,
};

fn mounts_below(path: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let prefix = path.to_str().expect("UTF-8");
    table
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(prefix)))
        .count()
}

#[test]
fn a_directory_is_seen_through_the_share_and_gone_afterwards() {
    in_own_namespace(|dir| {
        let (source, share) = (dir.join("source"), dir.join("share"));
        std::fs::create_dir(&source).expect("mkdir");
        std::fs::write(source.join("file"), "text").expect("write");
        namespace::make_share(&share).expect("share");
        let target = share.join("c1/rootfs");
        bind(&source, &target, PLAIN).expect("bind");
        assert_eq!(std::fs::read_to_string(target.join("file")).expect("read"), "text");
        unbind(&target).expect("unbind");
        assert!(!target.exists());
        unbind(&target).expect("nothing there is no error");
        namespace::drop_share(&share).expect("drop");
        namespace::drop_share(&share).expect("twice is no error");
        assert_eq!(mounts_below(dir), 0);
    });
}

#[test]
fn what_is_bound_read_only_is_so_in_the_file_servers_namespace_too() {
    in_own_namespace(|dir| {
        let (source, share) = (dir.join("source"), dir.join("share"));
        std::fs::create_dir_all(source.join("inner")).expect("mkdir");
        namespace::make_share(&share).expect("share");
        let (ready, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            // The file server: its namespace is made from ours before the volume is bound.
            let server = scope.spawn(|| {
                namespace::enter().expect("own namespace");
                ready.wait();
                go.wait();
                let seen = share.join("c1/volume");
                std::fs::read_dir(&seen).expect("it sees the volume").count() == 1
                    && std::fs::write(seen.join("intruder"), "x").is_err()
            });
            ready.wait();
            let read_only = Bind {
                read_only: true,
                ..PLAIN
            };
            bind(&source, &share.join("c1/volume"), read_only).expect("bind");
            go.wait();
            assert!(server.join().expect("server"), "seen, and not writable");
        });
        std::fs::write(source.join("owner"), "x").expect("the host itself still writes");
    });
}

#[test]
fn mounts_made_below_a_source_later_stay_out_of_the_share() {
    in_own_namespace(|dir| {
        let (source, share) = (dir.join("source"), dir.join("share"));
        std::fs::create_dir_all(source.join("later")).expect("mkdir");
        namespace::make_share(&share).expect("share");
        namespace::make_share(&source).expect("a source that is itself a shared mount");
        std::fs::create_dir(source.join("later")).expect("mkdir");
        bind(&source, &share.join("v"), PLAIN).expect("bind");
        namespace::make_share(&source.join("later")).expect("mount");
        std::fs::write(source.join("later/secret"), "x").expect("write");
        assert!(!share.join("v/later/secret").exists());
    });
}

#[test]
fn single_files_are_bound_to_files() {
    in_own_namespace(|dir| {
        let (source, share) = (dir.join("hosts"), dir.join("share"));
        std::fs::write(&source, "127.0.0.1 localhost").expect("write");
        namespace::make_share(&share).expect("share");
        let file = Bind {
            directory: false,
            ..PLAIN
        };
        let target = share.join("c1/volumes/0-hosts");
        bind(&source, &target, file).expect("bind");
        assert_eq!(
            std::fs::read(&target).expect("read"),
            std::fs::read(&source).expect("read")
        );
        let error = bind(&dir.join("missing"), &share.join("c1/volumes/1-x"), file).expect_err("no source");
        assert!(
            error.to_string().contains("missing") && error.to_string().contains("open the source"),
            "{error}"
        );
        unbind(&target).expect("unbind");
    });
}

#[test]
fn an_engines_overlay_is_mounted_and_unmounted() {
    in_own_namespace(|dir| {
        // An overlay on an overlay may not be possible; a tmpfs below is.
        namespace::make_share(&dir.join("disk")).expect("tmpfs");
        let disk = dir.join("disk");
        for name in ["lower", "upper", "work", "rootfs"] {
            std::fs::create_dir(disk.join(name)).expect("mkdir");
        }
        std::fs::write(disk.join("lower/from-image"), "1").expect("write");
        let option = |name: &str, dir: &str| format!("{name}={}", disk.join(dir).display());
        let overlay = EngineMount {
            fs_type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                option("lowerdir", "lower"),
                option("upperdir", "upper"),
                option("workdir", "work"),
            ],
        };
        let rootfs = disk.join("rootfs");
        mount_engine(&overlay, &rootfs).expect("overlay");
        std::fs::write(rootfs.join("written"), "2").expect("write");
        assert!(disk.join("upper/written").exists() && rootfs.join("from-image").exists());
        unmount(&rootfs).expect("unmount");
        unmount(&rootfs).expect("twice is no error");
        let read_only = EngineMount {
            fs_type: "bind".into(),
            source: disk.join("lower").display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
        };
        mount_engine(&read_only, &rootfs).expect("bind");
        assert!(std::fs::write(rootfs.join("x"), "x").is_err(), "read-only");
        unmount(&rootfs).expect("unmount");
        let broken = EngineMount {
            fs_type: "no-such-fs".into(),
            source: "none".into(),
            options: Vec::new(),
        };
        let error = mount_engine(&broken, &rootfs)
            .expect_err("no such file system")
            .to_string();
        assert!(error.contains("no-such-fs"), "{error}");
    });
}
