//! Mounts that an engine asks for in the words of `mount(8)`: the root file system of a container, as containerd hands
//! it over.

use std::io;
use std::path::{Path, PathBuf};

use kata_sys::tree::Tree;
use nix::mount::{MsFlags, mount};

/// One mount, as containerd's `Mount` message says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineMount {
    /// File system type, or `bind`.
    pub fs_type: String,
    /// Device or directory.
    pub source: String,
    /// Options in the words of `mount(8)`.
    pub options: Vec<String>,
}

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {} ({fs_type}, options {options:?}) on {}", source_path, target.display())]
pub struct MountError {
    fs_type: String,
    source_path: String,
    options: Vec<String>,
    target: PathBuf,
    #[source]
    source: io::Error,
}

/// Mounts `all` of them on `target` (a directory, created if need be), one over the other, and takes along what is seen
/// there then. To be called in a copy of the engine's namespace ([`crate::origin::Origin::visit_copy`]), with which the
/// mounts end.
///
/// # Errors
/// [`MountError`]
pub fn assemble(all: &[EngineMount], target: &Path) -> Result<Tree, MountError> {
    let failed = |what: &EngineMount, source| MountError {
        fs_type: what.fs_type.clone(),
        source_path: what.source.clone(),
        options: what.options.clone(),
        target: target.to_owned(),
        source,
    };
    let none = EngineMount::default();
    std::fs::create_dir_all(target).map_err(|error| failed(all.first().unwrap_or(&none), error))?;
    for what in all {
        mount_one(what, target).map_err(|error| failed(what, error.into()))?;
    }
    Tree::copy(target, true).map_err(|error| failed(all.last().unwrap_or(&none), error))
}

fn mount_one(what: &EngineMount, target: &Path) -> nix::Result<()> {
    let (mut flags, data) = parse_options(&what.options);
    let is_bind = what.fs_type == "bind" || flags.contains(MsFlags::MS_BIND);
    let fs_type = (!is_bind).then_some(what.fs_type.as_str());
    if is_bind {
        flags |= MsFlags::MS_BIND;
    }
    let data = (!data.is_empty()).then_some(data.as_str());
    mount(Some(what.source.as_str()), target, fs_type, flags, data)?;
    let extra = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if is_bind && !extra.is_empty() {
        // A bind mount takes its flags only when it is mounted again.
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | extra;
        mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
    }
    Ok(())
}

/// Splits options into flags of `mount(2)` and the rest, which is the file system's own.
fn parse_options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        let (flag, set) = match option.as_str() {
            "defaults" | "rw" => (MsFlags::MS_RDONLY, false),
            "ro" => (MsFlags::MS_RDONLY, true),
            "bind" => (MsFlags::MS_BIND, true),
            "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "sync" => (MsFlags::MS_SYNCHRONOUS, true),
            "async" => (MsFlags::MS_SYNCHRONOUS, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "atime" => (MsFlags::MS_NOATIME, false),
            "nodiratime" => (MsFlags::MS_NODIRATIME, true),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "strictatime" => (MsFlags::MS_STRICTATIME, true),
            other => {
                data.push(other);
                continue;
            }
        };
        flags.set(flag, set);
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let parse = |text: &str| parse_options(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(
            parse("ro,rbind"),
            (MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC, String::new())
        );
        assert_eq!(parse("ro,rw"), (MsFlags::empty(), String::new()));
        assert_eq!(
            parse("nosuid,lowerdir=/a:/b,upperdir=/u,workdir=/w"),
            (MsFlags::MS_NOSUID, "lowerdir=/a:/b,upperdir=/u,workdir=/w".to_owned())
        );
    }
}
