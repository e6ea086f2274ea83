//! One process of a container as the agent holds it, and the plumbing of its standard streams.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kata_jail::link::{Link, Report};
use kata_jail::stdio::Stdio;
use kata_wire::proto;
use kata_wire::stream::{Header, Kind};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::descriptor::Descriptor;
use crate::pod::{Exit, State};
use crate::pump::{self, AtEnd, Streams};

/// A process.
#[derive(Debug)]
pub struct Process {
    /// In the guest's root pid namespace.
    pub pid: u32,
    /// Its end.
    pub exit: watch::Receiver<Option<Exit>>,
    /// The master end of its terminal.
    pub terminal: Option<Descriptor>,
    pumps: Vec<JoinHandle<()>>,
}

impl Process {
    /// A process whose streams flow from now on.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn new(
        pid: u32,
        exit: watch::Receiver<Option<Exit>>,
        plumbing: Plumbing,
        terminal: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let terminal = terminal.map(Descriptor::new).transpose()?;
        Ok(Self {
            pid,
            exit,
            pumps: plumbing.open(terminal.clone())?,
            terminal,
        })
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for pump in &self.pumps {
            pump.abort();
        }
    }
}

/// Our ends of the standard streams, and whom to expect at them.
#[derive(Debug)]
pub struct Plumbing {
    stdin: Option<(Option<OwnedFd>, Streams)>,
    out: Vec<(Option<OwnedFd>, Streams)>,
}

impl Plumbing {
    /// Makes the ends for a process, and expects the host's streams from now on.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn lay(asked: &proto::Stdio, container: &str, exec: &str, state: &mut State) -> io::Result<(Stdio, Self)> {
        let mut plumbing = Self {
            stdin: None,
            out: Vec::new(),
        };
        let mut expect = |asked: bool, kind| {
            asked.then(|| {
                state.streams.expect(Header::Stdio {
                    kind,
                    container: container.to_owned(),
                    exec: exec.to_owned(),
                })
            })
        };
        let stdin = expect(asked.stdin, Kind::Stdin);
        let stdout = expect(asked.stdout, Kind::Stdout);
        if asked.terminal {
            plumbing.stdin = stdin.map(|streams| (None, streams));
            plumbing.out.extend(stdout.map(|streams| (None, streams)));
            let window = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
            return Ok((
                Stdio::Terminal {
                    columns: window(asked.columns),
                    rows: window(asked.rows),
                },
                plumbing,
            ));
        }
        let stderr = expect(asked.stderr, Kind::Stderr);
        let theirs_in = match stdin {
            Some(streams) => {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
                plumbing.stdin = Some((Some(writer), streams));
                reader
            }
            None => null()?,
        };
        let mut outward = |streams: Option<Streams>| -> io::Result<OwnedFd> {
            let Some(streams) = streams else { return null() };
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            plumbing.out.push((Some(reader), streams));
            Ok(writer)
        };
        let (theirs_out, theirs_err) = (outward(stdout)?, outward(stderr)?);
        Ok((
            Stdio::Files {
                stdin: theirs_in,
                stdout: theirs_out,
                stderr: theirs_err,
            },
            plumbing,
        ))
    }

    fn open(self, terminal: Option<Descriptor>) -> io::Result<Vec<JoinHandle<()>>> {
        let mut pumps = Vec::new();
        let end = |own: Option<OwnedFd>| match (own, &terminal) {
            (Some(fd), _) => Descriptor::new(fd),
            (None, Some(terminal)) => Ok(terminal.clone()),
            (None, None) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the process has sent no terminal",
            )),
        };
        let at_end = |own: &Option<OwnedFd>| if own.is_some() { AtEnd::Close } else { AtEnd::Stay };
        if let Some((own, streams)) = self.stdin {
            let at_end = at_end(&own);
            pumps.push(tokio::spawn(pump::inward(end(own)?, streams, at_end)));
        }
        if let (true, Some(terminal)) = (self.out.is_empty(), &terminal) {
            pumps.push(tokio::spawn(pump::nowhere(terminal.clone())));
        }
        for (own, streams) in self.out {
            let at_end = at_end(&own);
            pumps.push(tokio::spawn(pump::outward(end(own)?, streams, at_end)));
        }
        Ok(pumps)
    }
}

fn null() -> io::Result<OwnedFd> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
}

/// Up to where a new process is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It is prepared and waits to be started.
    Ready,
    /// It executes its program.
    Executed,
}

/// Listens to a process that prepares itself; answers the master end of its terminal, if it has sent one.
///
/// # Errors
/// Why it gave up, in words for whoever asked for it.
pub async fn listen(link: &AsyncFd<Link>, until: Until, limit: Duration) -> Result<Option<OwnedFd>, String> {
    let mut terminal = None;
    let reports = async {
        loop {
            let mut ready = link.readable().await.map_err(|error| error.to_string())?;
            let Ok(report) = ready.try_io(|link| link.get_ref().hear()) else {
                continue;
            };
            match (report.map_err(|error| error.to_string())?, until) {
                (Report::Terminal(master), _) => terminal = Some(master),
                (Report::Failed(reason), _) => return Err(reason),
                (Report::Ready, Until::Ready) | (Report::Ended, Until::Executed) => return Ok(()),
                (Report::Ready, Until::Executed) => {}
                (Report::Ended, Until::Ready) => return Err("the process died while it was prepared".to_owned()),
            }
        }
    };
    match timeout(limit, reports).await {
        Ok(outcome) => outcome.map(|()| terminal),
        Err(_) => Err(format!("the process was not prepared within {} s", limit.as_secs())),
    }
}
