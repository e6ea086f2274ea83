//! Takes out of a kernel module what costs a guest at every load and serves nobody in it.
//!
//! Counted by a plugin of QEMU while a guest of Debian's 6.1 kernel loaded the nine modules of a first container: 29 of
//! the 41 million instructions after its kernel's boot. Of these
//! - 7.7 million looked up the name of each function that can be traced, in a list without order. Each begins with a
//!   call, which the kernel replaces by an instruction that does nothing; it is replaced here, and the list is left out.
//!   What is lost is tracing these functions (ftrace) in the guest.
//! - 4.5 million sorted the tables for unwinding the stack (ORC). What is lost is that a backtrace from inside a module
//!   is a guess.
//! - 0.5 million read type information (BTF), for BPF programs that are attached to functions of modules.
//!
//! Calls through a trampoline that the kernel makes direct ones (static calls) are 45 in these modules. Each is changed
//! in three steps on a running kernel, and each step forgets all of the processor's addresses twice: 270 of 740 times.
//! Without the list the calls go through the trampoline, as they do on processors for which the kernel knows no other way.
//!
//! A module that is not as expected keeps what cannot be taken out safely.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::image::elf::{Elf, ElfError, SECTION_NO_BITS, SECTION_NULL, SECTION_RELOCATIONS, Section, text};

/// Sections that the kernel does without where they are not there.
const UNUSED: [&str; 5] = [
    ".orc_unwind",
    ".orc_unwind_ip",
    ".static_call_sites",
    ".BTF",
    ".BTF.base",
];
/// The list of calls to the tracer, and what they call.
const TRACED: &str = "__mcount_loc";
const TRACER: &str = "__fentry__";

/// `call` with a 32-bit distance.
const CALL: u8 = 0xe8;
/// Five bytes that do nothing: `nopl 0(%rax,%rax,1)`.
const NOTHING: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `R_X86_64_PC32` and `R_X86_64_PLT32`: what they change is a 32-bit distance.
const DISTANCES: [u32; 2] = [2, 4];
/// Bytes of an `Elf64_Ehdr`, in it the place of `e_shoff`, and bytes of an `Elf64_Shdr`, in it the place of `sh_offset`.
const HEADER: usize = 64;
const TABLE_PLACE: usize = 40;
const ROW: usize = 64;
const ROW_PLACE: usize = 24;
/// Bytes of an `Elf64_Rela` and of an `Elf64_Sym`.
const ENTRY: usize = 24;
/// Sections are aligned in the file to no more than this.
const PAGE: usize = 4096;

/// The module without it; the very same if there is nothing to leave out.
///
/// # Errors
/// [`ElfError::NotElf`], [`ElfError::WrongMachine`], [`ElfError::Truncated`]
pub fn slim(mut module: Vec<u8>) -> Result<Vec<u8>, ElfError> {
    let file = Relocatable::parse(&module)?;
    let traces = file.traces()?;
    let dropped = file.dropped(traces.is_some())?;
    if dropped.is_empty() {
        return Ok(module);
    }
    // While the list is there, the kernel wants to find them.
    let is_untraced = dropped.iter().any(|row| file.sections[*row].name == TRACED);
    for trace in traces.filter(|_| is_untraced).unwrap_or_default() {
        module[trace.call].copy_from_slice(&NOTHING);
        module[trace.relocation].fill(0); // R_X86_64_NONE
    }
    Relocatable::parse(&module)?.without(&dropped)
}

/// A module's file, and the rows of its section header table.
struct Relocatable<'a> {
    elf: Elf<'a>,
    sections: Vec<Section<'a>>,
}

/// An entry of a table of relocations.
struct Relocation {
    /// The place of its `r_info` in the file.
    info: Range<usize>,
    /// What it changes, from the start of a section.
    offset: usize,
    /// How: the lower half of `r_info`.
    kind: u32,
    /// By which symbol: the upper half.
    symbol: usize,
}

/// A call to the tracer, by the places in the file.
struct Trace {
    call: Range<usize>,
    /// The `r_info` of what puts the distance into it.
    relocation: Range<usize>,
}

impl<'a> Relocatable<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let elf = Elf::parse(bytes)?;
        let sections = elf.sections()?;
        Ok(Self { elf, sections })
    }

    /// The calls to the tracer; `None` if one of them is something else than a call to a distance.
    fn traces(&self) -> Result<Option<Vec<Trace>>, ElfError> {
        const WHAT: &str = "a relocation's place";
        let mut traces = Vec::new();
        for (table, target) in self.tables() {
            for relocation in self.relocations(table)? {
                if self.symbol(table, relocation.symbol)?.0 != TRACER {
                    continue;
                }
                let place = target.range.start.checked_add(relocation.offset);
                let Some(call) = place.and_then(|place| Some(place.checked_sub(1)?..place.checked_add(4)?)) else {
                    return Err(ElfError::Truncated { what: WHAT });
                };
                let instruction = self.elf.slice(call.clone(), WHAT)?;
                if instruction.first() != Some(&CALL) || !DISTANCES.contains(&relocation.kind) {
                    return Ok(None);
                }
                traces.push(Trace {
                    call,
                    relocation: relocation.info,
                });
            }
        }
        Ok(Some(traces))
    }

    /// The rows of the sections to leave out, with those of the relocations in them. What another section refers to is
    /// not among them.
    fn dropped(&self, is_traced_plainly: bool) -> Result<BTreeSet<usize>, ElfError> {
        let is_unused =
            |section: &Section<'_>| UNUSED.contains(&section.name) || section.name == TRACED && is_traced_plainly;
        let mut dropped: BTreeSet<usize> = (0..self.sections.len())
            .filter(|row| is_unused(&self.sections[*row]))
            .collect();
        for (table, target) in self.tables() {
            if is_unused(target) {
                continue;
            }
            for relocation in self.relocations(table)? {
                dropped.remove(&self.symbol(table, relocation.symbol)?.1);
            }
        }
        let of_dropped = |(row, section): (usize, &Section<'_>)| {
            (section.kind == SECTION_RELOCATIONS && dropped.contains(&section.info)).then_some(row)
        };
        let tables: Vec<usize> = self.sections.iter().enumerate().filter_map(of_dropped).collect();
        dropped.extend(tables);
        Ok(dropped)
    }

    /// The file again without some rows' sections; the rows stay, empty, because others are known by their number.
    fn without(&self, dropped: &BTreeSet<usize>) -> Result<Vec<u8>, ElfError> {
        const TABLE: &str = "the section header table";
        let (table, _) = self.elf.section_table()?;
        let mut rows = self.elf.slice(table, TABLE)?.to_vec();
        if rows.len() != self.sections.len() * ROW {
            return Err(ElfError::Truncated { what: TABLE });
        }
        let mut out = self.elf.slice(0..HEADER, "the header")?.to_vec();
        for (index, (row, section)) in rows.chunks_exact_mut(ROW).zip(&self.sections).enumerate() {
            if dropped.contains(&index) {
                row.fill(0);
            } else if section.kind != SECTION_NULL {
                out.resize(out.len().next_multiple_of(section.alignment.min(PAGE)), 0);
                row[ROW_PLACE..ROW_PLACE + 8].copy_from_slice(&(out.len() as u64).to_le_bytes());
                if section.kind != SECTION_NO_BITS {
                    out.extend_from_slice(self.elf.slice(section.range.clone(), "a section")?);
                }
            }
        }
        out.resize(out.len().next_multiple_of(8), 0);
        let place = (out.len() as u64).to_le_bytes();
        out[TABLE_PLACE..TABLE_PLACE + 8].copy_from_slice(&place);
        out.extend(rows);
        Ok(out)
    }

    /// The tables of relocations, each with the section that it changes.
    fn tables(&self) -> impl Iterator<Item = (&Section<'a>, &Section<'a>)> {
        let tables = self
            .sections
            .iter()
            .filter(|section| section.kind == SECTION_RELOCATIONS);
        tables.filter_map(|table| Some((table, self.sections.get(table.info)?)))
    }

    fn relocations(&self, table: &Section<'_>) -> Result<Vec<Relocation>, ElfError> {
        const WHAT: &str = "a table of relocations";
        self.elf.slice(table.range.clone(), WHAT)?;
        let starts = (0..table.range.len() / ENTRY).map(|entry| table.range.start + entry * ENTRY);
        starts
            .map(|start| {
                Ok(Relocation {
                    info: start + 8..start + 16,
                    offset: self.elf.place(start, WHAT)?,
                    kind: self.elf.u32(start + 8, WHAT)?,
                    symbol: self.elf.u32(start + 12, WHAT)? as usize,
                })
            })
            .collect()
    }

    /// A symbol's name, and the row of the section that it is in.
    fn symbol(&self, relocations: &Section<'_>, index: usize) -> Result<(&'a str, usize), ElfError> {
        const WHAT: &str = "a symbol";
        let missing = ElfError::Truncated { what: WHAT };
        let Some(symbols) = self.sections.get(relocations.link) else {
            return Err(missing);
        };
        self.elf.slice(symbols.range.clone(), "the symbols")?;
        let Some(names) = self.sections.get(symbols.link) else {
            return Err(missing);
        };
        if index >= symbols.range.len() / ENTRY {
            return Err(missing);
        }
        let start = symbols.range.start + index * ENTRY;
        let names = self.elf.slice(names.range.clone(), "the symbols' names")?;
        let name = text(names, self.elf.u32(start, WHAT)? as usize);
        Ok((name, usize::from(self.elf.u16(start + 6, WHAT)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::elf::tests::{Made, made};

    const SYMBOLS: u32 = 8;
    const STRINGS: u32 = 9;

    fn relocation(offset: u64, kind: u64, symbol: u64) -> Vec<u8> {
        [offset, symbol << 32 | kind, 0].map(u64::to_le_bytes).concat()
    }

    /// Undefined ones have row 0.
    fn symbol(name: u32, row: u16) -> Vec<u8> {
        let mut entry = name.to_le_bytes().to_vec();
        entry.extend([0, 0]);
        entry.extend(row.to_le_bytes());
        entry.resize(ENTRY, 0);
        entry
    }

    /// A module of one function that calls the tracer and `printk`. The bytes are those of the call to the tracer; `also` is
    /// a symbol (1: the tracer, 2: `printk`, 3: in the static calls) that the data refer to.
    fn module(call: [u8; 5], kind: u64, also: u64) -> Vec<u8> {
        let code = [&call[..], &[CALL, 0, 0, 0, 0, 0xc3]].concat();
        let in_code = [relocation(1, kind, 1), relocation(6, 4, 2)].concat();
        let in_list = relocation(0, 1, 0);
        let in_data = relocation(0, 1, also);
        let symbols = [symbol(0, 0), symbol(1, 0), symbol(12, 0), symbol(19, 5)].concat();
        let sections: [Made<'_>; 12] = [
            (".text", 1, 0, 0, &code),
            (".rela.text", SECTION_RELOCATIONS, SYMBOLS, 1, &in_code),
            (TRACED, 1, 0, 0, &[0; 8]),
            (".rela__mcount_loc", SECTION_RELOCATIONS, SYMBOLS, 3, &in_list),
            (".static_call_sites", 1, 0, 0, b"calls"),
            (".orc_unwind", 1, 0, 0, b"frames"),
            (".bss", SECTION_NO_BITS, 0, 0, &[]),
            (".symtab", 2, STRINGS, 0, &symbols),
            (".strtab", 3, 0, 0, b"\0__fentry__\0printk\0site\0"),
            (".data", 1, 0, 0, b"data of the module"),
            (".rela.data", SECTION_RELOCATIONS, SYMBOLS, 10, &in_data),
            (".modinfo", 1, 0, 0, b"name=one\0"),
        ];
        made(&[], &sections)
    }

    /// Name and bytes of each section that is there, by its row.
    fn content(bytes: &[u8]) -> Vec<(usize, String, Vec<u8>)> {
        let elf = Elf::parse(bytes).unwrap();
        let rows = elf.sections().unwrap().into_iter().enumerate();
        rows.filter(|(_, section)| section.kind != SECTION_NULL)
            .map(|(row, section)| {
                let bytes = elf.slice(section.range, "it").unwrap().to_vec();
                (row, section.name.to_owned(), bytes)
            })
            .collect()
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        content(bytes).into_iter().map(|(_, name, _)| name).collect()
    }

    const PLAIN: [u8; 5] = [CALL, 0, 0, 0, 0];

    #[test]
    fn lists_go_and_the_rest_stays_as_it_was() {
        let whole = module(PLAIN, 4, 2);
        let slim = slim(whole.clone()).unwrap();
        assert!(slim.len() < whole.len());
        let gone = [TRACED, ".rela__mcount_loc", ".static_call_sites", ".orc_unwind"];
        for (before, after) in content(&whole)
            .into_iter()
            .filter(|(_, name, _)| !gone.contains(&name.as_str()))
            .zip(content(&slim))
        {
            assert_eq!((before.0, &before.1), (after.0, &after.1));
            match before.1.as_str() {
                ".text" => {
                    assert_eq!(after.2[..5], NOTHING, "the tracer is not called");
                    assert_eq!(after.2[5..], before.2[5..], "printk is");
                }
                ".rela.text" => {
                    assert_eq!(after.2[8..16], [0; 8], "nothing is put into the call to the tracer");
                    assert_eq!(after.2[ENTRY..], before.2[ENTRY..]);
                }
                _ => assert_eq!(before.2, after.2, "{}", before.1),
            }
        }
        assert_eq!(names(&slim).len(), names(&whole).len() - gone.len());
        assert_eq!(super::slim(slim.clone()).unwrap(), slim, "a second time");
    }

    #[test]
    fn what_cannot_go_stays() {
        let cases = [
            (
                module([0xff, 0x15, 0, 0, 0], 4, 2),
                TRACED,
                "calls of another form are left to the kernel",
            ),
            (module(PLAIN, 9, 2), TRACED, "nor is any relocation known"),
            (module(PLAIN, 4, 3), ".static_call_sites", "the data refer to it"),
        ];
        for (whole, kept, why) in cases {
            let slim = slim(whole).unwrap();
            assert!(names(&slim).iter().any(|name| name == kept), "{why}");
            assert!(!names(&slim).iter().any(|name| name == ".orc_unwind"), "{why}");
        }
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let whole = module(PLAIN, 4, 2);
        for length in 0..whole.len() {
            let _ = slim(whole[..length].to_vec());
        }
        for place in 0..whole.len() {
            for bit in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[place] ^= bit;
                let _ = slim(bytes);
            }
        }
    }
}
