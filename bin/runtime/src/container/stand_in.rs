//! A process of the host that stands in for one in a container: it has its stdio, passes on the signals it gets, lives as
//! long and exits with its code. Engines watch it as they would watch a container's own process.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use kata_bundle::Bundle;
use kata_net::namespace;
use kata_sandbox::record::{Home, Mark};
use kata_sys::process::{give_fds, take_fd};
use kata_sys::terminal;

use crate::container::client::Connection;
use crate::container::fifo::Ends;
use crate::container::inside;
use crate::container::relay::Relay;

/// A stand-in to be started.
pub struct StandIn<'a> {
    /// Directory of the sandbox.
    pub home: &'a Home,
    /// Container id.
    pub id: &'a str,
    /// Exec id; empty for the init.
    pub exec: &'a str,
    /// This side's ends of the fifos.
    pub ends: Ends,
    /// The terminal that becomes its stdio, in place of this process's own.
    pub console: Option<OwnedFd>,
    /// The container's bundle.
    pub bundle: &'a Path,
}

/// The numbers under which a stand-in finds the ends of the fifos.
const STDIN_FD: i32 = 13;
const STDOUT_FD: i32 = 14;
const STDERR_FD: i32 = 15;
/// What it closes once it is where engines look for the container.
const PLACED_FD: i32 = 16;

/// How long it may take to get there: it starts and asks a process of this host.
const PLACED_LIMIT: Duration = Duration::from_secs(30);

impl StandIn<'_> {
    /// Starts it; answers its pid once it is in the container's place: its namespaces and cgroups are the pod's, its root
    /// is the container's. One that ended before, with its process, is no error. It outlives this process.
    ///
    /// # Errors
    /// What starting failed with.
    pub fn start(self) -> Result<u32> {
        let mut command = Command::new(std::env::current_exe().context("cannot tell where this program lies")?);
        command
            .arg0("kata-stand-in")
            .arg("stand-in")
            .arg("--home")
            .arg(self.home.path())
            .arg("--bundle")
            .arg(self.bundle)
            .arg("--exec")
            .arg(self.exec);
        let (mut placed, theirs) = UnixStream::pair().context("socketpair")?;
        let mut fds = vec![(theirs.as_raw_fd(), PLACED_FD)];
        for (flag, end, number) in [
            ("--stdin", &self.ends.stdin, STDIN_FD),
            ("--stdout", &self.ends.stdout, STDOUT_FD),
            ("--stderr", &self.ends.stderr, STDERR_FD),
        ] {
            if let Some(end) = end {
                command.arg(flag);
                fds.push((end.as_raw_fd(), number));
            }
        }
        if let Some(console) = &self.console {
            command
                .arg("--terminal")
                .stdin(Stdio::from(console.try_clone()?))
                .stdout(Stdio::from(console.try_clone()?))
                .stderr(Stdio::from(console.try_clone()?));
        }
        give_fds(&mut command, fds);
        let child = command
            .arg("--")
            .arg(self.id)
            .spawn()
            .context("cannot start the process that stands in for the container")?;
        drop(theirs);
        // Engines look for the container's cgroup by this pid.
        kata_cgroup::join(&self.home.read()?.pod_cgroups, child.id());
        // And for the pod's network, as soon as they know it.
        placed.set_read_timeout(Some(PLACED_LIMIT))?;
        if let Err(error) = placed.read(&mut [0]) {
            tracing::warn!(pid = child.id(), %error, "the process that stands in for the container is not in its place yet");
        }
        Ok(child.id())
    }
}

/// What the stand-in is told. Only this program says it.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[arg(long)]
    home: PathBuf,
    #[arg(long)]
    bundle: PathBuf,
    #[arg(long, default_value = "")]
    exec: String,
    #[arg(long)]
    stdin: bool,
    #[arg(long)]
    stdout: bool,
    #[arg(long)]
    stderr: bool,
    #[arg(long)]
    terminal: bool,
    id: String,
}

/// Stands in until the process has ended; answers its exit code.
///
/// # Errors
/// When the sandbox process cannot be reached, or dies.
pub async fn stand_in(args: Args) -> Result<u8> {
    nix::unistd::setsid().context("setsid")?;
    if args.terminal {
        // For the signals that say that its size has changed, or that the engine has hung up.
        terminal::take_control(std::io::stdin().as_fd()).context("cannot take control of the terminal")?;
    }
    let given = |number| take_fd(number).context("started by hand? A descriptor is missing");
    let end = |is_given: bool, number| -> Result<Option<File>> {
        is_given.then(|| given(number).map(File::from)).transpose()
    };
    let ends = Ends {
        stdin: end(args.stdin, STDIN_FD)?,
        stdout: end(args.stdout, STDOUT_FD)?,
        stderr: end(args.stderr, STDERR_FD)?,
    };
    let placed = given(PLACED_FD)?;
    let home = Home::at(args.home);
    let connection = Connection::open(&home.task_socket(), &args.id).await?;
    enter_network(&home).context("cannot enter the pod's network namespace")?;
    let bundle = Bundle::load(&args.bundle)?;
    inside::enter(&bundle).with_context(|| format!("cannot enter {}", bundle.rootfs().display()))?;
    drop(bundle);
    drop(placed);
    let relay = Relay {
        connection: connection.clone(),
        exec: args.exec.clone(),
        ends,
        terminal: args.terminal,
    };
    let code = relay.run(async { Ok(()) }).await?;
    if !args.exec.is_empty() {
        // Nobody else will ask for it any more.
        let _ = connection.delete(&args.exec).await;
    }
    Ok(code)
}

/// Engines find the pod's network namespace by this process's pid.
fn enter_network(home: &Home) -> Result<()> {
    let sandbox = home.read()?.sandbox.context("the record names no sandbox process")?;
    Ok(namespace::enter(Path::new(&format!("/proc/{}/ns/net", sandbox.pid)))?)
}

const NOTE: &str = "stand-in.json";

/// Notes, in the sandbox's directory, who stands in for the container.
///
/// # Errors
/// What writing failed with.
pub fn note(home: &Home, pid: u32) -> Result<()> {
    // One that has ended already needs no note.
    let Ok(mark) = Mark::of(pid) else { return Ok(()) };
    std::fs::write(home.path().join(NOTE), serde_json::to_vec(&mark)?).context("cannot note the stand-in's pid")
}

/// Who stands in for the container, while it does.
pub fn noted(home: &Home) -> Option<u32> {
    let mark: Mark = serde_json::from_slice(&std::fs::read(home.path().join(NOTE)).ok()?).ok()?;
    mark.open().map(|_| mark.pid)
}
