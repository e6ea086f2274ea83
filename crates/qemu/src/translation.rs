//! The code into which QEMU translates the guest's under TCG. It keeps all that there is room for, and nearly all of it is
//! of the guest's boot, which does not come again: a third of a pod's memory.
//!
//! QEMU empties the buffer by itself when it is full, and when the guest stops for a debugger. So it is debugged for a
//! step; then it has no use for the buffer's pages, and the kernel takes them back.

use std::io;
use std::path::Path;
use std::time::Duration;

use kata_machine::{Machine, MachineError};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::debugger::Debugger;
use crate::machine::QemuMachine;

/// Less than so many bytes are not worth it.
const WORTH: u64 = 16 << 20;

/// So many at its beginning hold QEMU's own way into what it has translated, and stay.
const WAY_IN: u64 = 64 << 10;

/// How long the guest may take to do one thing more. One that idles does so every few seconds, and runs on meanwhile.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// How long QEMU may take to empty the buffer of a guest that has stopped, and how often it is asked whether it has.
const EMPTY_LIMIT: Duration = Duration::from_secs(1);
const EMPTY_STEP: Duration = Duration::from_millis(1);

/// Empties the buffer of a machine that runs, if that is worth it, and gives its pages back. QEMU's debugger port is at
/// `socket` meanwhile. Answers how many bytes were in it; the guest runs again in any case.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn forget(machine: &QemuMachine, socket: &Path) -> Result<u64, MachineError> {
    let before = Buffer::of(machine).await?;
    if before.used < WORTH {
        return Ok(0);
    }
    let port = format!("unix:{},server=on,wait=off", socket.display()).replace(['"', '\\'], "");
    monitor(machine, &format!("gdbserver \"{port}\"")).await?;
    let forgotten = forget_between(machine, socket, before).await;
    let ended = async {
        // A step that is still to come is called off by this.
        machine.suspend().await?;
        monitor(machine, "gdbserver none").await?;
        machine.resume().await
    };
    let ended = ended.await;
    let _ = std::fs::remove_file(socket);
    forgotten.and(ended).map(|()| before.used)
}

/// The part for which the guest stands still.
async fn forget_between(machine: &QemuMachine, socket: &Path, before: Buffer) -> Result<(), MachineError> {
    let stepped = timeout(STEP_LIMIT, async { Debugger::connect(socket).await?.step().await });
    stepped
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(MachineError::host("have the guest do a step"))?;
    let emptied = timeout(EMPTY_LIMIT, async {
        while Buffer::of(machine).await?.emptied == before.emptied {
            sleep(EMPTY_STEP).await;
        }
        Ok::<_, MachineError>(())
    });
    emptied
        .await
        .map_err(|_| MachineError::host("have QEMU empty its buffer for translated code")(io::ErrorKind::TimedOut))??;
    take_back(machine)
}

fn take_back(machine: &QemuMachine) -> Result<(), MachineError> {
    let what = "take back QEMU's buffer for translated code";
    if machine.exit().borrow().is_some() {
        return Err(MachineError::host(what)(io::ErrorKind::NotFound));
    }
    let mut parts = kata_checkpoint::made_code(machine.pid()).map_err(MachineError::host(what))?;
    match parts.first_mut() {
        Some(first) => first.start += WAY_IN,
        // A host that allows no such memory has it in two places.
        None => return Err(MachineError::host(what)(io::ErrorKind::Unsupported)),
    }
    kata_checkpoint::take_back(machine.pid(), &parts).map_err(MachineError::host(what))
}

/// Runs a command of QEMU's monitor for people. Its answer is for people, too.
async fn monitor(machine: &QemuMachine, line: &str) -> Result<(), MachineError> {
    let arguments = json!({ "command-line": line });
    let answer = machine.ask("human-monitor-command", arguments).await?;
    tracing::debug!(line, %answer, "QEMU's monitor");
    Ok(())
}

/// What QEMU tells of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffer {
    /// Bytes.
    used: u64,
    /// How many times it was emptied.
    emptied: u64,
}

impl Buffer {
    async fn of(machine: &QemuMachine) -> Result<Self, MachineError> {
        const COMMAND: &str = "x-query-jit";
        let told = machine.ask(COMMAND, Value::Null).await?;
        let text = told["human-readable-text"].as_str().unwrap_or_default();
        Self::read(text).ok_or_else(|| {
            let told = format!("{COMMAND} tells {text:.200?}, and not how full the buffer is");
            MachineError::host("find out about QEMU's buffer for translated code")(io::Error::new(
                io::ErrorKind::InvalidData,
                told,
            ))
        })
    }

    fn read(text: &str) -> Option<Self> {
        let after = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let (used, _size) = after("gen code size")?.trim().split_once('/')?;
        Some(Self {
            used: used.parse().ok()?,
            emptied: after("TB flush count")?.trim().parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_words_are_read() {
        let told = "Translation buffer state:\ngen code size       57671680/67104768\nTB count            102417\n\
                    TB avg target size  17 max=1024 bytes\nStatistics:\nTB flush count      3\nTB invalidate count 41\n";
        let read = Buffer {
            used: 57_671_680,
            emptied: 3,
        };
        assert_eq!(Buffer::read(told), Some(read));
        for bad in [
            "",
            "gen code size 1\nTB flush count 1",
            "gen code size 1/2\n",
            "gen code size x/2\nTB flush count 1",
        ] {
            assert_eq!(Buffer::read(bad), None, "{bad}");
        }
    }
}
