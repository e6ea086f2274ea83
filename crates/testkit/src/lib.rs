//! Fakes that speak the real protocols, and what tests of several crates do alike. Nothing here is part of the product.

pub mod agent;
pub mod machine;
pub mod program;
pub mod qmp;
pub mod thread;
