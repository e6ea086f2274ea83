//! Why a plan cannot be made.

use std::path::PathBuf;

use kata_bundle::Problem;

use crate::SourceKind;

/// Why a plan cannot be made. Nothing has been done on the host when it comes.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An id that cannot name directories, sockets and streams.
    #[error("the id {id:?} must be 1 to 255 letters, digits, '_', '+', '-' and '.', and neither \".\" nor \"..\"")]
    Id {
        /// As given.
        id: String,
    },
    /// A pod is asked for by a container that only belongs to one.
    #[error("the container {id:?} belongs to the pod {pod_id:?}, which is not running")]
    MemberWithoutPod {
        /// Of the container.
        id: String,
        /// Of the pod.
        pod_id: String,
    },
    /// A bind mount of nothing.
    #[error("cannot mount {} at {}: no such file or directory", source_path.display(), destination.display())]
    NoSource {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
    },
    /// A bind mount of something that cannot be shared with a guest yet.
    #[error(
        "cannot mount {} at {}: it is {}, and only directories, regular files and stream sockets can be shared with the guest yet",
        source_path.display(), destination.display(), kind.noun()
    )]
    SourceKind {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
        /// What it is.
        kind: SourceKind,
    },
    /// A device that no guest has.
    #[error("the device {} ({kind} {major}:{minor}) cannot be given to a guest", path.display())]
    Device {
        /// In the container.
        path: PathBuf,
        /// `c` or `b`
        kind: String,
        /// As written.
        major: i64,
        /// As written.
        minor: i64,
    },
    /// Huge pages of no size.
    #[error("linux.resources.hugepageLimits: {size:?} is not the size of a page (such as \"2MB\")")]
    HugePages {
        /// As written.
        size: String,
    },
    /// A volume whose mounts shall spread to the host.
    #[error(
        "cannot mount {} at {}: mounts made in a guest cannot spread to the host (propagation {propagation:?}, \
         Kubernetes' Bidirectional)",
        source_path.display(), destination.display()
    )]
    Propagation {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
        /// As written.
        propagation: String,
    },
    /// The survey has not looked at a path of [`crate::bind_sources`]: a bug of ours.
    #[error("bug: the source {} of a mount was not surveyed", source_path.display())]
    Unsurveyed {
        /// On the host.
        source_path: PathBuf,
    },
    /// A file system that the guest cannot mount.
    #[error("mounting a file system of type {kind:?} at {} is not supported yet", destination.display())]
    MountType {
        /// As written.
        kind: String,
        /// In the container.
        destination: PathBuf,
    },
    /// Something that a specification may ask for and this runtime cannot give yet.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The seccomp section is wrong.
    #[error("linux.seccomp: {reason}")]
    Seccomp {
        /// What is wrong.
        reason: String,
    },
    /// Less memory than a guest boots with.
    #[error("a guest needs at least {least_mib} MiB of memory, not {memory_mib} (default_memory, or all the host has)")]
    TooLittleMemory {
        /// What it would get, MiB.
        memory_mib: u64,
        /// What it needs, MiB.
        least_mib: u64,
    },
    /// The engine's own annotation is not what it should be.
    #[error("the annotation {name} is {found:?}, which is neither a number nor JSON of resources")]
    Annotation {
        /// Its name.
        name: String,
        /// As written.
        found: String,
    },
    /// virtio-fs is configured, but its daemon is not there.
    #[error(
        "shared_fs is \"virtio-fs\", but no daemon was found; looked for {}",
        join(candidates)
    )]
    NoVirtioFsDaemon {
        /// Where it was looked for.
        candidates: Vec<PathBuf>,
    },
    /// vsock is configured, but the host has none.
    #[error("use_vsock is true, but the host offers no vhost-vsock (module vhost_vsock, device /dev/vhost-vsock)")]
    NoVsock,
    /// The network of the engine's own namespace.
    #[error(
        "the host's network is asked for{}, and a virtual machine cannot share it: it has interfaces of its own; \
         give the container a network namespace (no hostNetwork, no --network=host)",
        path.as_ref().map(|path| format!(" ({})", path.display())).unwrap_or_default()
    )]
    HostNetwork {
        /// The namespace, if it was named.
        path: Option<PathBuf>,
    },
    /// Two keys of the configuration that do not go together.
    #[error("disable_new_netns is true, which needs internetworking_model = \"none\", not {model:?}")]
    NewNetns {
        /// As configured.
        model: &'static str,
    },
    /// A socket's path is longer than the kernel takes.
    #[error("the socket path {} is longer than {most} bytes", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Bytes that fit.
        most: usize,
    },
    /// The process of an exec is unusable.
    #[error(transparent)]
    Process(#[from] Problem),
    /// New limits that are none.
    #[error("the new limits are not what linux.resources may hold")]
    Resources {
        /// The parser's words.
        #[source]
        source: serde_json::Error,
    },
    /// The container of a template's rehearsal makes no sense: a bug of ours.
    #[error("the container of a template's rehearsal: {reason}")]
    Rehearsal {
        /// What is wrong with it.
        reason: String,
    },
    /// JSON that cannot be written: a bug of ours.
    #[error("cannot write the guest's specification")]
    Json(#[from] serde_json::Error),
}

fn join(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
