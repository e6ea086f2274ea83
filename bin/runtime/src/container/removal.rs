//! Removes containers: by asking their sandbox process, and if need be without it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::{ShutdownRequest, Status};
use kata_sandbox::record::{Home, Mark};
use kata_sandbox::recover;
use nix::libc;
use tokio::time::timeout;

use crate::container::client::{Connection, Found, short};

/// How long a sandbox process gets to end by itself, and a guest to answer that is to end anyway.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes a container. One that runs is killed if `force`d, else it is an error.
///
/// # Errors
/// A running container without `force`; processes or files that do not go away.
pub async fn remove(found: &Found, force: bool) -> Result<()> {
    match found.connect().await {
        Ok(Some(connection)) => {
            let asked = ask(&connection, force, found.is_member()).await;
            if !force {
                asked?;
            } else if let Err(error) = asked {
                tracing::warn!(error = %format!("{error:#}"), "removing by force");
            }
        }
        Ok(None) => {}
        Err(error) if force => tracing::warn!(error = %format!("{error:#}"), "removing by force"),
        Err(error) => return Err(error),
    }
    wait_for_end(&found.home);
    recover::clean(&found.home).with_context(|| format!("cannot clean up after container \"{}\"", found.id))
}

async fn ask(connection: &Connection, force: bool, member: bool) -> Result<()> {
    // A guest that goes with its container is not waited for as long as one that goes on.
    let patience = if force && !member { PATIENCE } else { Duration::MAX };
    let state = connection.state().await;
    // A sandbox process without the container has nothing to lose.
    if let Ok(state) = state {
        let status = state.status.enum_value_or(Status::UNKNOWN);
        let over = status == Status::STOPPED;
        // As runc: what was never started has nothing to lose.
        if !over && status != Status::CREATED && !force {
            let word = format!("{status:?}").to_lowercase();
            bail!(
                "cannot delete container \"{}\" that is not stopped: {word}",
                connection.id()
            );
        }
        if !over {
            // It may end by itself in this very moment.
            let kill = connection.kill("", libc::SIGKILL.unsigned_abs(), true);
            let _ = timeout(patience, kill).await;
            let _ = timeout(PATIENCE, connection.wait("")).await;
        }
        match timeout(patience, connection.delete("")).await {
            Ok(deleted) => deleted?,
            Err(_) => tracing::warn!("the guest does not answer; its machine is ended"),
        }
    }
    if member {
        return Ok(());
    }
    let request = ShutdownRequest {
        id: connection.id().to_owned(),
        now: true,
        ..Default::default()
    };
    // The process may end before it answers.
    let _ = connection.task.shutdown(short(), &request).await;
    Ok(())
}

fn wait_for_end(home: &Home) {
    let process = home.read().ok().and_then(|record| record.sandbox).and_then(Mark::open);
    if let Some(process) = process
        && !matches!(process.wait(PATIENCE), Ok(true))
    {
        tracing::warn!("the sandbox process does not end by itself; it is killed");
    }
}

/// Buries a container whose creation failed. What cannot be removed is logged: there is an error to report already.
pub async fn bury(home: &Home) {
    if let Ok(record) = home.read()
        && record.pod.is_some()
    {
        let found = Found {
            home: home.clone(),
            id: record.id.clone(),
            record,
        };
        if let Ok(Some(connection)) = found.connect().await {
            let _ = ask(&connection, true, true).await;
        }
    }
    if let Err(error) = recover::clean(home) {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot clean up");
    }
}
