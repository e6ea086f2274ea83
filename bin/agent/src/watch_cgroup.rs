//! Waits for what a cgroup's event file says, woken by the kernel.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use kata_jail::cgroup::stats;
use tokio::io::Interest;
use tokio::time::timeout;

use crate::descriptor::watch_for;

/// Waits until `key` in the event file is `value`; answers whether that came within `limit`. A cgroup that has gone has
/// neither processes nor anything frozen.
///
/// # Errors
/// When the file cannot be watched.
pub async fn wait(events: &Path, key: &str, value: u64, limit: Duration) -> io::Result<bool> {
    let file: OwnedFd = match File::open(events) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(value == 0),
        other => other?.into(),
    };
    let mut reader = File::from(file.try_clone()?);
    let watched = watch_for(file, Interest::PRIORITY)?;
    let reached = async {
        loop {
            // Reading also arms the next event, so nothing between it and the wait is lost.
            let mut text = String::new();
            reader.rewind()?;
            match reader.read_to_string(&mut text) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(value == 0),
                other => other?,
            };
            if stats::flat(&text).get(key) == Some(&value) {
                return Ok(true);
            }
            watched.ready(Interest::PRIORITY).await?.clear_ready();
        }
    };
    timeout(limit, reached).await.unwrap_or(Ok(false))
}
