//! Where messages go: one place for the log, the error line on stderr, and stdout.
//!
//! The log has runc's two shapes, because Docker, Podman and CRI-O read the last error back from it. It refuses filters
//! and targets: a command line tool has one reader and one threshold.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{Globals, LogFormat};

/// Whether the log is a file: an error must be written to both then, and to stderr only once otherwise.
static LOGS_TO_FILE: AtomicBool = AtomicBool::new(false);

/// Opens the log that the flags ask for.
///
/// # Errors
/// When the file cannot be opened for appending.
pub fn start(globals: &Globals) -> anyhow::Result<()> {
    let format = Line(globals.log_format);
    let builder = tracing_subscriber::fmt().event_format(format);
    let Some(path) = &globals.log else {
        let level = if globals.debug { Level::DEBUG } else { Level::WARN };
        builder
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .try_init()
            .ok();
        return Ok(());
    };
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot open the log file {}", path.display()))?;
    let level = if globals.debug { Level::DEBUG } else { Level::INFO };
    let started = builder
        .with_max_level(level)
        .with_writer(Mutex::new(file))
        .try_init()
        .is_ok();
    LOGS_TO_FILE.store(started, Ordering::Relaxed);
    Ok(())
}

/// Writes an error to the log file, if there is one.
pub fn log_error(message: &str) {
    if LOGS_TO_FILE.load(Ordering::Relaxed) {
        tracing::error!("{message}");
    }
}

/// Writes the error line to stderr.
pub fn say(message: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "kata-runtime: {}", message.trim_end());
}

/// Writes to stdout.
///
/// # Errors
/// When stdout is gone; [`is_broken_pipe`] tells the harmless case.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

/// Whether the reader of our output has left, as `head` does.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
            && error.to_string() == "cannot write to stdout"
    })
}

/// One event, one line.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = level_name(*event.metadata().level());
        writer.write_str(&render(self.0, level, &rfc3339(SystemTime::now()), fields))
    }
}

/// The message of an event, and its other fields as text.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push((field.name(), value));
        }
    }
}

fn render(format: LogFormat, level: &str, time: &str, fields: Fields) -> String {
    match format {
        LogFormat::Json => {
            let mut line = Map::new();
            line.insert("level".into(), level.into());
            line.insert("msg".into(), fields.message.into());
            line.insert("time".into(), time.into());
            for (name, value) in fields.others {
                line.entry(name).or_insert(value.into());
            }
            format!("{}\n", Value::Object(line))
        }
        LogFormat::Text => {
            let mut line = format!("time={time:?} level={level} msg={:?}", fields.message);
            for (name, value) in fields.others {
                // Writing to a string cannot fail.
                let _ = write!(line, " {name}={value:?}");
            }
            line.push('\n');
            line
        }
    }
}

/// The names that logrus, and so every reader of runc's log, uses.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// A moment as RFC 3339 in UTC, to the microsecond. Moments before 1970 are 1970.
pub fn rfc3339(moment: SystemTime) -> String {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (year, month, day) = civil_date(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    // Count from 0000-03-01, so that the leap day is the last day of a year.
    let days = days + 719_468;
    let era = days / DAYS_PER_ERA;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_written_as_engines_read_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_json_line_has_the_keys_of_runc() {
        let fields = Fields {
            message: "no \"such\" thing".into(),
            others: vec![("id", "c1".into()), ("msg", "x".into())],
        };
        let line = render(LogFormat::Json, "error", "T", fields);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"level": "error", "msg": "no \"such\" thing", "time": "T", "id": "c1"})
        );
        assert!(line.ends_with("}\n") && line.lines().count() == 1);
    }

    #[test]
    fn a_text_line_is_that_of_logrus() {
        let fields = Fields {
            message: "two\nlines".into(),
            others: vec![],
        };
        assert_eq!(
            render(LogFormat::Text, "error", "T", fields),
            "time=\"T\" level=error msg=\"two\\nlines\"\n"
        );
    }

    #[test]
    fn only_a_reader_of_stdout_that_left_is_forgiven() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(
            &anyhow::Error::new(broken()).context("cannot write to stdout")
        ));
        assert!(!is_broken_pipe(
            &anyhow::Error::new(broken()).context("the sandbox process left")
        ));
    }
}
