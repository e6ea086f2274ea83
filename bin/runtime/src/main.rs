//! `kata-runtime`: the OCI command line for engines, and the operator's tool.
//!
//! The top is a table of contents: what was said ([`cli`]), where messages go ([`report`]), one file a verb ([`cmd`]).
//! It refuses to hold state: every verb either asks the sandbox process of a container, or looks at the host and leaves.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod check;
mod cli;
mod cmd;
mod command;
mod container;
mod image;
mod keeper;
mod report;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

/// What engines expect of any failure, a wrong command line included.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = report::start(&cli.globals) {
        return fail(&error);
    }
    match cli.run() {
        Ok(code) => code,
        Err(error) if report::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// A command line that was not understood, or that only asked for help.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAILURE),
        };
    }
    // The flags that say where messages go could not be read with the rest; they are looked for one by one.
    if report::start(&cli::Globals::salvage(std::env::args_os())).is_ok() {
        report::log_error(&cli::usage_message(error));
    }
    report::say(&cli::usage_message(error));
    ExitCode::from(FAILURE)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let message = format!("{error:#}");
    report::log_error(&message);
    report::say(&message);
    ExitCode::from(FAILURE)
}
