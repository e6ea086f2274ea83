//! Creates a container: its sandbox process first, then the container in it. After an error nothing of either is left.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::CreateTaskRequest;
use kata_bundle::Bundle;
use kata_sandbox::record::Home;

use crate::cli::Globals;
use crate::container::client::{Connection, home_of, place_of, said, unbounded};
use crate::container::console;
use crate::container::fifo::{Ends, Fifos};
use crate::container::removal;
use crate::container::stand_in::{self, StandIn};

/// What `create` and `run` are told.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub struct Args {
    /// Directory with config.json and the root file system
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket to which the master of the container's terminal is sent
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the pid of the process into that stands in for the container
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for compatibility: the guest has its own way to change root
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted for compatibility: sessions are the guest's
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Accepted for compatibility: descriptors do not cross into a virtual machine
    #[arg(long, value_name = "N", hide = true)]
    pub preserve_fds: Option<u32>,
    /// Container id
    pub id: String,
}

/// A container that has been created and is not started.
pub struct Created {
    /// To its sandbox process.
    pub connection: Connection,
    /// The container's own directory.
    pub home: Home,
    /// This side's ends of its stdio.
    pub ends: Ends,
    /// Its process has a terminal.
    pub terminal: bool,
    /// Its bundle.
    pub bundle: PathBuf,
}

/// Creates the container.
///
/// # Errors
/// An unusable bundle or id, a taken id, whatever keeps the machine from booting.
pub async fn create(args: &Args, globals: &Globals) -> Result<Created> {
    let home = home_of(globals, &args.id)?;
    let directory = std::path::absolute(&args.bundle).with_context(|| format!("bundle {}", args.bundle.display()))?;
    let bundle = Bundle::load(&directory)?;
    bundle.check_rootfs()?;
    let terminal = bundle.terminal();
    start_sandbox(args, globals, &directory)?;
    let made = create_in(args, &home, &directory, terminal).await;
    match made {
        Ok((connection, ends)) => Ok(Created {
            connection,
            home,
            ends,
            terminal,
            bundle: directory,
        }),
        Err(error) => {
            removal::bury(&home).await;
            Err(error)
        }
    }
}

async fn create_in(args: &Args, home: &Home, bundle: &Path, terminal: bool) -> Result<(Connection, Ends)> {
    let sandbox = home.read()?.sandbox_home(home);
    let connection = Connection::open(&sandbox.task_socket(), &args.id).await?;
    let fifos = Fifos::make(&home.stdio(), "init", terminal)?;
    let [stdin, stdout, stderr] = fifos.paths();
    let request = CreateTaskRequest {
        id: args.id.clone(),
        bundle: bundle.display().to_string(),
        terminal,
        stdin,
        stdout,
        stderr,
        ..Default::default()
    };
    connection.task.create(unbounded(), &request).await.map_err(said)?;
    Ok((connection, fifos.into_ends()?))
}

/// Starts the sandbox process, in the very way in which containerd does.
fn start_sandbox(args: &Args, globals: &Globals, bundle: &Path) -> Result<()> {
    let shim = sandbox_program()?;
    let mut command = Command::new(&shim);
    command
        .arg(format!("-namespace={}", globals.root.display()))
        .arg(format!("-id={}", args.id))
        .arg(format!("-bundle={}", bundle.display()))
        .arg(format!("-place={}", place_of(globals, &args.id)?.display()))
        .env_remove("TTRPC_ADDRESS");
    if let Some(config) = &globals.kata_config {
        command.arg(format!("-config={}", std::path::absolute(config)?.display()));
    }
    if globals.debug {
        command.arg("-debug");
    }
    let output = command
        .arg("start")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shim.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.trim();
        bail!("{}", words.strip_prefix("containerd-shim-kata-v2: ").unwrap_or(words));
    }
    Ok(())
}

/// The sandbox program: beside this one, or else in the path.
///
/// # Errors
/// When it is in neither place.
pub fn sandbox_program() -> Result<PathBuf> {
    const NAME: &str = "containerd-shim-kata-v2";
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.with_file_name(NAME);
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join(NAME))
            .find(|file| file.is_file())
    };
    if beside.is_file() {
        return Ok(beside);
    }
    in_path().with_context(|| format!("{NAME} is neither beside {} nor in PATH", own.display()))
}

impl Created {
    /// Leaves the container to a process that stands in for it, and writes that one's pid where it was asked for.
    ///
    /// # Errors
    /// A terminal without a console socket, a socket that takes no console, a file that cannot be written.
    pub fn leave_to_stand_in(self, args: &Args) -> Result<()> {
        let console = console_for(self.terminal, args.console_socket.as_deref())?;
        let sandbox = self.home.read()?.sandbox_home(&self.home);
        let stand_in = StandIn {
            home: &sandbox,
            id: self.connection.id(),
            exec: "",
            ends: self.ends,
            console,
            bundle: &self.bundle,
        };
        let pid = stand_in.start()?;
        stand_in::note(&self.home, pid)?;
        if let Some(file) = &args.pid_file {
            write_pid(file, pid)?;
        }
        Ok(())
    }
}

/// The slave that a stand-in of a process with a terminal gets.
///
/// # Errors
/// A terminal without a console socket or the other way round; a socket that takes no console.
pub fn console_for(terminal: bool, socket: Option<&Path>) -> Result<Option<OwnedFd>> {
    match (terminal, socket) {
        (true, Some(socket)) => console::give_master(socket).map(Some),
        (true, None) => bail!("cannot allocate tty if runtime will detach without setting console socket"),
        (false, Some(_)) => bail!("cannot use console socket if runtime will not detach or allocate tty"),
        (false, None) => Ok(None),
    }
}

/// Writes a pid file, whole or not at all.
///
/// # Errors
/// What writing failed with.
pub fn write_pid(path: &Path, pid: u32) -> Result<()> {
    use std::io::Write;
    let failed = || format!("cannot write the pid file {}", path.display());
    let name = path.file_name().with_context(failed)?;
    let fresh = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    File::create(&fresh)
        .and_then(|mut file| write!(file, "{pid}"))
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(failed)
}

/// Buries a container that could not be finished, and keeps the error that says why.
pub async fn or_bury<T>(result: Result<T>, home: &Home) -> Result<T> {
    if result.is_err() {
        removal::bury(home).await;
    }
    result
}
