//! Plans for people and programs: `kata-runtime plan`.

use std::fmt;

use serde::Serialize;

use crate::share::SharePlan;
use crate::{ContainerPlan, PodPlan, RootfsPlan};

/// What would be run. Displayed, it is a page for people; serialized, it is everything.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Printout<'a> {
    /// The pod.
    pub pod: &'a PodPlan,
    /// Its first container.
    pub container: &'a ContainerPlan,
    /// The VMM's command line, program first.
    pub command_line: &'a [String],
}

impl Printout<'_> {
    /// Everything, as indented JSON.
    ///
    /// # Errors
    /// Fails only for paths that are not UTF-8.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Printout<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pod,
            container,
            command_line,
        } = self;
        writeln!(f, "pod {}", pod.id)?;
        for note in &pod.notes {
            writeln!(f, "  {note}")?;
        }
        if let SharePlan::VirtioFs { daemon, arguments, .. } = &pod.share {
            writeln!(f, "  file server:")?;
            write_command(
                f,
                std::iter::once(daemon.display().to_string()).chain(arguments.iter().cloned()),
            )?;
        }
        writeln!(f, "  machine:")?;
        write_command(f, command_line.iter().cloned())?;
        writeln!(f, "container {}", container.id)?;
        for note in &container.notes {
            writeln!(f, "  {note}")?;
        }
        let access = |read_only| if read_only { "read-only" } else { "writable" };
        match &container.rootfs {
            RootfsPlan::Shared { source, .. } => writeln!(f, "  root file system: {}", source.display())?,
            RootfsPlan::Disk => writeln!(f, "  root file system: on a disk")?,
        }
        for disk in &container.disks {
            writeln!(f, "  disk {}: {} ({})", disk.name, disk.source, access(disk.read_only))?;
        }
        for volume in &container.volumes {
            let (source, destination) = (volume.source.display(), volume.destination.display());
            writeln!(f, "  volume: {source} at {destination} ({})", access(volume.read_only))?;
        }
        for socket in &container.sockets {
            let (source, destination) = (socket.source.display(), socket.destination.display());
            writeln!(f, "  socket: {source} at {destination}")?;
        }
        for tree in &container.trees {
            writeln!(
                f,
                "  volume: {} (copied into the guest, also when it changes)",
                tree.source.display()
            )?;
        }
        for memory in &container.memories {
            writeln!(
                f,
                "  memory of the guest: {} {}",
                memory.fs_type,
                memory.options.join(",")
            )?;
        }
        let instructions = container.guest.seccomp_filter.len() / crate::seccomp::INSTRUCTION_BYTES;
        writeln!(f, "  seccomp filter: {instructions} instructions")
    }
}

/// One argument a line, an option together with its value, quoted where a shell would need it.
fn write_command(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = String>) -> fmt::Result {
    let mut previous_is_option = false;
    for (index, word) in words.enumerate() {
        let is_option = word.starts_with('-') && !word.contains('=');
        let gap = match (index, previous_is_option && !word.starts_with('-')) {
            (0, _) => "    ",
            (_, true) => " ",
            (_, false) => " \\\n      ",
        };
        write!(f, "{gap}{}", quoted(&word))?;
        previous_is_option = is_option && index > 0;
    }
    writeln!(f)
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-+=.,:/@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
