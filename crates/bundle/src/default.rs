//! The specification that `kata-runtime spec` writes: a shell with a terminal, confined as usual.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::oci::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount,
    Process, Root, Spec, User, get_default_maskedpaths, get_default_readonly_paths,
};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A starting point for a `config.json`: `sh` on a terminal, in a read-only `rootfs`.
pub fn default_spec() -> Spec {
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(true));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_process(Some(shell()))
        .set_root(Some(root))
        .set_hostname(Some("kata".to_owned()))
        .set_mounts(Some(mounts()))
        .set_annotations(None)
        .set_linux(Some(linux()));
    spec
}

fn shell() -> Process {
    // Its limit of 1024 open files is the usual one.
    let mut process = Process::default();
    process
        .set_terminal(Some(true))
        .set_user(User::default())
        .set_args(Some(vec!["sh".to_owned()]))
        .set_env(Some(vec![PATH.to_owned(), "TERM=xterm".to_owned()]))
        .set_cwd(PathBuf::from("/"))
        .set_capabilities(Some(capabilities()))
        .set_no_new_privileges(Some(true));
    process
}

fn capabilities() -> LinuxCapabilities {
    let set: HashSet<_> = [Capability::AuditWrite, Capability::Kill, Capability::NetBindService].into();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_ambient(Some(set))
        .set_inheritable(None);
    capabilities
}

fn mounts() -> Vec<Mount> {
    let quiet = ["nosuid", "noexec", "nodev"];
    [
        ("/proc", "proc", "proc", vec![]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            vec!["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            [&quiet[..], &["mode=1777", "size=65536k"]].concat(),
        ),
        ("/dev/mqueue", "mqueue", "mqueue", quiet.to_vec()),
        ("/sys", "sysfs", "sysfs", [&quiet[..], &["ro"]].concat()),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            [&quiet[..], &["relatime", "ro"]].concat(),
        ),
    ]
    .into_iter()
    .map(|(destination, kind, source, options)| {
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(destination))
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(PathBuf::from(source)));
        if !options.is_empty() {
            mount.set_options(Some(options.into_iter().map(str::to_owned).collect()));
        }
        mount
    })
    .collect()
}

fn linux() -> Linux {
    let mut nothing = LinuxDeviceCgroup::default();
    nothing.set_allow(false).set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![nothing]));
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    })
    .collect();
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources))
        .set_namespaces(Some(namespaces))
        .set_masked_paths(Some(get_default_maskedpaths()))
        .set_readonly_paths(Some(get_default_readonly_paths()));
    linux
}
