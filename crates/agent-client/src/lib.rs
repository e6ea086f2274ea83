//! Talks to the guest's agent over any byte transport.
//!
//! [`connect`](connect::connect) shakes hands and starts the multiplexer; [`Agent`](client::Agent) asks and is
//! answered; its [`stdio`](client::Agent::stdio) streams carry a process's bytes. Every wait is bounded, but for those
//! whose length is the guest program's own. What the guest answers is untrusted: nothing here acts on it.

pub mod client;
pub mod connect;

pub use client::{Agent, AgentError, Process};
pub use connect::{ConnectError, connect};
