//! Owns one pod: one owner task, one state; carries plans out as steps that can be taken back.
//!
//! [`Sandbox`] is what a door holds. [`lifecycle`] has the rules, [`record`] what outlives the process, [`recover`] what
//! cleans up after it.

mod actor;
mod boot;
pub mod cache;
pub mod container;
mod disk;
pub mod error;
mod expendable;
mod fitting;
pub mod hooks;
mod label;
pub mod lifecycle;
mod localhost;
pub mod network;
mod pod;
mod process;
pub mod record;
pub mod recover;
mod rehearsal;
mod sandbox;
mod serving;
mod sockets;
pub mod spare;
pub mod stdio;
pub mod step;
pub mod survey;
pub mod template;
pub mod timeline;
mod tree;

pub use container::NewContainer;
pub use error::{SandboxError, describe};
pub use kata_agent_client::Process;
pub use sandbox::{Event, MACHINE_LOST, ProcessState, Sandbox, Surroundings};
