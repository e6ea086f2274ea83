//! Containers as the command line sees them: found by root and id, spoken to over the Task API of their sandbox process.

pub mod client;
pub mod console;
pub mod creation;
pub mod fifo;
pub mod inside;
pub mod process;
pub mod relay;
pub mod removal;
pub mod stand_in;
pub mod view;
