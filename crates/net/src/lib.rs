//! The hands in a pod's network namespace: it is entered and read, and its links are joined to those of a machine.
//!
//! The namespace belongs to others. So whatever is made in it can be taken back, by this process or by another one after
//! it was killed, and what was there before stays as it is.

pub mod macvtap;
pub mod namespace;
pub mod scan;
pub mod tap;
pub mod tc;
