//! Our own programs, beside each other, and the engines that could drive them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::check::{Finding, Subject};

/// Name of the sandbox process's program.
pub const SHIM: &str = "containerd-shim-kata-v2";

pub(super) fn look() -> Vec<Finding> {
    let program = std::env::current_exe().unwrap_or_default();
    let search = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&search).collect();
    vec![
        sandbox_process(program.parent().unwrap_or(Path::new("/"))),
        engines(&directories),
    ]
}

fn sandbox_process(beside: &Path) -> Finding {
    let subject = Subject {
        name: "sandbox process",
        purpose: "owning a pod; `kata-runtime` and containerd start it",
    };
    let path = beside.join(SHIM);
    if is_executable(&path) {
        subject.ok(path.display().to_string())
    } else {
        subject.missing(
            format!("there is no {}", path.display()),
            format!("install {SHIM} into {}", beside.display()),
        )
    }
}

/// Only told: `kata-runtime run` needs none of them.
fn engines(directories: &[PathBuf]) -> Finding {
    let subject = Subject {
        name: "engines",
        purpose: "driving the runtime; it also runs by hand",
    };
    let found: Vec<&str> = ["containerd", "podman", "crio", "dockerd"]
        .into_iter()
        .filter(|name| directories.iter().any(|directory| is_executable(&directory.join(name))))
        .collect();
    subject.ok(if found.is_empty() {
        "none found".to_owned()
    } else {
        found.join(", ")
    })
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;
    use crate::check::State;

    #[test]
    fn a_program_must_be_executable_to_count() {
        let place = tempfile::tempdir().unwrap();
        let shim = place.path().join(SHIM);
        assert_eq!(sandbox_process(place.path()).state, State::Missing);
        std::fs::write(&shim, "").unwrap();
        assert_eq!(sandbox_process(place.path()).state, State::Missing);
        std::fs::set_permissions(&shim, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(sandbox_process(place.path()).state, State::Ok);
    }

    #[test]
    fn engines_are_only_told() {
        let place = tempfile::tempdir().unwrap();
        let directories = [place.path().to_owned()];
        assert_eq!(engines(&directories).detail, "none found");
        std::fs::write(place.path().join("podman"), "").unwrap();
        std::fs::set_permissions(place.path().join("podman"), Permissions::from_mode(0o755)).unwrap();
        let finding = engines(&directories);
        assert_eq!((finding.state, finding.detail.as_str()), (State::Ok, "podman"));
    }
}
