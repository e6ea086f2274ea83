//! Writes the kernel's initramfs format, cpio "newc", so that equal input gives equal bytes.
//!
//! Entries are in the order of their paths, belong to root, carry no time and are numbered in order.

use crate::image::content::{Content, Entry, TRAILER};

const MAGIC: &str = "070701";
/// The kernel reads headers and data at multiples of this.
const ALIGNMENT: usize = 4;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_CHARACTER: u32 = 0o020_000;

/// The archive's bytes.
pub fn write(content: &Content) -> Vec<u8> {
    let mut out = Vec::new();
    // Inode numbers only tell files from one another; the path's place in the order is stable.
    let mut inode = 0;
    for (path, entry) in content.entries() {
        inode += 1;
        let (mode, links, device, data): (u32, u32, (u32, u32), &[u8]) = match entry {
            Entry::Directory(mode) => (TYPE_DIRECTORY | mode, 2, (0, 0), &[]),
            Entry::File(mode, bytes) => (TYPE_FILE | mode, 1, (0, 0), bytes),
            Entry::CharacterDevice(mode, major, minor) => (TYPE_CHARACTER | mode, 1, (*major, *minor), &[]),
        };
        write_entry(&mut out, path, inode, mode, links, device, data);
    }
    write_entry(&mut out, TRAILER, 0, 0, 1, (0, 0), &[]);
    out
}

fn write_entry(out: &mut Vec<u8>, path: &str, inode: u32, mode: u32, links: u32, device: (u32, u32), data: &[u8]) {
    // `Content` has refused what does not fit into 32 bits.
    let size = data.len() as u32;
    let name_size = path.len() as u32 + 1;
    let (user, group, time, on_major, on_minor, checksum) = (0, 0, 0, 0, 0, 0);
    let fields = [
        inode, mode, user, group, links, time, size, on_major, on_minor, device.0, device.1, name_size, checksum,
    ];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(data);
    align(out);
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::image::content::tests::sample;

    #[test]
    fn the_bytes_are_exactly_these() {
        let expected = concat!(
            "070701",
            "00000001",
            "000041ed",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "dev\0",
            "\0\0",
            "070701",
            "00000002",
            "00002180",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000001",
            "0000000c",
            "00000000",
            "dev/console\0",
            "\0\0",
            "070701",
            "00000003",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0",
            "\0",
            "#!\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        );
        assert_eq!(String::from_utf8(write(&sample())).unwrap(), expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut other = Content::default();
        other.add("dev/console", Entry::CharacterDevice(0o600, 5, 1)).unwrap();
        other.add("init", Entry::File(0o755, b"#!".to_vec())).unwrap();
        assert_eq!(write(&other), write(&sample()));
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let limit = Duration::from_secs(20);
        let Ok(listing) = crate::command::run("cpio", &["-t", "--quiet"], Some(&write(&sample())), limit) else {
            return; // no cpio on this host: the golden test stands alone
        };
        assert_eq!(String::from_utf8(listing).unwrap(), "dev\ndev/console\ninit\n");
    }
}
