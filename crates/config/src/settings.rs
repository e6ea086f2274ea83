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
}

/// `[hypervisor.qemu]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The VMM's executable.
    pub path: PathBuf,
    /// Guest kernel, an uncompressed ELF `vmlinux`.
    pub kernel: Option<PathBuf>,
    /// Initramfs with the agent as `/init`.
    pub initrd: Option<PathBuf>,
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
    /// CPUs that the machine can grow to; `None` is as many as it has at boot.
    pub default_maxvcpus: Option<CpuCount>,
    /// Memory at boot, MiB; `None` is 2048 under KVM and 256 under TCG.
    pub default_memory: Option<u32>,
    /// How the guest sees the host's directories; `None` is virtio-fs where its daemon is installed, else virtio-9p.
    pub shared_fs: Option<SharedFs>,
    /// The virtio-fs daemon.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// What the guest may remember of a virtio-fs share.
    pub virtio_fs_cache: VirtioFsCache,
    /// Entries of the virtio-fs request queue: a power of two up to 1024.
    pub virtio_fs_queue_size: u32,
    /// Arguments for the daemon; one that the runtime gives too replaces the runtime's.
    pub virtio_fs_extra_args: Vec<String>,
    /// Largest message of a virtio-9p share, bytes.
    pub msize_9p: u32,
    /// File of the host that feeds the guest's random number generator.
    pub entropy_source: PathBuf,
    /// The VMM's system call filter, in QEMU's words (`-sandbox`); empty for none.
    pub seccompsandbox: String,
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
    /// Names of experimental features.
    pub experimental: Vec<String>,
    /// How long the creation of a container may take, boot included.
    pub create_container_timeout: Duration,
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

/// A kernel and the initramfs that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initrd: PathBuf,
}

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
                initrd: self.qemu.initrd.clone().unwrap_or_else(|| initrd.into()),
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
            kernel: None,
            initrd: None,
            kernel_params: Vec::new(),
            machine_type: "q35".into(),
            machine_accelerators: String::new(),
            cpu_features: None,
            firmware: None,
            default_vcpus: CpuCount::Exactly(1),
            default_maxvcpus: None,
            default_memory: None,
            shared_fs: None,
            virtio_fs_daemon: None,
            // `metadata` and `never` are faster for large files, but with them no file can be mapped shared and writable,
            // which databases do (SQLite's write-ahead log is one).
            virtio_fs_cache: VirtioFsCache::Auto,
            virtio_fs_queue_size: 1024,
            virtio_fs_extra_args: Vec::new(),
            // As large as the guest's driver takes: every message is a round trip.
            msize_9p: 512_000,
            entropy_source: "/dev/urandom".into(),
            seccompsandbox: String::new(),
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
            experimental: Vec::new(),
            create_container_timeout: Duration::from_secs(60),
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
