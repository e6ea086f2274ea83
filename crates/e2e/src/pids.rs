//! Which processes of a lab belong to a sandbox: those whose command line names its id, or its directory below
//! `/run/kata`, whose record names the id, and those that the record names.

use std::time::Duration;

use crate::lab::Lab;
use crate::wait;

/// A process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The pid, as the lab counts.
    pub pid: u32,
    /// The kernel's one-letter state; `Z` has ended and was not waited for.
    pub state: char,
    /// The short name of the program, at most 15 characters.
    pub name: String,
    /// The words of the command line, joined by spaces.
    pub line: String,
}

/// The parts of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `containerd-shim-kata-v2`, or runc's shim.
    Shim,
    /// The virtual machine monitor.
    Vmm,
    /// The file-sharing daemon.
    Virtiofsd,
}

impl Process {
    /// Which part of a sandbox the process is, if any.
    pub fn part(&self) -> Option<Part> {
        let program = self.line.split(' ').next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default();
        match program {
            "virtiofsd" => Some(Part::Virtiofsd),
            _ if program.starts_with("qemu-system-") => Some(Part::Vmm),
            _ if program.starts_with("containerd-shim-") => Some(Part::Shim),
            _ => None,
        }
    }
}

/// Every process of the lab but its first.
pub fn all(lab: &Lab) -> Vec<Process> {
    let entries = std::fs::read_dir(lab.outside("/proc")).expect("the lab's /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut found: Vec<Process> = pids.filter(|pid| *pid != 1).filter_map(|pid| read(lab, pid)).collect();
    found.sort();
    found
}

/// A process that ends while it is read is none.
fn read(lab: &Lab, pid: u32) -> Option<Process> {
    let dir = lab.outside(format!("/proc/{pid}"));
    let line = std::fs::read(dir.join("cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    Some(Process {
        pid,
        state: rest.chars().next()?,
        name: name.to_owned(),
        line,
    })
}

/// The processes whose command line names the sandbox, by its id or its directory, or which its record names.
pub fn of_sandbox(lab: &Lab, id: &str) -> Vec<Process> {
    let (mut names, recorded) = homes(lab, id);
    names.push(id.to_owned());
    let named = |process: &Process| names.iter().any(|name| names_word(&process.line, name));
    let its = |process: &Process| recorded.contains(&process.pid) || named(process);
    all(lab).into_iter().filter(its).collect()
}

/// The directories of sandboxes whose record has this id, and the pids in it.
fn homes(lab: &Lab, id: &str) -> (Vec<String>, Vec<u32>) {
    let (mut found, mut pids) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(lab.outside("/run/kata"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let record = std::fs::read(entry.path().join("record.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        if record["id"] == id {
            found.push(entry.file_name().to_string_lossy().into_owned());
            let helpers = record["helpers"].as_array().into_iter().flatten();
            let marks = helpers.chain([&record["sandbox"]]);
            pids.extend(marks.filter_map(|mark| u32::try_from(mark["pid"].as_u64()?).ok()));
        }
    }
    (found, pids)
}

/// Whether `line` holds `word` and not just a longer word that begins or ends with it.
fn names_word(line: &str, word: &str) -> bool {
    let of_a_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(of_a_word) && !after.starts_with(of_a_word)
    })
}

/// The pids of one part of a sandbox; virtiofsd may have two processes.
pub fn of_part(lab: &Lab, id: &str, part: Part) -> Vec<u32> {
    of_sandbox(lab, id)
        .into_iter()
        .filter(|process| process.part() == Some(part))
        .map(|process| process.pid)
        .collect()
}

/// Sends SIGKILL to one part of a sandbox and waits for its end.
///
/// # Panics
/// When there is no such part.
#[track_caller]
pub fn kill_part(lab: &Lab, id: &str, part: Part) {
    let pids = of_part(lab, id, part);
    assert!(
        !pids.is_empty(),
        "sandbox {id} has no {part:?}: {:#?}",
        of_sandbox(lab, id)
    );
    for pid in &pids {
        lab.kill(*pid);
    }
    let gone = |pid: &u32| read(lab, *pid).is_none_or(|process| process.state == 'Z');
    wait::until("a killed process ends", Duration::from_secs(30), || {
        pids.iter().all(gone)
    });
}

/// Proportional set size of a process in KiB: its private memory and its share of what it shares.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn pss_kib(lab: &Lab, pid: u32) -> u64 {
    field_kib(lab, pid, "smaps_rollup", "Pss:")
}

/// Shared memory (of a memfd or tmpfs) in KiB that a process has mapped and used: of a VMM, its guest's.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn shared_kib(lab: &Lab, pid: u32) -> u64 {
    field_kib(lab, pid, "status", "RssShmem:")
}

#[track_caller]
fn field_kib(lab: &Lab, pid: u32, file: &str, field: &str) -> u64 {
    let text = about(lab, pid, file);
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect(field);
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// What the kernel says of a process in one of its files.
#[track_caller]
fn about(lab: &Lab, pid: u32, file: &str) -> String {
    let path = lab.outside(format!("/proc/{pid}/{file}"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Resident memory in KiB of those areas of a process that are `meant`, by their permissions (`rw-p`) and their file or name;
/// `None` if there are none.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn rss_kib(lab: &Lab, pid: u32, meant: impl Fn(&str, &str) -> bool) -> Option<u64> {
    sum_of_rss(&about(lab, pid, "smaps"), meant)
}

/// Code in MiB that the VMM of a sandbox, which emulates, has made of its guest's.
///
/// # Panics
/// When the sandbox has no VMM.
#[track_caller]
pub fn translated_mib(lab: &Lab, id: &str) -> u64 {
    let vmm = of_part(lab, id, Part::Vmm)[0];
    rss_kib(lab, vmm, |permissions, _| permissions == "rwxp").unwrap_or(0) / 1024
}

/// Of the text of `smaps` (proc(5)): a line with five words and a name for each area, and lines `Field: value` about it.
fn sum_of_rss(text: &str, meant: impl Fn(&str, &str) -> bool) -> Option<u64> {
    let (mut is_meant, mut sum) = (false, None);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Rss:", kib, "kB"] if is_meant => {
                sum = Some(sum.unwrap_or(0) + kib.parse::<u64>().expect("a number of KiB"));
            }
            [field, ..] if field.ends_with(':') => {}
            [_, permissions, _, _, _, ref name @ ..] => is_meant = meant(permissions, &name.join(" ")),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{names_word, sum_of_rss};

    #[test]
    fn areas_are_chosen_by_permissions_and_name() {
        let text = "7f00-7f10 rwxp 00000000 00:00 0 \n\
                    Size:  40 kB\n\
                    Rss:   12 kB\n\
                    7f10-7f20 r--s 00000000 fe:00 77    /a dir/image.erofs (deleted)\n\
                    Rss:   8 kB\n\
                    VmFlags: rd sh\n\
                    7f20-7f30 rwxp 00000000 00:00 0 \n\
                    Rss:   4 kB\n";
        assert_eq!(sum_of_rss(text, |permissions, _| permissions == "rwxp"), Some(16));
        let name = "/a dir/image.erofs (deleted)";
        assert_eq!(sum_of_rss(text, |_, its| its == name), Some(8));
        assert_eq!(sum_of_rss(text, |_, its| its == "/other"), None);
    }

    #[test]
    fn an_id_is_a_whole_word() {
        for (line, named) in [
            ("shim -id=pod-1 serve", true),
            ("shim -id pod-1", true),
            ("qemu -name pod-1,debug-threads=on -chardev path=/run/pod-1/x", true),
            ("shim -id=pod-12", false),
            ("shim -id=a-pod-1", false),
            ("shim -id=pod-1.b", false),
        ] {
            assert_eq!(names_word(line, "pod-1"), named, "{line}");
        }
    }
}
