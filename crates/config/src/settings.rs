//! What is configured, with its defaults: plain data.
//!
//! A field is named after its key in the file. `None` always means "decide from what the host offers".

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration. Does not change after it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The files it was read from: the base file, then its drop-ins. Empty: all defaults.
    pub files: Vec<PathBuf>,
    /// `[hypervisor.qemu]`
    pub qemu: Qemu,
    /// `[agent.kata]`
    pub agent: Agent,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[factory]`
    pub factory: Factory,
}

/// `[hypervisor.qemu]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The VMM's executable.
    pub path: PathBuf,
    /// Regular expressions; an annotation `io.katacontainers.config.hypervisor.NAME` counts if one matches all of NAME.
    pub enable_annotations: Vec<String>,
    /// Patterns of paths that the annotation `path` may name.
    pub valid_hypervisor_paths: Vec<String>,
    /// Guest kernel, an uncompressed ELF `vmlinux`.
    pub kernel: Option<PathBuf>,
    /// Initramfs with the agent as `/init`.
    pub initrd: Option<PathBuf>,
    /// File system with the agent as `/init`, in place of an initramfs.
    pub image: Option<PathBuf>,
    /// The image's file system.
    pub rootfs_type: RootfsType,
    /// The guest has the image as a disk, not as persistent memory.
    pub disable_image_nvdimm: bool,
    /// Kernel parameters, appended to those the machine needs.
    pub kernel_params: Vec<String>,
    /// As QEMU names it; options may follow after commas.
    pub machine_type: String,
    /// Comma separated machine options, appended to the machine type.
    pub machine_accelerators: String,
    /// Comma separated additions to the CPU model; `None` is `pmu=off` under KVM and nothing under TCG.
    pub cpu_features: Option<String>,
    /// Firmware file.
    pub firmware: Option<PathBuf>,
    /// CPUs at boot.
    pub default_vcpus: CpuCount,
    /// CPUs that the machine can grow to.
    pub default_maxvcpus: CpuCount,
    /// Memory without that of the containers' limits, MiB; `None` is 2048 under KVM and 256 under TCG.
    pub default_memory: Option<u32>,
    /// Memory that the machine can grow to, MiB; `None` is all that the host has.
    pub default_maxmemory: Option<u32>,
    /// Memory devices that can be added to a running machine.
    pub memory_slots: u32,
    /// Memory is added, and taken back, by a virtio-mem device instead of memory devices.
    pub enable_virtio_mem: bool,
    /// What the guest has used and freed goes back to the host.
    pub reclaim_guest_freed_memory: bool,
    /// How the guest sees the host's directories; `None` is virtio-fs where its daemon is installed, else virtio-9p.
    pub shared_fs: Option<SharedFs>,
    /// The virtio-fs daemon.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// Patterns of paths that the annotation `virtio_fs_daemon` may name.
    pub valid_virtio_fs_daemon_paths: Vec<String>,
    /// What the guest may remember of a virtio-fs share.
    pub virtio_fs_cache: VirtioFsCache,
    /// Entries of the virtio-fs request queue: a power of two up to 1024.
    pub virtio_fs_queue_size: u32,
    /// Arguments for the daemon; one that the runtime gives too replaces the runtime's.
    pub virtio_fs_extra_args: Vec<String>,
    /// Largest message of a virtio-9p share, bytes.
    pub msize_9p: u32,
    /// Bring a root file system on a block device into the guest as files, not as a disk.
    pub disable_block_device_use: bool,
    /// Who reads and writes disks of the guest on the host.
    pub block_device_aio: BlockAio,
    /// Whether the two keys after it have an effect.
    pub block_device_cache_set: bool,
    /// Disks go around the host's page cache.
    pub block_device_cache_direct: bool,
    /// Flushes of the guest are not carried out.
    pub block_device_cache_noflush: bool,
    /// File of the host that feeds the guest's random number generator.
    pub entropy_source: PathBuf,
    /// Patterns of paths that the annotation `entropy_source` may name.
    pub valid_entropy_sources: Vec<String>,
    /// The VMM's system call filter, in QEMU's words (`-sandbox`); empty for none.
    pub seccompsandbox: String,
    /// Let the VMM move packets itself, even where the host's kernel could (vhost-net).
    pub disable_vhost_net: bool,
    /// Pairs of queues of a network interface; `None` is one for each CPU.
    pub network_queues: Option<u32>,
    /// The VMM does not get the SELinux label of its pod.
    pub disable_selinux: bool,
    /// Verbose guest kernel and VMM.
    pub enable_debug: bool,
    /// Reach the agent over vsock instead of a serial port; `None` is the serial port, which works everywhere.
    pub use_vsock: Option<bool>,
}

/// `[agent.kata]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Verbose agent.
    pub enable_debug: bool,
    /// How long a booting guest may take until its agent answers.
    pub dial_timeout: Duration,
}

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Verbose sandbox process.
    pub enable_debug: bool,
    /// Run containers without the seccomp filters that their specifications ask for.
    pub disable_guest_seccomp: bool,
    /// All of the pod's processes are put into one cgroup below the pod's; else the CPUs of the guest alone are, and the
    /// rest into a cgroup without limits.
    pub sandbox_cgroup_only: bool,
    /// The machine is sized at boot and never changes.
    pub static_sandbox_resource_mgmt: bool,
    /// What a machine that never changes gets for containers that did not say, MiB.
    pub static_sandbox_default_workload_mem: u32,
    /// What a machine that never changes gets for containers that did not say.
    pub static_sandbox_default_workload_vcpus: u32,
    /// Each CPU of the guest gets one of the host for itself, where the container's cpuset has as many.
    pub enable_vcpus_pinning: bool,
    /// How the pod's links reach the machine.
    pub internetworking_model: Internetworking,
    /// With [`Internetworking::None`]: the sandbox stays in the network namespace that it is started in.
    pub disable_new_netns: bool,
    /// Keep `emptyDir` volumes in memory on the host, and share them with the guest as files.
    pub disable_guest_empty_dir: bool,
    /// Names of experimental features.
    pub experimental: Vec<String>,
    /// How long the creation of a container may take, boot included.
    pub create_container_timeout: Duration,
}

/// `[factory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factory {
    /// Machines are clones of a template, where they can be.
    pub enable_template: bool,
    /// Directory of the templates.
    pub template_path: PathBuf,
    /// Machines that wait for pods.
    pub vm_cache_number: u32,
    /// Socket of who keeps them.
    pub vm_cache_endpoint: PathBuf,
}

/// A number of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuCount {
    /// As many as the host has.
    Host,
    /// This many, but no more than the host has.
    Exactly(u32),
}

/// How the guest sees directories of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedFs {
    /// A vhost-user daemon.
    VirtioFs,
    /// The VMM itself.
    Virtio9p,
    /// Not at all.
    None,
}

/// How the links of a pod's network namespace reach its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Internetworking {
    /// Each is joined to a tap by traffic control.
    Tcfilter,
    /// Each gets a macvtap on top.
    Macvtap,
    /// Not at all: the guest has its loopback only.
    None,
}

/// What the guest may remember of a virtio-fs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioFsCache {
    /// Nothing.
    Never,
    /// Names and attributes, but no data.
    Metadata,
    /// Everything, for a short time.
    Auto,
    /// Everything.
    Always,
}

/// Who reads and writes a disk on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAio {
    /// Threads of the VMM.
    Threads,
    /// The kernel, by `io_submit`.
    Native,
    /// The kernel, by `io_uring`.
    IoUring,
}

/// The file system of a guest's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootfsType {
    /// What `kata-runtime image build` makes.
    Erofs,
    /// Of other builders.
    Ext4,
    /// Of other builders.
    Xfs,
}

impl RootfsType {
    /// As it is written in a file, and as Linux calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A kernel and the root that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// Guest kernel.
    pub kernel: PathBuf,
    /// The agent's place.
    pub root: RootAsset,
}

/// Where the agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootAsset {
    /// In an initramfs.
    Initrd(PathBuf),
    /// In an image.
    Image(PathBuf),
}

impl RootAsset {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Initrd(path) | Self::Image(path) => path,
        }
    }

    /// What it is, for people.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Initrd(_) => "initramfs",
            Self::Image(_) => "image",
        }
    }
}

const ENABLED_ANNOTATIONS: [&str; 5] = [
    "enable_iommu",
    "kernel_params",
    "kernel_verity_params",
    "default_vcpus",
    "default_memory",
];

const ASSETS: [(&str, &str); 2] = [
    (
        "/usr/share/kata-containers/vmlinux.container",
        "/usr/share/kata-containers/kata-containers-initrd.img",
    ),
    (
        "/var/cache/kata-containers/current/vmlinux",
        "/var/cache/kata-containers/current/initrd.img",
    ),
];

const VIRTIO_FS_DAEMONS: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/opt/kata/libexec/virtiofsd",
    "/opt/kata-tools/bin/virtiofsd",
];

impl Config {
    /// How long a guest may take from its start until its agent answers.
    pub fn agent_answer_limit(&self) -> Duration {
        self.agent.dial_timeout
    }

    /// The guest assets to look for, the most wanted first: what is configured, completed from the places where
    /// packages and `kata-runtime image build` put them.
    pub fn asset_candidates(&self) -> Vec<Assets> {
        let mut candidates = Vec::new();
        for (kernel, initrd) in ASSETS {
            let assets = Assets {
                kernel: self.qemu.kernel.clone().unwrap_or_else(|| kernel.into()),
                root: match &self.qemu.image {
                    Some(image) => RootAsset::Image(image.clone()),
                    None => RootAsset::Initrd(self.qemu.initrd.clone().unwrap_or_else(|| initrd.into())),
                },
            };
            if !candidates.contains(&assets) {
                candidates.push(assets);
            }
        }
        candidates
    }

    /// The virtio-fs daemons to look for, the most wanted first: the configured one alone, or where packages put it.
    pub fn virtio_fs_daemon_candidates(&self) -> Vec<PathBuf> {
        match &self.qemu.virtio_fs_daemon {
            Some(daemon) => vec![daemon.clone()],
            None => VIRTIO_FS_DAEMONS.iter().map(PathBuf::from).collect(),
        }
    }

    /// The base file that was read; `None` if all is default.
    pub fn base_file(&self) -> Option<&Path> {
        self.files.first().map(PathBuf::as_path)
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            path: "/usr/bin/qemu-system-x86_64".into(),
            // Not `virtio_fs_extra_args`, which Kata allows: it would share any directory of the host with the guest.
            enable_annotations: ENABLED_ANNOTATIONS.map(str::to_owned).into(),
            valid_hypervisor_paths: Vec::new(),
            kernel: None,
            initrd: None,
            image: None,
            rootfs_type: RootfsType::Erofs,
            disable_image_nvdimm: false,
            kernel_params: Vec::new(),
            machine_type: "q35".into(),
            machine_accelerators: String::new(),
            cpu_features: None,
            firmware: None,
            default_vcpus: CpuCount::Exactly(1),
            default_maxvcpus: CpuCount::Host,
            default_memory: None,
            default_maxmemory: None,
            memory_slots: 10,
            enable_virtio_mem: false,
            reclaim_guest_freed_memory: true,
            shared_fs: None,
            virtio_fs_daemon: None,
            valid_virtio_fs_daemon_paths: Vec::new(),
            // `metadata` and `never` are faster for large files, but with them no file can be mapped shared and writable,
            // which databases do (SQLite's write-ahead log is one).
            virtio_fs_cache: VirtioFsCache::Auto,
            virtio_fs_queue_size: 1024,
            virtio_fs_extra_args: Vec::new(),
            // As large as the guest's driver takes: every message is a round trip.
            msize_9p: 512_000,
            disable_block_device_use: false,
            // Kata's own default, io_uring, is forbidden on many hosts.
            block_device_aio: BlockAio::Threads,
            block_device_cache_set: false,
            block_device_cache_direct: false,
            block_device_cache_noflush: false,
            entropy_source: "/dev/urandom".into(),
            valid_entropy_sources: ["/dev/urandom", "/dev/random"].map(str::to_owned).into(),
            seccompsandbox: String::new(),
            disable_selinux: false,
            disable_vhost_net: false,
            network_queues: None,
            enable_debug: false,
            use_vsock: None,
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            enable_debug: false,
            dial_timeout: Duration::from_secs(45),
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            enable_debug: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: false,
            static_sandbox_default_workload_mem: 2048,
            static_sandbox_default_workload_vcpus: 1,
            enable_vcpus_pinning: false,
            internetworking_model: Internetworking::Tcfilter,
            disable_new_netns: false,
            disable_guest_empty_dir: false,
            experimental: Vec::new(),
            create_container_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Factory {
    fn default() -> Self {
        Self {
            enable_template: false,
            template_path: "/run/vc/vm/template".into(),
            vm_cache_number: 0,
            vm_cache_endpoint: "/var/run/kata-containers/cache.sock".into(),
        }
    }
}

impl SharedFs {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VirtioFs => "virtio-fs",
            Self::Virtio9p => "virtio-9p",
            Self::None => "none",
        }
    }
}

impl Internetworking {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcfilter => "tcfilter",
            Self::Macvtap => "macvtap",
            Self::None => "none",
        }
    }
}

impl BlockAio {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

impl VirtioFsCache {
    /// As written in the file and as the daemon takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Metadata => "metadata",
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }
}
