//! Takes a Linux bzImage apart: finds the compressed kernel in it and gives back the ELF `vmlinux`.
//!
//! Booting the bzImage itself would make every guest decompress it again, which costs more than the whole rest of its
//! boot where the VMM translates instructions. The decompressors are the host's own tools. It refuses images older than
//! boot protocol 2.08 and results whose size is not the one that the image promises.

use std::time::Duration;

use crate::command::{self, CommandError};
use crate::image::elf::{Elf, ElfError};

/// Why no kernel came out.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// Neither of the two shapes of a kernel.
    #[error("neither an ELF vmlinux nor a bzImage")]
    NotKernel,
    /// A bzImage that does not say where its payload is.
    #[error("boot protocol {}.{:02} is too old, 2.08 is needed", protocol >> 8, protocol & 0xff)]
    TooOld {
        /// The version that the image speaks.
        protocol: u16,
    },
    /// The payload lies outside the file.
    #[error("damaged bzImage: its payload of {length} bytes at {offset:#x} is not all in the file of {bytes} bytes")]
    Truncated {
        /// Where it should begin.
        offset: usize,
        /// Its size.
        length: usize,
        /// Size of the file.
        bytes: usize,
    },
    /// A compressor that is not known here.
    #[error("the kernel in the bzImage is compressed in an unknown way (it begins with {begins})")]
    UnknownCompression {
        /// Its first bytes in hexadecimal.
        begins: String,
    },
    /// The tool failed.
    #[error("cannot decompress the kernel in the bzImage")]
    Decompress(#[from] CommandError),
    /// More or less came out than the image says.
    #[error("the kernel in the bzImage has {got} bytes decompressed, not {promised}")]
    Size {
        /// Bytes that came out.
        got: usize,
        /// Bytes that the image says.
        promised: usize,
    },
    /// What came out is not a kernel.
    #[error("the kernel cannot be booted directly")]
    Elf(#[from] ElfError),
}

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: an ELF file.
    None,
    /// gzip
    Gzip,
    /// xz
    Xz,
    /// The older container of the same method.
    Lzma,
    /// bzip2
    Bzip2,
    /// LZ4, legacy frame
    Lz4,
    /// LZO
    Lzo,
    /// Zstandard
    Zstd,
}

impl Compression {
    /// What the first bytes say; `None` when they say nothing known.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x7fELF", Compression::None),
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x5d\0\0", Compression::Lzma),
            (b"BZh", Compression::Bzip2),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"\x89LZO", Compression::Lzo),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|(_, compression)| *compression)
    }

    /// Decompresses `bytes` with the host's tool.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn undo(self, bytes: &[u8]) -> Result<Vec<u8>, CommandError> {
        const LIMIT: Duration = Duration::from_secs(300);
        let (tool, flags): (&str, &[&str]) = match self {
            Self::None => return Ok(bytes.to_vec()),
            Self::Gzip => ("gzip", &["-dc"]),
            Self::Xz => ("xz", &["-dc"]),
            Self::Lzma => ("xz", &["--format=lzma", "-dc"]),
            Self::Bzip2 => ("bzip2", &["-dc"]),
            Self::Lz4 => ("lz4", &["-dc"]),
            Self::Lzo => ("lzop", &["-dc"]),
            Self::Zstd => ("zstd", &["-dcq"]),
        };
        command::run(tool, flags, Some(bytes), LIMIT)
    }
}

const SECTOR: usize = 512;
const AT_SETUP_SECTORS: usize = 0x1f1;
const AT_MAGIC: usize = 0x202;
const AT_PROTOCOL: usize = 0x206;
const AT_VERSION_STRING: usize = 0x20e;
const AT_PAYLOAD_OFFSET: usize = 0x248;
const AT_PAYLOAD_LENGTH: usize = 0x24c;
/// No release is longer: it has to fit into `struct utsname`.
const MAX_RELEASE: usize = 65;
/// First version of the boot protocol that has the two fields above.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

/// The ELF kernel in `image`, which is a bzImage or such a kernel already, trimmed to what the ELF headers speak of and
/// known to have a PVH entry point.
///
/// # Errors
/// See [`BzImageError`].
pub fn extract(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let mut kernel = if image.starts_with(b"\x7fELF") {
        image.to_vec()
    } else {
        decompress(payload(image)?)?
    };
    let elf = Elf::parse(&kernel)?;
    elf.check_pvh()?;
    let extent = elf.extent()?;
    kernel.truncate(extent);
    Ok(kernel)
}

/// The release that a kernel image names, as `uname -r` prints it; `None` where it names none.
pub fn release(image: &[u8]) -> Option<String> {
    let text = if image.starts_with(b"\x7fELF") {
        banner(image)?
    } else if image.get(AT_MAGIC..AT_MAGIC + 4) == Some(b"HdrS") {
        let at = image.get(AT_VERSION_STRING..AT_VERSION_STRING + 2)?;
        // The pointer counts from the end of the first sector.
        image.get(usize::from(u16::from_le_bytes(at.try_into().ok()?)) + SECTOR..)?
    } else {
        return None;
    };
    let end = text
        .iter()
        .take(MAX_RELEASE)
        .position(|byte| !byte.is_ascii_graphic())?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    // It becomes a directory's name.
    (!release.is_empty() && !release.contains('/') && !release.starts_with('.')).then(|| release.to_owned())
}

/// What follows the words with which an uncompressed kernel introduces itself.
fn banner(kernel: &[u8]) -> Option<&[u8]> {
    const WORDS: &[u8] = b"Linux version ";
    let mut rest = kernel;
    loop {
        let at = rest.iter().position(|byte| *byte == WORDS[0])?;
        rest = &rest[at..];
        match rest.strip_prefix(WORDS) {
            // The same words also begin format strings.
            Some(text) if text.first().is_some_and(u8::is_ascii_digit) => return Some(text),
            _ => rest = &rest[1..],
        }
    }
}

/// The compressed kernel, with the size that the kernel's build puts after it.
fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    let u32_at = |at: usize| {
        image
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes)
    };
    if image.get(AT_MAGIC..AT_MAGIC + 4) != Some(b"HdrS") {
        return Err(BzImageError::NotKernel);
    }
    let protocol = u32_at(AT_PROTOCOL).ok_or(BzImageError::NotKernel)? as u16;
    if protocol < PROTOCOL_WITH_PAYLOAD {
        return Err(BzImageError::TooOld { protocol });
    }
    let (Some(offset), Some(length), Some(&sectors)) = (
        u32_at(AT_PAYLOAD_OFFSET),
        u32_at(AT_PAYLOAD_LENGTH),
        image.get(AT_SETUP_SECTORS),
    ) else {
        return Err(BzImageError::NotKernel);
    };
    // Zero means four, for the sake of boot loaders of the 1990s.
    let sectors = if sectors == 0 { 4 } else { usize::from(sectors) };
    let (offset, length) = ((sectors + 1) * SECTOR + offset as usize, length as usize);
    image.get(offset..offset + length).ok_or(BzImageError::Truncated {
        offset,
        length,
        bytes: image.len(),
    })
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let begins = || {
        payload
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let compression = Compression::of(payload).ok_or_else(|| BzImageError::UnknownCompression { begins: begins() })?;
    if compression == Compression::None {
        return Ok(payload.to_vec());
    }
    let Some((stream, size)) = payload.split_last_chunk::<4>() else {
        return Err(BzImageError::UnknownCompression { begins: begins() });
    };
    // gzip keeps the size itself, in the same place; after the others the kernel's build has appended it.
    let stream = if compression == Compression::Gzip {
        payload
    } else {
        stream
    };
    let kernel = compression.undo(stream)?;
    let promised = u32::from_le_bytes(*size) as usize;
    if kernel.len() != promised {
        return Err(BzImageError::Size {
            got: kernel.len(),
            promised,
        });
    }
    Ok(kernel)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::image::elf::tests::{kernel, synthetic};

    /// A bzImage around `payload`.
    pub fn image(sectors: u8, payload: &[u8]) -> Vec<u8> {
        let lead = 0x2d;
        let start = (if sectors == 0 { 4 } else { usize::from(sectors) } + 1) * SECTOR + lead;
        let mut out = vec![0x90; start];
        out[AT_SETUP_SECTORS] = sectors;
        out[AT_MAGIC..AT_MAGIC + 4].copy_from_slice(b"HdrS");
        out[AT_PROTOCOL..AT_PROTOCOL + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        out[AT_PAYLOAD_OFFSET..AT_PAYLOAD_OFFSET + 4].copy_from_slice(&(lead as u32).to_le_bytes());
        out[AT_PAYLOAD_LENGTH..AT_PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"whatever follows");
        out
    }

    /// `bytes` as the kernel's build compresses them; `None` when the tool is not on this host.
    fn compress(tool: &str, flags: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = match command::run(tool, flags, Some(bytes), Duration::from_secs(20)) {
            Ok(out) => out,
            Err(CommandError::Start { .. }) => return None,
            Err(error) => panic!("{error}"),
        };
        if tool != "gzip" {
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
        Some(out)
    }

    #[test]
    fn a_kernel_comes_out_of_every_compression() {
        let vmlinux = kernel(b"the kernel's code");
        let mut with_relocations = vmlinux.clone();
        with_relocations.extend_from_slice(&[9; 64]);
        let tools: [(&str, &[&str]); 7] = [
            ("gzip", &["-c"]),
            ("xz", &["-c", "--check=crc32"]),
            ("xz", &["-c", "--format=lzma"]),
            ("bzip2", &["-c"]),
            ("lz4", &["-l", "-c"]),
            ("lzop", &["-c"]),
            ("zstd", &["-c", "-q"]),
        ];
        for (tool, flags) in tools {
            let Some(payload) = compress(tool, flags, &with_relocations) else {
                continue;
            };
            assert!(extract(&image(27, &payload)).unwrap() == vmlinux, "{tool} {flags:?}");
        }
        assert!(
            extract(&image(0, &vmlinux)).unwrap() == vmlinux,
            "uncompressed, old sector count"
        );
        assert!(extract(&with_relocations).unwrap() == vmlinux, "already an ELF file");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let mut old = image(27, b"x");
        old[AT_PROTOCOL] = 7;
        let mut wrong_size = compress("gzip", &["-c"], &kernel(b"code")).unwrap();
        let last = wrong_size.len() - 4;
        wrong_size.truncate(last);
        let mut cut = image(27, &kernel(b"code"));
        cut.truncate(cut.len() - 40);
        let cases: [(&[u8], &str); 6] = [
            (b"#!/bin/sh", "neither an ELF vmlinux nor a bzImage"),
            (&old, "boot protocol 2.07 is too old"),
            (
                &image(27, b"\x11\x22\x33\x44\x55\x66\x77"),
                "unknown way (it begins with 11 22 33 44 55 66)",
            ),
            (&image(27, &wrong_size), "cannot decompress"),
            (&cut, "damaged bzImage"),
            (
                &image(27, &synthetic(&[(1, b"code")], &[])),
                "cannot be booted directly",
            ),
        ];
        for (bytes, fragment) in cases {
            let message = extract(bytes).unwrap_err().to_string();
            assert!(message.contains(fragment), "{message} should contain {fragment}");
        }
    }

    #[test]
    fn both_shapes_name_their_release() {
        let mut bz = image(27, b"x");
        bz[AT_VERSION_STRING..AT_VERSION_STRING + 2].copy_from_slice(&0x300u16.to_le_bytes());
        bz[0x500..0x514].copy_from_slice(b"6.1.0-56-cloud (x) #");
        assert_eq!(release(&bz).as_deref(), Some("6.1.0-56-cloud"));
        let elf = kernel(b"LinLinux version %s\0Linux version 6.12.9+x-amd64 (me@here)");
        assert_eq!(release(&elf).as_deref(), Some("6.12.9+x-amd64"));
        for other in [&kernel(b"Linux version ../../x (y)")[..], &kernel(b"code"), b"text"] {
            assert_eq!(release(other), None);
        }
    }

    #[test]
    fn a_false_size_is_noticed() {
        let mut payload = compress("xz", &["-c", "--check=crc32"], &kernel(b"code")).unwrap();
        let last = payload.len() - 1;
        payload[last] ^= 1;
        assert!(matches!(extract(&image(27, &payload)), Err(BzImageError::Size { .. })));
    }
}
