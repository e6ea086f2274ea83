//! What can be wrong or strange in a configuration, always with its place.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where something is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a line of a configuration file.
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// In an annotation of the pod.
    Annotation {
        /// Its whole name.
        name: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Annotation { name } => write!(f, "annotation {name}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was asked for cannot be read.
    #[error("cannot read the configuration {}{}", file.display(), asked_by.map(|by| format!(" (asked for by {by})")).unwrap_or_default())]
    Read {
        /// The file.
        file: PathBuf,
        /// Who named it, if it was not found by searching.
        asked_by: Option<&'static str>,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not TOML.
    #[error("{place}: not TOML: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// The parser's words.
        reason: String,
    },
    /// A key has a value that it cannot have.
    #[error("{place}: {key} is {found}; it must be {allowed}")]
    Value {
        /// Where.
        place: Place,
        /// With its section.
        key: String,
        /// As written.
        found: String,
        /// What the key takes.
        allowed: String,
    },
    /// Both an image and an initramfs.
    #[error(
        "hypervisor.qemu.image is {} and initrd is {}: a guest has one of them as its root, the other must be \"\"",
        image.display(), initrd.display()
    )]
    TwoRoots {
        /// The image.
        image: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
    },
    /// An annotation that may not be used, or that nobody knows.
    #[error("annotation {name} is refused: {reason}")]
    Annotation {
        /// Its whole name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Something in a configuration that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub place: Place,
    /// What.
    pub oddity: Oddity,
}

/// What has no effect, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// Nobody knows the section.
    UnknownSection {
        /// Its name.
        section: String,
    },
    /// Nobody knows the key.
    UnknownKey {
        /// With its section.
        key: String,
        /// A known key that is spelled almost so.
        similar: Option<&'static str>,
    },
    /// Kata Containers has the section.
    SectionNotYet {
        /// Its name.
        section: String,
    },
    /// Kata Containers has the key, and its value asks for something that is not there yet.
    KeyNotYet {
        /// With its section.
        key: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match &self.oddity {
            Oddity::UnknownSection { section } => write!(f, "unknown section [{section}], ignored"),
            Oddity::UnknownKey { key, similar: None } => write!(f, "unknown key {key}, ignored"),
            Oddity::UnknownKey {
                key,
                similar: Some(similar),
            } => write!(f, "unknown key {key}, ignored; is {similar} meant?"),
            Oddity::SectionNotYet { section } => {
                write!(
                    f,
                    "section [{section}] is known to Kata, but not supported yet, ignored"
                )
            }
            Oddity::KeyNotYet { key } => write!(f, "{key} is known to Kata, but not supported yet, ignored"),
        }
    }
}
