//! Writes a file system image, EROFS (Linux `Documentation/filesystems/erofs.rst`, `fs/erofs/erofs_fs.h`), so that equal
//! input gives equal bytes.
//!
//! Only what persistent memory wants: no compression, no tail of a file beside its inode, so that every page of a file is
//! a page of the image and can be mapped as it is (DAX). Everything belongs to root and is of 1970.
//!
//! ```text
//! block 0          1 …                …                             end
//! superblock       inodes, 32 bytes   directories and files, each   zeroes up to a
//! at byte 1024     each, root first   from a block of its own       multiple of 2 MiB
//! ```

use std::collections::BTreeMap;

use crate::image::content::{Content, Entry};

/// The image does not fit into what the format counts with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{blocks} blocks of {BLOCK} bytes are too many for an EROFS image")]
pub struct ErofsError {
    blocks: usize,
}

/// Bytes of a block, which have to be a page's.
const BLOCK: usize = 4096;
/// The image's size is a multiple of this: what the guest's kernel can make pages of device memory for.
const GRAIN: usize = 2 << 20;
const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const INODE: usize = 32;
/// Bytes of a directory's entry, without its name.
const ENTRY: usize = 12;
/// The first inode's number: its place in the image, in sizes of an inode.
const FIRST: u64 = (BLOCK / INODE) as u64;
const NAME: &[u8; 16] = b"kata guest\0\0\0\0\0\0";

/// Type of an inode as `mode` has it, and as a directory's entry has it.
const FILE: (u16, u8) = (0o100_000, 1);
const DIRECTORY: (u16, u8) = (0o040_000, 2);
const CHARACTER: (u16, u8) = (0o020_000, 3);

/// An inode, and what is in its blocks.
struct Node {
    kind: (u16, u8),
    permissions: u32,
    links: u16,
    /// A device's number; the first block of anything else.
    place: u32,
    data: Vec<u8>,
}

/// The image's bytes.
///
/// # Errors
/// [`ErofsError`]
pub fn write(content: &Content) -> Result<Vec<u8>, ErofsError> {
    let root = Entry::Directory(0o755);
    let entries: BTreeMap<&str, &Entry> = std::iter::once(("", &root))
        .chain(content.entries().iter().map(|(path, entry)| (path.as_str(), entry)))
        .collect();
    let numbers: BTreeMap<&str, u64> = entries.keys().copied().zip(FIRST..).collect();
    let mut nodes: Vec<Node> = entries
        .iter()
        .map(|(path, entry)| node(path, entry, &entries, &numbers))
        .collect();

    let mut blocks = 1 + (nodes.len() * INODE).div_ceil(BLOCK);
    for node in nodes.iter_mut().filter(|node| !node.data.is_empty()) {
        node.place = u32::try_from(blocks).map_err(|_| ErofsError { blocks })?;
        blocks += node.data.len().div_ceil(BLOCK);
    }
    let bytes = (blocks * BLOCK).next_multiple_of(GRAIN);
    let blocks = u32::try_from(bytes / BLOCK).map_err(|_| ErofsError { blocks })?;

    let mut image = superblock(nodes.len(), blocks);
    for (node, number) in nodes.iter().zip(1..) {
        image.extend(inode(node, number));
    }
    for node in &nodes {
        if !node.data.is_empty() {
            image.resize(image.len().next_multiple_of(BLOCK), 0);
            image.extend(&node.data);
        }
    }
    image.resize(bytes, 0);
    Ok(image)
}

/// Whether an image begins so. Only its superblock is looked at.
pub fn is_image(bytes: &[u8]) -> bool {
    bytes.get(SUPERBLOCK..SUPERBLOCK + 4) == Some(&MAGIC.to_le_bytes())
}

fn node(path: &str, entry: &Entry, entries: &BTreeMap<&str, &Entry>, numbers: &BTreeMap<&str, u64>) -> Node {
    let (kind, permissions, links, place, data) = match entry {
        Entry::File(permissions, bytes) => (FILE, *permissions, 1, 0, bytes.clone()),
        Entry::CharacterDevice(permissions, major, minor) => {
            // As the kernel's `new_encode_dev`.
            let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            (CHARACTER, *permissions, 1, number, Vec::new())
        }
        Entry::Directory(permissions) => {
            let members = members(path, entries, numbers);
            let directories = members.values().filter(|(_, kind)| *kind == DIRECTORY.1).count();
            let links = u16::try_from(directories).unwrap_or(u16::MAX);
            (DIRECTORY, *permissions, links, 0, directory(&members))
        }
    };
    Node {
        kind,
        permissions,
        links,
        place,
        data,
    }
}

/// Number and type of what is in the directory at `path`, itself and the one above included.
fn members<'a>(
    path: &str,
    entries: &BTreeMap<&'a str, &Entry>,
    numbers: &BTreeMap<&str, u64>,
) -> BTreeMap<&'a str, (u64, u8)> {
    let number = |path: &str| numbers.get(path).copied().unwrap_or(FIRST);
    let above = |path: &'a str| path.rsplit_once('/').unwrap_or(("", path));
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut members = BTreeMap::from([
        (".", (number(path), DIRECTORY.1)),
        ("..", (number(parent), DIRECTORY.1)),
    ]);
    for (other, entry) in entries.iter().filter(|(other, _)| !other.is_empty()) {
        let (directory, name) = above(other);
        let kind = match entry {
            Entry::File(..) => FILE,
            Entry::Directory(_) => DIRECTORY,
            Entry::CharacterDevice(..) => CHARACTER,
        };
        if directory == path {
            members.insert(name, (number(other), kind.1));
        }
    }
    members
}

/// A directory's blocks: in each of them entries, then their names, in the names' order.
fn directory(members: &BTreeMap<&str, (u64, u8)>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block: Vec<(&str, u64, u8)> = Vec::new();
    let mut used = 0;
    for (name, (number, kind)) in members {
        if used + ENTRY + name.len() > BLOCK {
            close(&mut out, &mut block);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            used = 0;
        }
        used += ENTRY + name.len();
        block.push((name, *number, *kind));
    }
    close(&mut out, &mut block);
    out
}

fn close(out: &mut Vec<u8>, block: &mut Vec<(&str, u64, u8)>) {
    let mut at = block.len() * ENTRY;
    for (name, number, kind) in block.iter() {
        out.extend(number.to_le_bytes());
        // At most a block, which `directory` sees to.
        out.extend((at as u16).to_le_bytes());
        out.extend([*kind, 0]);
        at += name.len();
    }
    for (name, ..) in block.drain(..) {
        out.extend(name.as_bytes());
    }
}

/// Block 0. What is not written here is 0: no checksum, no features, no time, no UUID.
fn superblock(inodes: usize, blocks: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[SUPERBLOCK + at..][..bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(12, &[BLOCK.trailing_zeros() as u8]);
    put(14, &(FIRST as u16).to_le_bytes());
    put(16, &(inodes as u64).to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(64, NAME);
    block
}

/// A compact inode (`struct erofs_inode_compact`) with its data in one piece.
fn inode(node: &Node, number: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(INODE);
    let mode = node.kind.0 | (node.permissions & 0o7777) as u16;
    // Format and layout, extended attributes: none.
    out.extend([0; 4]);
    out.extend(mode.to_le_bytes());
    out.extend(node.links.to_le_bytes());
    // `Content` has refused what does not fit into 32 bits.
    out.extend((node.data.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(node.place.to_le_bytes());
    out.extend(number.to_le_bytes());
    // User, group, and nothing.
    out.extend([0; 8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u16_at(image: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(image[at..at + 2].try_into().unwrap())
    }

    fn u32_at(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
    }

    fn u64_at(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    /// Where the inode of this number is, and what its blocks hold.
    fn open(image: &[u8], number: u64) -> (usize, &[u8]) {
        let at = usize::try_from(number).unwrap() * INODE;
        let (size, block) = (u32_at(image, at + 8) as usize, u32_at(image, at + 16) as usize);
        // What is empty has no block, and a device has a number there.
        let data = if size > 0 { &image[block * BLOCK..][..size] } else { &[] };
        (at, data)
    }

    /// Reads a directory's entries as the kernel does (`erofs_fill_dentries`): name, number, type.
    fn list(data: &[u8]) -> Vec<(String, u64, u8)> {
        let mut found = Vec::new();
        for block in data.chunks(BLOCK) {
            let count = usize::from(u16_at(block, 8)) / ENTRY;
            for index in 0..count {
                let from = usize::from(u16_at(block, index * ENTRY + 8));
                let to = if index + 1 < count {
                    usize::from(u16_at(block, (index + 1) * ENTRY + 8))
                } else {
                    block.len()
                };
                let name = String::from_utf8(block[from..to].to_vec()).unwrap();
                let name = name.trim_end_matches('\0').to_owned();
                found.push((name, u64_at(block, index * ENTRY), block[index * ENTRY + 10]));
            }
        }
        found
    }

    /// Walks to `path` from the root: where its inode is and what its blocks hold.
    fn walk<'a>(image: &'a [u8], path: &str) -> (usize, &'a [u8]) {
        let root = u64::from(u16_at(image, SUPERBLOCK + 14));
        path.split('/').fold(open(image, root), |(_, data), name| {
            let entries = list(data);
            let entry = entries.iter().find(|(found, ..)| found == name).expect(name);
            open(image, entry.1)
        })
    }

    fn sample(files: usize) -> Content {
        let mut content = Content::default();
        content.add("init", Entry::File(0o755, vec![7; 5000])).unwrap();
        content.add("dev/console", Entry::CharacterDevice(0o600, 5, 1)).unwrap();
        content.add("tmp", Entry::Directory(0o1777)).unwrap();
        content.add("etc/none", Entry::File(0o644, vec![])).unwrap();
        for number in 0..files {
            let text = format!("text {number}").into_bytes();
            content
                .add(&format!("lib/a-file-of-number-{number}"), Entry::File(0o644, text))
                .unwrap();
        }
        content
    }

    #[test]
    fn everything_is_found_where_the_kernel_looks() {
        let image = write(&sample(300)).unwrap();
        assert!(is_image(&image) && !is_image(b"070701"));
        assert_eq!(image.len() % GRAIN, 0);
        assert_eq!(u32_at(&image, SUPERBLOCK), MAGIC);
        assert_eq!(u32_at(&image, SUPERBLOCK + 36) as usize * BLOCK, image.len());
        // Root, dev, etc, lib, tmp, console, none, init and the files.
        assert_eq!(u64_at(&image, SUPERBLOCK + 16), 308);

        let (init, data) = walk(&image, "init");
        assert_eq!(data, [7; 5000]);
        assert_eq!((u16_at(&image, init + 4), u16_at(&image, init + 6)), (0o100_755, 1));
        let (console, _) = walk(&image, "dev/console");
        assert_eq!(
            (u16_at(&image, console + 4), u32_at(&image, console + 16)),
            (0o020_600, 0x501)
        );
        let (tmp, _) = walk(&image, "tmp");
        assert_eq!((u16_at(&image, tmp + 4), u16_at(&image, tmp + 6)), (0o041_777, 2));
        assert_eq!(walk(&image, "etc/none").1, b"");
        assert_eq!(walk(&image, "lib/a-file-of-number-299").1, b"text 299");
        assert_eq!(walk(&image, "lib/..").0, walk(&image, ".").0);
        assert_eq!(
            u16_at(&image, walk(&image, ".").0 + 6),
            6,
            "itself, above, and four in it"
        );
    }

    #[test]
    fn a_directory_of_several_blocks_is_in_order() {
        let image = write(&sample(300)).unwrap();
        let (_, data) = walk(&image, "lib");
        assert!(data.len() > BLOCK, "{}", data.len());
        let names: Vec<String> = list(data).into_iter().map(|(name, ..)| name).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names.len(), 302);
    }

    #[test]
    fn the_same_files_are_the_same_bytes() {
        let mut other = Content::default();
        for (path, entry) in sample(3).entries().iter().rev() {
            other.add(path, entry.clone()).unwrap();
        }
        assert_eq!(write(&other), write(&sample(3)));
    }
}
