//! Processes: executed beside a container's init, waited for, signalled, forgotten.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use kata_sys::pty;
use kata_wire::proto::{
    Empty, ExecRequest, ExecResponse, ProcessRef, ResizeTerminalRequest, SignalRequest, WaitResponse,
};
use nix::errno::Errno;
use tokio::time::timeout;

use super::container::made;
use super::ids;
use super::refusal::Refusal;
use crate::descriptor::watch;
use crate::pod::{Exit, Phase, Pod, State};
use crate::process::{Plumbing, Process, Until, listen};

/// How long a process may take to execute its program.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

const KILL: i32 = libc::SIGKILL;

/// Executes one more process in a running container.
///
/// # Errors
/// [`Refusal::State`] when the container is not running; [`Refusal::Internal`] with why the program was not executed.
pub async fn exec(pod: Arc<Pod>, request: ExecRequest) -> Result<ExecResponse, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    ids::check("exec", exec)?;
    pod.with(|state| {
        let container = made(state.containers.get_mut(id), id)?;
        if container.init.ended().is_some() || !matches!(container.phase, Phase::Started) {
            return Err(Refusal::State(format!("container {id} is not running")));
        }
        if container.jail.cgroup().events().get("frozen") == Some(&1) {
            // Born into a frozen cgroup, it would never answer.
            return Err(Refusal::State(format!("container {id} is paused")));
        }
        if container.execs.contains_key(exec) {
            return Err(Refusal::Exists(format!(
                "process {exec} of container {id} exists already"
            )));
        }
        container.execs.insert(exec.to_owned(), None);
        Ok(())
    })?;
    let executed = execute(&pod, &request).await;
    pod.with(|state| {
        let failed = executed.is_err();
        let slot = state.containers.get_mut(id).and_then(Option::as_mut);
        let pid = match (executed, slot) {
            (Ok(process), Some(container)) => {
                let pid = process.pid;
                container.execs.insert(exec.to_owned(), Some(process));
                Ok(ExecResponse {
                    pid,
                    ..Default::default()
                })
            }
            (Ok(_), None) => Err(Refusal::no_container(id)),
            (Err(refusal), slot) => {
                slot.map(|container| container.execs.remove(exec));
                Err(refusal)
            }
        };
        if failed {
            state.streams.forget(id, exec);
        }
        pid
    })
}

async fn execute(pod: &Pod, request: &ExecRequest) -> Result<Process, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    let spec = serde_json::from_slice(&request.process_json)
        .map_err(|error| Refusal::Invalid(format!("process {exec} of container {id}: {error}")))?;
    let internal = |error: std::io::Error| Refusal::Internal(format!("process {exec} of container {id}: {error}"));
    // Nothing is awaited from the birth to the watch for its end.
    let (newborn, plumbing, exit) = pod.with(|state| {
        let (stdio, plumbing) = Plumbing::lay(&request.stdio, id, exec, state).map_err(internal)?;
        let jail = &made(state.containers.get_mut(id), id)?.jail;
        let newborn = jail.exec(&spec, &stdio)?;
        let cgroup = jail.cgroup().path().to_owned();
        let exit = state.watch(newborn.pid, cgroup, false);
        Ok::<_, Refusal>((newborn, plumbing, exit))
    })?;
    let pid = newborn.pid;
    let link = watch(newborn.link).map_err(internal)?;
    match listen(&link, Until::Executed, EXEC_LIMIT).await {
        Ok(terminal) => Process::new(pid, exit, plumbing, terminal).map_err(internal),
        Err(reason) => {
            // It gives up by itself, unless it hangs.
            if exit.borrow().is_none() {
                let _ = send(pid, KILL);
            }
            Err(Refusal::Internal(reason))
        }
    }
}

/// Waits for the end of a process.
///
/// # Errors
/// [`Refusal::NotFound`], also when it is deleted meanwhile without having ended.
pub async fn wait(pod: &Pod, request: &ProcessRef) -> Result<WaitResponse, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    let mut exit = pod.with(|state| Ok::<_, Refusal>(find(state, id, exec)?.exit.clone()))?;
    let Exit {
        code,
        at_unix_nanos,
        oom_killed,
    } = exit
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|exit| *exit)
        .ok_or_else(|| Refusal::no_process(id, exec))?;
    Ok(WaitResponse {
        exit_code: code,
        exited_at_unix_nanos: at_unix_nanos,
        oom_killed,
        ..Default::default()
    })
}

/// Sends a signal to one process or to all of a container.
///
/// # Errors
/// [`Refusal::State`] when the process has ended.
pub fn signal(pod: &Pod, request: &SignalRequest) -> Result<Empty, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    let signal = i32::try_from(request.signal)
        .ok()
        .filter(|signal| *signal <= libc::SIGRTMAX())
        .ok_or_else(|| Refusal::Invalid(format!("{} is not a signal", request.signal)))?;
    pod.with(|state| {
        if request.all {
            let cgroup = made(state.containers.get_mut(id), id)?.jail.cgroup();
            if signal == KILL {
                // At once and with no way out by forking.
                cgroup.kill()?;
            } else {
                for pid in cgroup.pids() {
                    send(pid, signal)?;
                }
            }
            return Ok(());
        }
        let process = find(state, id, exec)?;
        match process.ended() {
            Some(_) => Err(Refusal::State("process already finished".to_owned())),
            None => send(process.pid, signal),
        }
    })?;
    Ok(Empty::new())
}

/// A pid that was not waited for yet is still the process's own, so it cannot hit another. Realtime signals have no
/// name, hence the number.
fn send(pid: u32, signal: i32) -> Result<(), Refusal> {
    match kata_sys::child::signal(pid, signal) {
        Ok(()) => Ok(()),
        // It ends just now.
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        Err(error) => Err(Refusal::Internal(format!("signal {signal} to process {pid}: {error}"))),
    }
}

/// Tells a terminal its new size.
///
/// # Errors
/// [`Refusal::State`] when the process has none.
pub fn resize(pod: &Pod, request: &ResizeTerminalRequest) -> Result<Empty, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    pod.with(|state| {
        let terminal = find(state, id, exec)?.terminal.clone();
        let terminal = terminal.ok_or_else(|| Refusal::State("the process has no terminal".to_owned()))?;
        pty::set_window(terminal.as_fd(), size(request.columns), size(request.rows))
            .map_err(|error| Refusal::Internal(format!("set the size of the terminal: {error}")))
    })?;
    Ok(Empty::new())
}

/// Forgets a process; kills it first if it has not ended.
///
/// # Errors
/// [`Refusal::Internal`] when it does not die; it can be tried again then.
pub async fn delete(pod: Arc<Pod>, request: ProcessRef) -> Result<Empty, Refusal> {
    let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
    if exec.is_empty() {
        return Err(Refusal::Invalid(
            "the init of a container is deleted with its container".to_owned(),
        ));
    }
    let waiting = pod.with(|state| {
        let Some(Some(container)) = state.containers.get_mut(id) else {
            return Ok(None);
        };
        match container.execs.get(exec) {
            None => Ok(None),
            Some(None) => Err(Refusal::State(format!(
                "process {exec} of container {id} is being made"
            ))),
            Some(Some(process)) => {
                if process.ended().is_none() {
                    send(process.pid, KILL)?;
                }
                Ok(Some(process.exit.clone()))
            }
        }
    })?;
    let Some(mut exit) = waiting else {
        return Ok(Empty::new());
    };
    if timeout(KILL_LIMIT, exit.wait_for(Option::is_some)).await.is_err() {
        return Err(Refusal::Internal(format!(
            "process {exec} of container {id} survives being killed"
        )));
    }
    pod.with(|state| {
        if let Some(Some(container)) = state.containers.get_mut(id) {
            container.execs.remove(exec);
        }
        state.streams.forget(id, exec);
    });
    Ok(Empty::new())
}

/// The process of these ids: the init if `exec` is empty.
fn find<'a>(state: &'a mut State, id: &str, exec: &str) -> Result<&'a Process, Refusal> {
    let container = made(state.containers.get_mut(id), id)?;
    if exec.is_empty() {
        return Ok(&container.init);
    }
    container
        .execs
        .get(exec)
        .and_then(Option::as_ref)
        .ok_or_else(|| Refusal::no_process(id, exec))
}
