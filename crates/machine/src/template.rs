//! Templates: machines saved while their agent listens, of which others are made without a boot.

use std::fs::File;
use std::path::PathBuf;

/// Where the parts of a template are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFiles {
    /// The guest's memory, sparse. Its file system should be one in memory.
    pub memory: PathBuf,
    /// Everything else of the machine.
    pub state: PathBuf,
}

/// A template, opened for reading. It can be used for as long as this lives, whatever becomes of the names of its files.
#[derive(Debug)]
pub struct Template {
    /// The guest's memory.
    pub memory: File,
    /// Everything else of the machine.
    pub state: File,
}
