//! Kata's configuration files, drop-ins and the annotations that they allow become one frozen [`Config`].
//!
//! Names, sections and search order are those of Kata Containers. Defaults need no file. What this crate refuses: it
//! never looks whether a path in the configuration exists, it only says which ones to look for.

mod annotation;
mod error;
mod file;
mod glob;
mod key;
mod known;
mod load;
mod render;
mod settings;
mod value;

pub use error::{ConfigError, Oddity, Place, Warning};
pub use load::{ENVIRONMENT, SEARCH, search_paths};
pub use settings::{
    Agent, Assets, BlockAio, Config, CpuCount, Factory, Internetworking, Qemu, RootAsset, RootfsType, Runtime,
    SharedFs, VirtioFsCache,
};
