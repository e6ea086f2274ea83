//! What a lab holds at a moment, and what it holds more later: processes, mounts, network links (of named namespaces, too),
//! rules of the packet filter, leases of addresses, cgroups, sockets, files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::lab::Lab;
use crate::{pids, places, wait};

/// How long what is about to vanish may take.
const SETTLE: Duration = Duration::from_secs(60);

/// Where a runtime may keep files, and CNI its leases.
const PLACES: [&str; 6] = ["/run", "/tmp", "/var/tmp", "/dev/shm", "/var/lib/vc", "/var/lib/cni"];

/// A picture of a lab: each thing and how many there are of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, usize>);

impl Snapshot {
    /// Takes the picture. The lab has to be the test's own: what other tests do in it meanwhile would be in the next one.
    pub fn take(lab: &Lab) -> Self {
        let mut things = BTreeMap::new();
        let mut count = |thing: String| *things.entry(thing).or_default() += 1;
        for process in pids::all(lab) {
            // Whether it runs just now is nothing that stays.
            let state = if process.state == 'Z' { "ended" } else { "lives" };
            count(format!("process {state} {} ({})", process.line, process.name));
        }
        let proc = format!("/proc/{}", lab.anchor());
        let lines = |file: &str| std::fs::read_to_string(format!("{proc}/{file}")).unwrap_or_default();
        lines("mounts").lines().for_each(|line| count(format!("mount {line}")));
        for line in lines("net/dev").lines().skip(2) {
            count(format!("link {}", line.split(':').next().unwrap_or_default().trim()));
        }
        for namespace in std::fs::read_dir(lab.outside("/run/netns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = namespace.file_name().to_string_lossy().into_owned();
            // It may vanish meanwhile, or be a name that is not mounted yet.
            let links = lab.command("ip").args(["-n", &name, "-o", "link"]).run().text();
            let links = links.lines().filter_map(|line| line.split(": ").nth(1));
            links.for_each(|link| count(format!("link {link} of network namespace {name}")));
        }
        for line in lab.command(places::tool("iptables-save")).run().text().lines() {
            if line.starts_with("-A ") {
                count(format!("rule {line}"));
            }
        }
        for socket in lines("net/unix")
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(7))
        {
            count(format!("socket {socket}"));
        }
        walk(&lab.outside("/sys/fs/cgroup"), &mut |path, is_dir| {
            if is_dir {
                count(format!("cgroup {}", inside(lab, path)));
            }
        });
        // Where it lies below one of the places, the workspace is the tests' own.
        let own = places::workspace();
        for place in PLACES {
            walk(&lab.outside(place), &mut |path, _| {
                let path = inside(lab, path);
                if !Path::new(&path).starts_with(&own) {
                    count(format!("file {path}"));
                }
            });
        }
        Self(things)
    }

    /// The picture without the things whose description holds one of `parts`.
    fn without(mut self, parts: &[&str]) -> Self {
        self.0.retain(|thing, _| !parts.iter().any(|part| thing.contains(part)));
        self
    }

    /// What `later` has more, one line each; empty if nothing.
    pub fn more_in(&self, later: &Self) -> String {
        let mut text = String::new();
        for (thing, now) in &later.0 {
            let before = self.0.get(thing).copied().unwrap_or_default();
            if *now > before {
                let _ = writeln!(text, "  {thing} ({before} before, {now} now)");
            }
        }
        text
    }

    /// Waits until the lab holds nothing more than in this picture.
    ///
    /// # Panics
    /// When it still does after a while, with what.
    #[track_caller]
    pub fn expect_nothing_more(&self, lab: &Lab, after: &str) {
        self.expect_nothing_more_but(lab, after, &[]);
    }

    /// The same, but for things whose description holds one of `but`, which somebody else is known to leave behind.
    ///
    /// # Panics
    /// As above.
    #[track_caller]
    pub fn expect_nothing_more_but(&self, lab: &Lab, after: &str, but: &[&str]) {
        let mut more = String::new();
        let settled = wait::eventually(SETTLE, || {
            let now = Self::take(lab);
            more = self.more_in(&now.without(but));
            more.is_empty().then_some(())
        });
        assert!(settled.is_some(), "left behind after {after}:\n{more}");
    }
}

fn inside(lab: &Lab, path: &Path) -> String {
    let root = lab.outside("/");
    path.strip_prefix(&root)
        .map_or_else(|_| path.display().to_string(), |path| format!("/{}", path.display()))
}

/// Visits everything below `dir`; what vanishes meanwhile is passed over, links are not followed.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path, bool)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path(), is_dir);
        if is_dir {
            walk(&entry.path(), visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Snapshot;

    #[test]
    fn only_what_came_is_told() {
        let picture = |things: &[(&str, usize)]| Snapshot(things.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect());
        let before = picture(&[("mount a", 1), ("file gone", 1), ("link lo", 1)]);
        let after = picture(&[("mount a", 3), ("link lo", 1), ("link tap0", 1)]);
        assert_eq!(before.more_in(&before), "");
        assert_eq!(
            before.more_in(&after),
            "  link tap0 (0 before, 1 now)\n  mount a (1 before, 3 now)\n"
        );
    }
}
