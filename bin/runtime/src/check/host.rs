//! The host itself: rights, namespaces and mounts (tried, not guessed), cgroups, memory, file systems.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::check::{Finding, Subject};
use crate::cli::Globals;

/// What the VMM and the sandbox process need beside the guest's memory, MiB.
const OVERHEAD_MIB: u64 = 64;

pub(super) fn look(globals: &Globals, guest_memory_mib: u32) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    vec![
        rights(),
        state_directory(&globals.root),
        namespaces(),
        mounts(),
        taps(Path::new("/dev/net/tun")),
        cgroups(&read("/proc/self/mounts")),
        memory(&read("/proc/meminfo"), guest_memory_mib),
        overlay(
            &read("/proc/filesystems"),
            &nix::sys::utsname::uname()
                .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned()),
        ),
    ]
}

fn rights() -> Finding {
    let subject = Subject {
        name: "root",
        purpose: "mounts, namespaces and cgroups of sandboxes",
    };
    if geteuid().is_root() {
        subject.ok("running as root")
    } else {
        subject.missing(format!("running as user {}", geteuid()), "run as root, as with sudo")
    }
}

fn state_directory(root: &Path) -> Finding {
    let subject = Subject {
        name: "state directory",
        purpose: "what is known of sandboxes and containers",
    };
    // It is made when the first sandbox is; until then the directory above must allow that.
    let Some(place) = root.ancestors().find(|path| path.exists()) else {
        return subject.missing(
            format!("{} cannot be made", root.display()),
            "give another one with --root",
        );
    };
    match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if place.is_dir() => subject.ok(root.display().to_string()),
        Ok(()) => subject.missing(
            format!("{} is not a directory", place.display()),
            "give another one with --root",
        ),
        Err(error) => {
            let remedy = "make it writable, or give another one with --root";
            subject.missing(format!("{}: {}", place.display(), error.desc()), remedy)
        }
    }
}

fn namespaces() -> Finding {
    let subject = Subject {
        name: "namespaces",
        purpose: "a mount namespace for each sandbox, and the pod's network",
    };
    let lacking: Vec<&str> = ["mnt", "net"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if lacking.is_empty() {
        subject.ok("mnt, net")
    } else {
        let detail = format!("/proc/self/ns lacks {}", lacking.join(", "));
        subject.missing(
            detail,
            "mount /proc; run a kernel with CONFIG_NAMESPACES and CONFIG_NET_NS",
        )
    }
}

fn mounts() -> Finding {
    let subject = Subject {
        name: "mounts",
        purpose: "root file systems and volumes in the share",
    };
    // A thread of its own: the new namespace belongs to it alone, and with it goes everything mounted there.
    let tried = std::thread::spawn(try_mounts).join();
    let remedy = "run with CAP_SYS_ADMIN, outside of containers that forbid mounts";
    match tried {
        Ok(Ok(())) => subject.ok("a tmpfs and a bind mount work in a new namespace"),
        Ok(Err((what, error))) => subject.missing(format!("cannot {what}: {}", error.desc()), remedy),
        Err(_) => subject.missing("trying them ended early", remedy),
    }
}

fn try_mounts() -> Result<(), (&'static str, nix::errno::Errno)> {
    const NONE: Option<&str> = None;
    let place = std::env::temp_dir();
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| ("make a mount namespace", error))?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(|error| ("detach the mounts of a new namespace", error))?;
    mount(
        Some("tmpfs"),
        &place,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("size=64k"),
    )
    .map_err(|error| ("mount a tmpfs", error))?;
    mount(Some("/proc/self"), &place, NONE, MsFlags::MS_BIND, NONE).map_err(|error| ("make a bind mount", error))
}

fn taps(device: &Path) -> Finding {
    let subject = Subject {
        name: "taps",
        purpose: "the network of pods",
    };
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => subject.ok(device.display().to_string()),
        Err(error) => subject.missing(
            format!("cannot open {}: {error}", device.display()),
            "load the kernel module tun, or set internetworking_model = \"none\"",
        ),
    }
}

fn cgroups(mounts: &str) -> Finding {
    let subject = Subject {
        name: "cgroups",
        purpose: "limits and accounting of sandboxes on the host",
    };
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let (mut unified, mut controllers) = (None, Vec::new());
    for field in fields {
        match field.as_slice() {
            [_, place, "cgroup2", ..] => unified = unified.or(Some((*place).to_owned())),
            [_, _, "cgroup", options, ..] => controllers.extend(
                options
                    .split(',')
                    .filter(|word| ["cpu", "memory", "pids", "devices"].contains(word))
                    .map(str::to_owned),
            ),
            _ => {}
        }
    }
    controllers.sort();
    match unified {
        Some(place) if controllers.is_empty() => subject.ok(format!("version 2 at {place}")),
        None if controllers.is_empty() => subject.degraded(
            "none is mounted: sandboxes run without limits on the host",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
        _ => subject.ok(format!("version 1: {}", controllers.join(", "))),
    }
}

fn memory(meminfo: &str, guest_mib: u32) -> Finding {
    let subject = Subject {
        name: "memory",
        purpose: "a guest of the default size",
    };
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let needed = u64::from(guest_mib) + OVERHEAD_MIB;
    let remedy = "set a smaller default_memory in the configuration, or free some memory";
    match available.map(|kib| kib / 1024) {
        Some(mib) if mib >= needed => subject.ok(format!("{mib} MiB available, a guest has {guest_mib}")),
        Some(mib) => subject.missing(
            format!("{mib} MiB available, a guest of {guest_mib} needs {needed}"),
            remedy,
        ),
        None => subject.degraded("/proc/meminfo does not say how much is available", "mount /proc"),
    }
}

fn overlay(filesystems: &str, release: &str) -> Finding {
    let subject = Subject {
        name: "overlayfs",
        purpose: "images of container engines; sandboxes do without",
    };
    let loaded = filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    let loadable = Path::new("/lib/modules")
        .join(release)
        .join("kernel/fs/overlayfs")
        .is_dir();
    match (loaded, loadable) {
        (true, _) => subject.ok("in the kernel"),
        (false, true) => subject.ok("as a module, loaded when it is needed"),
        (false, false) => subject.degraded("not in the kernel: engines fall back to copying", "modprobe overlay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn memory_must_hold_a_guest() {
        for (meminfo, state) in [
            ("MemTotal: 9 kB\nMemAvailable:   1048576 kB\n", State::Ok),
            ("MemAvailable:   262144 kB\n", State::Missing),
            ("", State::Degraded),
        ] {
            assert_eq!(memory(meminfo, 256).state, state, "{meminfo}");
        }
    }

    #[test]
    fn cgroups_of_both_versions_are_seen() {
        for (mounts, state, detail) in [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                State::Ok,
                "version 2 at /sys/fs/cgroup",
            ),
            (
                "c /c/m cgroup rw,memory 0 0\nc /c/c cgroup rw,cpu,cpuacct 0 0\nc /c/u cgroup2 rw 0 0\n",
                State::Ok,
                "version 1: cpu, memory",
            ),
            ("proc /proc proc rw 0 0\n", State::Degraded, "none is mounted"),
        ] {
            let finding = cgroups(mounts);
            assert_eq!(finding.state, state, "{mounts}");
            assert!(finding.detail.starts_with(detail), "{}", finding.detail);
        }
    }

    #[test]
    fn overlayfs_is_seen_loaded_or_not() {
        assert_eq!(overlay("nodev\ttmpfs\nnodev\toverlay\n", "none").state, State::Ok);
        assert_eq!(overlay("nodev\ttmpfs\n", "none").state, State::Degraded);
    }

    #[test]
    fn the_state_directory_need_not_exist_yet() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(state_directory(&place.path().join("not/yet")).state, State::Ok);
        std::fs::write(place.path().join("file"), "").unwrap();
        assert_eq!(state_directory(&place.path().join("file/x")).state, State::Missing);
    }

    #[test]
    fn trying_mounts_leaves_none() {
        let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let _ = mounts();
        assert_eq!(std::fs::read_to_string("/proc/self/mounts").unwrap(), before);
    }
}
