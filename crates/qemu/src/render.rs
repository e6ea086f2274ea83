//! A [`MachineSpec`] as QEMU's command line. Pure: it opens nothing and asks nobody.
//!
//! It refuses what QEMU would take silently and wrongly: paths that are not UTF-8, sockets with names too long for the
//! system, a vhost-user device without shared memory.
//!
//! The process gets its control socket as standard input and the guest's console as standard output. So there is no path
//! to wait for or to leave behind, and nobody else can reach the control socket.

use std::os::fd::RawFd;
use std::path::Path;

use kata_machine::{Accelerator, Channel, Device, MachineError, MachineSpec, MemoryBacking, Root, Wire};
use kata_netlink::Mac;

use crate::board::Board;
use crate::image::{self, Attachment};
use crate::memory;

/// The longest path that fits in a `sockaddr_un`, bytes.
const SOCKET_PATH_LIMIT: usize = 107;

/// Ids of the virtio-mem device and its memory.
pub(crate) const VIRTIO_MEMORY: &str = "vmem";
const VIRTIO_MEMORY_BACKEND: &str = "vmem-ram";

/// MiB for translated code. The default is 1 GiB, of which a busy guest fills as much as it can. A boot fills 50, the
/// rehearsal of a template's guest 30, which clones share; when it is full all is thrown away, and translated again what is
/// needed again. With 34 a pod that has booted is 10 MiB smaller, and its boot takes longer (docs/performance.md).
const TRANSLATION_BUFFER_MIB: u32 = 64;

/// The id of the port by which the agent is reached.
pub(crate) const AGENT_PORT: &str = "agent-port";

/// The number under which a machine of a template finds its memory open.
pub(crate) const MEMORY_FD: RawFd = 9;

/// How a machine begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start<'a> {
    /// With its kernel.
    Boot,
    /// The same as soon as it is told to, and its memory is this file.
    Save(&'a Path),
    /// Where a template ended: its memory is open as [`MEMORY_FD`], and the rest is told to it.
    Restore,
}

/// Whether [`command_line`] wants to know how fast the host's time stamp counter counts.
pub(crate) fn needs_tsc_frequency(spec: &MachineSpec, start: Start<'_>) -> bool {
    start != Start::Restore && Board::needs_tsc_frequency(spec.accelerator)
}

/// Program and arguments. `tsc_khz` is used if [`needs_tsc_frequency`] says so.
///
/// # Errors
/// [`MachineError::Unsupported`], saying what cannot be expressed.
pub(crate) fn command_line(
    spec: &MachineSpec,
    start: Start<'_>,
    tsc_khz: Option<u32>,
) -> Result<Vec<String>, MachineError> {
    check_sizes(spec)?;
    let board = Board::parse(&spec.machine_type)?;
    board.check_growth(spec.growth.as_ref())?;
    let mut line = Line(vec![text(&spec.vmm)?.to_owned()]);
    name(&mut line, spec);
    machine(&mut line, spec, start, &board);
    let image = image::attachment(spec, &board)?;
    cpu_and_memory(&mut line, spec, start, image.as_ref())?;
    boot(&mut line, spec, start, &board, tsc_khz, image.as_ref())?;
    virtio_memory(&mut line, spec, &board);
    if let Some(image) = &image {
        for (option, value) in image.options(spec, &board)? {
            line.add(option, value);
        }
    }
    control(&mut line);
    channel(&mut line, spec, &board)?;
    let mut nodes = nodes(spec).into_iter();
    for (index, device) in spec.devices.iter().enumerate() {
        add_device(&mut line, spec, &board, index, device, &mut nodes)?;
    }
    Ok(line.0)
}

fn check_sizes(spec: &MachineSpec) -> Result<(), MachineError> {
    let wrong = if spec.vcpus == 0 {
        "a machine needs at least 1 vCPU".to_owned()
    } else if spec.growth.is_some_and(|growth| growth.vcpus < spec.vcpus) {
        let most = spec.growth.map_or(0, |growth| growth.vcpus);
        format!("{} vCPUs are more than the most, {most}", spec.vcpus)
    } else if spec.memory_mib == 0 {
        "a machine needs at least 1 MiB of memory".to_owned()
    } else {
        return Ok(());
    };
    Err(MachineError::Unsupported(wrong))
}

fn name(line: &mut Line, spec: &MachineSpec) {
    line.add("-name", format!("guest={},debug-threads=on", escape(&spec.id)));
    line.0
        .extend(["-no-user-config", "-nodefaults", "-no-reboot"].map(String::from));
    line.add("-display", "none");
    if !spec.seccomp_sandbox.is_empty() {
        line.add("-sandbox", &spec.seccomp_sandbox);
    }
}

fn machine(line: &mut Line, spec: &MachineSpec, start: Start<'_>, board: &Board) {
    let mut options = board.option();
    if spec.memory_backing == MemoryBacking::SharedMemfd || start != Start::Boot {
        options.push_str(",memory-backend=ram");
    }
    line.add("-machine", options);
    line.add(
        "-accel",
        match spec.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            // With a thread a CPU, those there are may have taken the whole buffer when one more is plugged in, and QEMU aborts
            // (10.0.2, tcg/region.c).
            Accelerator::Tcg if spec.growth.as_ref().is_some_and(|growth| growth.vcpus > spec.vcpus) => {
                format!("tcg,thread=single,tb-size={TRANSLATION_BUFFER_MIB}")
            }
            Accelerator::Tcg => format!("tcg,tb-size={TRANSLATION_BUFFER_MIB}"),
        },
    );
}

fn cpu_and_memory(
    line: &mut Line,
    spec: &MachineSpec,
    start: Start<'_>,
    image: Option<&Attachment<'_>>,
) -> Result<(), MachineError> {
    let model = match spec.accelerator {
        Accelerator::Kvm => "host",
        // The guest's kernel copies and clears memory by the byte where string instructions are said to be fast, and TCG
        // runs them byte by byte: without, bulk output costs half, and a boot a tenth less.
        Accelerator::Tcg => "max,erms=off,fsrm=off",
    };
    let features = spec.cpu_features.trim_matches(',');
    line.add(
        "-cpu",
        if features.is_empty() {
            model.to_owned()
        } else {
            format!("{model},{features}")
        },
    );
    let max_vcpus = spec.growth.map_or(spec.vcpus, |growth| growth.vcpus);
    line.add("-smp", format!("cpus={},maxcpus={max_vcpus}", spec.vcpus));
    line.add("-m", memory::size(spec, image.map_or(0, Attachment::memory_mib)));
    let size = spec.memory_mib;
    match (start, spec.memory_backing) {
        (Start::Boot, MemoryBacking::Private) => {}
        (Start::Boot, backing) => line.add("-object", memory::backend(backing, "ram", size)),
        (Start::Save(file), _) => line.add("-object", memory::file(text(file)?, size, "share=on")),
        // All see the template's pages until they write to them.
        (Start::Restore, MemoryBacking::Private) => {
            line.add(
                "-object",
                memory::file(&descriptor(MEMORY_FD), size, "share=off,readonly=on,rom=off"),
            );
        }
        // What the daemons share cannot be shared with others, too: it is a copy.
        (Start::Restore, MemoryBacking::SharedMemfd) => {
            line.add("-object", memory::file(&descriptor(MEMORY_FD), size, "share=on"));
        }
    }
    Ok(())
}

/// A file that QEMU finds open, by a name that it can open.
fn descriptor(number: RawFd) -> String {
    format!("/proc/self/fd/{number}")
}

/// Has all its room from the start, but no memory of the host before the guest is given some of it.
fn virtio_memory(line: &mut Line, spec: &MachineSpec, board: &Board) {
    let room = memory::virtio_mib(spec);
    if room > 0 {
        let backend = memory::backend(spec.memory_backing, VIRTIO_MEMORY_BACKEND, room);
        line.add("-object", format!("{backend},reserve=off"));
        let options = format!("id={VIRTIO_MEMORY},memdev={VIRTIO_MEMORY_BACKEND},requested-size=0");
        line.add("-device", board.virtio("virtio-mem", &options));
    }
}

fn boot(
    line: &mut Line,
    spec: &MachineSpec,
    start: Start<'_>,
    board: &Board,
    tsc_khz: Option<u32>,
    image: Option<&Attachment<'_>>,
) -> Result<(), MachineError> {
    line.add(
        "-bios",
        match &spec.firmware {
            Some(file) => text(file)?,
            None => board.firmware(),
        },
    );
    match start {
        Start::Boot => {}
        Start::Save(_) => line.0.push("-S".into()),
        Start::Restore => {
            line.add("-incoming", "defer");
            return Ok(());
        }
    }
    line.add("-kernel", text(&spec.boot.kernel)?);
    let initrd = match &spec.boot.root {
        Root::Initrd(path) => Some(path),
        Root::Image(image) => image.loader.as_ref(),
    };
    if let Some(path) = initrd {
        line.add("-initrd", text(path)?);
    }
    line.add("-append", kernel_parameters(spec, board, tsc_khz, image).join(" "));
    Ok(())
}

fn kernel_parameters(
    spec: &MachineSpec,
    board: &Board,
    tsc_khz: Option<u32>,
    image: Option<&Attachment<'_>>,
) -> Vec<String> {
    let mut parameters: Vec<String> = board
        .kernel_parameters(spec.accelerator)
        .into_iter()
        .map(str::to_owned)
        .collect();
    if Board::needs_tsc_frequency(spec.accelerator) {
        // Without a number the kernel tries by itself.
        parameters.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
    }
    if !spec.debug {
        parameters.push("quiet".into());
    }
    parameters.extend(image.map(Attachment::kernel_parameters).unwrap_or_default());
    parameters.extend(spec.boot.parameters.iter().cloned());
    parameters
}

fn control(line: &mut Line) {
    line.add("-chardev", "socket,id=qmp,fd=0");
    line.add("-mon", "chardev=qmp,mode=control");
    line.add("-chardev", "socket,id=console,fd=1");
    line.add("-serial", "chardev:console");
}

fn channel(line: &mut Line, spec: &MachineSpec, board: &Board) -> Result<(), MachineError> {
    match &spec.channel {
        Channel::Serial { port, socket } => {
            line.add(
                "-chardev",
                format!("socket,id=channel,path={},server=on,wait=off", socket_path(socket)?),
            );
            line.add("-device", board.virtio("virtio-serial", "id=serial"));
            line.add(
                "-device",
                format!("virtserialport,id={AGENT_PORT},chardev=channel,name={}", escape(port)),
            );
        }
        Channel::Vsock { cid, .. } => {
            if *cid < 3 {
                let message = format!("vsock context id {cid} is reserved; a guest's is 3 or more");
                return Err(MachineError::Unsupported(message));
            }
            line.add(
                "-device",
                board.virtio("vhost-vsock", &format!("id=vsock,guest-cid={cid}")),
            );
        }
    }
    Ok(())
}

fn add_device(
    line: &mut Line,
    spec: &MachineSpec,
    board: &Board,
    index: usize,
    device: &Device,
    nodes: &mut impl Iterator<Item = Node>,
) -> Result<(), MachineError> {
    match device {
        Device::VirtioFs {
            tag,
            socket,
            queue_size,
        } => {
            if spec.memory_backing != MemoryBacking::SharedMemfd {
                let message = format!("the virtio-fs device {tag:?} needs memory that its daemon can share");
                return Err(MachineError::Unsupported(message));
            }
            line.add("-chardev", format!("socket,id=fs{index},path={}", socket_path(socket)?));
            let options = format!("chardev=fs{index},tag={},queue-size={queue_size}", escape(tag));
            line.add("-device", board.virtio("vhost-user-fs", &options));
        }
        Device::NineP { tag, source } => {
            let path = escape(text(source)?);
            line.add(
                "-fsdev",
                format!("local,id=fs{index},path={path},security_model=passthrough,multidevs=remap"),
            );
            let options = format!("fsdev=fs{index},mount_tag={}", escape(tag));
            line.add("-device", board.virtio("virtio-9p", &options));
        }
        // The guest gets its driver when it gets its first disk.
        Device::DiskController => line.add("-device", board.virtio("virtio-scsi", "id=scsi")),
        Device::Balloon => line.add("-device", board.virtio("virtio-balloon", "free-page-reporting=on")),
        Device::Rng { source } => {
            line.add(
                "-object",
                format!("rng-random,id=rng{index},filename={}", escape(text(source)?)),
            );
            line.add("-device", board.virtio("virtio-rng", &format!("rng=rng{index}")));
        }
        Device::Nic { mac, queues, vhost, .. } => {
            let queues = (*queues).max(1);
            line.add("-netdev", netdev(index, queues, *vhost, nodes));
            line.add("-device", board.virtio("virtio-net", &nic(board, index, *mac, queues)));
        }
    }
    Ok(())
}

/// The host's end of a network interface. QEMU gets it open: asked for a tap by its name, it takes whatever macvtap of the
/// host, another pod's too, has the number that the tap has in this namespace.
fn netdev(index: usize, queues: u32, vhost: bool, nodes: &mut impl Iterator<Item = Node>) -> String {
    let vhost = if vhost { "on" } else { "off" };
    let take = usize::try_from(queues).unwrap_or(usize::MAX);
    let numbers: Vec<String> = nodes.by_ref().take(take).map(|node| node.number.to_string()).collect();
    let option = if queues > 1 { "fds" } else { "fd" };
    format!("tap,id=net{index},{option}={},vhost={vhost}", numbers.join(":"))
}

/// The guest's end. It boots from nothing, so it needs no firmware of its own. Its cable is always plugged in: a guest that
/// may ask for that finds out a moment after its first packets were dropped.
fn nic(board: &Board, index: usize, mac: Mac, queues: u32) -> String {
    let mut options = format!("netdev=net{index},mac={mac},status=off,guest_announce=off");
    if board.has_pci() {
        options.push_str(",romfile=");
    }
    if queues > 1 {
        options.push_str(",mq=on");
        if board.has_pci() {
            // One for each queue of a pair, one for the control queue, one for changes of the configuration.
            options.push_str(&format!(",vectors={}", 2 * queues + 2));
        }
    }
    options
}

/// A queue of a network interface, which QEMU finds open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub wire: Wire,
    /// Whether the interface has others.
    pub several: bool,
    /// As QEMU sees it.
    pub number: RawFd,
}

/// The number of the first of [`nodes`]; below are [`MEMORY_FD`], stdio and what a C library may want early.
const FIRST_NODE: RawFd = 10;

/// What QEMU must find open, in the order in which the command line names it: each interface once for each queue.
pub(crate) fn nodes(spec: &MachineSpec) -> Vec<Node> {
    let queues = spec.devices.iter().flat_map(|device| match device {
        Device::Nic { wire, queues, .. } => {
            let count = (*queues).max(1);
            vec![(wire, count > 1); usize::try_from(count).unwrap_or(1)]
        }
        _ => Vec::new(),
    });
    let numbered = queues.zip(FIRST_NODE..);
    numbered
        .map(|((wire, several), number)| Node {
            wire: wire.clone(),
            several,
            number,
        })
        .collect()
}

struct Line(Vec<String>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.0.extend([option.to_owned(), value.into()]);
    }
}

/// In QEMU's option lists a comma ends a value; two of them are one that does not.
pub(crate) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

pub(crate) fn text(path: &Path) -> Result<&str, MachineError> {
    match path.to_str() {
        None => Err(MachineError::Unsupported(format!(
            "the path {} is not UTF-8",
            path.display()
        ))),
        Some("") => Err(MachineError::Unsupported("an empty path".into())),
        Some(path) if path.contains('\0') => Err(MachineError::Unsupported(format!("the path {path:?} holds a NUL"))),
        Some(path) => Ok(path),
    }
}

fn socket_path(path: &Path) -> Result<String, MachineError> {
    let path = text(path)?;
    if path.len() > SOCKET_PATH_LIMIT {
        let message = format!(
            "the socket path {path} has {} bytes, at most {SOCKET_PATH_LIMIT} work",
            path.len()
        );
        return Err(MachineError::Unsupported(message));
    }
    Ok(escape(path))
}

#[cfg(test)]
mod tests;
