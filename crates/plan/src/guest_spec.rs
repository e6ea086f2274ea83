//! Rewrites an OCI specification for the guest: the only place that does.
//!
//! Nothing of the host is left in it: no path, no namespace, no hook that runs on the host, no label of its security
//! modules, no CPU, memory node or disk number.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use kata_bundle::Role;
use kata_bundle::oci::{
    Hooks, Linux, LinuxBlockIo, LinuxDevice, LinuxHugepageLimit, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    Mount, Process, Root, Spec,
};
use kata_wire::names::POD_NAMESPACES;

use crate::disk::DiskPlan;
use crate::volume::{self, Fate};
use crate::{PlanError, device, memory};

/// Keys of `resources.unified` whose values name things of the host or that the guest has not.
const FOREIGN_CONTROLLERS: [&str; 5] = ["cpuset.", "hugetlb.", "rdma.", "io.", "misc."];

/// What was decided about the container's files and devices.
pub(crate) struct View<'a> {
    /// Where the guest has its root file system.
    pub root: PathBuf,
    /// Of each mount.
    pub fates: &'a [Fate],
    /// Those that the guest makes.
    pub nodes: Vec<LinuxDevice>,
    /// Those that are attached.
    pub disks: &'a [DiskPlan],
}

/// The specification for the guest.
///
/// # Errors
/// [`PlanError::Unsupported`]
pub(crate) fn rewrite(id: &str, role: &Role, spec: &Spec, view: &View<'_>) -> Result<Spec, PlanError> {
    let mut root = Root::default();
    root.set_path(view.root.clone())
        .set_readonly(spec.root().as_ref().and_then(Root::readonly));
    let mounts = spec.mounts().iter().flatten().zip(view.fates);
    let mut guest = Spec::default();
    guest
        .set_version(spec.version().clone())
        .set_root(Some(root))
        .set_process(spec.process().as_ref().map(rewrite_process))
        .set_hostname(spec.hostname().clone())
        .set_domainname(spec.domainname().clone())
        .set_mounts(Some(mounts.map(|(mount, fate)| rewrite_mount(mount, fate)).collect()))
        .set_hooks(start_hooks(spec))
        // They speak of the host, and nobody in the guest reads them.
        .set_annotations(None)
        .set_linux(
            spec.linux()
                .as_ref()
                .map(|linux| rewrite_linux(id, role, linux, view))
                .transpose()?,
        );
    Ok(guest)
}

/// The process for the guest.
pub(crate) fn rewrite_process(process: &Process) -> Process {
    let mut guest = process.clone();
    guest
        .set_apparmor_profile(None)
        .set_selinux_label(None)
        .set_exec_cpu_affinity(None);
    guest
}

/// What of a specification has no effect in the guest, for people.
pub(crate) fn notes(role: &Role, spec: &Spec) -> Vec<String> {
    let mut notes = Vec::new();
    let linux = spec.linux().as_ref();
    for namespace in linux
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default()
    {
        if let Some(path) = namespace.path()
            && namespace.typ() != LinuxNamespaceType::Network
            && pod_namespace(role, namespace.typ()).is_none()
        {
            notes.push(format!(
                "namespaces: a new {} one instead of {}",
                namespace.typ(),
                path.display()
            ));
        }
    }
    let process = spec.process().as_ref();
    if let Some(profile) = process.and_then(|process| process.apparmor_profile().as_deref())
        && !profile.is_empty()
    {
        notes.push(format!(
            "process: the AppArmor profile {profile} is ignored, the guest's kernel has none"
        ));
    }
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    notes.extend(resources.map(resource_notes).unwrap_or_default());
    notes
}

/// What of limits has no effect in the guest, for people.
pub(crate) fn resource_notes(resources: &LinuxResources) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        let given = |list: &Option<String>| list.as_ref().is_some_and(|list| !list.is_empty());
        if given(cpu.cpus()) || given(cpu.mems()) {
            notes.push(
                "resources: CPU and memory node numbers are the host's; they hold for the guest's CPUs there".into(),
            );
        }
        if cpu.realtime_runtime().is_some_and(|time| time != 0) {
            notes.push("resources: real-time limits are ignored, the guest has none".into());
        }
    }
    if let Some(memory) = resources.memory() {
        let v1_only = [
            (memory.kernel().is_some_and(|bytes| bytes > 0), "kernel memory"),
            (memory.kernel_tcp().is_some_and(|bytes| bytes > 0), "kernel TCP memory"),
            (memory.swappiness().is_some(), "swappiness"),
            (memory.disable_oom_killer() == Some(true), "no out-of-memory killer"),
        ];
        for (_, what) in v1_only.iter().filter(|(given, _)| *given) {
            notes.push(format!(
                "resources: {what} is a matter of cgroup v1, ignored in the guest"
            ));
        }
    }
    if resources.block_io().as_ref().is_some_and(names_devices) {
        notes.push("resources: I/O limits of devices name the host's, ignored in the guest".into());
    }
    notes
}

/// The specification as JSON; the same one always as the same bytes.
pub(crate) fn to_json(spec: &Spec) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = serde_json::to_value(spec)?;
    json.get_mut("process").map(sort_capabilities);
    serde_json::to_vec(&json)
}

/// As [`to_json`].
pub(crate) fn process_to_json(process: &Process) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = serde_json::to_value(process)?;
    sort_capabilities(&mut json);
    serde_json::to_vec(&json)
}

/// They come out of hash sets.
fn sort_capabilities(process: &mut serde_json::Value) {
    let sets = process
        .get_mut("capabilities")
        .and_then(serde_json::Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        if let Some(names) = set.as_array_mut() {
            names.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
        }
    }
}

fn rewrite_mount(mount: &Mount, fate: &Fate) -> Mount {
    let mut guest = mount.clone();
    let mut options: Vec<String> = mount.options().clone().unwrap_or_default();
    options.retain(|option| !volume::is_label(option));
    match fate {
        Fate::Kernel => {
            // A label for people, unless it looks like a path of the host.
            if mount.source().as_deref().is_none_or(Path::is_absolute) {
                guest.set_source(mount.typ().as_ref().map(PathBuf::from));
            }
        }
        Fate::Instead(kind) => become_kernel_file_system(&mut guest, &mut options, kind),
        Fate::Memory(memory) => {
            guest.set_source(Some(memory.guest_path()));
            become_bind(&mut guest, &mut options);
        }
        Fate::Tree { path, .. } => {
            guest.set_source(Some(path.clone()));
            become_bind(&mut guest, &mut options);
        }
        Fate::OfTheGuest { source } => {
            guest.set_source(Some(source.clone()));
            become_bind(&mut guest, &mut options);
        }
        Fate::Disk { node, .. } => {
            guest.set_source(Some(node.clone()));
            become_bind(&mut guest, &mut options);
        }
        Fate::Volume(volume) => {
            guest.set_source(Some(PathBuf::from(&volume.guest_path)));
            become_bind(&mut guest, &mut options);
        }
        Fate::Socket(socket) => {
            guest.set_source(Some(PathBuf::from(&socket.guest_path)));
            become_bind(&mut guest, &mut options);
        }
    }
    guest.set_options((!options.is_empty()).then_some(options));
    guest
}

fn become_kernel_file_system(mount: &mut Mount, options: &mut Vec<String>, kind: &str) {
    mount.set_typ(Some(kind.into())).set_source(Some(PathBuf::from(kind)));
    options.retain(|option| option != "bind" && option != "rbind");
}

fn become_bind(mount: &mut Mount, options: &mut Vec<String>) {
    mount.set_typ(Some("bind".into()));
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("bind".into());
    }
}

/// The hooks that run inside the container; all others are the host's.
fn start_hooks(spec: &Spec) -> Option<Hooks> {
    let start = spec.hooks().as_ref()?.start_container().clone()?;
    let mut hooks = Hooks::default();
    hooks.set_start_container(Some(start));
    Some(hooks)
}

fn rewrite_linux(id: &str, role: &Role, linux: &Linux, view: &View<'_>) -> Result<Linux, PlanError> {
    let mut guest = linux.clone();
    guest
        .set_namespaces(Some(namespaces(role, linux)?))
        .set_cgroups_path(Some(cgroup_path(id, linux.cgroups_path().as_deref())))
        .set_devices((!view.nodes.is_empty()).then(|| view.nodes.clone()))
        .set_resources(
            linux
                .resources()
                .as_ref()
                .map(|resources| rewrite_resources(resources, view.disks)),
        )
        // Compiled by the host and sent beside the specification.
        .set_seccomp(None)
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None)
        .set_net_devices(None);
    Ok(guest)
}

/// New ones of each kind that is asked for, or where a member of a pod is to join one, the pod's. The network is that of
/// the guest itself, which belongs to the pod alone.
fn namespaces(role: &Role, linux: &Linux) -> Result<Vec<LinuxNamespace>, PlanError> {
    let mut kept = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        match (namespace.typ(), namespace.path()) {
            (LinuxNamespaceType::Network, _) => {}
            (LinuxNamespaceType::User, Some(path)) => {
                return Err(PlanError::Unsupported {
                    what: format!("joining the user namespace {}", path.display()),
                });
            }
            (kind, path) => {
                let mut namespace = LinuxNamespace::default();
                namespace.set_typ(kind);
                if path.is_some() {
                    namespace.set_path(pod_namespace(role, kind));
                }
                kept.push(namespace);
            }
        }
    }
    Ok(kept)
}

/// The pod's namespace of this kind, as the guest keeps it for members.
fn pod_namespace(role: &Role, kind: LinuxNamespaceType) -> Option<PathBuf> {
    let kept = matches!(
        kind,
        LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts | LinuxNamespaceType::Pid
    );
    let is_member = matches!(role, Role::Member { .. });
    (kept && is_member).then(|| Path::new(POD_NAMESPACES).join(kind.to_string()))
}

/// The container's cgroup, as an absolute path below the guest's root cgroup. systemd's form `slice:prefix:name` becomes
/// the path that systemd would make of it; whatever would lead out is left out.
fn cgroup_path(id: &str, wanted: Option<&Path>) -> PathBuf {
    let wanted = wanted.unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let path = match wanted.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !wanted.contains('/') => match (prefix, name) {
            (_, name) if name.ends_with(".slice") => format!("{slice}/{name}"),
            ("", name) => format!("{slice}/{name}.scope"),
            (prefix, name) => format!("{slice}/{prefix}-{name}.scope"),
        },
        _ => wanted,
    };
    let inside: PathBuf = Path::new(&path)
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .collect();
    match inside.as_os_str().is_empty() {
        true => Path::new("/").join(id),
        false => Path::new("/").join(inside),
    }
}

/// New limits for the guest, and what of them nobody changes in a running container, for people.
pub(crate) fn rewrite_update(resources: &LinuxResources) -> (LinuxResources, Vec<String>) {
    let mut guest = rewrite_resources(resources, &[]);
    // What the container has of these was settled when it was made; engines repeat it all.
    guest.set_devices(None).set_hugepage_limits(None);
    (guest, resource_notes(resources))
}

/// Limits for the guest.
pub(crate) fn rewrite_resources(resources: &LinuxResources, disks: &[DiskPlan]) -> LinuxResources {
    let mut guest = resources.clone();
    if let Some(cpu) = guest.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
    guest
        .set_devices(
            resources
                .devices()
                .as_ref()
                .map(|rules| device::guest_rules(rules, disks)),
        )
        .set_block_io(resources.block_io().as_ref().and_then(rewrite_block_io))
        .set_unified(resources.unified().as_ref().map(rewrite_unified))
        // The guest has no huge pages but those that are asked for, and no adapters.
        .set_hugepage_limits(huge_page_limits(resources))
        .set_network(None)
        .set_rdma(None);
    guest
}

fn names_devices(block_io: &LinuxBlockIo) -> bool {
    let throttled = [
        block_io.throttle_read_bps_device(),
        block_io.throttle_write_bps_device(),
        block_io.throttle_read_iops_device(),
        block_io.throttle_write_iops_device(),
    ];
    let weights = block_io
        .weight_device()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty());
    weights
        || throttled
            .iter()
            .any(|devices| devices.as_ref().is_some_and(|devices| !devices.is_empty()))
}

fn huge_page_limits(resources: &LinuxResources) -> Option<Vec<LinuxHugepageLimit>> {
    let limits = resources.hugepage_limits().iter().flatten();
    let some: Vec<_> = limits.filter(|limit| memory::is_some(limit)).cloned().collect();
    (!some.is_empty()).then_some(some)
}

/// The weight among the pod's containers stays; limits of devices name the host's.
fn rewrite_block_io(block_io: &LinuxBlockIo) -> Option<LinuxBlockIo> {
    let mut guest = LinuxBlockIo::default();
    guest.set_weight(Some(block_io.weight()?));
    Some(guest)
}

fn rewrite_unified(unified: &HashMap<String, String>) -> HashMap<String, String> {
    let own = |key: &str| !FOREIGN_CONTROLLERS.iter().any(|controller| key.starts_with(controller));
    let kept = unified.iter().filter(|(key, _)| own(key));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}
