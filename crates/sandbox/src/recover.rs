//! Cleans up after a sandbox whose process is gone, or has to go.
//!
//! The mounts of a sandbox live in its process's own mount namespace and its children die with it, so little is left to
//! do: make sure of the processes by the record, take back what is in the pod's network namespace, and remove the
//! directory. Works from the record alone.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::error::SandboxError;
use crate::hooks::HostHooks;
use crate::network;
use crate::record::{Home, Mark};
use kata_storage::origin::Origin;

/// Why a sandbox could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A process does not end, not even killed.
    #[error("process {pid} of the sandbox does not end")]
    Unkillable {
        /// Its pid.
        pid: u32,
    },
    /// A process could not be killed or watched.
    #[error("cannot end process {pid} of the sandbox")]
    Kill {
        /// Its pid.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something was left in the pod's network namespace.
    #[error("cannot clean up the pod's network namespace")]
    Network {
        /// What.
        #[source]
        source: Box<SandboxError>,
    },
    /// The directory could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The sandbox's directory.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How long what is still in a cgroup may take to be gone. It has been killed, or is about to end by itself.
const CGROUP_LIMIT: Duration = Duration::from_secs(3);

/// Version 1 of cgroups tells nobody when one is empty.
const CGROUP_LOOK: Duration = Duration::from_millis(10);

/// The sandbox process runs.
pub fn is_alive(home: &Home) -> bool {
    matches!(home.read(), Ok(record) if record.sandbox.is_some_and(|mark| mark.open().is_some()))
}

/// Kills what runs of the sandbox and removes its directory. That there is nothing is no error.
///
/// # Errors
/// See [`RecoverError`]. The directory stays as long as a process does.
pub fn clean(home: &Home) -> Result<(), RecoverError> {
    match home.read() {
        Ok(record) => {
            // The sandbox process first: it would only wonder where its children went.
            for mark in record.sandbox.iter().chain(&record.helpers) {
                end(*mark)?;
            }
            if let Some(network) = &record.network {
                network::take_back(network).map_err(|source| RecoverError::Network {
                    source: Box::new(source),
                })?;
            }
            run_poststop(record.hooks.into_values().collect());
            remove_cgroups(&record.made_cgroups);
        }
        Err(error) if error.is_absent() => {}
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cleaning up without a record"),
    }
    home.remove().map_err(|source| RecoverError::Remove {
        path: home.path().to_owned(),
        source,
    })
}

/// Runs the last hooks of containers that nobody has deleted. On a thread of its own, because the caller may have an
/// asynchronous runtime.
fn run_poststop(hooks: Vec<HostHooks>) {
    if hooks.is_empty() {
        return;
    }
    let run = move || -> io::Result<()> {
        let origin = Origin::here()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            for hooks in hooks {
                hooks.run_poststop(&origin).await;
            }
        });
        Ok(())
    };
    if let Ok(Err(error)) = std::thread::spawn(run).join() {
        tracing::warn!(%error, "poststop hooks were not run");
    }
}

/// Removes the cgroups that were made for a pod, as soon as nobody is in them. That they are gone is fine.
pub(crate) fn remove_cgroups(made: &[PathBuf]) {
    let began = Instant::now();
    while !kata_cgroup::remove(made) {
        if began.elapsed() > CGROUP_LIMIT {
            return tracing::warn!(cgroups = ?made, "a process stays in a cgroup of the pod");
        }
        std::thread::sleep(CGROUP_LOOK);
    }
}

/// The same, where others must not wait.
pub(crate) async fn remove_cgroups_by_and_by(made: &[PathBuf]) {
    let began = Instant::now();
    while !kata_cgroup::remove(made) {
        if began.elapsed() > CGROUP_LIMIT {
            return tracing::warn!(cgroups = ?made, "a process stays in a cgroup of the pod");
        }
        tokio::time::sleep(CGROUP_LOOK).await;
    }
}

fn end(mark: Mark) -> Result<(), RecoverError> {
    let Some(process) = mark.open() else {
        return Ok(());
    };
    let failed = |source| RecoverError::Kill { pid: mark.pid, source };
    match process.signal(Signal::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
        other => other.map_err(failed)?,
    }
    if process.wait(Duration::from_secs(10)).map_err(failed)? {
        Ok(())
    } else {
        Err(RecoverError::Unkillable { pid: mark.pid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    #[test]
    fn what_runs_is_ended_and_the_directory_goes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let mut record = Record::new("c".into(), "default".into(), "/b".into());
        record.sandbox = Some(Mark::of(child.id()).expect("it runs"));
        home.write(&record).expect("write");
        assert!(is_alive(&home));
        clean(&home).expect("clean");
        let status = child.wait().expect("reap");
        assert!(!status.success());
        assert!(!home.path().exists());
        clean(&home).expect("nothing left to clean");
    }

    #[test]
    fn last_hooks_that_nobody_ran_are_run() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let mut spec = serde_json::to_value(kata_bundle::default_spec()).expect("a spec");
        let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", "cat >last"]});
        spec["hooks"] = serde_json::json!({"poststop": [{"path": "/no/such/hook"}, hook]});
        let bundle = kata_bundle::Bundle::from_json(dir.path(), spec.to_string().as_bytes()).expect("a bundle");
        let mut record = Record::new("c".into(), "default".into(), "/b".into());
        record
            .hooks
            .insert("c".into(), HostHooks::of("c", &bundle).expect("hooks"));
        home.write(&record).expect("write");
        assert_eq!(home.read().expect("read"), record);
        clean(&home).expect("clean");
        let state = std::fs::read_to_string(dir.path().join("last")).expect("it was run, in the bundle");
        assert!(state.contains("\"status\":\"stopped\""), "{state}");
    }

    #[test]
    fn a_pid_that_is_another_process_now_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let me = Mark::of(std::process::id()).expect("I run");
        let mut record = Record::new("c".into(), "default".into(), "/b".into());
        record.helpers.push(Mark {
            start_ticks: me.start_ticks + 1,
            ..me
        });
        home.write(&record).expect("write");
        assert!(!is_alive(&home));
        clean(&home).expect("clean");
    }
}
