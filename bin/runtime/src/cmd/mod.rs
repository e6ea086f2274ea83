//! One file a verb, each the same shape: `Args`, and `run(args, globals) -> Result<ExitCode>`.

pub mod check;
pub mod create;
pub mod delete;
pub mod env;
pub mod events;
pub mod exec;
pub mod factory;
pub mod features;
pub mod image;
pub mod kill;
pub mod ksm_throttler;
pub mod list;
pub mod pause;
pub mod plan;
pub mod ps;
pub mod resume;
pub mod run;
pub mod spec;
pub mod stand_in;
pub mod start;
pub mod state;
pub mod trace;
pub mod update;
pub mod version;
