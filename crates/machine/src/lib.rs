//! What a virtual machine is to this project, and what any VMM driver must do.
//!
//! Questions and answers are different types: a [`MachineSpec`] with its [`Device`]s goes into a driver, a running
//! [`Machine`] comes out; nothing is written back into the question. No driver, no I/O lives here.

mod device;
mod disk;
mod port;
mod spec;
mod template;

pub use device::{Device, Wire};
pub use disk::{Disk, DiskAccess, DiskAddress, DiskAio};
pub use port::{Draft, Exit, ExitWatch, Machine, MachineError, Transport, Vmm};
pub use spec::{Accelerator, Boot, Channel, Growth, Image, MachineSpec, MemoryBacking, MemoryGrowth, Root, Size};
pub use template::{Template, TemplateFiles};
