//! The keeper of the cache of machines (`vm_cache_number`), from outside: started, asked, ended.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_config::Config;
use kata_sandbox::cache::{self, Answer, Request, Status};
use kata_sandbox::record::{Home, Mark, Record};
use kata_sandbox::recover;
use kata_sys::process::{PidFd, give_fds};
use nix::sys::signal::Signal;

use crate::cli::Globals;
use crate::container::creation::sandbox_program;

/// The number under which the keeper finds its listening socket.
const LISTENER_FD: i32 = 3;

/// How long the keeper may take to end: it waits for those who are being taken.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Sees to it that there is a keeper, and waits until as many machines wait as are to wait.
///
/// # Errors
/// A keeper that does not start; whatever keeps a machine from being started.
pub fn fill(config: &Config, globals: &Globals) -> Result<Status> {
    let home = cache::keeper_home();
    if !recover::is_alive(&home) {
        clear(&home)?;
        start(config, globals, &home)?;
    }
    let endpoint = &config.factory.vm_cache_endpoint;
    let keeper =
        cache::connect(endpoint).with_context(|| format!("cannot reach the cache at {}", endpoint.display()))?;
    // One at a time; each may take as long as a boot, and a template.
    let limit = 3 * config.agent_answer_limit() * (config.factory.vm_cache_number + 1);
    let status = talk(&keeper, &Request::Fill, limit)?;
    match &status.trouble {
        Some(trouble) => bail!("no machine waits in the cache: {trouble}"),
        None => Ok(status),
    }
}

/// How the cache stands; `None` if there is no keeper.
///
/// # Errors
/// A keeper that does not answer.
pub fn ask(config: &Config) -> Result<Option<Status>> {
    let endpoint = &config.factory.vm_cache_endpoint;
    match cache::connect(endpoint) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        connected => {
            let keeper = connected.with_context(|| format!("cannot reach the cache at {}", endpoint.display()))?;
            talk(&keeper, &Request::Status, Duration::from_secs(10)).map(Some)
        }
    }
}

fn talk(keeper: &UnixStream, request: &Request, limit: Duration) -> Result<Status> {
    keeper.set_read_timeout(Some(limit))?;
    let answer = cache::say(keeper, request).and_then(|()| cache::hear(keeper));
    match answer.context("the keeper of the cache does not answer")? {
        Answer::Status(status) => Ok(status),
        other => bail!("the keeper of the cache answers something else: {other:?}"),
    }
}

/// For people.
pub fn describe(status: &Status) -> String {
    let mut said = format!("vm cache: {} of {} ready", status.ready.len(), status.wanted);
    for (what, pids) in [("pids", &status.ready), ("starting", &status.starting)] {
        if !pids.is_empty() {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            said.push_str(&format!(", {what} {}", pids.join(" ")));
        }
    }
    said.push('\n');
    if let Some(trouble) = &status.trouble {
        said.push_str(&format!("  the last one does not wait: {trouble}\n"));
    }
    said
}

fn start(config: &Config, globals: &Globals, home: &Home) -> Result<()> {
    let endpoint = &config.factory.vm_cache_endpoint;
    let record = Record::new("keeper".into(), String::new(), "/".into());
    home.create(&record)
        .with_context(|| format!("cannot make {}; is another being started?", home.path().display()))?;
    let started = listen(endpoint).and_then(|listener| start_process(globals, home, record, &listener));
    started.inspect_err(|_| {
        let _ = recover::clean(home);
    })
}

/// What a keeper that was killed has left at its endpoint is removed.
fn listen(endpoint: &Path) -> Result<UnixListener> {
    if let Some(directory) = endpoint.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
    }
    remove_endpoint(endpoint)?;
    UnixListener::bind(endpoint).with_context(|| format!("cannot listen on {}", endpoint.display()))
}

fn remove_endpoint(endpoint: &Path) -> Result<()> {
    match UnixStream::connect(endpoint) {
        Ok(_) => bail!("somebody else listens on {}", endpoint.display()),
        // There is no one behind it any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(endpoint).with_context(|| format!("cannot remove {}", endpoint.display()))
        }
        Err(_) => Ok(()),
    }
}

fn start_process(globals: &Globals, home: &Home, record: Record, listener: &UnixListener) -> Result<()> {
    let program = sandbox_program()?;
    let log = File::create(home.log()).context("cannot make the log file")?;
    let mut command = Command::new(&program);
    if let Some(config) = &globals.kata_config {
        command.arg(format!("-config={}", std::path::absolute(config)?.display()));
    }
    if globals.debug {
        command.arg("-debug");
    }
    command
        .arg(cache::KEEPER_ACTION)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    give_fds(&mut command, vec![(listener.as_raw_fd(), LISTENER_FD)]);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let sandbox = Some(Mark::of(child.id()).context("the keeper of the cache ended at once")?);
    Ok(home.write(&Record { sandbox, ..record })?)
}

/// Ends the keeper and all who wait, and removes what they have left, or others that were killed.
///
/// # Errors
/// Processes and files that do not go away.
pub fn end(config: &Config) -> Result<()> {
    let home = cache::keeper_home();
    let mark = home.read().ok().and_then(|record| record.sandbox);
    if let Some(keeper) = mark.and_then(Mark::open) {
        terminate(&keeper)?;
    }
    clear(&home)?;
    let endpoint = &config.factory.vm_cache_endpoint;
    remove_endpoint(endpoint)?;
    if let Some(directory) = endpoint.parent() {
        // Only if nothing else is in it.
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

fn terminate(keeper: &PidFd) -> Result<()> {
    // It may have ended just now.
    let _ = keeper.signal(Signal::SIGTERM);
    if !keeper.wait(END_LIMIT)? {
        tracing::warn!("the keeper of the cache does not end by itself; it is killed");
    }
    Ok(())
}

/// Removes what a keeper and those who waited have left. None of them runs, or is to.
fn clear(home: &Home) -> Result<()> {
    recover::clean(home)?;
    for spare in cache::spare_homes()? {
        recover::clean(&spare)?;
    }
    Ok(())
}
