//! Raises and lowers the pace at which the kernel merges equal pages (KSM, the kernel's `admin-guide/mm/ksm`): much after a
//! machine was started, whose pages are then new and many of them like those of others, less and less when none is.
//!
//! It knows nothing of pods and machines: sandbox processes send a [`kick`] to the one [`Throttler`] of the host, if there is one.

mod cycle;
mod error;
mod kernel;
mod throttler;

pub use cycle::{Cycle, Pace};
pub use error::KsmError;
pub use throttler::{Places, Throttler, kick};
