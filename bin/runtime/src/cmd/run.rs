//! `kata-runtime run`: create, start, and in the foreground wait for the end and delete.

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::bail;
use kata_sandbox::timeline::Trace;

use crate::cli::Globals;
use crate::cmd::trace;
use crate::container::client::{self, block_on};
use crate::container::console::{self, Raw};
use crate::container::creation::{self, Created, or_bury};
use crate::container::relay::Relay;
use crate::container::removal;

/// What is run, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Leave the container running in the background
    #[arg(long, short = 'd')]
    detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    keep: bool,
    /// Print at the end, to stderr, how long each phase of the start took
    #[arg(long)]
    trace: bool,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    no_subreaper: bool,
    #[command(flatten)]
    create: creation::Args,
}

/// Runs the container; in the foreground the exit code is its process's.
///
/// # Errors
/// Whatever keeps the container from running; nothing of it is left then.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    block_on(async {
        let created = creation::create(&args.create, globals).await?;
        let home = created.home.clone();
        if args.detach {
            let connection = created.connection.clone();
            or_bury(created.leave_to_stand_in(&args.create), &home).await?;
            or_bury(connection.start("").await, &home).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let code = or_bury(foreground(created, &args).await, &home).await?;
        let spans = if args.trace {
            Trace::read(&home).unwrap_or_default().spans
        } else {
            Vec::new()
        };
        if !args.keep
            && let Some(found) = client::find(globals, &args.create.id)?
        {
            removal::remove(&found, true).await?;
        }
        eprint!("{}", trace::table(&spans));
        Ok(ExitCode::from(code))
    })
}

async fn foreground(created: Created, args: &Args) -> anyhow::Result<u8> {
    if args.create.console_socket.is_some() {
        bail!("cannot use console socket if runtime will not detach or allocate tty");
    }
    if let Some(file) = &args.create.pid_file {
        creation::write_pid(file, std::process::id())?;
    }
    let stdin = std::io::stdin();
    let own_terminal = created.terminal && console::size(stdin.as_fd()).is_some();
    let _raw = own_terminal.then(|| Raw::enter(stdin.as_fd())).transpose()?;
    let connection = created.connection.clone();
    let relay = Relay {
        connection: created.connection,
        exec: String::new(),
        ends: created.ends,
        terminal: own_terminal,
    };
    relay.run(async move { connection.start("").await }).await
}
