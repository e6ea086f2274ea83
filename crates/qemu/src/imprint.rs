//! Templates that are images of a QEMU process. Under TCG most of a clone's time would go into the translation of its
//! guest's code; an image has what was translated, and clones share it.
//!
//! A machine of a plain template, whose guest has rehearsed, is stopped and written down, without its memory, which is a
//! file already. A clone is a QEMU that is started as always, and made what is in the image before its first instruction
//! (`kata-checkpoint`). What the one in the image was connected to is replaced, number by number; the conversation with the
//! file server is begun anew in its name (`vhost_user`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use kata_checkpoint::{Descriptor, Image, Kind, Needs, Source};
use kata_machine::{
    Accelerator, Channel, Device, Machine, MachineError, MachineSpec, MemoryBacking, MemoryGrowth, Template,
};
use kata_sys::tun::frame;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::launch::{self, Making};
use crate::machine::{self, QemuMachine};
use crate::render;
use crate::vhost_user::{self, Region};

/// Up to here the guest's memory is one piece that begins at address 0, MiB, on every machine type.
const ONE_PIECE_MIB: u32 = 2048;

/// Standard input, output and errors: control, console and messages of every QEMU of ours.
const STDIO: RawFd = 3;

/// In front of each packet of a tap: what the guest's driver has agreed on with QEMU, virtio 1's header, bytes. Of what Linux may
/// leave to the host with it, QEMU has told the image's taps the part that every kernel of a host has.
const PACKET_HEADER: i32 = 12;

/// Whether machines like this one can be written down so, and gain from it.
pub(crate) fn suits(spec: &MachineSpec) -> bool {
    cfg!(target_arch = "x86_64")
        && spec.accelerator == Accelerator::Tcg
        && spec.memory_mib <= ONE_PIECE_MIB
        // A process of an image would be without it.
        && spec.seccomp_sandbox.is_empty()
        && matches!(spec.channel, Channel::Serial { .. })
        // Its room is memory that is shared, too, and not the template's.
        && !spec.growth.is_some_and(|growth| growth.memory == MemoryGrowth::Virtio)
}

/// Whether the template is one of these.
pub(crate) fn is_in(template: &Template) -> Result<bool, MachineError> {
    Image::is_in(&template.state).map_err(MachineError::host("read the template"))
}

/// Writes a machine that stands still into `state`; its memory is in `memory`.
pub(crate) fn write(machine: &QemuMachine, memory: &File, state: &File) -> Result<(), MachineError> {
    let image = kata_checkpoint::capture(machine.pid(), memory, state)
        .map_err(MachineError::host("write QEMU's process down"))?;
    Roles::of(&image).map(drop)
}

/// A machine with this memory that stands where the image's did.
pub(crate) async fn restore(
    spec: &MachineSpec,
    template: &Template,
    memory: File,
) -> Result<QemuMachine, MachineError> {
    let (image, pages_at) = Image::read(&template.state).map_err(MachineError::host("read the template"))?;
    let roles = Roles::of(&image)?;
    let pages = template
        .state
        .try_clone()
        .map_err(MachineError::host("open the template"))?;
    let needs = Needs {
        pages: image.descriptors.iter().map(|it| it.number + 1).max().unwrap_or(STDIO),
        outside: roles.memory,
        outside_shared: spec.memory_backing == MemoryBacking::SharedMemfd,
        // As QEMU does with all memory.
        outside_mergeable: true,
    };
    let mut files = launch::open_nodes(&render::nodes(spec))?;
    for (tap, _) in &files {
        frame(tap, PACKET_HEADER).map_err(MachineError::host("make a tap what it was for QEMU"))?;
    }
    files.push((pages, needs.pages));
    files.extend(roles.sockets(spec, &memory).await?);
    for descriptor in &image.descriptors {
        let number = descriptor.number;
        if number >= STDIO && !files.iter().any(|&(_, given)| given == number) {
            files.push((stand_in(spec, descriptor, &memory)?.into(), number));
        }
    }
    let mut making = Imprinting {
        image: &image,
        pages_at,
        needs,
        threads: Vec::new(),
    };
    let mut machine = machine::go_on(spec, files, &mut making)?;
    machine.threads = making.threads;
    Ok(machine)
}

/// Which of its descriptors QEMU uses for what.
struct Roles {
    /// Where it waits for who wants to talk to the agent, and whether that blocks.
    channel: (RawFd, bool),
    /// The connection to the file server, if there is one, whether that blocks, and where it listens for the server's requests.
    share: Option<(RawFd, bool, RawFd)>,
    /// The guest's memory,
    memory: RawFd,
    /// and the address at which it is mapped.
    memory_at: u64,
}

impl Roles {
    fn of(image: &Image) -> Result<Self, MachineError> {
        let (mut channels, mut shares, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        for Descriptor { number, kind } in image.descriptors.iter().filter(|it| it.number >= STDIO) {
            if let Kind::Socket {
                listens,
                peer,
                nonblocking,
                ..
            } = kind
            {
                match (listens, peer) {
                    (true, _) => channels.push((*number, *nonblocking)),
                    (false, Some(_)) => shares.push((*number, *nonblocking)),
                    (false, None) => requests.push(*number),
                }
            }
        }
        let memory = image.descriptors.iter().find(|it| it.kind == Kind::Outside);
        let memory_at = image
            .areas
            .iter()
            .find(|area| matches!(area.source, Source::Outside { .. }));
        let (Some(memory), Some(memory_at)) = (memory, memory_at) else {
            return Err(unexpected("it has not the guest's memory"));
        };
        let [channel] = channels[..] else {
            return Err(unexpected("it has not one socket for the agent's channel"));
        };
        let share = match (&shares[..], &requests[..]) {
            ([], []) => None,
            (&[(number, nonblocking)], &[requests]) => Some((number, nonblocking, requests)),
            _ => return Err(unexpected("it has not one connection to a file server")),
        };
        Ok(Self {
            channel,
            share,
            memory: memory.number,
            memory_at: memory_at.start,
        })
    }

    /// The sockets of a machine of its own.
    async fn sockets(&self, spec: &MachineSpec, memory: &File) -> Result<Vec<(File, RawFd)>, MachineError> {
        let mut files = Vec::new();
        if let Channel::Serial { socket, .. } = &spec.channel {
            let what = format!("listen on {}", socket.display());
            let listener = UnixListener::bind(socket).and_then(|listener| {
                listener.set_nonblocking(self.channel.1)?;
                Ok(listener)
            });
            files.push((from(listener.map_err(MachineError::host(what))?), self.channel.0));
        }
        let server = spec.devices.iter().find_map(|device| match device {
            Device::VirtioFs { socket, .. } => Some(socket),
            _ => None,
        });
        match (server, self.share) {
            (None, None) => {}
            (Some(socket), Some((number, nonblocking, requests))) => {
                let region = Region {
                    file: memory,
                    size: u64::from(spec.memory_mib) << 20,
                    address: self.memory_at,
                };
                let what = format!("talk to the file server at {}", socket.display());
                let talked = async {
                    let (ours, theirs) = UnixStream::pair()?;
                    let connection = vhost_user::greet(socket, theirs.into(), &region).await?.into_std()?;
                    connection.set_nonblocking(nonblocking)?;
                    Ok::<_, io::Error>([(from(connection), number), (from(ours), requests)])
                };
                files.extend(talked.await.map_err(MachineError::host(what))?);
            }
            _ => return Err(unexpected("its connection to a file server is not the machine's")),
        }
        Ok(files)
    }
}

/// What takes the place of a descriptor that is no connection.
fn stand_in(spec: &MachineSpec, descriptor: &Descriptor, memory: &File) -> Result<OwnedFd, MachineError> {
    match &descriptor.kind {
        Kind::Event { count, nonblocking } => {
            event(*count, *nonblocking).map_err(MachineError::host("make an eventfd"))
        }
        Kind::Signals { mask, nonblocking } => {
            signals(*mask, *nonblocking).map_err(MachineError::host("make a signalfd"))
        }
        Kind::File { path, flags } => {
            let mut options = File::options();
            options.read(true).custom_flags(flags & libc::O_NONBLOCK);
            let opened = options.open(path);
            Ok(opened
                .map_err(MachineError::host(format!("open {}", path.display())))?
                .into())
        }
        Kind::Directory { .. } => {
            let shared = spec.devices.iter().find_map(|device| match device {
                Device::NineP { source, .. } => Some(source),
                _ => None,
            });
            let path = shared.ok_or_else(|| unexpected("it has a directory open"))?;
            let opened = File::open(path).map_err(MachineError::host(format!("open {}", path.display())))?;
            Ok(opened.into())
        }
        Kind::Outside => {
            let copy = memory
                .try_clone()
                .map_err(MachineError::host("open the guest's memory"))?;
            Ok(copy.into())
        }
        Kind::Socket { .. } | Kind::Other { .. } => Err(unexpected(&format!("of descriptor {descriptor:?}"))),
    }
}

fn event(count: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let mut flags = EfdFlags::EFD_CLOEXEC;
    flags.set(EfdFlags::EFD_NONBLOCK, nonblocking);
    let event = EventFd::from_flags(flags)?;
    if count > 0 {
        event.write(count)?;
    }
    Ok(event.into())
}

fn signals(mask: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let chosen = Signal::iterator().filter(|&signal| mask & (1 << (signal as i32 - 1)) != 0);
    let mut flags = SfdFlags::SFD_CLOEXEC;
    flags.set(SfdFlags::SFD_NONBLOCK, nonblocking);
    let signals = SignalFd::with_flags(&SigSet::from_iter(chosen), flags)?;
    signals.as_fd().try_clone_to_owned()
}

fn from(socket: impl Into<OwnedFd>) -> File {
    File::from(socket.into())
}

fn unexpected(what: &str) -> MachineError {
    MachineError::Unsupported(format!("this QEMU cannot be a template as a process: {what}"))
}

/// Makes a QEMU the image's.
struct Imprinting<'a> {
    image: &'a Image,
    pages_at: u64,
    needs: Needs,
    /// Of its threads the id in the image, and the real one.
    threads: Vec<(u32, u32)>,
}

impl Making for Imprinting<'_> {
    fn prepare(&self, command: &mut std::process::Command) {
        kata_checkpoint::begin(command);
    }

    fn make(&mut self, pid: u32) -> Result<(), MachineError> {
        let restored = kata_checkpoint::restore(pid, self.image, self.pages_at, self.needs)
            .map_err(MachineError::host("make QEMU's process of the template"))?;
        let ids = |(old, new): (i32, i32)| (old.cast_unsigned(), new.cast_unsigned());
        self.threads = restored.threads.into_iter().map(ids).collect();
        Ok(())
    }
}
