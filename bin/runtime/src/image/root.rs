//! What the guest's root holds: the agent, the modules and their list, and the directories that the agent mounts on.
//!
//! The same files are an initramfs, or an image on a device. A kernel whose drivers for such a device are modules cannot
//! mount the image by itself: a second, small initramfs has these modules, and an agent that goes on into the image.

use std::collections::{BTreeMap, BTreeSet};

use kata_wire::names::{MODULES_LIST, NEXT_ROOT, ROOT_MODULES_LIST};

use crate::image::content::{Content, ContentError, Entry};
use crate::image::modules::{self, Chosen};

/// Directories that the agent mounts on before it can make any.
const DIRECTORIES: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// What a kernel needs to have an image as its root, on persistent memory or on a disk.
pub const DRIVERS: [&str; 5] = ["virtio_pci", "virtio_pmem", "nd_pmem", "virtio_blk", "erofs"];
/// Those of them that are of no use once the root is there.
const ONLY_FOR_ROOT: [&str; 2] = ["virtio_pmem", "nd_pmem"];

/// The agent and the modules of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The agent's program.
    pub agent: &'a [u8],
    /// The kernel's, as `uname -r` prints it.
    pub release: &'a str,
    /// All modules that were chosen.
    pub chosen: &'a [Chosen],
    /// Their files, by the path that `chosen` has.
    pub files: &'a BTreeMap<String, Vec<u8>>,
}

impl Parts<'_> {
    /// The root of a guest.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub fn whole(&self) -> Result<Content, ContentError> {
        let is_for_later = |module: &Chosen| !ONLY_FOR_ROOT.contains(&module.name.as_str());
        self.assemble(MODULES_LIST, is_for_later)
    }

    /// What leads to a root in an image; `None` where the kernel finds it by itself.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub fn loader(&self) -> Result<Option<Content>, ContentError> {
        let is_driver = |module: &Chosen| DRIVERS.contains(&module.name.as_str());
        if !self.chosen.iter().any(is_driver) {
            return Ok(None);
        }
        self.assemble(ROOT_MODULES_LIST, is_driver).map(Some)
    }

    fn assemble(&self, list: &str, is_wanted: impl Fn(&Chosen) -> bool) -> Result<Content, ContentError> {
        let mut content = Content::default();
        for (path, mode) in DIRECTORIES {
            content.add(path, Entry::Directory(mode))?;
        }
        content.add(NEXT_ROOT.trim_start_matches('/'), Entry::Directory(0o755))?;
        // The kernel opens it for its first process before that process can mount anything.
        content.add("dev/console", Entry::CharacterDevice(0o600, 5, 1))?;
        content.add("init", Entry::File(0o755, self.agent.to_vec()))?;
        let wanted: Vec<Chosen> = self.chosen.iter().filter(|module| is_wanted(module)).cloned().collect();
        let directory = format!("lib/modules/{}", self.release);
        let text = modules::list(&wanted, &format!("/{directory}"));
        content.add(list.trim_start_matches('/'), Entry::File(0o644, text.into_bytes()))?;
        let used: BTreeSet<&String> = wanted.iter().flat_map(|module| &module.files).collect();
        for (file, bytes) in self.files.iter().filter(|(file, _)| used.contains(file)) {
            content.add(&format!("{directory}/{file}"), Entry::File(0o644, bytes.clone()))?;
        }
        Ok(content)
    }
}

/// Drivers that are neither built into the kernel nor modules of it, without which there is no root in an image.
pub fn lacking(missing: &[String]) -> Vec<&'static str> {
    let is_missing = |driver: &&str| missing.iter().any(|name| name == driver);
    DRIVERS.into_iter().filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, at_start: bool) -> Chosen {
        Chosen {
            name: name.into(),
            at_start,
            files: vec![format!("kernel/{name}.ko")],
        }
    }

    fn paths(content: &Content) -> Vec<&str> {
        content.entries().keys().map(String::as_str).collect()
    }

    #[test]
    fn everything_has_its_place() {
        let all = [chosen("fuse", true), chosen("nd_pmem", false), chosen("erofs", false)];
        let file = |module: &Chosen| (module.files[0].clone(), module.name.clone().into_bytes());
        let files = all.iter().map(file).collect();
        let parts = Parts {
            agent: b"agent",
            release: "6.1",
            chosen: &all,
            files: &files,
        };
        let frame = [".root", "dev", "dev/console", "etc"];

        let whole = parts.whole().unwrap();
        let rest = [
            "etc/kata-modules",
            "init",
            "lib",
            "lib/modules",
            "lib/modules/6.1",
            "lib/modules/6.1/kernel",
        ];
        let modules = [
            "lib/modules/6.1/kernel/erofs.ko",
            "lib/modules/6.1/kernel/fuse.ko",
            "proc",
            "run",
            "sys",
            "tmp",
        ];
        assert_eq!(paths(&whole), [&frame[..], &rest, &modules].concat());
        let list = b"!fuse: /lib/modules/6.1/kernel/fuse.ko\nerofs: /lib/modules/6.1/kernel/erofs.ko\n".to_vec();
        assert_eq!(whole.entries()["etc/kata-modules"], Entry::File(0o644, list));
        assert_eq!(whole.entries()["init"], Entry::File(0o755, b"agent".to_vec()));

        let loader = parts.loader().unwrap().expect("drivers are modules");
        assert!(paths(&loader).contains(&"etc/kata-root-modules"));
        assert!(paths(&loader).contains(&"lib/modules/6.1/kernel/nd_pmem.ko"));
        assert!(!paths(&loader).contains(&"lib/modules/6.1/kernel/fuse.ko"));

        let built_in = Parts {
            chosen: &all[..1],
            ..parts
        };
        assert!(built_in.loader().unwrap().is_none());
    }

    #[test]
    fn what_no_root_can_do_without_is_named() {
        assert_eq!(lacking(&["9p".into(), "erofs".into()]), ["erofs"]);
        assert!(lacking(&["9p".into()]).is_empty());
    }
}
