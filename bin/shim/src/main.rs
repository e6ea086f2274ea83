//! `containerd-shim-kata-v2`: the sandbox process, one a pod, and the two short calls that start and bury it.
//!
//! containerd drives it over the shim v2 protocol; `kata-runtime` over the very same.

mod bootstrap;
mod cache;
mod drivers;
mod event;
mod flags;
mod guest;
mod info;
mod log;
mod metrics;
mod pod;
mod sandbox;
mod serve;
mod status;
mod task;
mod template;
#[cfg(test)]
mod tests;
mod words;

use std::path::Path;
use std::process::ExitCode;

use flags::Action;

fn main() -> ExitCode {
    let flags = match flags::parse(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("containerd-shim-kata-v2: {error}\n\n{}", flags::USAGE);
            return ExitCode::FAILURE;
        }
    };
    let done = match flags.action {
        Action::Version => {
            println!("containerd-shim-kata-v2 {}", info::VERSION);
            Ok(())
        }
        Action::Info => info::print(),
        Action::Help => {
            print!("{}", flags::USAGE);
            Ok(())
        }
        Action::Start => bootstrap::start(&flags),
        Action::Delete => bootstrap::delete(&flags),
        Action::Template => template::make(),
        Action::Serve => {
            log::start(&log::filter(flags.debug)).follow(flags.bundle.as_deref().unwrap_or(Path::new(".")));
            serve::run(&flags).inspect_err(|error| tracing::error!("{error:#}"))
        }
        Action::Keep => {
            log::start(&log::filter(flags.debug));
            cache::keep(&flags).inspect_err(|error| tracing::error!("{error:#}"))
        }
        Action::Wait => {
            let log = log::start(&log::filter(flags.debug));
            cache::wait(&flags, &log).inspect_err(|error| tracing::error!("{error:#}"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-kata-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}
