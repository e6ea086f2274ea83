//! `kata-runtime kill`: sends a signal to a container.

use std::process::ExitCode;

use anyhow::{Context, bail};
use containerd_shim_protos::api::Status;
use nix::libc;
use nix::sys::signal::Signal;

use crate::cli::Globals;
use crate::container::client::{self, block_on};

/// Which container, which signal.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Send it to every process of the container
    #[arg(long, short = 'a')]
    all: bool,
    /// Container id
    id: String,
    /// Name, with or without SIG, or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

/// Sends the signal.
///
/// # Errors
/// An unknown container or signal, a container that does not run.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let signal = parse(&args.signal).with_context(|| format!("unknown signal {:?}", args.signal))?;
    let found = client::expect(globals, &args.id)?;
    block_on(async {
        let connection = found.connect_live().await?;
        let not_running = || format!("container \"{}\" not running", args.id);
        // The Task API finds nothing wrong with killing what is over; the command line does.
        if connection.state().await?.status.enum_value_or(Status::UNKNOWN) == Status::STOPPED {
            bail!(not_running());
        }
        let sent = connection.kill("", signal, args.all).await;
        sent.with_context(not_running)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The number of a signal; `None` for what is no signal.
fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        let highest = u32::try_from(libc::SIGRTMAX()).unwrap_or(64);
        return (1..=highest).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let at_end = |prefix: &str, base: i32, sign: i32| {
        let offset = name.strip_prefix(prefix)?;
        let offset = if offset.is_empty() {
            0
        } else {
            offset.parse::<i32>().ok()? * sign
        };
        let number = base + offset;
        (libc::SIGRTMIN()..=libc::SIGRTMAX())
            .contains(&number)
            .then_some(number.unsigned_abs())
    };
    if name.starts_with("RTMIN") {
        return at_end("RTMIN", libc::SIGRTMIN(), 1);
    }
    if name.starts_with("RTMAX") {
        return at_end("RTMAX", libc::SIGRTMAX(), 1);
    }
    format!("SIG{name}")
        .parse::<Signal>()
        .ok()
        .map(|signal| (signal as i32).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", Some(15)),
            ("SIGKILL", Some(9)),
            ("usr1", Some(10)),
            ("10", Some(10)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("64", Some(64)),
            ("0", None),
            ("65", None),
            ("FROB", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
