//! What `ps` would say about a process, read from `/proc`. The container chooses the names and arguments of its
//! processes, so they are bounded here.

use std::fs;
use std::path::PathBuf;

/// Most bytes of a command line that are read.
const LONGEST_COMMAND: usize = 4096;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its pid in the reader's pid namespace.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// Effective user.
    pub uid: u32,
    /// One letter, as in `/proc/PID/stat`.
    pub state: String,
    /// As `ps` prints it.
    pub terminal: String,
    /// Ticks after boot.
    pub started_ticks: u64,
    /// User and system time, ticks.
    pub cpu_ticks: u64,
    /// Resident memory, pages.
    pub rss_pages: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Its name.
    pub command: String,
    /// Its command line.
    pub arguments: Vec<String>,
}

impl Entry {
    /// Reads what there is about `pid`; `None` when it has gone.
    pub fn read(pid: u32) -> Option<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let mut entry = parse_stat(&fs::read(directory.join("stat")).ok()?)?;
        let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
        entry.uid = effective_uid(&status).unwrap_or(0);
        entry.arguments = arguments(&fs::read(directory.join("cmdline")).unwrap_or_default());
        Some(entry)
    }
}

/// The fields of `/proc/PID/stat`.
fn parse_stat(stat: &[u8]) -> Option<Entry> {
    let text = String::from_utf8_lossy(stat);
    let (pid, rest) = text.split_once(" (")?;
    // The name may hold parentheses and spaces; the last closing one ends it.
    let (command, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Entry {
        pid: pid.parse().ok()?,
        command: command.to_owned(),
        state: (*fields.first()?).to_owned(),
        ppid: u32::try_from(number(1)?).ok()?,
        terminal: terminal_name(fields.get(4)?.parse().ok()?),
        cpu_ticks: number(11)? + number(12)?,
        started_ticks: number(19)?,
        virtual_bytes: number(20)?,
        rss_pages: number(21)?,
        ..Entry::default()
    })
}

fn terminal_name(device: i64) -> String {
    let device = u64::try_from(device).unwrap_or(0);
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        _ => format!("{major}:{minor}"),
    }
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn arguments(cmdline: &[u8]) -> Vec<String> {
    let cmdline = cmdline.get(..LONGEST_COMMAND).unwrap_or(cmdline);
    let text = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = b"42 (a) R (b) S 7 42 42 34817 42 4194560 100 0 0 0 30 12 0 0 20 0 1 0 500 1000000 77 184 1\n";
        let entry = parse_stat(stat).expect("stat");
        assert_eq!(
            entry,
            Entry {
                pid: 42,
                ppid: 7,
                state: "S".into(),
                terminal: "pts/1".into(),
                started_ticks: 500,
                cpu_ticks: 42,
                rss_pages: 77,
                virtual_bytes: 1_000_000,
                command: "a) R (b".into(),
                ..Entry::default()
            }
        );
        assert_eq!(parse_stat(b"nonsense"), None);
    }

    #[test]
    fn terminals_as_ps_names_them() {
        for (device, name) in [
            (0, "?"),
            (-1, "?"),
            (34816, "pts/0"),
            (0x440, "ttyS0"),
            (0x401, "tty1"),
            (0x8900, "pts/256"),
        ] {
            assert_eq!(terminal_name(device), name, "{device:#x}");
        }
    }

    #[test]
    fn command_lines() {
        assert_eq!(arguments(b"sh\0-c\0\0"), ["sh", "-c", ""]);
        assert!(arguments(b"").is_empty());
    }

    #[test]
    fn this_process_can_be_read() {
        let me = Entry::read(std::process::id()).expect("I run");
        assert_eq!(me.uid, nix::unistd::geteuid().as_raw());
        assert!(me.rss_pages > 0 && !me.arguments.is_empty());
    }
}
