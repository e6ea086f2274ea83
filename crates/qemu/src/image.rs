//! The guest's image: persistent memory that is the host's own copy of the file, or a disk that cannot be written to.
//!
//! As persistent memory it is a virtio-pmem device. Of an NVDIMM the guest's kernel would map files (DAX) only if the image
//! began with a description of its pages. QEMU has memory devices on q35 alone; on a microvm it takes such a device, and the
//! guest finds nothing at its address (10.0.2).
//!
//! It refuses what the guest's kernel would: persistent memory that is not whole pieces of 2 MiB.

use kata_machine::{Image, MachineError, MachineSpec, Root};

use crate::board::Board;
use crate::memory::{self, BLOCK_MIB};
use crate::render::{escape, text};

const MIB: u64 = 1 << 20;

/// The guest's kernel makes pages for device memory in pieces of this size, bytes.
const PIECE: u64 = 2 * MIB;

/// The image, and how the guest has it.
pub(crate) enum Attachment<'a> {
    Memory(&'a Image),
    Disk(&'a Image),
}

/// # Errors
/// [`MachineError::Unsupported`] for an image that cannot be attached so.
pub(crate) fn attachment<'a>(spec: &'a MachineSpec, board: &Board) -> Result<Option<Attachment<'a>>, MachineError> {
    let Root::Image(image) = &spec.boot.root else {
        return Ok(None);
    };
    if !(image.dax && board.has_memory_devices()) {
        return Ok(Some(Attachment::Disk(image)));
    }
    if image.bytes == 0 || image.bytes % PIECE != 0 {
        let message = format!(
            "the image {} has {} bytes: as persistent memory it has to be a multiple of {PIECE}; as a disk it need not \
             (disable_image_nvdimm)",
            image.path.display(),
            image.bytes
        );
        return Err(MachineError::Unsupported(message));
    }
    Ok(Some(Attachment::Memory(image)))
}

impl Attachment<'_> {
    /// What it takes of the room for memory devices, MiB.
    pub(crate) fn memory_mib(&self) -> u64 {
        match self {
            Self::Memory(image) => image.bytes / MIB,
            Self::Disk(_) => 0,
        }
    }

    /// Options for the command line, with their values.
    pub(crate) fn options(
        &self,
        spec: &MachineSpec,
        board: &Board,
    ) -> Result<[(&'static str, String); 2], MachineError> {
        Ok(match self {
            Self::Memory(image) => {
                let path = escape(text(&image.path)?);
                let backend = format!(
                    "memory-backend-file,id=image,size={},mem-path={path},share=on,readonly=on",
                    image.bytes
                );
                let device = format!("memdev=image,memaddr={:#x}", address(spec, board));
                [("-object", backend), ("-device", board.virtio("virtio-pmem", &device))]
            }
            Self::Disk(image) => {
                let path = escape(text(&image.path)?);
                let node = format!("driver=raw,node-name=image,read-only=on,file.driver=file,file.filename={path}");
                [
                    ("-blockdev", node),
                    ("-device", board.virtio("virtio-blk", "drive=image")),
                ]
            }
        })
    }

    /// What tells the guest's kernel, or what leads there in its place, that this is the root.
    pub(crate) fn kernel_parameters(&self) -> Vec<String> {
        let (device, image) = match self {
            Self::Memory(image) => ("/dev/pmem0", image),
            Self::Disk(image) => ("/dev/vda", image),
        };
        let mut parameters = vec![format!("root={device}"), format!("rootfstype={}", image.file_system)];
        if matches!(self, Self::Memory(_)) {
            parameters.push("rootflags=dax".into());
        }
        parameters.extend(["ro", "init=/init"].map(str::to_owned));
        parameters
    }
}

/// Behind all the room for memory that comes later: the guest takes that in blocks, and QEMU puts each into the first gap,
/// which behind an image would not be at a block's place.
fn address(spec: &MachineSpec, board: &Board) -> u64 {
    let room_mib = memory::room_mib(spec).next_multiple_of(BLOCK_MIB);
    board.device_memory(u64::from(spec.memory_mib) * MIB) + u64::from(room_mib) * MIB
}
