//! Templates that are images of QEMU's process: under TCG nearly all time of a clone would go into translating its guest's code, which has
//! been translated in the template.
//!
//! A machine of the plain template is stopped and written down; of its memory nothing is in the image. A machine of the image is a QEMU
//! that is started as always and made the image's before its first instruction (`kata-checkpoint`). What that one was connected to is replaced, number
//! by number; with the file server the conversation is begun for it (`vhost_user`).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use kata_checkpoint::{CheckpointError, Image, Kind, Needs};
use kata_machine::{Channel, Device, Machine, MachineError, MachineSpec, MemoryBacking, Template, TemplateFiles};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::launch::{self, Making};
use crate::machine::{self, QemuMachine};
use crate::render;
use crate::template;
use crate::vhost_user;

/// Whether the template is an image of a process.
pub(crate) fn is_in(template: &Template) -> Result<bool, MachineError> {
    Image::is_in(&template.state).map_err(|error| failed("read the template", error))
}

fn failed(act: &str, error: CheckpointError) -> MachineError {
    MachineError::Host {
        what: format!("cannot {act}"),
        source: std::io::Error::other(error),
    }
}

/// Makes a plain template one of this kind.
pub(crate) async fn save(
    spec: &MachineSpec,
    files: &TemplateFiles,
    greeting_limit: Duration,
) -> Result<(), MachineError> {
    let open = |path: &PathBuf| {
        File::open(path).map_err(|source| MachineError::Host {
            what: format!("cannot open {}", path.display()),
            source,
        })
    };
    let plain = Template {
        memory: open(&files.memory)?,
        state: open(&files.state)?,
    };
    let memory = template::memory(MemoryBacking::SharedMemfd, &plain)?;
    let kept = memory.try_clone().map_err(|e| MachineError::Host{what:"dup".into(), source:e})?;
    let shared = MachineSpec { memory_backing: MemoryBacking::SharedMemfd, ..spec.clone() };
    if let Channel::Serial { socket, .. } = &spec.channel {
        let _ = std::fs::remove_file(socket);
    }
    let machine = template::go_on(&shared, &plain, memory, greeting_limit).await?;
    machine.resume().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    machine.suspend().await?;
    std::fs::remove_file(&files.state).map_err(|e| MachineError::Host{what:"rm".into(), source:e})?;
    let state = File::options().write(true).create_new(true).mode(0o600).open(&files.state).map_err(|e| MachineError::Host{what:"mk".into(), source:e})?;
    let began = std::time::Instant::now();
    kata_checkpoint::capture(machine.pid(), &kept, &state).map_err(|error| failed("write QEMU down", error))?;
    tracing::info!("captured in {:?}", began.elapsed());
    machine.halt(Duration::ZERO).await;
    std::fs::remove_file(&files.memory).map_err(|e| MachineError::Host{what:"rm".into(), source:e})?;
    let mut to = File::options().write(true).create_new(true).mode(0o600).open(&files.memory).map_err(|e| MachineError::Host{what:"mk".into(), source:e})?;
    template::copy_into(&kept, &mut to).map_err(|e| MachineError::Host{what:"copy".into(), source:e.into()})?;
    Ok(())
}

/// A machine that stands where the image's did.
pub(crate) async fn restore(spec: &MachineSpec, template: &Template) -> Result<QemuMachine, MachineError> {
    let (image, pages_at) = Image::read(&template.state).map_err(|error| failed("read the template", error))?;
    let mut files = launch::open_nodes(&render::nodes(spec))?;
    let memory = template::memory(spec.memory_backing, template)?;
    let next = image.descriptors.iter().map(|it| it.number + 1).max().unwrap_or(3);
    let address = image.areas.iter().find(|a| matches!(a.source, kata_checkpoint::Source::Outside{..})).map_or(0, |a| a.start);
    for descriptor in &image.descriptors {
        let number = descriptor.number;
        if number <= 2 || files.iter().any(|&(_, given)| given == number) {
            continue;
        }
        let file = stand_in(spec, &descriptor.kind, &memory, address).await?;
        let Some(file) = file else { continue };
        files.push((file.into(), number));
    }
    let outside = image.descriptors.iter().find(|it| it.kind == Kind::Outside).map_or(-1, |it| it.number);
    let pages = template.state.try_clone().map_err(|source| MachineError::Host { what: "cannot open the template".into(), source })?;
    files.push((pages, next));
    let mut thawing = Thawing {
        image: &image,
        pages_at,
        needs: Needs {
            pages: next,
            outside,
            outside_shared: spec.memory_backing == MemoryBacking::SharedMemfd,
        },
        threads: Vec::new(),
    };
    let mut machine = machine::go_on(spec, files, &mut thawing)?;
    machine.threads = thawing.threads;
    Ok(machine)
}

/// What takes the place of a descriptor.
async fn stand_in(spec: &MachineSpec, kind: &Kind, memory: &File, address: u64) -> Result<Option<OwnedFd>, MachineError> {
    let host = |what: String| move |source| MachineError::Host { what, source };
    Ok(Some(match kind {
        Kind::Event { count, nonblocking } => {
            let flags = if *nonblocking { EfdFlags::EFD_NONBLOCK } else { EfdFlags::empty() };
            let count = u32::try_from(*count).unwrap_or(1);
            EventFd::from_value_and_flags(count, flags | EfdFlags::EFD_CLOEXEC)
                .map_err(|errno| host("cannot make an event".into())(errno.into()))?
                .into()
        }
        Kind::Signals { mask, nonblocking } => signals(*mask, *nonblocking).map_err(host("cannot make a signalfd".into()))?,
        Kind::File { path, flags } => File::options()
            .read(true)
            .custom_flags(*flags & !libc::O_ACCMODE)
            .open(path)
            .map_err(host(format!("cannot open {}", path.display())))?
            .into(),
        Kind::Outside => memory.try_clone().map_err(host("dup".into()))?.into(),
        Kind::Socket { listens: true, nonblocking, .. } => {
            let Channel::Serial { socket, .. } = &spec.channel else { return Ok(None) };
            let listener = UnixListener::bind(socket).map_err(host(format!("cannot listen on {}", socket.display())))?;
            listener.set_nonblocking(*nonblocking).map_err(host("nb".into()))?;
            listener.into()
        }
        Kind::Socket { peer: Some(_), nonblocking, .. } => {
            let socket = spec.devices.iter().find_map(|device| match device {
                Device::VirtioFs { socket, .. } => Some(socket),
                _ => None,
            });
            let Some(socket) = socket else { return Ok(None) };
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(host("pair".into()))?;
            let stream = vhost_user::greet(socket, theirs.into(), &vhost_user::Region { file: memory, size: u64::from(spec.memory_mib) << 20, address }).await.map_err(host(format!("cannot greet {}", socket.display())))?;
            BACK.with(|back| *back.borrow_mut() = Some(ours.into()));
            let stream = stream.into_std().map_err(host("std".into()))?;
            stream.set_nonblocking(*nonblocking).map_err(host("nb".into()))?;
            stream.into()
        }
        Kind::Socket { .. } => match BACK.with(|back| back.borrow_mut().take()) {
            Some(fd) => fd,
            None => return Err(MachineError::Unsupported("a socket too many".into())),
        },
        Kind::Other { link } => return Err(MachineError::Unsupported(format!("other {link}"))),
    }))
}

thread_local! { static BACK: std::cell::RefCell<Option<OwnedFd>> = const { std::cell::RefCell::new(None) }; }

fn signals(mask: u64, nonblocking: bool) -> std::io::Result<OwnedFd> {
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let mut set = SigSet::empty();
    for signal in Signal::iterator() {
        if mask & (1 << (signal as i32 - 1)) != 0 {
            set.add(signal);
        }
    }
    let flags = if nonblocking { SfdFlags::SFD_NONBLOCK } else { SfdFlags::empty() };
    let fd = SignalFd::with_flags(&set, flags | SfdFlags::SFD_CLOEXEC)?;
    // SAFETY-free: duplicate through std.
    Ok(std::os::fd::AsFd::as_fd(&fd).try_clone_to_owned()?)
}

/// Makes a QEMU the image's.
struct Thawing<'a> {
    image: &'a Image,
    pages_at: u64,
    needs: Needs,
    threads: Vec<(u32, u32)>,
}

impl Making for Thawing<'_> {
    fn prepare(&self, command: &mut std::process::Command) {
        kata_checkpoint::begin(command);
    }

    fn make(&mut self, pid: u32) -> Result<(), MachineError> {
        let began = std::time::Instant::now();
        let restored = kata_checkpoint::restore(pid, self.image, self.pages_at, self.needs)
            .map_err(|error| failed("make QEMU of the template", error))?;
        tracing::info!("restored in {:?}", began.elapsed());
        let id = |(old, new): (i32, i32)| (old.cast_unsigned(), new.cast_unsigned());
        self.threads = restored.threads.into_iter().map(id).collect();
        Ok(())
    }
}
