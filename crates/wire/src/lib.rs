//! The contract between host and guest. Both sides build on this crate and on nothing else of each other.
//!
//! A channel is any reliable byte stream (virtio-serial port, vsock). On it, in order:
//!
//! 1. [`handshake`]: both sides say which versions they speak, and agree or part;
//! 2. [`mux`]: many independent, flow-controlled streams, all opened by the host;
//! 3. [`stream`]: the first bytes of a stream say what it is: the requests of [`proto`], one stdio stream of a process, or
//!    a connection through the machine's wall, which [`relay`] carries on either side.
//!
//! What it refuses: it knows no OCI, no VMM, no container. Whatever comes from the guest is bounded before it is read.

pub mod block;
pub mod handshake;
pub mod mux;
pub mod names;
pub mod relay;
pub mod stream;

/// The messages and the service of `proto/agent.proto`, generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated; the proto file carries the comments"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));

    pub use agent::*;
    pub use agent_ttrpc::{Agent, AgentClient, create_agent};
}
