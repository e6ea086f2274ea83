//! The agent's log: lines in the kernel's, which the host sees on the guest's console.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::command_line::values;

/// Longest line, bytes; the kernel takes about 1000.
const LONGEST: usize = 900;

/// The level asked for on the kernel's command line by `parameter=LEVEL`; warnings if there is none.
pub fn level(command_line: &str, parameter: &str) -> Level {
    values(command_line, parameter)
        .next_back()
        .and_then(|level| level.parse().ok())
        .unwrap_or(Level::WARN)
}

/// Lets events of `level` and above go to `/dev/kmsg`.
///
/// # Errors
/// When it cannot be opened, or a log is there already.
pub fn start(level: Level) -> anyhow::Result<()> {
    // The kernel would drop lines when there are many at once.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    let kmsg = File::options().write(true).open("/dev/kmsg")?;
    tracing::subscriber::set_global_default(Kmsg { level, kmsg })?;
    Ok(())
}

struct Kmsg {
    level: Level,
    kmsg: File,
}

impl Subscriber for Kmsg {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // More of other crates than warnings helps nobody here.
        *metadata.level() <= self.level && (metadata.target().starts_with("kata_") || *metadata.level() <= Level::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let mut line = Line(format!("<{priority}>kata-agent:"));
        event.record(&mut line);
        // One write is one line; line breaks inside would look like other lines.
        let text: String = line
            .0
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(LONGEST)
            .collect();
        let _ = (&self.kmsg).write_all(text.as_bytes());
    }

    // No spans are used: a line says everything.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_valid_word_on_the_command_line_counts() {
        for (line, expected) in [
            ("quiet console=ttyS0", Level::WARN),
            ("kata.log=info", Level::INFO),
            ("kata.log=info kata.log=debug quiet", Level::DEBUG),
            ("kata.log=loud", Level::WARN),
            ("kata.logger=debug", Level::WARN),
        ] {
            assert_eq!(level(line, "kata.log"), expected, "{line}");
        }
    }
}
