//! Kernel modules from the guest's root: some at once, some when first needed. What is built into the kernel is not in the
//! list, and asking for it is no error.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Why a module is not loaded.
#[derive(Debug, thiserror::Error)]
#[error("kernel module {}: {source}", path.display())]
pub struct ModuleError {
    path: PathBuf,
    source: std::io::Error,
}

/// The modules that there are.
#[derive(Debug, Default)]
pub struct Modules {
    /// By name, with dashes as underscores: the files to load, in order.
    files: HashMap<String, Vec<PathBuf>>,
    at_start: Vec<String>,
    /// Files loaded already: the kernel notices a second time only after all the work of the first.
    loaded: Mutex<HashSet<PathBuf>>,
}

impl Modules {
    /// Reads a list of lines `[!]NAME: PATH PATH …`: the files of a module, those it needs first; `!` asks for it at
    /// the start.
    pub fn read(list: &str) -> Self {
        let mut modules = Self::default();
        for line in list.lines() {
            let Some((name, files)) = line.split_once(':') else {
                continue;
            };
            let plain = normal(name.trim_start_matches('!'));
            if name.starts_with('!') {
                modules.at_start.push(plain.clone());
            }
            modules
                .files
                .insert(plain, files.split_whitespace().map(PathBuf::from).collect());
        }
        modules
    }

    /// Loads those that are wanted at the start. One that fails does not hold up the others.
    pub fn load_first(&self) {
        for name in &self.at_start {
            if let Err(error) = self.load(name) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Loads `name` and what it needs.
    ///
    /// # Errors
    /// [`ModuleError`] naming the file.
    pub fn load(&self, name: &str) -> Result<(), ModuleError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for path in self.files.get(&normal(name)).into_iter().flatten() {
            if loaded.contains(path) || is_in_kernel(path) {
                continue;
            }
            let failed = |source| ModuleError {
                path: path.clone(),
                source,
            };
            let file = File::open(path).map_err(failed)?;
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {
                    loaded.insert(path.clone());
                    // An initramfs is memory, and this part of it has served. An image cannot be written to.
                    let _ = std::fs::remove_file(path);
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(())
    }
}

/// Whether the kernel has it already, of another's loading: from the initramfs that led to an image.
fn is_in_kernel(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Path::new("/sys/module").join(normal(&stem)).exists()
}

fn normal(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let modules = Modules::read(
            "!virtio_console: /m/virtio.ko /m/virtio_console.ko\nvmw-vsock: /m/no_such.ko\n\nnonsense\n!built_in:\n",
        );
        assert_eq!(modules.at_start, ["virtio_console", "built_in"]);
        assert_eq!(modules.files["virtio_console"].len(), 2);
        assert_eq!(modules.files["vmw_vsock"], [PathBuf::from("/m/no_such.ko")]);
        assert!(modules.load("built_in").is_ok() && modules.load("unknown").is_ok());
        let error = modules.load("vmw_vsock").expect_err("no such file").to_string();
        assert!(error.contains("/m/no_such.ko"), "{error}");
    }
}
