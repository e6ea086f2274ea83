//! Templates: a machine is written to files while its agent listens, and others go on from there.
//!
//! QEMU does it as a migration. The memory is not in the stream, because it is a file (`x-ignore-shared`). A machine of a
//! template maps that file privately, so that all share what none has written to; one with vhost-user daemons, which see only
//! memory that is shared with them, gets a copy. It refuses vsock: nothing tells when the guest listens there.

use std::fs::{File, OpenOptions};
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use kata_machine::{Channel, Exit, Machine, MachineError, MachineSpec, MemoryBacking, Template};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile64;
use nix::unistd::{Whence, lseek64};
use serde_json::{Value, json};

use crate::imprint;
use crate::machine::{self, QemuMachine};
use crate::news::News;
use crate::render::{self, Start};

/// How long writing or reading the state may take: 0.2 MB, some 20 ms.
const TRANSFER_LIMIT: Duration = Duration::from_secs(30);

/// The name by which QEMU opens a file that was handed over.
const HANDED_OVER: &str = "file:/dev/fdset/1";

/// What is in a template: the command line of a boot, without what is measured anew each time.
///
/// # Errors
/// [`MachineError::Unsupported`]
pub(crate) fn recipe(spec: &MachineSpec) -> Result<Vec<String>, MachineError> {
    if let Channel::Vsock { .. } = spec.channel {
        let message = "no template of a machine with vsock: nothing tells when its agent listens";
        return Err(MachineError::Unsupported(message.into()));
    }
    render::command_line(spec, Start::Boot, None)
}

/// A machine that goes on where the template ended.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn restore(
    spec: &MachineSpec,
    template: &Template,
    greeting_limit: Duration,
) -> Result<QemuMachine, MachineError> {
    recipe(spec)?;
    let memory = memory(spec.memory_backing, template)?;
    let machine = if imprint::is_in(template)? {
        imprint::restore(spec, template, memory).await?
    } else {
        go_on(spec, template, memory, greeting_limit).await?
    };
    machine.resume().await?;
    Ok(machine)
}

/// The memory of a new machine of the template.
fn memory(backing: MemoryBacking, template: &Template) -> Result<File, MachineError> {
    match backing {
        MemoryBacking::Private => {
            let opened = template.memory.try_clone();
            opened.map_err(MachineError::host("open the template's memory"))
        }
        MemoryBacking::SharedMemfd => copy(&template.memory).map_err(MachineError::host("copy the template's memory")),
    }
}

/// A machine with this memory that stands where the template's state says.
pub(crate) async fn go_on(
    spec: &MachineSpec,
    template: &Template,
    memory: File,
    greeting_limit: Duration,
) -> Result<QemuMachine, MachineError> {
    let opened = template.state.try_clone();
    let mut state = opened.map_err(MachineError::host("open the template"))?;
    // Clones of a descriptor have one position.
    state.rewind().map_err(MachineError::host("rewind the template"))?;
    let machine = machine::start(spec, Start::Restore, Some(memory), greeting_limit).await?;
    transfer(&machine, "migrate-incoming", state.into()).await?;
    // What it has read it needs not keep open.
    machine
        .execute_with("remove-fd", json!({ "fdset-id": 1 }), None)
        .await?;
    Ok(machine)
}

/// Writes the machine to `state`, or reads it from there.
pub(crate) async fn transfer(machine: &QemuMachine, command: &'static str, state: OwnedFd) -> Result<(), MachineError> {
    let capability = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [capability("x-ignore-shared"), capability("events")] });
    machine
        .execute_with("migrate-set-capabilities", capabilities, None)
        .await?;
    machine
        .execute_with("add-fd", json!({ "fdset-id": 1 }), Some(state))
        .await?;
    let mut news = machine.listen();
    machine
        .execute_with(command, json!({ "uri": HANDED_OVER }), None)
        .await?;
    let is_over = |news| match news {
        News::Migration(status) if status == "completed" => Some(true),
        News::Migration(status) if status == "failed" => Some(false),
        _ => None,
    };
    if machine.hear(&mut news, command, is_over, TRANSFER_LIMIT).await? {
        return Ok(());
    }
    let told = machine.ask("query-migrate", Value::Null).await?;
    Err(MachineError::Refused {
        command: command.into(),
        reason: told["error-desc"].as_str().unwrap_or("it does not say why").to_owned(),
    })
}

/// A file in memory with the same data and holes.
fn copy(memory: &File) -> nix::Result<File> {
    let copy = File::from(memfd_create(c"kata-memory", MFdFlags::MFD_CLOEXEC)?);
    copy_into(memory, &copy)?;
    Ok(copy)
}

/// Gives an empty file the same data and holes.
pub(crate) fn copy_into(memory: &File, copy: &File) -> nix::Result<()> {
    let length = lseek64(memory, 0, Whence::SeekEnd)?;
    nix::unistd::ftruncate(copy, length)?;
    let mut hole = 0;
    while hole < length {
        let mut data = match lseek64(memory, hole, Whence::SeekData) {
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => break,
            data => data?,
        };
        hole = lseek64(memory, data, Whence::SeekHole)?;
        lseek64(copy, data, Whence::SeekSet)?;
        while data < hole {
            let left = usize::try_from(hole - data).unwrap_or(usize::MAX);
            if sendfile64(copy.as_fd(), memory.as_fd(), Some(&mut data), left)? == 0 {
                return Err(Errno::EIO);
            }
        }
    }
    Ok(())
}

/// A new file to be written, for nobody else to read.
pub(crate) fn create(path: &Path) -> Result<File, MachineError> {
    create_as(path, File::options().write(true))
}

/// A new file to be written and read, for nobody else.
pub(crate) fn create_memory(path: &Path) -> Result<File, MachineError> {
    create_as(path, File::options().write(true).read(true))
}

fn create_as(path: &Path, options: &mut OpenOptions) -> Result<File, MachineError> {
    options.create_new(true).mode(0o600);
    options.open(path).map_err(host("create", path))
}

/// As [`MachineError::host`], of a file.
pub(crate) fn host<E: Into<std::io::Error>>(act: &str, path: &Path) -> impl FnOnce(E) -> MachineError {
    MachineError::host(format!("{act} {}", path.display()))
}

/// The kernel ends who writes to a page for which its file system has no room.
pub(crate) fn explain(error: MachineError, memory: &Path) -> MachineError {
    match error {
        MachineError::Died {
            exit: Exit {
                status: Err(libc::SIGBUS),
                ..
            },
            ..
        } => host("write", memory)(std::io::Error::from_raw_os_error(libc::ENOSPC)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let memory = File::create_new(place.path().join("memory")).expect("memory");
        memory.set_len(64 << 20).expect("size");
        let pieces = [(0, 5), (1 << 20, 3 << 20), (40 << 20, 4096)];
        for (at, length) in pieces {
            memory.write_all_at(&vec![b'x'; length], at).expect("data");
        }
        let memory = File::open(place.path().join("memory")).expect("memory");
        for _ in 0..2 {
            let copy = copy(&memory).expect("copied");
            let (data, expected) = (copy.metadata().expect("copy"), memory.metadata().expect("memory"));
            assert_eq!(data.len(), expected.len());
            assert_eq!(data.blocks(), expected.blocks(), "holes stay holes");
            for (at, length) in pieces {
                let mut bytes = vec![0; length + 1];
                copy.read_exact_at(&mut bytes, at).expect("data");
                assert!(bytes[..length].iter().all(|&byte| byte == b'x'), "{at}");
                assert_eq!(bytes[length], 0, "{at}");
            }
        }
    }

    #[test]
    fn a_guest_that_finds_no_room_is_explained() {
        let died = |status| MachineError::Died {
            vmm: "/qemu".into(),
            exit: Exit {
                status,
                messages: String::new(),
            },
        };
        let error = explain(died(Err(libc::SIGBUS)), Path::new("/t/memory"));
        assert!(
            matches!(&error, MachineError::Host { what, source }
            if what == "cannot write /t/memory" && source.raw_os_error() == Some(libc::ENOSPC)),
            "{error:?}"
        );
        assert!(matches!(
            explain(died(Err(9)), Path::new("/t/memory")),
            MachineError::Died { .. }
        ));
    }
}
