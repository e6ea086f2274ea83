//! Fakes that speak the real protocols, for tests. Nothing here is part of the product.

pub mod agent;
pub mod machine;
pub mod qmp;
