//! Builds a set of guest assets, or finds that it is there already.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::cmd::version::VERSION;
use crate::image::agent;
use crate::image::cpio;
use crate::image::digest::Digest;
use crate::image::erofs;
use crate::image::kernel::{Identity, Wanted};
use crate::image::manifest::{Asset, FORMAT, Kernel, Manifest};
use crate::image::root::{self, Parts};
use crate::image::store::{self, Defect, IMAGE, INITRD, LOADER, MANIFEST, Set, Store, VMLINUX};

/// How long a build waits for another one: a download over a slow line and a compilation on a slow machine.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// What is to be built.
#[derive(Debug)]
pub struct Request {
    /// Where the store is.
    pub out: PathBuf,
    /// The agent; looked for when not given.
    pub agent: Option<PathBuf>,
    /// The kernel.
    pub kernel: Wanted,
}

/// What came of it.
#[derive(Debug)]
pub struct Built {
    /// The set.
    pub set: Set,
    /// Whether something had to be made.
    pub made: bool,
}

/// Builds what is asked for and makes it the set in use.
///
/// # Errors
/// When an input is missing or unfit, a download fails, or the store cannot be written.
pub fn build(request: &Request) -> anyhow::Result<Built> {
    let agent = agent::find(request.agent.as_deref())?;
    tracing::info!("taking the agent {}", agent.path.display());
    let agent_sha256 = Digest::of(&agent.bytes);
    let store = Store::at(&request.out);
    store.create()?;
    let kernel = Identity::of(&request.kernel, &store)?;
    let key = key_of(&kernel, &agent_sha256)?;

    if store.current_key().as_deref() == Some(key.as_str())
        && let Ok(set) = store.find(&key)
    {
        return Ok(Built { set, made: false });
    }

    let _lock = store.lock(PATIENCE)?;
    store.sweep()?;
    // Another builder may have made it in the meantime.
    match store.find(&key) {
        Ok(set) => {
            store.use_set(&key)?;
            return Ok(Built { set, made: false });
        }
        Err(Defect::Broken(path)) => tracing::warn!("{} is damaged, building the set anew", path.display()),
        Err(Defect::Absent) => {}
    }
    let source = kernel.source.clone();
    let ready = kernel.prepare(&store)?;
    let record = ready.record;
    let parts = Parts {
        agent: &agent.bytes,
        release: &record.release,
        chosen: &record.modules,
        files: &ready.files,
    };
    let files = files(&parts, &record.missing)?;
    let asset = |wanted: &str| {
        let (_, bytes) = files.iter().find(|(name, _)| *name == wanted)?;
        Some(Asset {
            sha256: Digest::of(bytes),
            bytes: bytes.len() as u64,
        })
    };
    let manifest = Manifest {
        format: FORMAT,
        builder: VERSION.to_owned(),
        kernel: Kernel {
            source,
            image_sha256: record.image_sha256,
            release: record.release.clone(),
        },
        modules: record.modules.clone(),
        missing_modules: record.missing,
        agent_sha256,
        vmlinux: record.vmlinux,
        initrd: asset(INITRD).context("no initramfs was assembled")?,
        image: asset(IMAGE),
        loader: asset(LOADER),
    };
    store.add_set(&key, |path| -> anyhow::Result<()> {
        store::share(&ready.vmlinux, &path.join(VMLINUX))?;
        for (name, bytes) in &files {
            store::write(&path.join(name), bytes)?;
        }
        store::write(&path.join(MANIFEST), &manifest.render()?)?;
        Ok(())
    })?;
    let set = store
        .find(&key)
        .map_err(|defect| anyhow::anyhow!("the set {key} is unusable as soon as it is written: {defect:?}"))?;
    store.use_set(&key)?;
    Ok(Built { set, made: true })
}

/// The files of a set that hold the agent: the initramfs, the same as an image, and what leads to that.
fn files(parts: &Parts<'_>, missing: &[String]) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let whole = parts.whole()?;
    let mut files = vec![(INITRD, cpio::write(&whole))];
    let lacking = root::lacking(missing);
    if !lacking.is_empty() {
        tracing::info!("no image is made: the kernel lacks {}", lacking.join(", "));
        return Ok(files);
    }
    files.push((IMAGE, erofs::write(&whole)?));
    if let Some(loader) = parts.loader()? {
        files.push((LOADER, cpio::write(&loader)));
    }
    Ok(files)
}

/// The digest of all input.
fn key_of(kernel: &Identity, agent_sha256: &str) -> anyhow::Result<String> {
    let source = serde_json::to_string(&kernel.source).context("cannot describe the kernel's source")?;
    let mut key = Digest::new();
    key.field(&FORMAT.to_string())
        .field(VERSION)
        .field(&kernel.key)
        .field(&source)
        .field(agent_sha256);
    Ok(key.hex())
}
