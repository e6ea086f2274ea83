//! The hierarchies that the host has mounted, as far as they matter to pods.

use std::io;
use std::path::{Path, PathBuf};

/// What pods are limited or looked at by. Others (devices, freezer, names without controllers) are left alone.
const WANTED: [&str; 8] = ["cpu", "cpuacct", "cpuset", "memory", "blkio", "io", "pids", "hugetlb"];

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its root, as this process sees it.
    pub root: PathBuf,
    /// Those of [`WANTED`] that it has.
    pub controllers: Vec<String>,
    /// Version 2.
    pub unified: bool,
    /// The cgroup that this process was in when it looked, below the root.
    pub own: PathBuf,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies(pub Vec<Hierarchy>);

impl Hierarchies {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// What reading `/proc` failed with.
    pub fn find() -> io::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let unified = |root: &Path| std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Ok(Self(parse(&mounts, &own, &|word| WANTED.contains(&word), unified)))
    }
}

/// The cgroups that this process is in, in every hierarchy that there is: where a child of it would be.
///
/// # Errors
/// What reading `/proc` failed with.
pub fn own_cgroups() -> io::Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    Ok(all(&mounts, &own))
}

fn all(mounts: &str, own: &str) -> Vec<PathBuf> {
    const UNIFIED: &str = "(unified)";
    let names = own.lines().filter_map(|line| line.split(':').nth(1));
    let names: Vec<&str> = names.flat_map(|names| names.split(',')).collect();
    let found = parse(mounts, own, &|word| word == UNIFIED || names.contains(&word), |_| {
        UNIFIED.to_owned()
    });
    found.into_iter().map(|one| one.root.join(one.own)).collect()
}

impl Hierarchy {
    /// Whether the kernel lets single threads of a process be in a cgroup of their own here, for this to make a difference.
    pub fn takes_threads(&self) -> bool {
        !self.unified && self.has(&["cpu", "cpuacct", "cpuset"])
    }

    pub(crate) fn has(&self, any: &[&str]) -> bool {
        self.controllers.iter().any(|name| any.contains(&name.as_str()))
    }
}

/// `unified` reads the controllers of a version 2 hierarchy, which its mount does not name.
fn parse(
    mounts: &str,
    own: &str,
    is_wanted: &dyn Fn(&str) -> bool,
    unified: impl Fn(&Path) -> String,
) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let fields: Vec<&str> = before.split(' ').collect();
        let kind: Vec<&str> = after.split(' ').collect();
        let (Some(top), Some(point), Some(name)) = (fields.get(3), fields.get(4), kind.first()) else {
            continue;
        };
        let is_unified = match *name {
            "cgroup" => false,
            "cgroup2" => true,
            _ => continue,
        };
        let root = PathBuf::from(unescape(point));
        let words = match is_unified {
            true => unified(&root),
            false => kind.get(2).unwrap_or(&"").replace(',', " "),
        };
        let controllers: Vec<String> = words
            .split_whitespace()
            .filter(|word| is_wanted(word))
            .map(str::to_owned)
            .collect();
        if controllers.is_empty() {
            continue;
        }
        let hierarchy = Hierarchy {
            own: own_path(own, &controllers, is_unified, top),
            controllers,
            unified: is_unified,
            root,
        };
        // What is mounted over another hides it, and what is mounted twice is one hierarchy.
        found.retain(|earlier| earlier.root != hierarchy.root);
        if !found.iter().any(|earlier| earlier.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    found
}

/// Below the root of the mount, which shows the hierarchy from `top` on.
fn own_path(own: &str, controllers: &[String], unified: bool, top: &str) -> PathBuf {
    let line = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let same = match unified {
            true => names.is_empty(),
            false => names.split(',').any(|name| controllers.iter().any(|own| own == name)),
        };
        same.then_some(path)
    });
    let path = Path::new(line.unwrap_or("/"));
    let below = path.strip_prefix(unescape(top)).or_else(|_| path.strip_prefix("/"));
    below.unwrap_or(Path::new("")).to_owned()
}

/// Spaces and the like are octal numbers in `/proc`.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = match code {
            Some(code) => {
                plain.push(char::from(code));
                &after[3..]
            }
            None => {
                plain.push('\\');
                after
            }
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_would_be_in_every_hierarchy() {
        let mounts = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      33 30 0:29 /lab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      34 30 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      35 30 0:31 / /tmp rw - tmpfs tmpfs rw\n";
        let own = "9:freezer:/\n4:cpu,cpuacct:/lab/a\n1:name=systemd:/user.slice/s.scope\n0::/user.slice/s.scope\n";
        let found: Vec<String> = all(mounts, own).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            found,
            [
                "/sys/fs/cgroup/unified/user.slice/s.scope",
                "/sys/fs/cgroup/systemd/user.slice/s.scope",
                "/sys/fs/cgroup/cpu/a",
                "/sys/fs/cgroup/freezer/"
            ]
        );
    }

    fn told(mounts: &str, own: &str) -> Vec<String> {
        parse(mounts, own, &|word| WANTED.contains(&word), |_| {
            "cpuset cpu io memory hugetlb pids".to_owned()
        })
        .into_iter()
        .map(|found| {
            format!(
                "{} {} {}",
                found.root.display(),
                found.controllers.join(","),
                found.own.display()
            )
        })
        .collect()
    }

    #[test]
    fn version_1_with_a_hierarchy_for_each_controller_or_for_several() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:32 /docker /elsewhere\\040here rw - cgroup cgroup rw,memory\n";
        let own = "4:memory:/user/me\n3:cpu,cpuacct:/\n1:name=systemd:/x\n0::/y\n";
        let expected = [
            "/sys/fs/cgroup/cpu,cpuacct cpu,cpuacct ",
            "/sys/fs/cgroup/memory memory user/me",
        ];
        assert_eq!(told(mounts, own), expected);
    }

    #[test]
    fn version_2() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/system.slice/containerd.service\n";
        let expected = ["/sys/fs/cgroup cpuset,cpu,io,memory,hugetlb,pids system.slice/containerd.service"];
        assert_eq!(told(mounts, own), expected);
    }

    #[test]
    fn a_part_of_a_hierarchy_is_a_hierarchy() {
        let mounts = "35 31 0:32 /docker/c1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            told(mounts, "4:memory:/docker/c1/mine\n"),
            ["/sys/fs/cgroup/memory memory mine"]
        );
        let hidden = "35 31 0:32 / /m rw - cgroup cgroup rw,memory\n36 31 0:30 / /m rw - cgroup cgroup rw,cpu\n";
        assert_eq!(told(hidden, ""), ["/m cpu "]);
        assert_eq!(unescape("/a\\040b\\x\\134"), "/a b\\x\\");
    }
}
