//! Puts the initramfs together: the agent, the modules and their list, and the directories that the agent mounts on.

use std::collections::BTreeMap;

use kata_wire::names::MODULES_LIST;

use crate::image::cpio::{Archive, CpioError, Entry};
use crate::image::modules::{self, Chosen};

/// Directories that the agent mounts on before it can make any.
const DIRECTORIES: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// The archive's bytes. `files` are the modules that `chosen` names, by their path there.
///
/// # Errors
/// See [`CpioError`].
pub fn assemble(
    agent: Vec<u8>,
    release: &str,
    chosen: &[Chosen],
    files: BTreeMap<String, Vec<u8>>,
) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::default();
    for (path, mode) in DIRECTORIES {
        archive.add(path, Entry::Directory(mode))?;
    }
    // The kernel opens it for its first process before that process can mount anything.
    archive.add("dev/console", Entry::CharacterDevice(0o600, 5, 1))?;
    archive.add("init", Entry::File(0o755, agent))?;
    let directory = format!("lib/modules/{release}");
    let list = modules::list(chosen, &format!("/{directory}"));
    archive.add(
        MODULES_LIST.trim_start_matches('/'),
        Entry::File(0o644, list.into_bytes()),
    )?;
    for (file, bytes) in files {
        archive.add(&format!("{directory}/{file}"), Entry::File(0o644, bytes))?;
    }
    Ok(archive.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_place() {
        let chosen = [Chosen {
            name: "fuse".into(),
            at_start: true,
            files: vec!["kernel/fs/fuse.ko".into()],
        }];
        let files = BTreeMap::from([("kernel/fs/fuse.ko".to_owned(), b"module".to_vec())]);
        let archive = assemble(b"agent".to_vec(), "6.1", &chosen, files).unwrap();
        let text = String::from_utf8_lossy(&archive);
        let places = [
            "dev\0",
            "dev/console\0",
            "etc\0",
            "etc/kata-modules\0",
            "!fuse: /lib/modules/6.1/kernel/fs/fuse.ko\n",
            "init\0",
            "agent",
            "lib/modules/6.1/kernel/fs/fuse.ko\0",
            "module",
            "proc\0",
            "run\0",
            "sys\0",
            "tmp\0",
            "TRAILER!!!",
        ];
        let mut from = 0;
        for place in places {
            let at = text[from..].find(place);
            assert!(at.is_some(), "{place:?} is missing or out of order");
            from += at.unwrap();
        }
    }
}
