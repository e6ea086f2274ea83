//! Chooses the kernel modules that a guest needs from a module tree, with what they depend on, in loading order.
//!
//! The order comes from each module's own `.modinfo` (`depends`, and `softdep` before it), not from `modules.dep`:
//! Debian's packages do not carry that file, `depmod` makes it at installation. Modules built into the kernel are
//! skipped; wished ones that the kernel does not have are named in the result. It refuses cycles and damaged modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::command::CommandError;
use crate::image::bzimage::Compression;
use crate::image::elf::{Elf, ElfError};
use crate::image::signature;
use crate::image::slim::slim;

/// Why modules cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A compressed module does not decompress.
    #[error("cannot decompress {}", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// What the tool said.
        #[source]
        source: CommandError,
    },
    /// Not a module.
    #[error("{} is not a kernel module", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ElfError,
    },
    /// A module needs one that is nowhere.
    #[error("the kernel module {module} needs {needs}, which is neither built in nor among the modules")]
    Missing {
        /// Who needs.
        module: String,
        /// What it needs.
        needs: String,
    },
    /// Modules that need each other.
    #[error("the kernel module {module} needs itself")]
    Cycle {
        /// One of them.
        module: String,
    },
    /// Modules of another kernel.
    #[error("the kernel module {} is for kernel {found}, not {expected}", path.display())]
    Release {
        /// The file.
        path: PathBuf,
        /// The release that it was built for.
        found: String,
        /// The kernel's release.
        expected: String,
    },
}

/// A module that the guest may want, by the kernel's name for it.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The module's name, with underscores.
    pub name: &'static str,
    /// Loaded as soon as the agent starts; the others when something asks for them.
    pub at_start: bool,
}

/// The modules that guests use: at start what the channel needs on either bus, then what carries the share, root file
/// systems, the network and entropy.
pub const WISHES: [Wish; 21] = [
    Wish {
        name: "virtio_pci",
        at_start: true,
    },
    Wish {
        name: "virtio_mmio",
        at_start: true,
    },
    Wish {
        name: "virtio_console",
        at_start: true,
    },
    Wish {
        name: "virtiofs",
        at_start: false,
    },
    Wish {
        name: "9p",
        at_start: false,
    },
    Wish {
        name: "9pnet_virtio",
        at_start: false,
    },
    Wish {
        name: "overlay",
        at_start: false,
    },
    Wish {
        name: "vmw_vsock_virtio_transport",
        at_start: false,
    },
    Wish {
        name: "virtio_rng",
        at_start: false,
    },
    Wish {
        name: "virtio_blk",
        at_start: false,
    },
    Wish {
        name: "virtio_scsi",
        at_start: false,
    },
    Wish {
        name: "sd_mod",
        at_start: false,
    },
    Wish {
        name: "fuse",
        at_start: false,
    },
    Wish {
        name: "tun",
        at_start: false,
    },
    Wish {
        name: "virtio_net",
        at_start: false,
    },
    Wish {
        name: "ext4",
        at_start: false,
    },
    Wish {
        name: "erofs",
        at_start: false,
    },
    Wish {
        name: "virtio_pmem",
        at_start: false,
    },
    Wish {
        name: "nd_pmem",
        at_start: false,
    },
    Wish {
        name: "virtio_balloon",
        at_start: false,
    },
    Wish {
        name: "virtio_mem",
        at_start: false,
    },
];

/// A chosen module: one line of the list that the agent reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The kernel's name for it.
    pub name: String,
    /// Loaded as soon as the agent starts.
    pub at_start: bool,
    /// Files to load, relative to the module tree and uncompressed: what it needs first, itself last.
    pub files: Vec<String>,
}

/// What was chosen from a tree.
#[derive(Debug, Default)]
pub struct Selection {
    /// Wished modules that are files.
    pub chosen: Vec<Chosen>,
    /// Wished modules that the kernel does not have at all.
    pub missing: Vec<String>,
    /// Each file of `chosen`, by its path there.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A module tree, as `/lib/modules/RELEASE` is one.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    release: String,
    /// Path of each module file, by module name.
    paths: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    /// Looks through the tree at `root`, whose modules are for the kernel `release`.
    ///
    /// # Errors
    /// [`ModulesError::Read`]
    pub fn scan(root: &Path, release: &str) -> Result<Self, ModulesError> {
        let mut paths = BTreeMap::new();
        let start = root.join("kernel");
        collect(if start.is_dir() { &start } else { root }, &mut paths)?;
        let list = root.join("modules.builtin");
        let built_in = match std::fs::read_to_string(&list) {
            Ok(text) => text.lines().filter_map(|line| module_name(Path::new(line))).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(source) => return Err(ModulesError::Read { path: list, source }),
        };
        Ok(Self {
            root: root.to_owned(),
            release: release.to_owned(),
            paths,
            built_in,
        })
    }

    /// Chooses the wished modules.
    ///
    /// # Errors
    /// See [`ModulesError`]; a wish that the kernel cannot fulfil is no error.
    pub fn choose(&self, wishes: &[Wish]) -> Result<Selection, ModulesError> {
        let mut loaded = BTreeMap::new();
        let mut selection = Selection::default();
        for wish in wishes {
            if !self.paths.contains_key(wish.name) {
                if !self.built_in.contains(wish.name) {
                    selection.missing.push(wish.name.to_owned());
                }
                continue;
            }
            let mut order = Vec::new();
            self.visit(wish.name, &mut Vec::new(), &mut order, &mut loaded)?;
            let files = order
                .iter()
                .filter_map(|name| loaded.get(name))
                .map(|module| module.file.clone())
                .collect();
            selection.chosen.push(Chosen {
                name: wish.name.to_owned(),
                at_start: wish.at_start,
                files,
            });
        }
        selection.files = loaded.into_values().map(|module| (module.file, module.bytes)).collect();
        Ok(selection)
    }

    /// Puts `name` into `order`, after everything that it needs. `above` are the modules that led here.
    fn visit(
        &self,
        name: &str,
        above: &mut Vec<String>,
        order: &mut Vec<String>,
        loaded: &mut BTreeMap<String, Module>,
    ) -> Result<(), ModulesError> {
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        if above.iter().any(|module| module == name) {
            return Err(ModulesError::Cycle {
                module: name.to_owned(),
            });
        }
        if !loaded.contains_key(name)
            && let Some(path) = self.paths.get(name)
        {
            loaded.insert(name.to_owned(), self.load(path)?);
        }
        let Some(module) = loaded.get(name) else {
            return Err(ModulesError::Missing {
                module: above.last().cloned().unwrap_or_default(),
                needs: name.to_owned(),
            });
        };
        let soft: Vec<String> = module.soft.iter().filter_map(|name| self.provider(name)).collect();
        let hard: Vec<String> = module
            .needs
            .iter()
            .filter(|name| !self.built_in.contains(*name))
            .cloned()
            .collect();
        above.push(name.to_owned());
        for needed in soft.iter().chain(&hard) {
            self.visit(needed, above, order, loaded)?;
        }
        above.pop();
        order.push(name.to_owned());
        Ok(())
    }

    /// The module file behind a soft dependency, which may name a module or an algorithm: portable code for an
    /// algorithm is in `NAME_generic`. `None` where it is built in, or missing, which a soft dependency may be.
    fn provider(&self, name: &str) -> Option<String> {
        let candidates = [name.to_owned(), format!("{name}_generic")];
        let known = candidates
            .into_iter()
            .find(|name| self.built_in.contains(name) || self.paths.contains_key(name))?;
        (!self.built_in.contains(&known)).then_some(known)
    }

    fn load(&self, path: &Path) -> Result<Module, ModulesError> {
        let raw = std::fs::read(path).map_err(|source| ModulesError::Read {
            path: path.to_owned(),
            source,
        })?;
        // The kernel can decompress modules only where it was built to; a guest should not spend its time on it anyway.
        let bytes = Compression::of(&raw)
            .unwrap_or(Compression::None)
            .undo(&raw)
            .map_err(|source| ModulesError::Decompress {
                path: path.to_owned(),
                source,
            })?;
        let damaged = |source| ModulesError::Elf {
            path: path.to_owned(),
            source,
        };
        let bytes = slim(signature::strip(bytes)).map_err(damaged)?;
        let elf = Elf::parse(&bytes).map_err(damaged)?;
        let (mut needs, mut soft) = (Vec::new(), Vec::new());
        for (key, value) in elf.module_info().map_err(damaged)? {
            match key {
                "depends" => needs.extend(value.split(',').filter(|name| !name.is_empty()).map(canonical)),
                "softdep" => soft.extend(before(value).map(canonical)),
                "vermagic" => {
                    let found = value.split(' ').next().unwrap_or_default();
                    if found != self.release {
                        return Err(ModulesError::Release {
                            path: path.to_owned(),
                            found: found.to_owned(),
                            expected: self.release.clone(),
                        });
                    }
                }
                _ => {}
            }
        }
        let relative = path
            .strip_prefix(&self.root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        let file = relative
            .rfind(".ko")
            .map_or(relative.clone(), |dot| relative[..dot + 3].to_owned());
        Ok(Module {
            file,
            bytes,
            needs,
            soft,
        })
    }
}

/// A module that was looked into.
#[derive(Debug)]
struct Module {
    /// Its place in the tree, without the suffix of a compression.
    file: String,
    bytes: Vec<u8>,
    needs: Vec<String>,
    soft: Vec<String>,
}

fn collect(directory: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<(), ModulesError> {
    let unreadable = |source| ModulesError::Read {
        path: directory.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        // Links are not followed: `build` and `source` lead out of the tree.
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            collect(&path, paths)?;
        } else if kind.is_file()
            && let Some(name) = module_name(&path)
        {
            paths.insert(name, path);
        }
    }
    Ok(())
}

/// The kernel's name of the module in a file; `None` for other files.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| canonical(stem))
}

/// The kernel takes dashes and underscores in module names for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The names after `pre:` in a soft dependency, up to `post:`.
fn before(softdep: &str) -> impl Iterator<Item = &str> {
    let words = softdep
        .split_ascii_whitespace()
        .skip_while(|word| *word != "pre:")
        .skip(1);
    words.take_while(|word| !word.ends_with(':'))
}

/// The list that the agent reads: `[!]NAME: PATH PATH …`, with absolute paths below `directory`.
pub fn list(chosen: &[Chosen], directory: &str) -> String {
    chosen
        .iter()
        .map(|module| {
            let mark = if module.at_start { "!" } else { "" };
            let paths: String = module.files.iter().map(|file| format!(" {directory}/{file}")).collect();
            format!("{mark}{}:{paths}\n", module.name)
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::image::elf::tests::synthetic;

    /// The bytes of a module with this `.modinfo`.
    pub fn module(info: &str) -> Vec<u8> {
        synthetic(&[], &[(".modinfo", info.replace('|', "\0").as_bytes())])
    }

    fn tree(files: &[(&str, &str)], built_in: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, info) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, module(info)).unwrap();
        }
        std::fs::write(root.path().join("modules.builtin"), built_in).unwrap();
        root
    }

    fn choose(root: &tempfile::TempDir, names: &[&'static str]) -> Result<Selection, ModulesError> {
        let wishes: Vec<Wish> = names
            .iter()
            .map(|name| Wish {
                name,
                at_start: *name == "console",
            })
            .collect();
        Tree::scan(root.path(), "6.1").unwrap().choose(&wishes)
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let root = tree(
            &[
                ("kernel/a/virtio.ko", "vermagic=6.1 SMP|depends="),
                ("kernel/a/virtio_ring.ko", "vermagic=6.1 SMP|depends=virtio"),
                ("kernel/b/console.ko", "vermagic=6.1 SMP|depends=virtio_ring,virtio"),
                (
                    "kernel/b/some-rng.ko",
                    "vermagic=6.1 SMP|depends=rng-core,virtio|softdep=pre: extra gone post: later",
                ),
                ("kernel/b/extra.ko", "vermagic=6.1 SMP|depends="),
                ("kernel/b/later.ko", "vermagic=6.1 SMP|depends="),
                ("kernel/b/unused.ko", "damaged, but nobody wants it"),
            ],
            "kernel/c/rng-core.ko\nkernel/c/fuse.ko\n",
        );
        let selection = choose(&root, &["console", "some_rng", "fuse", "9p"]).unwrap();
        assert_eq!(
            list(&selection.chosen, "/lib/modules/6.1"),
            "!console: /lib/modules/6.1/kernel/a/virtio.ko /lib/modules/6.1/kernel/a/virtio_ring.ko /lib/modules/6.1/kernel/b/console.ko\n\
             some_rng: /lib/modules/6.1/kernel/b/extra.ko /lib/modules/6.1/kernel/a/virtio.ko /lib/modules/6.1/kernel/b/some-rng.ko\n"
        );
        assert_eq!(selection.missing, ["9p"]);
        assert_eq!(selection.files.len(), 5);
    }

    #[test]
    fn an_algorithm_is_found_behind_its_name() {
        let files = [
            ("kernel/lib/libcrc32c.ko", "vermagic=6.1|softdep=pre: crc32c|depends="),
            ("kernel/crypto/crc32c_generic.ko", "vermagic=6.1|depends="),
        ];
        let selection = choose(&tree(&files, ""), &["libcrc32c"]).unwrap();
        assert_eq!(
            selection.chosen[0].files,
            ["kernel/crypto/crc32c_generic.ko", "kernel/lib/libcrc32c.ko"]
        );
        let built_in = tree(&files[..1], "kernel/crypto/crc32c_generic.ko\n");
        assert_eq!(
            choose(&built_in, &["libcrc32c"]).unwrap().chosen[0].files,
            ["kernel/lib/libcrc32c.ko"]
        );
    }

    #[test]
    fn compressed_modules_are_stored_uncompressed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("kernel")).unwrap();
        let plain = module("vermagic=6.1|depends=");
        for (tool, file) in [
            ("xz", "kernel/x.ko.xz"),
            ("zstd", "kernel/z.ko.zst"),
            ("gzip", "kernel/g.ko.gz"),
        ] {
            let packed = crate::command::run(tool, &["-c"], Some(&plain), Duration::from_secs(20)).unwrap();
            std::fs::write(root.path().join(file), packed).unwrap();
        }
        let selection = choose(&root, &["x", "z", "g"]).unwrap();
        for file in ["kernel/x.ko", "kernel/z.ko", "kernel/g.ko"] {
            assert!(selection.files.get(file) == Some(&plain), "{file}");
        }
    }

    #[test]
    fn broken_trees_are_refused_with_the_reason() {
        let cases: [(&[(&str, &str)], &str); 3] = [
            (
                &[("kernel/a.ko", "vermagic=6.1|depends=b")],
                "the kernel module a needs b, which is neither",
            ),
            (
                &[
                    ("kernel/a.ko", "vermagic=6.1|depends=b"),
                    ("kernel/b.ko", "vermagic=6.1|depends=a"),
                ],
                "needs itself",
            ),
            (
                &[("kernel/a.ko", "vermagic=5.10 SMP|depends=")],
                "is for kernel 5.10, not 6.1",
            ),
        ];
        for (files, fragment) in cases {
            let message = choose(&tree(files, ""), &["a"]).unwrap_err().to_string();
            assert!(message.contains(fragment), "{message} should contain {fragment}");
        }
        let root = tree(&[], "");
        std::fs::create_dir(root.path().join("kernel")).unwrap();
        std::fs::write(root.path().join("kernel/a.ko"), "text").unwrap();
        assert!(matches!(choose(&root, &["a"]), Err(ModulesError::Elf { .. })));
    }
}
