//! Keeps the templates of this host: finds them, makes room for new ones, takes them away. It knows nothing of how a
//! template is made or used.
//!
//! Each has a directory of its own below `template_path`, named after its [`Recipe`]. It is made under another name and
//! renamed when it is whole, under a lock that ends with its holder. So one that was left half-made is never used, and the next maker
//! removes it. One that cannot be made is remembered for a while. Who uses a template has its files open; their names may go at any time.

mod failure;
mod manifest;
mod memory;
mod recipe;
mod store;

pub use failure::Failure;
pub use recipe::Recipe;
pub use store::{Entry, FactoryError, HalfMade, Locked, Store, Trust};
