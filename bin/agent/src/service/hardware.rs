//! CPUs and memory that the machine was given while it runs: the kernel announces them, and waits for somebody to take them
//! into use. What it was given but is not to use stays switched off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_wire::proto::{OnlineRequest, OnlineResponse};
use tokio::time::timeout;

use super::refusal::Refusal;
use crate::pod::Pod;
use crate::uevents::Uevents;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// Longer waits are not for the host to ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Switches on and off until the guest has what is asked for, or the time is over; answers what it has.
///
/// # Errors
/// [`Refusal::Internal`] when `/sys` cannot be read, or the driver of memory not be loaded.
pub async fn online(pod: &Pod, request: &OnlineRequest) -> Result<OnlineResponse, Refusal> {
    let failed = |error: &dyn std::fmt::Display| Refusal::Internal(format!("take hardware into use: {error}"));
    // Brings memory on machines that have such a device; on others, nothing.
    pod.modules.load("virtio_mem").map_err(|error| failed(&error))?;
    let limit = Duration::from_millis(request.limit_msecs.into()).min(LONGEST_WAIT);
    let coming = async {
        // Listening first, so that nothing happens unheard between the look and the wait.
        let events = Uevents::listen()?;
        loop {
            let here = take(Path::new(CPUS), Path::new(MEMORY), request.vcpus)?;
            if here.0 >= request.vcpus && here.1 >= request.memory_mib {
                return Ok(here);
            }
            events.next().await?;
        }
    };
    let here: io::Result<_> = match timeout(limit, coming).await {
        Ok(here) => here,
        Err(_) => take(Path::new(CPUS), Path::new(MEMORY), request.vcpus),
    };
    let (vcpus, memory_mib) = here.map_err(|error| failed(&error))?;
    tracing::info!(vcpus, memory_mib, "hardware in use");
    Ok(OnlineResponse {
        vcpus,
        memory_mib,
        ..Default::default()
    })
}

/// Has the first `vcpus` CPUs run and no others, and every block of memory that is there; answers how many CPUs and MiB
/// run then.
fn take(cpus: &Path, memory: &Path, vcpus: u32) -> io::Result<(u32, u64)> {
    let mut running = 0;
    for (index, cpu) in numbered(cpus, "cpu")?.into_iter().enumerate() {
        let wanted = index < vcpus as usize;
        let file = cpu.join("online");
        running += u32::from(switch(&file, &file, if wanted { "1" } else { "0" }, wanted)?);
    }
    let block = fs::read_to_string(memory.join("block_size_bytes"))?;
    let block_mib = u64::from_str_radix(block.trim(), 16).map_err(io::Error::other)? >> 20;
    let mut memory_mib = 0;
    for block in numbered(memory, "memory")? {
        if switch(&block.join("online"), &block.join("state"), "online", true)? {
            memory_mib += block_mib;
        }
    }
    Ok((running, memory_mib))
}

/// Every `PREFIXn` of a directory, in the order of the numbers.
fn numbered(directory: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Has what the file `online` speaks of run or not, by writing `word` to `file`; answers whether it runs then.
fn switch(online: &Path, file: &Path, word: &str, wanted: bool) -> io::Result<bool> {
    let runs = match fs::read_to_string(online) {
        // The first CPU cannot be switched, and has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        text => text?.trim() == "1",
    };
    if runs == wanted {
        return Ok(runs);
    }
    match fs::write(file, word) {
        Ok(()) => Ok(wanted),
        Err(error) => {
            tracing::warn!("{}: {error}", file.display());
            Ok(runs)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_brought_up_and_counted() {
        let root = std::env::temp_dir().join(format!("kata-hardware-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let file = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("file");
        };
        file("cpu/cpu0/topology", "");
        file("cpu/cpu1/online", "1\n");
        file("cpu/cpu2/online", "0\n");
        file("cpu/cpufreq/online", "0\n");
        file("cpu/cpuidle/x", "");
        file("memory/block_size_bytes", "8000000\n");
        file("memory/memory0/online", "1\n");
        file("memory/memory32/online", "0\n");
        file("memory/memory32/state", "offline\n");
        let take = |vcpus| take(&root.join("cpu"), &root.join("memory"), vcpus).expect("taken");
        assert_eq!(take(3), (3, 256));
        let said = |path: &str| fs::read_to_string(root.join(path)).expect("file");
        assert_eq!(
            (said("cpu/cpu2/online"), said("memory/memory32/state")),
            ("1".into(), "online".into())
        );
        assert_eq!(said("cpu/cpufreq/online"), "0\n");
        assert_eq!(take(1), (1, 256));
        assert_eq!(
            (said("cpu/cpu1/online"), said("cpu/cpu2/online")),
            ("0".into(), "0".into())
        );
        fs::remove_dir_all(root).expect("clean up");
    }
}
