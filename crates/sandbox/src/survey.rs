//! Looks at the host and gathers the [`Facts`] that the plan is made from. Only looks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kata_bundle::oci::Spec;
use kata_config::{Assets, Config, RootAsset};
use kata_factory::Store;
use kata_plan::{DiskRootfs, DiskSource, Facts, MemoryFacts, MemoryKind, RootFile, SourceKind};
use kata_storage::copy;
use kata_storage::mount::EngineMount;
use kata_storage::socket::is_datagram;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};

use crate::record::Home;
use crate::tree::TREE_BOUNDS;

/// What the name of an initramfs that leads to an image has more than the image's.
const LOADER_ENDING: &str = ".initrd";

/// What the host lacks.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// No guest kernel, or nothing that it could have as its root.
    #[error("no guest {what} at {}; `kata-runtime image build` makes one", list(looked_at))]
    NoAsset {
        /// `kernel`, `initramfs`, `image`
        what: &'static str,
        /// Where it was looked for.
        looked_at: Vec<PathBuf>,
    },
    /// A file that is there cannot be read.
    #[error("cannot read the guest {what} {}", path.display())]
    Unreadable {
        /// `kernel`, `initramfs`, `image`
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The configured virtio-fs daemon is not there.
    #[error("the virtio-fs daemon {} is configured and cannot be used", path.display())]
    NoDaemon {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(" or ")
}

/// Gathers the facts for a container of `spec` in the sandbox at `home`, whose root file system is mounted already
/// unless `rootfs` says how. The network is left to whoever knows the pod's
/// namespace. To be called where the engine's paths mean something.
///
/// # Errors
/// [`SurveyError`]
pub fn facts(config: &Config, home: &Home, spec: &Spec, rootfs: &[EngineMount]) -> Result<Facts, SurveyError> {
    let sources = kata_plan::bind_sources(spec);
    let host = host(config)?;
    Ok(Facts {
        vsock_cid: host.vhost_vsock.then(|| vsock_cid(home)),
        run_dir: home.path().to_owned(),
        share_dir: home.share(),
        block_devices: sources
            .iter()
            .filter_map(|source| Some((source.clone(), block_device(source)?)))
            .collect(),
        source_kinds: sources
            .into_iter()
            .map(|source| {
                let kind = kind_of(&source);
                (source, kind)
            })
            .collect::<BTreeMap<_, _>>(),
        disk_rootfs: disk_rootfs(rootfs),
        memory: kata_plan::memory_sources(spec)
            .into_iter()
            .filter_map(|source| Some((source.clone(), in_memory(&source)?)))
            .collect(),
        small_trees: small_trees(kata_plan::tree_sources(spec)),
        ..host
    })
}

/// Gathers the facts that are the same for all pods of this configuration.
///
/// # Errors
/// [`SurveyError`]
pub fn host(config: &Config) -> Result<Facts, SurveyError> {
    let (kernel, root) = assets(config)?;
    let choice = kata_qemu::probe();
    Ok(Facts {
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        accelerator: choice.accelerator,
        accelerator_reason: choice.reason,
        host_cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        host_memory_mib: memory_mib(),
        vmm: config.qemu.path.clone(),
        kernel,
        root,
        virtiofsd: file_server(config)?,
        vhost_vsock: Path::new("/dev/vhost-vsock").exists(),
        vsock_cid: None,
        vhost_net: can_open(Path::new("/dev/vhost-net")),
        network: None,
        run_dir: PathBuf::new(),
        share_dir: PathBuf::new(),
        template_dir: Store::at(&config.factory.template_path).half_made(),
        has_spare: false,
        source_kinds: BTreeMap::new(),
        block_devices: BTreeMap::new(),
        disk_rootfs: None,
        memory: BTreeMap::new(),
        small_trees: BTreeSet::new(),
    })
}

/// The kernel and the root that the guest boots with.
fn assets(config: &Config) -> Result<(PathBuf, RootFile), SurveyError> {
    let candidates = config.asset_candidates();
    let whole = candidates
        .iter()
        .find(|assets| assets.kernel.exists() && assets.root.path().exists());
    let Some(assets) = whole else {
        return Err(no_assets(&candidates));
    };
    check_file("kernel", &assets.kernel)?;
    let bytes = check_file(assets.root.noun(), assets.root.path())?;
    let root = match &assets.root {
        RootAsset::Initrd(path) => RootFile::Initrd(path.clone()),
        RootAsset::Image(path) => RootFile::Image {
            path: path.clone(),
            bytes,
            loader: loader_of(path)?,
        },
    };
    Ok((assets.kernel.clone(), root))
}

fn no_assets(candidates: &[Assets]) -> SurveyError {
    let missing = |pick: fn(&Assets) -> &Path| -> Option<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = candidates.iter().map(|assets| pick(assets).to_owned()).collect();
        paths.dedup();
        paths.iter().all(|path| !path.exists()).then_some(paths)
    };
    let root = candidates.first().map_or("initramfs", |assets| assets.root.noun());
    let (what, looked_at) = match (missing(|assets| &assets.kernel), missing(|assets| assets.root.path())) {
        (Some(paths), _) => ("kernel", paths),
        (None, Some(paths)) => (root, paths),
        (None, None) => (
            "kernel with its initramfs",
            candidates.iter().map(|assets| assets.kernel.clone()).collect(),
        ),
    };
    SurveyError::NoAsset { what, looked_at }
}

/// The initramfs beside an image that leads to it.
fn loader_of(image: &Path) -> Result<Option<PathBuf>, SurveyError> {
    let mut name = image.as_os_str().to_owned();
    name.push(LOADER_ENDING);
    let loader = PathBuf::from(name);
    if !loader.exists() {
        return Ok(None);
    }
    check_file("image's initramfs", &loader)?;
    Ok(Some(loader))
}

/// The size of a file that can be read. Opened, not only looked at: the VMM's own message for a file that it may not read
/// names no file.
fn check_file(what: &'static str, path: &Path) -> Result<u64, SurveyError> {
    let size = || {
        let data = std::fs::File::open(path)?.metadata()?;
        if !data.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
        }
        Ok(data.len())
    };
    size().map_err(|source| SurveyError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    })
}

fn file_server(config: &Config) -> Result<Option<PathBuf>, SurveyError> {
    if let Some(path) = &config.qemu.virtio_fs_daemon {
        return match std::fs::metadata(path) {
            Ok(_) => Ok(Some(path.clone())),
            Err(source) => Err(SurveyError::NoDaemon {
                path: path.clone(),
                source,
            }),
        };
    }
    Ok(config
        .virtio_fs_daemon_candidates()
        .into_iter()
        .find(|path| path.exists()))
}

fn can_open(device: &Path) -> bool {
    std::fs::File::options().read(true).write(true).open(device).is_ok()
}

fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// A context id that the sandbox's own directory name decides, so that two sandboxes hardly ever want the same; the
/// kernel refuses the second of two.
fn vsock_cid(home: &Home) -> u32 {
    let name = home
        .path()
        .file_name()
        .map(|name| name.as_encoded_bytes())
        .unwrap_or_default();
    let hash = name.iter().fold(2_166_136_261_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(16_777_619)
    });
    // 0-2 and the highest have other meanings.
    3 + hash % (u32::MAX - 4)
}

fn kind_of(source: &Path) -> SourceKind {
    let Ok(data) = std::fs::metadata(source) else {
        return SourceKind::Missing;
    };
    let file_type = data.file_type();
    if file_type.is_dir() {
        SourceKind::Directory
    } else if file_type.is_file() {
        SourceKind::File
    } else if file_type.is_block_device() {
        SourceKind::BlockDevice
    } else if file_type.is_char_device() {
        SourceKind::CharDevice
    } else if file_type.is_fifo() {
        SourceKind::Fifo
    } else if is_datagram(source) {
        SourceKind::DatagramSocket
    } else {
        SourceKind::Socket
    }
}

/// Its number, if that is what the path leads to.
fn block_device(path: &Path) -> Option<(u32, u32)> {
    let data = std::fs::metadata(path).ok()?;
    let number = data.rdev();
    let part = |number: u64| u32::try_from(number).ok();
    data.file_type()
        .is_block_device()
        .then_some((part(major(number))?, part(minor(number))?))
}

/// The root file system, if it is a single mount of a block device or of the image of one.
fn disk_rootfs(mounts: &[EngineMount]) -> Option<DiskRootfs> {
    let [only] = mounts else { return None };
    let path = Path::new(&only.source);
    let source = match block_device(path) {
        Some((major, minor)) => DiskSource::Device { major, minor },
        None if only.options.iter().any(|option| option == "loop") && path.is_file() => {
            DiskSource::File { path: path.to_owned() }
        }
        None => return None,
    };
    Some(DiskRootfs {
        source,
        fs_type: only.fs_type.clone(),
        options: only.options.clone(),
    })
}

/// Those that are small enough to be copied, all together: they cross the channel in one message.
fn small_trees(sources: Vec<PathBuf>) -> BTreeSet<PathBuf> {
    let mut bounds = TREE_BOUNDS;
    let mut small = BTreeSet::new();
    for source in sources {
        if let Ok(Some(entries)) = copy::read(&source, bounds) {
            let bytes: usize = entries.iter().map(|entry| entry.content.len()).sum();
            bounds.bytes = bounds.bytes.saturating_sub(bytes as u64);
            bounds.entries -= entries.len();
            small.insert(source);
        }
    }
    small
}

/// What is at `source`, if that is in memory.
fn in_memory(source: &Path) -> Option<MemoryFacts> {
    let file_system = statfs(source).ok()?;
    let block_bytes = u64::try_from(file_system.block_size()).ok()?;
    let kind = match file_system.filesystem_type() {
        TMPFS_MAGIC => MemoryKind::Tmpfs,
        HUGETLBFS_MAGIC => MemoryKind::HugePages {
            page_kib: block_bytes >> 10,
        },
        _ => return None,
    };
    let data = std::fs::metadata(source).ok()?;
    Some(MemoryFacts {
        kind,
        bytes: file_system.blocks().saturating_mul(block_bytes),
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
    })
}
