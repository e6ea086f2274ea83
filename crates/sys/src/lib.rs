//! Safe, documented wrappers of the Linux calls that no crate offers. The only crate with `unsafe`: each block argues its
//! safety, so that no other crate has to.

pub mod bpf;
pub mod child;
pub mod entropy;
pub mod kvm;
pub mod listener;
pub mod loopback;
pub mod passing;
pub mod process;
pub mod ptrace;
pub mod pty;
pub mod random;
pub mod seccomp;
pub mod statx;
pub mod steering;
pub mod terminal;
pub mod tree;
pub mod tsc;
pub mod tun;
