//! What a pod gets when it has been there for a while, so that one which only runs something short does without: its free
//! memory given back to the host, and large files of the host read in large pieces.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::balloon;
use crate::pod::Pod;

/// How long after the set-up.
const REST: Duration = Duration::from_secs(3);

/// How much of a file of the host that is read in sequence, or of a mapping, is asked for in advance, KiB. The kernel's own is 128,
/// of which the way to the host and back is half the time (docs/decisions/0007-file-cache.md); a start needs less of
/// most files than this.
const READ_AHEAD: &str = "512";

/// Begins it, later. May be repeated.
pub fn begin_soon(pod: &Arc<Pod>, balloon: bool) {
    if balloon {
        balloon::prepare();
    }
    let pod = Arc::clone(pod);
    tokio::spawn(async move {
        tokio::time::sleep(REST).await;
        if balloon {
            balloon::begin(&pod);
        }
        if let Err(error) = read_ahead() {
            tracing::warn!("files of the host are read in small pieces: {error}");
        }
    });
}

/// Says it to the kernel for all shares.
fn read_ahead() -> io::Result<()> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    for device in shares(&table) {
        match fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD) {
            // What the host has mounted below a share has the share's.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The devices, `MAJOR:MINOR`, of what is mounted by virtio-fs (proc(5), `mountinfo`).
fn shares(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let (mount, of_type) = line.split_once(" - ")?;
        let device = mount.split(' ').nth(2)?;
        of_type.starts_with("virtiofs ").then_some(device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_what_virtio_fs_mounts() {
        let table = "22 1 0:2 / / rw - rootfs none rw\n\
                     30 22 0:27 / /run/kata/shared rw,relatime shared:1 - virtiofs kataShared rw\n\
                     31 22 0:28 / /virtiofs\\040 rw - tmpfs virtiofs rw\n\
                     damaged\n";
        assert_eq!(shares(table).collect::<Vec<_>>(), ["0:27"]);
    }
}
