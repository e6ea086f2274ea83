//! One process of the cache, as the keeper sees it: started, heard, told to end, cleared up after.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};
use kata_sandbox::cache::{self, Heard};
use kata_sandbox::record::{Home, Mark, Record};
use kata_sandbox::{describe, recover};
use kata_sys::process::{die_with_parent, give_fds};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::cache::CONTROL_FD;
use crate::cache::keeper::News;

/// One that waits, or is about to.
pub struct Waiting {
    /// Its directory, until it is taken.
    pub home: Home,
    /// Its pid.
    pub pid: u32,
    /// The keeper's end of its control socket; closed, it ends.
    pub control: StdStream,
    /// How far it is.
    pub stage: Stage,
}

/// How far a process is.
pub enum Stage {
    /// Its machine is being started.
    Starting,
    /// It can be taken; with the name of what it is made of.
    Ready(String),
    /// It is speaking with somebody who may take it.
    Lent(String),
    /// It was told to end.
    Ending,
}

impl Waiting {
    /// Tells it to end.
    pub fn dismiss(&mut self) {
        self.stage = Stage::Ending;
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }

    /// Removes what it has left, and ends it if need be.
    pub fn clear_up(&self) {
        if let Err(error) = recover::clean(&self.home) {
            tracing::warn!("cannot clean up after a machine that waited: {}", describe(&error));
        }
    }
}

/// Starts the `number`th.
///
/// # Errors
/// What keeps the process from being started; nothing is left then.
pub fn start(number: u64, config: Option<&PathBuf>, news: &mpsc::UnboundedSender<News>) -> Result<Waiting> {
    let home = cache::spare_home(std::process::id(), number);
    let record = Record::new("spare".into(), String::new(), "/".into());
    home.create(&record)
        .with_context(|| format!("cannot make {}", home.path().display()))?;
    start_in(&home, record, number, config, news).inspect_err(|_| {
        let _ = recover::clean(&home);
    })
}

fn start_in(
    home: &Home,
    record: Record,
    number: u64,
    config: Option<&PathBuf>,
    news: &mpsc::UnboundedSender<News>,
) -> Result<Waiting> {
    let (control, theirs) = StdStream::pair()?;
    let log = File::create(home.log()).context("cannot make the log file")?;
    // This very program, even if another has been installed in its place since.
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg0(std::env::args_os().next().unwrap_or_default())
        .arg(format!("-place={}", home.path().display()))
        .args(config.map(|config| format!("-config={}", config.display())))
        .arg(cache::SPARE_ACTION)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    give_fds(&mut command, vec![(theirs.as_raw_fd(), CONTROL_FD)]);
    die_with_parent(&mut command);
    let mut child = Command::from(command)
        .spawn()
        .context("cannot start a process that waits")?;
    drop(theirs);
    let pid = child.id().context("the process ended at once")?;
    home.write(&Record {
        sandbox: Some(Mark::of(pid).context("the process ended at once")?),
        ..record
    })?;
    control.set_nonblocking(true)?;
    let mut reports = UnixStream::from_std(control.try_clone()?)?;
    let news = news.clone();
    tokio::spawn(async move {
        listen(&mut reports, number, &news).await;
        let _ = child.wait().await;
        let _ = news.send(News::Ended(number));
    });
    Ok(Waiting {
        home: home.clone(),
        pid,
        control,
        stage: Stage::Starting,
    })
}

/// Hears its reports until it says no more.
async fn listen(reports: &mut UnixStream, number: u64, news: &mpsc::UnboundedSender<News>) {
    while let Ok(report) = hear(reports).await {
        let _ = news.send(News::Reported(number, report));
    }
}

/// Hears one message.
///
/// # Errors
/// As [`cache::hear`].
pub async fn hear<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> std::io::Result<T> {
    let (mut heard, mut block) = (Heard::default(), [0; 4096]);
    loop {
        let length = stream.read(&mut block).await?;
        if let Some(message) = heard.add(&block[..length])? {
            return Ok(message);
        }
    }
}
