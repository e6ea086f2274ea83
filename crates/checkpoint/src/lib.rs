//! Writes a process down, all of its memory, threads and descriptors, and makes others of it that go on where it was.
//!
//! What two of them have in common they share: pages that neither has written to are those of the file. The process is
//! one that waits: all its threads are in system calls that can be begun again. What it is connected to is not written
//! down: who makes a process of an image says what stands for each such descriptor.
//!
//! All is done from outside, by ptrace(2); the program need not know. So a process can also be made to give memory back.

mod area;
mod capture;
mod error;
mod image;
mod restore;
mod take;
mod tracee;

pub use area::{Area, Run, Source};
pub use capture::capture;
pub use error::CheckpointError;
pub use image::{Descriptor, Image, Kind, Thread};
pub use restore::{Needs, Restored, begin, restore};
pub use take::{made_code, take_back};
