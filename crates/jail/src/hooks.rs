//! The `startContainer` hooks: programs of the container that run in it right before its own program. All other hooks
//! are the host's.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use oci_spec::runtime::Hook;

use crate::fault::{Fault, Naming};

/// Runs the hooks in order, each with the container's state on its stdin. The first that fails ends the container.
pub(crate) fn run(hooks: &[Hook], state: &str) -> Result<(), Fault> {
    hooks.iter().try_for_each(|hook| run_one(hook, state))
}

fn run_one(hook: &Hook, state: &str) -> Result<(), Fault> {
    let path: &Path = hook.path();
    let mut command = Command::new(path);
    let arguments = hook.args().as_deref().unwrap_or_default();
    if let Some(name) = arguments.first() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command
        .args(arguments.iter().skip(1))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    command.envs(
        hook.env()
            .iter()
            .flatten()
            .filter_map(|variable| variable.split_once('=')),
    );
    let mut child = command.spawn().on("run startContainer hook", path)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        let _ = stdin.write_all(state.as_bytes());
    }
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0);
    if let Some(seconds) = limit {
        let ended = kata_sys::process::PidFd::open(child.id())
            .and_then(|handle| handle.wait(std::time::Duration::from_secs(seconds)))
            .on("wait for startContainer hook", path)?;
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(path, "has not ended in time"));
        }
    }
    let status = child.wait().on("wait for startContainer hook", path)?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(path, "has failed"))
    }
}

fn failed(path: &Path, expected: &'static str) -> Fault {
    Fault::Value {
        what: "startContainer hook",
        value: path.display().to_string(),
        expected,
    }
}
