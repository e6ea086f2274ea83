//! The guest's kernel and its root, an initramfs or an image: there, intact, and of the kind that can be booted.

use std::path::Path;

use kata_config::{Config, RootAsset, RootfsType};

use crate::check::{Finding, Subject};
use crate::image::bzimage::Compression;
use crate::image::elf::Elf;
use crate::image::erofs;
use crate::image::manifest::{Asset, Manifest};
use crate::image::store::{self, MANIFEST};
use crate::settings;

const REMEDY: &str = "kata-runtime image build";
/// How an uncompressed initramfs begins.
const CPIO: &[u8] = b"070701";

/// What was found, and what the guest can do by it.
pub(super) struct Guest {
    pub findings: Vec<Finding>,
    /// Whether its kernel has 9p; `None` where nobody wrote it down.
    pub has_9p: Option<bool>,
}

pub(super) fn look(config: &Config) -> Guest {
    let assets = settings::assets(config);
    let manifest = manifest_beside(&assets.kernel);
    let kernel = Subject {
        name: "guest kernel",
        purpose: "the guest's operating system",
    };
    let root = Subject {
        name: match &assets.root {
            RootAsset::Initrd(_) => "guest initrd",
            RootAsset::Image(_) => "guest image",
        },
        purpose: "the agent and the modules in the guest",
    };
    let of_kernel = manifest.as_ref().map(|manifest| &manifest.vmlinux);
    // What is from elsewhere may stand beside a kernel of ours.
    let same_place = assets.kernel.parent() == assets.root.path().parent();
    let of_root = manifest
        .as_ref()
        .filter(|_| same_place)
        .and_then(|manifest| match &assets.root {
            RootAsset::Initrd(_) => Some(&manifest.initrd),
            RootAsset::Image(_) => manifest.image.as_ref(),
        });
    let release = manifest
        .as_ref()
        .map(|manifest| format!(" ({})", manifest.kernel.release))
        .unwrap_or_default();
    Guest {
        findings: vec![
            judge(&kernel, &assets.kernel, &release, of_kernel, is_kernel),
            judge(&root, assets.root.path(), "", of_root, |bytes| match &assets.root {
                RootAsset::Initrd(_) => is_initramfs(bytes),
                RootAsset::Image(_) => is_image(bytes, config.qemu.rootfs_type),
            }),
        ],
        has_9p: manifest.map(|manifest| !manifest.missing_modules.iter().any(|name| name == "9p")),
    }
}

fn manifest_beside(kernel: &Path) -> Option<Manifest> {
    Manifest::parse(&std::fs::read(kernel.with_file_name(MANIFEST)).ok()?)
}

/// Judges a file by what was recorded of it, or else by what is in it.
fn judge(
    subject: &Subject,
    path: &Path,
    about: &str,
    recorded: Option<&Asset>,
    fits: impl FnOnce(&[u8]) -> Result<(), String>,
) -> Finding {
    let shown = path.display();
    match (std::fs::read(path), recorded) {
        (Err(error), _) => subject.missing(format!("cannot read {shown}: {error}"), REMEDY),
        (Ok(_), Some(asset)) if !store::is_intact(path, asset) => {
            subject.missing(format!("{shown} is not what its manifest says"), REMEDY)
        }
        (Ok(bytes), recorded) => match fits(&bytes) {
            Err(reason) => subject.missing(format!("{shown}: {reason}"), REMEDY),
            Ok(()) if recorded.is_some() => subject.ok(format!("{shown}{about}, intact")),
            Ok(()) => subject.ok(format!("{shown}{about}, no manifest to compare it with")),
        },
    }
}

fn is_kernel(bytes: &[u8]) -> Result<(), String> {
    Elf::parse(bytes)
        .and_then(|elf| elf.check_pvh())
        .map_err(|error| error.to_string())
}

fn is_initramfs(bytes: &[u8]) -> Result<(), String> {
    match Compression::of(bytes) {
        Some(compression) if compression != Compression::None => Ok(()),
        _ if bytes.starts_with(CPIO) => Ok(()),
        _ => Err("not an initramfs".to_owned()),
    }
}

fn is_image(bytes: &[u8], kind: RootfsType) -> Result<(), String> {
    match kind {
        RootfsType::Erofs if !erofs::is_image(bytes) => Err("not an EROFS image".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::image::elf::tests::kernel;
    use crate::image::manifest::tests::sample;

    fn look_at(files: &[(&str, &[u8])]) -> Vec<Finding> {
        let place = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(place.path().join(name), bytes).unwrap();
        }
        let mut config = Config::default();
        config.qemu.kernel = Some(place.path().join("vmlinux"));
        config.qemu.initrd = Some(place.path().join("initrd.img"));
        look(&config).findings
    }

    #[test]
    fn each_file_is_judged_by_manifest_and_content() {
        let (good, other) = (kernel(b"code"), kernel(b"edoc"));
        let manifest = sample(&good, b"070701").render().unwrap();
        for (files, kernel_state, initrd_state, fragment) in [
            (vec![], State::Missing, State::Missing, "cannot read"),
            (
                vec![("vmlinux", &good[..]), ("initrd.img", b"070701")],
                State::Ok,
                State::Ok,
                "no manifest",
            ),
            (
                vec![("vmlinux", b"MZ"), ("initrd.img", b"#!")],
                State::Missing,
                State::Missing,
                "not an ELF file",
            ),
            (
                vec![
                    ("vmlinux", &good[..]),
                    ("initrd.img", b"070701"),
                    ("manifest.json", &manifest),
                ],
                State::Ok,
                State::Ok,
                "(6.1), intact",
            ),
            (
                vec![
                    ("vmlinux", &other[..]),
                    ("initrd.img", b"070702"),
                    ("manifest.json", &manifest),
                ],
                State::Missing,
                State::Missing,
                "not what its manifest says",
            ),
        ] {
            let findings = look_at(&files);
            assert_eq!(
                (findings[0].state, findings[1].state),
                (kernel_state, initrd_state),
                "{findings:?}"
            );
            assert!(findings[0].detail.contains(fragment), "{}", findings[0].detail);
        }
    }
}
