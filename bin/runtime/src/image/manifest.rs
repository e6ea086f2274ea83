//! What went into a set of assets and what came out, as it is kept beside them.
//!
//! It carries no time, no path and no host name: whoever builds the same gets the same bytes.

use serde::{Deserialize, Serialize};

use crate::image::modules::Chosen;

/// Version of this shape; a manifest of another one is as good as none.
pub const FORMAT: u32 = 1;

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`]
    pub format: u32,
    /// Version of the builder.
    pub builder: String,
    /// The kernel.
    pub kernel: Kernel,
    /// The modules that were taken from it.
    pub modules: Vec<Chosen>,
    /// Modules that a guest may want and this kernel does not have.
    pub missing_modules: Vec<String>,
    /// Digest of the agent.
    pub agent_sha256: String,
    /// The kernel's file.
    pub vmlinux: Asset,
    /// The initramfs.
    pub initrd: Asset,
    /// The image; none where the kernel lacks drivers for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Asset>,
    /// The initramfs that leads to the image, where the kernel does not find it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<Asset>,
}

/// Where a kernel came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What was given or found.
    pub source: Source,
    /// Digest of the kernel image before it was taken apart.
    pub image_sha256: String,
    /// As `uname -r` prints it in the guest.
    pub release: String,
}

/// What was given or found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Source {
    /// A package that apt knows.
    Package {
        /// Its name.
        package: String,
        /// Its version.
        version: String,
        /// Digest of its file.
        sha256: String,
    },
    /// A package's file.
    Deb {
        /// Its digest.
        sha256: String,
    },
    /// A kernel's own file.
    File {
        /// Its digest.
        sha256: String,
    },
    /// Compiled here.
    Compiled {
        /// What the source is.
        source: String,
        /// Digest of the source.
        sha256: String,
        /// The names of the fragments of its configuration.
        fragments: Vec<String>,
        /// Compiler and linker, as they call themselves.
        compiler: String,
    },
}

/// A file that came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asset {
    /// Its digest.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

impl Manifest {
    /// Reads a manifest; `None` for anything that this builder would not have written.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes)
            .ok()
            .filter(|manifest: &Self| manifest.format == FORMAT)
    }

    /// The manifest as it is kept.
    ///
    /// # Errors
    /// None that can happen with these types; the library's all the same.
    pub fn render(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Package { package, version, .. } => write!(f, "package {package} {version}"),
            Self::Deb { sha256 } => write!(f, "package file with sha256 {sha256}"),
            Self::File { sha256 } => write!(f, "file with sha256 {sha256}"),
            Self::Compiled { source, fragments, .. } => write!(f, "{source}, compiled as {}", fragments.join(" and ")),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A manifest whose digests are those of `vmlinux` and `initrd`.
    pub fn sample(vmlinux: &[u8], initrd: &[u8]) -> Manifest {
        let asset = |bytes: &[u8]| Asset {
            sha256: crate::image::digest::Digest::of(bytes),
            bytes: bytes.len() as u64,
        };
        Manifest {
            format: FORMAT,
            builder: "0.1.0".into(),
            kernel: Kernel {
                source: Source::Package {
                    package: "linux-image-6.1".into(),
                    version: "6.1-2".into(),
                    sha256: "ab".into(),
                },
                image_sha256: "cd".into(),
                release: "6.1".into(),
            },
            modules: vec![Chosen {
                name: "fuse".into(),
                at_start: true,
                files: vec!["kernel/fuse.ko".into()],
            }],
            missing_modules: vec!["9p".into()],
            agent_sha256: "ef".into(),
            vmlinux: asset(vmlinux),
            initrd: asset(initrd),
            image: None,
            loader: None,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = sample(b"kernel", b"initrd");
        assert_eq!(Manifest::parse(&manifest.render().unwrap()), Some(manifest));
    }

    #[test]
    fn other_formats_and_halves_are_none() {
        let mut manifest = sample(b"", b"");
        let bytes = manifest.render().unwrap();
        assert_eq!(Manifest::parse(&bytes[..bytes.len() / 2]), None);
        manifest.format = FORMAT + 1;
        assert_eq!(Manifest::parse(&manifest.render().unwrap()), None);
    }
}
