//! The guest's assets: a kernel, taken out of the distribution's package or compiled from its source, and an initramfs
//! with the agent as `/init`;
//! and the same files as an image, which guests have on persistent memory.
//!
//! [`build`] is the table of contents. Equal input gives equal bytes, kept under the digest of the input, so that a
//! second build finds the first one's result. Nothing is installed on the host.

pub mod agent;
pub mod build;
pub mod bzimage;
pub mod compile;
pub mod content;
pub mod cpio;
pub mod deb;
pub mod digest;
pub mod elf;
pub mod erofs;
pub mod fragment;
pub mod kernel;
pub mod manifest;
pub mod modules;
pub mod package;
pub mod root;
pub mod signature;
pub mod slim;
pub mod source;
pub mod store;
