//! Runs a tool of the host to its end, within a time limit, and takes what it printed.
//!
//! It refuses shells and inherited input: a tool gets its arguments, the bytes given to it, and nothing else.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Why a tool gave nothing to use.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}{}", install_hint(program))]
    Start {
        /// Its name.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{program} did not end within {} s", limit.as_secs())]
    Slow {
        /// Its name.
        program: String,
        /// How long was waited.
        limit: Duration,
    },
    /// It said no.
    #[error("{program} failed ({status}){}", said(messages))]
    Failed {
        /// Its name and arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        messages: String,
    },
    /// Its pipes broke.
    #[error("cannot talk to {program}")]
    Pipe {
        /// Its name.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The package of Debian that brings a tool which is not on every machine.
fn install_hint(program: &str) -> &'static str {
    match program {
        "xz" => " (package xz-utils)",
        "zstd" => " (package zstd)",
        "lz4" => " (package lz4)",
        "lzop" => " (package lzop)",
        "bzip2" => " (package bzip2)",
        "dpkg-deb" => " (package dpkg)",
        "apt-get" | "apt-cache" => " (package apt)",
        _ => "",
    }
}

fn said(messages: &str) -> String {
    let lines: Vec<&str> = messages
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!(": {}", lines.join("; "))
    }
}

/// Runs `program` with `arguments`, writes `input` to it and returns its stdout.
///
/// # Errors
/// See [`CommandError`]; a program that is still running after `limit` is killed.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    input: Option<&[u8]>,
    limit: Duration,
) -> Result<Vec<u8>, CommandError> {
    let arguments: Vec<OsString> = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
    let mut child = Command::new(program)
        .args(&arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CommandError::Start {
            program: program.to_owned(),
            source,
        })?;
    let outcome = converse(&mut child, program, input, limit);
    if outcome.is_err() {
        let _ = child.kill();
    }
    // The pipes have ended or the program was killed: this does not block for long.
    let status = child.wait().map_err(|source| CommandError::Pipe {
        program: program.to_owned(),
        source,
    })?;
    let (stdout, stderr) = outcome?;
    if status.success() {
        return Ok(stdout);
    }
    let words = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    Err(CommandError::Failed {
        program: format!("{program} {words}").trim_end().to_owned(),
        status,
        messages: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

/// Feeds the program and reads it until both of its outputs have ended.
fn converse(
    child: &mut Child,
    program: &str,
    input: Option<&[u8]>,
    limit: Duration,
) -> Result<(Vec<u8>, Vec<u8>), CommandError> {
    let deadline = Instant::now() + limit;
    let broken = |source| CommandError::Pipe {
        program: program.to_owned(),
        source,
    };
    let (ended, ends) = channel();
    let (out_end, err_end) = (ended.clone(), ended);
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let out = std::thread::spawn(move || {
        let bytes = read_all(stdout.as_mut());
        let _ = out_end.send(());
        bytes
    });
    let err = std::thread::spawn(move || {
        let bytes = read_all(stderr.as_mut());
        let _ = err_end.send(());
        bytes
    });
    if let (Some(bytes), Some(mut stdin)) = (input, child.stdin.take()) {
        let bytes = bytes.to_vec();
        // A program that stops reading early says why on stderr; its broken pipe adds nothing.
        std::thread::spawn(move || stdin.write_all(&bytes).ok());
    }
    for _ in 0..2 {
        match ends.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => {
                return Err(CommandError::Slow {
                    program: program.to_owned(),
                    limit,
                });
            }
        }
    }
    let panicked = || std::io::Error::other("its reader ended early");
    let stdout = out
        .join()
        .map_err(|_| panicked())
        .and_then(|read| read)
        .map_err(broken)?;
    let stderr = err
        .join()
        .map_err(|_| panicked())
        .and_then(|read| read)
        .map_err(broken)?;
    Ok((stdout, stderr))
}

fn read_all(pipe: Option<&mut impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn megabytes_pass_through_unchanged() {
        let input: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        assert!(run("cat", &[] as &[&str], Some(&input), LIMIT).unwrap() == input);
    }

    #[test]
    fn a_failure_says_what_the_tool_said() {
        let error = run("ls", &["/no/such/place"], None, LIMIT).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("ls /no/such/place") && message.contains("No such file"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = CommandError::Start {
            program: "lz4".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert_eq!(error.to_string(), "cannot run lz4 (package lz4)");
        assert!(matches!(
            run("/no/such/tool", &[] as &[&str], None, LIMIT),
            Err(CommandError::Start { .. })
        ));
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed() {
        let began = Instant::now();
        let error = run("sleep", &["60"], None, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommandError::Slow { .. }));
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
