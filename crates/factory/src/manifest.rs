//! What is written down of a template that is whole, and the comparison of its files with it.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;

use kata_machine::Template;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Recipe;

const FORMAT: u32 = 2;

/// How much of a state is read at every start, bytes: all of what QEMU writes (0.3 MB), the description in front of an
/// image's pages.
const STATE_READ: u64 = 1 << 20;

/// What is written down of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    /// What it is made of.
    pub recipe: Recipe,
    memory: Shape,
    state: Shape,
    state_sha256: String,
}

/// A file that is too large to be read at every start. Who writes to the file changes one of these; who only maps it, none.
/// Its blocks do not count: the kernel takes back those that were never written to when memory is scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Shape {
    fn of(data: &Metadata) -> Self {
        Self {
            bytes: data.size(),
            seconds: data.mtime(),
            nanoseconds: data.mtime_nsec(),
        }
    }
}

impl Manifest {
    /// Of a template that has just been made.
    ///
    /// # Errors
    /// What reading it failed with.
    pub fn of(recipe: Recipe, template: &mut Template) -> io::Result<Self> {
        Ok(Self {
            format: FORMAT,
            recipe,
            memory: Shape::of(&template.memory.metadata()?),
            state: Shape::of(&template.state.metadata()?),
            state_sha256: digest(&mut template.state)?,
        })
    }

    /// # Errors
    /// For what is no manifest, or none of this format.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("format {} and not {FORMAT}", manifest.format));
        }
        Ok(manifest)
    }

    /// # Errors
    /// How the template differs from what was written down.
    pub fn check(&self, template: &mut Template) -> Result<(), String> {
        let unreadable = |error: io::Error| format!("it cannot be read: {error}");
        let memory = Shape::of(&template.memory.metadata().map_err(unreadable)?);
        if memory != self.memory {
            return Err("its memory was changed".to_owned());
        }
        let state = Shape::of(&template.state.metadata().map_err(unreadable)?);
        if state != self.state || digest(&mut template.state).map_err(unreadable)? != self.state_sha256 {
            return Err("its state was changed".to_owned());
        }
        Ok(())
    }
}

/// Of what is read of a state.
fn digest(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(STATE_READ).read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(format!("{:x}", Sha256::digest(&bytes)))
}
