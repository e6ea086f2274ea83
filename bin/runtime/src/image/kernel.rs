//! Gets the kernel and its modules ready: from the distribution's package, a package's file, files given by hand, or
//! compiled from source.
//!
//! A kernel that was taken apart or compiled is kept in the store, so that a new agent costs neither a download nor a
//! decompression nor a compilation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::image::bzimage;
use crate::image::compile;
use crate::image::deb;
use crate::image::digest::Digest;
use crate::image::fragment::Demands;
use crate::image::manifest::{Asset, Source};
use crate::image::modules::{Chosen, Selection, Tree, WISHES};
use crate::image::package::{self, Candidate};
use crate::image::source;
use crate::image::store::{self, Store, VMLINUX};

/// Raise it whenever the same input would be made into something else.
const RECIPE: &str = "7";
const RECORD: &str = "kernel.json";
const MODULES: &str = "modules";
const CONFIG: &str = "config";

/// Which kernel is asked for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The package that apt would install.
    Package(String),
    /// A package's file.
    Deb(PathBuf),
    /// A kernel image and the module tree that belongs to it, if any.
    File(PathBuf, Option<PathBuf>),
    /// Compiled from this source, configured as the fragments of these names say.
    Source(source::Wanted, Vec<String>),
}

/// What is known of the kernel before anything is downloaded or decompressed.
#[derive(Debug)]
pub struct Identity {
    /// For the manifest.
    pub source: Source,
    /// Digest of everything that the kernel is made from.
    pub key: String,
    origin: Origin,
}

/// Where the bytes are.
#[derive(Debug)]
enum Origin {
    Package(Candidate),
    Deb(PathBuf),
    Files {
        image: Vec<u8>,
        release: String,
        selection: Selection,
    },
    Source(source::Source, Demands),
}

/// A kernel in the store, and what belongs to it.
#[derive(Debug)]
pub struct Ready {
    /// The kernel's file.
    pub vmlinux: PathBuf,
    /// What was recorded of it.
    pub record: Record,
    /// The modules' bytes, by their path in the module tree.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// The content of `kernel.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the image that was taken apart.
    pub image_sha256: String,
    /// As `uname -r` prints it.
    pub release: String,
    /// The kernel's file.
    pub vmlinux: Asset,
    /// The modules for the guest.
    pub modules: Vec<Chosen>,
    /// Modules that the kernel does not have.
    pub missing: Vec<String>,
    /// Each module's file.
    pub files: BTreeMap<String, Asset>,
}

impl Identity {
    /// Finds out what `wanted` is at this moment.
    ///
    /// # Errors
    /// When apt does not know the package, or files cannot be read or do not belong together.
    pub fn of(wanted: &Wanted, store: &Store) -> anyhow::Result<Self> {
        let (source, origin, content) = match wanted {
            Wanted::Package(name) => {
                let candidate = package::resolve(name, &store.apt_memory())?;
                let Candidate {
                    package,
                    version,
                    sha256,
                } = candidate.clone();
                (
                    Source::Package {
                        package,
                        version,
                        sha256: sha256.clone(),
                    },
                    Origin::Package(candidate),
                    sha256,
                )
            }
            Wanted::Deb(path) => {
                let sha256 = Digest::of_file(path)?;
                (
                    Source::Deb { sha256: sha256.clone() },
                    Origin::Deb(path.clone()),
                    sha256,
                )
            }
            Wanted::File(path, modules) => {
                let image =
                    std::fs::read(path).with_context(|| format!("cannot read the kernel {}", path.display()))?;
                let sha256 = Digest::of(&image);
                let release = bzimage::release(&image)
                    .with_context(|| format!("{} is not a Linux kernel: it names no version", path.display()))?;
                let selection = match modules {
                    Some(directory) => Tree::scan(directory, &release)?.choose(&WISHES)?,
                    None => Selection::default(),
                };
                let mut content = Digest::new();
                content.field(&sha256);
                for (file, bytes) in &selection.files {
                    content.field(file).field(&Digest::of(bytes));
                }
                (
                    Source::File { sha256 },
                    Origin::Files {
                        image,
                        release,
                        selection,
                    },
                    content.hex(),
                )
            }
            Wanted::Source(wanted, fragments) => find_source(wanted, fragments, store)?,
        };
        let mut key = Digest::new();
        key.field(RECIPE).field(&content);
        for wish in WISHES {
            key.field(wish.name).field(if wish.at_start { "start" } else { "" });
        }
        Ok(Self {
            source,
            key: key.hex(),
            origin,
        })
    }

    /// The kernel from the store, or made and put there.
    ///
    /// # Errors
    /// When a download or a decompression fails, or what comes out is no kernel for a guest.
    pub fn prepare(self, store: &Store) -> anyhow::Result<Ready> {
        let kept = store.kernels().join(&self.key);
        if let Some(ready) = recall(&kept) {
            return Ok(ready);
        }
        match self.origin {
            Origin::Files {
                image,
                release,
                selection,
            } => keep(store, &self.key, &image, &release, &selection, None),
            Origin::Source(source, demands) => compile_source(store, &self.key, &source, &demands),
            Origin::Deb(path) => take_apart(store, &self.key, &path),
            Origin::Package(candidate) => {
                let place = tempfile::tempdir().context("cannot make a directory for the download")?;
                tracing::info!("downloading {} {}", candidate.package, candidate.version);
                let deb = package::download(&candidate, place.path())?;
                take_apart(store, &self.key, &deb)
            }
        }
    }
}

/// A source is as good as its digest, the demands and the compiler.
fn find_source(
    wanted: &source::Wanted,
    fragments: &[String],
    store: &Store,
) -> anyhow::Result<(Source, Origin, String)> {
    let demands = Demands::read(fragments)?;
    let compiler = compile::toolchain()?;
    let found = wanted.find(store)?;
    let mut content = Digest::new();
    content.field(&found.sha256).field(&demands.render()).field(&compiler);
    let name = |fragment: &String| {
        Path::new(fragment)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let source = Source::Compiled {
        source: found.name.clone(),
        sha256: found.sha256.clone(),
        fragments: fragments.iter().filter_map(name).collect(),
        compiler,
    };
    Ok((source, Origin::Source(found, demands), content.hex()))
}

fn compile_source(store: &Store, key: &str, source: &source::Source, demands: &Demands) -> anyhow::Result<Ready> {
    let place = store.workshop()?;
    let tree = source.lay_out(place.path())?;
    let build = place.path().join("build");
    std::fs::create_dir(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let compiled = compile::compile(&tree, &build, demands)?;
    let release = bzimage::release(&compiled.vmlinux).context("the compiled kernel names no version")?;
    // No module is a file; what is built in is listed beside the kernel.
    let selection = Tree::scan(&build, &release)?.choose(&WISHES)?;
    keep(
        store,
        key,
        &compiled.vmlinux,
        &release,
        &selection,
        Some(&compiled.config),
    )
}

fn take_apart(store: &Store, key: &str, deb: &Path) -> anyhow::Result<Ready> {
    let place = tempfile::tempdir().context("cannot make a directory to unpack into")?;
    let unpacked = deb::unpack(deb, place.path())?;
    let image = std::fs::read(&unpacked.image)
        .with_context(|| format!("cannot read {} of {}", unpacked.image.display(), deb.display()))?;
    let release =
        bzimage::release(&image).with_context(|| format!("the kernel in {} names no version", deb.display()))?;
    let selection = Tree::scan(&unpacked.modules, &release)?.choose(&WISHES)?;
    keep(store, key, &image, &release, &selection, None)
}

fn keep(
    store: &Store,
    key: &str,
    image: &[u8],
    release: &str,
    selection: &Selection,
    config: Option<&str>,
) -> anyhow::Result<Ready> {
    let vmlinux = bzimage::extract(image)?;
    let inside = bzimage::release(&vmlinux);
    if inside.as_deref() != Some(release) {
        bail!(
            "the kernel calls itself {} inside and {release} outside",
            inside.unwrap_or_default()
        );
    }
    let path = store.add_kernel(key, |path| -> anyhow::Result<()> {
        let mut record = Record {
            image_sha256: Digest::of(image),
            release: release.to_owned(),
            vmlinux: store::write(&path.join(VMLINUX), &vmlinux)?,
            modules: selection.chosen.clone(),
            missing: selection.missing.clone(),
            files: BTreeMap::new(),
        };
        for (file, bytes) in &selection.files {
            let target = path.join(MODULES).join(file);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            }
            record.files.insert(file.clone(), store::write(&target, bytes)?);
        }
        if let Some(config) = config {
            store::write(&path.join(CONFIG), config.as_bytes())?;
        }
        store::write(&path.join(RECORD), &serde_json::to_vec_pretty(&record)?)?;
        Ok(())
    })?;
    recall(&path).with_context(|| format!("the kernel in {} is broken as soon as it is written", path.display()))
}

/// A kernel that was kept, if every byte of it is still what was written.
fn recall(path: &Path) -> Option<Ready> {
    let record: Record = serde_json::from_slice(&std::fs::read(path.join(RECORD)).ok()?).ok()?;
    let vmlinux = path.join(VMLINUX);
    if !store::is_intact(&vmlinux, &record.vmlinux) {
        return None;
    }
    let mut files = BTreeMap::new();
    for (file, asset) in &record.files {
        let bytes = std::fs::read(path.join(MODULES).join(file)).ok()?;
        if Digest::of(&bytes) != asset.sha256 {
            return None;
        }
        files.insert(file.clone(), bytes);
    }
    Some(Ready { vmlinux, record, files })
}
