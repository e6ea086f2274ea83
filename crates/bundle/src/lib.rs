//! An OCI bundle, read once, checked, immutable: says what is to run and whether it is a pod, a member of one, or alone.
//!
//! What it refuses: it decides nothing about machines and guests, and it never writes to the bundle.

mod check;
mod default;
mod load;
mod network;
mod role;

/// The types of the OCI runtime specification.
pub use oci_spec::runtime as oci;

pub use check::{Problem, check_process};
pub use default::default_spec;
pub use load::{Bundle, BundleError, CONFIG_FILE, load_process, parse_process};
pub use network::NetworkNamespace;
pub use role::Role;
