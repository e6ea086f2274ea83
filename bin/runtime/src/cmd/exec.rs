//! `kata-runtime exec`: one more process in a running container.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use kata_bundle::Bundle;

use crate::cli::Globals;
use crate::container::client::{self, Connection, Found, block_on, said, short};
use crate::container::console::{self, Raw};
use crate::container::creation::{console_for, write_pid};
use crate::container::fifo::{Ends, Fifos};
use crate::container::process::{self, process_of};
use crate::container::relay::Relay;
use crate::container::stand_in::StandIn;
use crate::report;

/// What is executed, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Leave the process running in the background
    #[arg(long, short = 'd')]
    detach: bool,
    /// File to write the pid of the process into that stands in for the new one
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket to which the master of the process's terminal is sent
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Accepted for compatibility: descriptors do not cross into a virtual machine
    #[arg(long, value_name = "N", hide = true)]
    preserve_fds: Option<u32>,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Accepted for compatibility: the process joins the container's own cgroup
    #[arg(long, value_name = "PATH", hide = true)]
    cgroup: Vec<String>,
    #[command(flatten)]
    process: process::Args,
    /// Container id
    id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What runc answers when the process did not run; the codes below are the process's own.
const NOT_RUN: u8 = 255;

/// Executes the process; in the foreground the exit code is the process's, or 255 when it did not run.
///
/// # Errors
/// None that `main` would have to report.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    match block_on(execute(args, globals)) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            let message = format!("exec failed: {error:#}");
            report::log_error(&message);
            report::say(&message);
            Ok(ExitCode::from(NOT_RUN))
        }
    }
}

async fn execute(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let found = client::expect(globals, &args.id)?;
    let connection = found.connect_live().await?;
    let bundle = Bundle::load(&found.record.bundle)?;
    let process = process_of(&args.process, &args.command, &bundle)?;
    let terminal = process.terminal().unwrap_or(false);
    if args.detach && terminal && args.console_socket.is_none() {
        bail!("cannot allocate tty if runtime will detach without setting console socket");
    }
    let exec = exec_id();
    let fifos = Fifos::make(&found.home.path().join(format!("stdio-{exec}")), "exec", terminal)?;
    let [stdin, stdout, stderr] = fifos.paths();
    let request = ExecProcessRequest {
        id: args.id.clone(),
        exec_id: exec.clone(),
        terminal,
        stdin,
        stdout,
        stderr,
        spec: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process)?,
            ..Default::default()
        }),
        ..Default::default()
    };
    connection.task.exec(short(), &request).await.map_err(said)?;
    let started = connection.start(&exec).await;
    // Whether it was started or not, the sandbox process has opened its ends, or never will.
    let ran = match started.and_then(|()| fifos.into_ends()) {
        Ok(ends) if args.detach => leave(&args, &found, &exec, ends, &bundle, terminal),
        Ok(ends) => wait(&args, &connection, &exec, ends, terminal).await,
        Err(error) => Err(error),
    };
    if ran.is_err() || !args.detach {
        // A process that is still there is killed with it.
        let _ = connection.delete(&exec).await;
    }
    ran
}

fn leave(args: &Args, found: &Found, exec: &str, ends: Ends, bundle: &Bundle, terminal: bool) -> anyhow::Result<u8> {
    let stand_in = StandIn {
        home: &found.sandbox_home(),
        id: &args.id,
        exec,
        ends,
        console: console_for(terminal, args.console_socket.as_deref())?,
        bundle: bundle.dir(),
    };
    let pid = stand_in.start()?;
    if let Some(file) = &args.pid_file {
        write_pid(file, pid)?;
    }
    Ok(0)
}

async fn wait(args: &Args, connection: &Connection, exec: &str, ends: Ends, terminal: bool) -> anyhow::Result<u8> {
    if let Some(file) = &args.pid_file {
        write_pid(file, std::process::id())?;
    }
    let stdin = std::io::stdin();
    let own_terminal = terminal && console::size(stdin.as_fd()).is_some();
    let _raw = own_terminal.then(|| Raw::enter(stdin.as_fd())).transpose()?;
    let relay = Relay {
        connection: connection.clone(),
        exec: exec.to_owned(),
        ends,
        terminal: own_terminal,
    };
    relay.run(async { Ok(()) }).await.context("the process was started")
}

fn exec_id() -> String {
    let bytes = kata_sys::random::bytes(8);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
