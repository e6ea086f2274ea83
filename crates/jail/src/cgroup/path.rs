//! Where a container's cgroup lies below the root. Pure.

use std::path::{Component, Path, PathBuf};

/// The path, relative to the cgroup root, for a container of this id and `linux.cgroupsPath`.
///
/// `SLICE:PREFIX:NAME` (the systemd form) becomes `SLICE/PREFIX-NAME.scope`. What could lead out of the root or
/// collide with a file of the kernel is taken out or marked.
pub fn relative(id: &str, cgroups_path: Option<&Path>) -> PathBuf {
    let asked = cgroups_path.unwrap_or(Path::new(""));
    let systemd = asked
        .to_str()
        .and_then(|text| match text.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] if !name.is_empty() => Some(scope(slice, prefix, name)),
            _ => None,
        });
    let clean: PathBuf = systemd
        .as_deref()
        .unwrap_or(asked)
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy()),
            _ => None,
        })
        .map(|name| {
            if is_reserved(&name) {
                format!("_{name}")
            } else {
                name.into_owned()
            }
        })
        .collect();
    if clean.as_os_str().is_empty() {
        Path::new("kata").join(id.replace('/', "_"))
    } else {
        clean
    }
}

fn scope(slice: &str, prefix: &str, name: &str) -> PathBuf {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let scope = match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", _) => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    };
    Path::new(slice).join(scope)
}

/// Names that the kernel gives to its own files in a cgroup directory.
fn is_reserved(name: &str) -> bool {
    [
        "cgroup.",
        "cpu.",
        "cpuset.",
        "hugetlb.",
        "io.",
        "irq.",
        "memory.",
        "misc.",
        "perf_event.",
        "pids.",
        "rdma.",
    ]
    .iter()
    .any(|controller| name.starts_with(controller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (asked, expected) in [
            (None, "kata/c1"),
            (Some(""), "kata/c1"),
            (Some("/"), "kata/c1"),
            (Some("/kubepods/pod1/c1"), "kubepods/pod1/c1"),
            (Some("a/./b//c"), "a/b/c"),
            (Some("../../a/../b"), "a/b"),
            (Some("machine.slice:libpod:c1"), "machine.slice/libpod-c1.scope"),
            (Some(":cri:c1"), "system.slice/cri-c1.scope"),
            (Some("a.slice::c1"), "a.slice/c1.scope"),
            (Some("/cgroup.procs/memory.max"), "_cgroup.procs/_memory.max"),
        ] {
            assert_eq!(relative("c1", asked.map(Path::new)), Path::new(expected), "{asked:?}");
        }
    }
}
