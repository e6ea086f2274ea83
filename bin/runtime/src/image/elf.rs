//! Reads the little of ELF that a builder of guest assets must know: is this a kernel that QEMU can enter directly,
//! is this program static, what does this module need.
//!
//! It refuses anything but 64-bit little-endian x86-64. Every offset in the file is checked before it is followed.

use std::ops::Range;

/// Why a file is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Another kind of file.
    #[error("not an ELF file")]
    NotElf,
    /// For other processors.
    #[error("not an ELF file for 64-bit x86")]
    WrongMachine,
    /// A table or section lies outside the file.
    #[error("damaged ELF file: {what} lies outside it")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A program that needs an interpreter.
    #[error("dynamically linked: the guest has no libraries; build it static")]
    Dynamic,
    /// A kernel that cannot be entered without a boot loader.
    #[error("no PVH entry point (Xen note 18): the kernel needs CONFIG_PVH=y")]
    NoPvhEntry,
}

const MACHINE_X86_64: u16 = 62;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_NOTE: u32 = 4;
/// Type of a section that is a free row of the table.
pub const SECTION_NULL: u32 = 0;
/// Type of a section of relocations with addends.
pub const SECTION_RELOCATIONS: u32 = 4;
/// Type of a section without bytes in the file.
pub const SECTION_NO_BITS: u32 = 8;
/// Type of the note "physical 32-bit entry point", and the name of its owner.
const NOTE_PVH_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// An ELF file, header checked.
#[derive(Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
}

/// One row of the program header table.
struct Segment {
    kind: u32,
    range: Range<usize>,
}

/// One row of the section header table.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    /// Empty where the file has no names.
    pub name: &'a str,
    /// `sh_type`
    pub kind: u32,
    /// Where its bytes lie in the file; not checked for those that have none.
    pub range: Range<usize>,
    /// `sh_link`: of relocations, the row of their symbols; of symbols, the row of their names.
    pub link: usize,
    /// `sh_info`: of relocations, the row of what they change.
    pub info: usize,
    /// `sh_addralign`, at least 1.
    pub alignment: usize,
}

impl<'a> Elf<'a> {
    /// Takes the file's bytes.
    ///
    /// # Errors
    /// [`ElfError::NotElf`], [`ElfError::WrongMachine`], [`ElfError::Truncated`]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let elf = Self { bytes };
        let (class, encoding) = (bytes.get(4), bytes.get(5));
        if class != Some(&2) || encoding != Some(&1) || elf.u16(18, "the header")? != MACHINE_X86_64 {
            return Err(ElfError::WrongMachine);
        }
        if bytes.len() < 64 {
            return Err(ElfError::Truncated { what: "the header" });
        }
        Ok(elf)
    }

    /// Accepts programs that run without an interpreter.
    ///
    /// # Errors
    /// [`ElfError::Dynamic`], [`ElfError::Truncated`]
    pub fn check_static(&self) -> Result<(), ElfError> {
        if self
            .segments()?
            .iter()
            .any(|segment| segment.kind == SEGMENT_INTERPRETER)
        {
            return Err(ElfError::Dynamic);
        }
        Ok(())
    }

    /// Accepts kernels with a PVH entry point.
    ///
    /// # Errors
    /// [`ElfError::NoPvhEntry`], [`ElfError::Truncated`]
    pub fn check_pvh(&self) -> Result<(), ElfError> {
        for segment in self
            .segments()?
            .into_iter()
            .filter(|segment| segment.kind == SEGMENT_NOTE)
        {
            if notes(self.slice(segment.range, "a note")?)?
                .any(|(owner, kind)| (owner, kind) == (NOTE_OWNER, NOTE_PVH_ENTRY))
            {
                return Ok(());
            }
        }
        Err(ElfError::NoPvhEntry)
    }

    /// Bytes up to the end of the last thing that the headers speak of. Kernels taken out of a bzImage carry
    /// relocations after it that only the boot loader's stub uses.
    ///
    /// # Errors
    /// [`ElfError::Truncated`]
    pub fn extent(&self) -> Result<usize, ElfError> {
        let mut end = 64;
        for segment in self.segments()? {
            end = end.max(segment.range.end);
        }
        let (table, _) = self.section_table()?;
        end = end.max(table.end);
        for section in self
            .sections()?
            .into_iter()
            .filter(|section| section.kind != SECTION_NO_BITS)
        {
            end = end.max(section.range.end);
        }
        self.slice(0..end, "its own extent")?;
        Ok(end)
    }

    /// The `key=value` pairs of a kernel module's `.modinfo`, in file order; empty for other files.
    ///
    /// # Errors
    /// [`ElfError::Truncated`]
    pub fn module_info(&self) -> Result<Vec<(&'a str, &'a str)>, ElfError> {
        let Some(range) = self.section(".modinfo")? else {
            return Ok(Vec::new());
        };
        let text = self.slice(range, ".modinfo")?;
        let pairs = text
            .split(|byte| *byte == 0)
            .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
        Ok(pairs.collect())
    }

    fn section(&self, wanted: &str) -> Result<Option<Range<usize>>, ElfError> {
        let mut sections = self.sections()?.into_iter();
        Ok(sections
            .find(|section| section.name == wanted)
            .map(|section| section.range))
    }

    fn segments(&self) -> Result<Vec<Segment>, ElfError> {
        const WHAT: &str = "the program header table";
        let (start, size, count) = (self.place(32, WHAT)?, self.u16(54, WHAT)?, self.u16(56, WHAT)?);
        (0..usize::from(count))
            .map(|index| {
                let row = self.row(start, index, usize::from(size), WHAT)?;
                let (offset, length) = (self.place(row + 8, WHAT)?, self.place(row + 32, WHAT)?);
                Ok(Segment {
                    kind: self.u32(row, WHAT)?,
                    range: span(offset, length, "a segment")?,
                })
            })
            .collect()
    }

    /// The rows of the section header table.
    ///
    /// # Errors
    /// [`ElfError::Truncated`]
    pub fn sections(&self) -> Result<Vec<Section<'a>>, ElfError> {
        const WHAT: &str = "the section header table";
        let (start, size, count) = (self.place(40, WHAT)?, self.u16(58, WHAT)?, self.u16(60, WHAT)?);
        let mut names = Vec::new();
        let mut sections = Vec::new();
        for index in 0..usize::from(count) {
            let row = self.row(start, index, usize::from(size), WHAT)?;
            let (offset, length) = (self.place(row + 24, WHAT)?, self.place(row + 32, WHAT)?);
            names.push(self.u32(row, WHAT)? as usize);
            sections.push(Section {
                name: "",
                kind: self.u32(row + 4, WHAT)?,
                range: span(offset, length, "a section")?,
                link: self.u32(row + 40, WHAT)? as usize,
                info: self.u32(row + 44, WHAT)? as usize,
                alignment: self.place(row + 48, WHAT)?.max(1),
            });
        }
        let (_, holder) = self.section_table()?;
        if let Some(holder) = sections.get(holder) {
            let texts = self.slice(holder.range.clone(), "the section names")?;
            for (section, at) in sections.iter_mut().zip(names) {
                section.name = text(texts, at);
            }
        }
        Ok(sections)
    }

    /// Where the section header table lies, and which of its rows holds the names.
    ///
    /// # Errors
    /// [`ElfError::Truncated`]
    pub fn section_table(&self) -> Result<(Range<usize>, usize), ElfError> {
        const WHAT: &str = "the section header table";
        let (size, count) = (usize::from(self.u16(58, WHAT)?), usize::from(self.u16(60, WHAT)?));
        Ok((
            span(self.place(40, WHAT)?, size * count, WHAT)?,
            usize::from(self.u16(62, WHAT)?),
        ))
    }

    fn row(&self, start: usize, index: usize, size: usize, what: &'static str) -> Result<usize, ElfError> {
        let row = start.checked_add(index * size).ok_or(ElfError::Truncated { what })?;
        self.slice(span(row, size, what)?, what)?;
        Ok(row)
    }

    /// The bytes in `range`.
    ///
    /// # Errors
    /// [`ElfError::Truncated`], which calls them `what`.
    pub fn slice(&self, range: Range<usize>, what: &'static str) -> Result<&'a [u8], ElfError> {
        self.bytes.get(range).ok_or(ElfError::Truncated { what })
    }

    fn array<const N: usize>(&self, at: usize, what: &'static str) -> Result<[u8; N], ElfError> {
        let bytes = self.slice(span(at, N, what)?, what)?;
        bytes.try_into().map_err(|_| ElfError::Truncated { what })
    }

    /// A 16-bit number.
    ///
    /// # Errors
    /// [`ElfError::Truncated`], which calls it `what`.
    pub fn u16(&self, at: usize, what: &'static str) -> Result<u16, ElfError> {
        Ok(u16::from_le_bytes(self.array(at, what)?))
    }

    /// A 32-bit number.
    ///
    /// # Errors
    /// [`ElfError::Truncated`], which calls it `what`.
    pub fn u32(&self, at: usize, what: &'static str) -> Result<u32, ElfError> {
        Ok(u32::from_le_bytes(self.array(at, what)?))
    }

    /// A 64-bit offset or size.
    ///
    /// # Errors
    /// [`ElfError::Truncated`], which calls it `what`.
    pub fn place(&self, at: usize, what: &'static str) -> Result<usize, ElfError> {
        usize::try_from(u64::from_le_bytes(self.array(at, what)?)).map_err(|_| ElfError::Truncated { what })
    }
}

fn span(start: usize, length: usize, what: &'static str) -> Result<Range<usize>, ElfError> {
    let end = start.checked_add(length).ok_or(ElfError::Truncated { what })?;
    Ok(start..end)
}

/// The text in `table` that begins at `at` and ends with a zero byte; empty where there is none.
pub fn text(table: &[u8], at: usize) -> &str {
    let rest = table.get(at..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or_default();
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}

/// Owner and type of each note in a note segment.
fn notes(mut rest: &[u8]) -> Result<impl Iterator<Item = (&[u8], u32)>, ElfError> {
    const WHAT: &str = "a note";
    let mut found = Vec::new();
    while rest.len() >= 12 {
        let number = |at: usize| -> Result<u32, ElfError> {
            let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_le_bytes).ok_or(ElfError::Truncated { what: WHAT })
        };
        let (owner_size, value_size, kind) = (number(0)? as usize, number(4)? as usize, number(8)?);
        let owner = rest
            .get(12..12 + owner_size)
            .ok_or(ElfError::Truncated { what: WHAT })?;
        found.push((owner, kind));
        let next = 12 + owner_size.next_multiple_of(4) + value_size.next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(found.into_iter())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A section to be made: its name, type, link and info, and its bytes.
    pub type Made<'a> = (&'a str, u32, u32, u32, &'a [u8]);

    /// A small ELF file: its segments as (type, bytes) and its sections as (name, bytes).
    pub fn synthetic(segments: &[(u32, &[u8])], sections: &[(&str, &[u8])]) -> Vec<u8> {
        let sections: Vec<Made<'_>> = sections.iter().map(|(name, bytes)| (*name, 1, 0, 0, *bytes)).collect();
        made(segments, &sections)
    }

    /// A small ELF file whose sections have rows 1 and up, their names the last row.
    pub fn made(segments: &[(u32, &[u8])], sections: &[Made<'_>]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut rows = vec![(0u32, 0u32, 0u64, 0u64, 0u32, 0u32)];
        let mut data = Vec::new();
        let start = 64 + 56 * segments.len();
        let mut headers = Vec::new();
        for (kind, bytes) in segments {
            headers.push((*kind, (start + data.len()) as u64, bytes.len() as u64));
            data.extend_from_slice(bytes);
        }
        for (name, kind, link, info, bytes) in sections {
            let place = (start + data.len()) as u64;
            rows.push((names.len() as u32, *kind, place, bytes.len() as u64, *link, *info));
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            data.extend_from_slice(bytes);
        }
        rows.push((0, 3, (start + data.len()) as u64, names.len() as u64, 0, 0));
        data.extend_from_slice(&names);
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend_from_slice(&2u16.to_le_bytes());
        out.extend_from_slice(&MACHINE_X86_64.to_le_bytes());
        out.resize(32, 0);
        out.extend_from_slice(&64u64.to_le_bytes());
        out.extend_from_slice(&((start + data.len()) as u64).to_le_bytes());
        out.resize(52, 0);
        for half in [
            64u16,
            56,
            segments.len() as u16,
            64,
            rows.len() as u16,
            rows.len() as u16 - 1,
        ] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        for (kind, offset, size) in headers {
            let row = out.len();
            out.extend_from_slice(&kind.to_le_bytes());
            out.resize(row + 8, 0);
            out.extend_from_slice(&offset.to_le_bytes());
            out.resize(row + 32, 0);
            out.extend_from_slice(&size.to_le_bytes());
            out.resize(row + 56, 0);
        }
        out.extend_from_slice(&data);
        for (name, kind, offset, size, link, info) in rows {
            let row = out.len();
            out.extend_from_slice(&name.to_le_bytes());
            out.extend_from_slice(&kind.to_le_bytes());
            out.resize(row + 24, 0);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&link.to_le_bytes());
            out.extend_from_slice(&info.to_le_bytes());
            out.resize(row + 64, 0);
        }
        out
    }

    /// A note segment's bytes.
    pub fn note(owner: &[u8], kind: u32) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [owner.len() as u32, 8, kind] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(owner);
        out.resize(out.len().next_multiple_of(4) + 8, 0);
        out
    }

    /// A kernel as QEMU wants it.
    pub fn kernel(text: &[u8]) -> Vec<u8> {
        let mut notes = note(b"Linux\0", 256);
        notes.extend(note(NOTE_OWNER, NOTE_PVH_ENTRY));
        synthetic(&[(1, text), (SEGMENT_NOTE, &notes)], &[(".text", text)])
    }

    #[test]
    fn a_pvh_kernel_is_told_from_another() {
        assert_eq!(Elf::parse(&kernel(b"code")).unwrap().check_pvh(), Ok(()));
        let other = synthetic(&[(SEGMENT_NOTE, &note(b"Xen\0", 5))], &[]);
        assert_eq!(Elf::parse(&other).unwrap().check_pvh(), Err(ElfError::NoPvhEntry));
    }

    #[test]
    fn a_static_program_is_told_from_a_dynamic_one() {
        let fixed = synthetic(&[(1, b"code")], &[]);
        let dynamic = synthetic(&[(SEGMENT_INTERPRETER, b"/lib/ld.so\0"), (1, b"code")], &[]);
        assert_eq!(Elf::parse(&fixed).unwrap().check_static(), Ok(()));
        assert_eq!(Elf::parse(&dynamic).unwrap().check_static(), Err(ElfError::Dynamic));
    }

    #[test]
    fn what_follows_the_kernel_is_not_part_of_it() {
        let mut bytes = kernel(b"code");
        let whole = bytes.len();
        bytes.extend_from_slice(&[7; 100]);
        assert_eq!(Elf::parse(&bytes).unwrap().extent(), Ok(whole));
    }

    #[test]
    fn module_info_is_read() {
        let module = synthetic(&[], &[(".text", b"code"), (".modinfo", b"name=fuse\0\0depends=a,b\0")]);
        let info = Elf::parse(&module).unwrap().module_info().unwrap();
        assert_eq!(info, [("name", "fuse"), ("depends", "a,b")]);
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(Elf::parse(b"#!/bin/sh").unwrap_err(), ElfError::NotElf);
        let mut arm = kernel(b"code");
        arm[18] = 183;
        assert_eq!(Elf::parse(&arm).unwrap_err(), ElfError::WrongMachine);
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let whole = kernel(b"code");
        let look = |bytes: &[u8]| {
            if let Ok(elf) = Elf::parse(bytes) {
                let _ = (elf.check_pvh(), elf.check_static(), elf.extent(), elf.module_info());
            }
        };
        for length in 0..whole.len() {
            look(&whole[..length]);
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0xff;
            look(&bytes);
        }
    }
}
