//! The mounts of a sandbox, made for real (as root) in a mount namespace of the test's own.

use std::path::Path;

use kata_storage::bind::{Bind, BindError, unbind};
use kata_storage::mount::{EngineMount, assemble};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_sys::tree::Tree;
use nix::mount::{MsFlags, mount};

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

fn plain(from: &Path, to: &Path) -> Bind {
    Bind {
        from: from.to_owned(),
        to: to.to_owned(),
        recursive: true,
        read_only: false,
        follows: false,
    }
}

fn bind(how: Bind) -> Result<(), BindError> {
    how.take()?.show()
}

fn propagate(path: &Path, flags: MsFlags) {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).expect("propagation");
}

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
        bind(plain(&source, &target)).expect("bind");
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
                ..plain(&source, &share.join("c1/volume"))
            };
            bind(read_only).expect("bind");
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
        bind(plain(&source, &share.join("v"))).expect("bind");
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
        let target = share.join("c1/volumes/0-hosts");
        bind(plain(&source, &target)).expect("bind");
        assert_eq!(
            std::fs::read(&target).expect("read"),
            std::fs::read(&source).expect("read")
        );
        let error = bind(plain(&dir.join("missing"), &share.join("c1/volumes/1-x"))).expect_err("no source");
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
        let (rootfs, origin) = (disk.join("rootfs"), Origin::here().expect("origin"));
        let assembled = |mounts: &[EngineMount]| origin.visit_copy(|| assemble(mounts, &rootfs)).expect("visit");
        let shown = disk.join("shown");
        std::fs::create_dir(&shown).expect("mkdir");
        let before = mounts_below(dir);
        assembled(&[overlay]).expect("overlay").attach(&shown).expect("attach");
        std::fs::write(shown.join("written"), "2").expect("write");
        assert!(disk.join("upper/written").exists() && shown.join("from-image").exists());
        assert_eq!(mounts_below(dir), before + 1, "only what was attached");
        unbind(&shown).expect("unmount");
        std::fs::create_dir(&shown).expect("mkdir");
        let read_only = EngineMount {
            fs_type: "bind".into(),
            source: disk.join("lower").display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
        };
        assembled(&[read_only]).expect("bind").attach(&shown).expect("attach");
        assert!(std::fs::write(shown.join("x"), "x").is_err(), "read-only");
        unbind(&shown).expect("unmount");
        let broken = EngineMount {
            fs_type: "no-such-fs".into(),
            source: "none".into(),
            options: Vec::new(),
        };
        let error = assembled(&[broken]).expect_err("no such file system").to_string();
        assert!(error.contains("no-such-fs"), "{error}");
        assert_eq!(mounts_below(dir), before);
    });
}

#[test]
fn what_the_host_mounts_later_is_found_where_the_host_has_it() {
    in_own_namespace(|dir| {
        // This namespace plays the host's; it shares nothing.
        propagate(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        let (late, share, elsewhere) = (dir.join("late"), dir.join("share"), dir.join("elsewhere"));
        for made in [&late, &elsewhere] {
            std::fs::create_dir(made).expect("mkdir");
        }
        std::env::set_current_dir(&elsewhere).expect("chdir");
        let origin = namespace::enter().expect("the sandbox's namespace");
        namespace::make_share(&share).expect("share");
        origin
            .visit(|| {
                namespace::make_share(&late).expect("tmpfs");
                std::fs::write(late.join("file"), "late").expect("write");
            })
            .expect("visit");
        assert!(!late.join("file").exists(), "not seen here");

        let how = plain(&late, &share.join("c1/late"));
        let taken = origin.visit(|| how.take()).expect("visit").expect("take");
        taken.show().expect("show");

        assert_eq!(
            std::fs::read_to_string(share.join("c1/late/file")).expect("read"),
            "late"
        );
        assert_eq!(std::env::current_dir().expect("cwd"), elsewhere, "back where it was");
        let seen = origin.visit(|| mounts_below(dir)).expect("visit");
        assert_eq!(seen, 1, "the host's table holds the host's mount only");
        origin
            .visit(|| unbind(&late))
            .expect("visit")
            .expect("the host unmounts");
    });
}

#[test]
fn a_volume_that_follows_shows_what_the_host_mounts_below_it_later() {
    in_own_namespace(|dir| {
        let (source, share) = (dir.join("source"), dir.join("share"));
        namespace::make_share(&source).expect("a source that the host shares");
        std::fs::create_dir(source.join("later")).expect("mkdir");
        namespace::make_share(&share).expect("share");
        let origin = Origin::here().expect("origin");
        let (ready, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            // The file server.
            let server = scope.spawn(|| {
                namespace::enter().expect("own namespace");
                ready.wait();
                go.wait();
                std::fs::read_to_string(share.join("v/later/file"))
            });
            ready.wait();
            let how = Bind {
                follows: true,
                ..plain(&source, &share.join("v"))
            };
            let taken = origin.visit(|| how.take()).expect("visit").expect("take");
            taken.show().expect("show");
            namespace::make_share(&source.join("later")).expect("mount");
            std::fs::write(source.join("later/file"), "seen").expect("write");
            go.wait();
            assert_eq!(server.join().expect("server").expect("read"), "seen");
        });
        let inside = Tree::copy(&source, false).expect("copy");
        std::fs::create_dir(share.join("v/other")).expect("mkdir");
        inside.attach(&share.join("v/other")).expect("attach");
        assert!(!source.join("other/later").exists(), "nothing comes back to the host");
    });
}
