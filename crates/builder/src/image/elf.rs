//! The ELF file of a kernel: what the loader needs of it, checked.
//!
//! Little-endian ELF of either class, for i386 or x86-64. Every offset and length in it was chosen by
//! whoever made the file, so each is checked against the file and against overflow before it is used.
//!
//! What a domain builder loads are the `PT_LOAD` segments that allow any access, by their *physical*
//! addresses (`p_paddr`); virtual addresses of segments play no part. Linux up to 6.12 has one segment with
//! the virtual address 0 (per-CPU data), which shows why.
//!
//! Sources: System V ABI, "Object Files" and "Program Loading and Dynamic Linking"; what counts as loadable:
//! `elf_phdr_is_loadable` of `xen/common/libelf/libelf-tools.c`.

use core::fmt;
use std::ops::Range;

use paravane_abi::units::GuestVirt;
use paravane_x86::mode::Guest;
use serde::Serialize;

use super::contents::Contents;
use super::symbol_table::NoSymbolTable;

pub use self::error::{ElfError, Table};

use self::header::{HEADER_MAX, Header, ProgramHeader, Section};

mod error;
mod header;

/// The first bytes of an ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// The most memory that a kernel's segments may span: 4 GiB. The linked ones take up to some 100 MiB.
const SPAN_MAX_BYTES: u64 = 4 << 30;

/// Values of `p_type` and `sh_type`, and flags of `p_flags`, that matter here.
mod number {
    pub(super) const PT_LOAD: u32 = 1;
    pub(super) const PT_NOTE: u32 = 4;
    pub(super) const PF_X: u32 = 1;
    pub(super) const PF_W: u32 = 2;
    pub(super) const PF_R: u32 = 4;
    pub(super) const SHT_SYMTAB: u32 = 2;
    pub(super) const SHT_STRTAB: u32 = 3;
    pub(super) const SHT_NOTE: u32 = 7;
    pub(super) const SHT_NOBITS: u32 = 8;
    pub(super) const EM_386: u16 = 3;
    pub(super) const EM_X86_64: u16 = 62;
}

/// An address in the terms of the ELF file's `p_paddr` fields.
///
/// It becomes a pseudo-physical address when the image's `PADDR_OFFSET` is subtracted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct LoadAddr(pub u64);

impl fmt::Debug for LoadAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoadAddr({:#x})", self.0)
    }
}

impl fmt::Display for LoadAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A loadable segment. It lies in the file, and does not overlap another one in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The number of its program header.
    pub index: usize,
    /// Where its bytes begin in the ELF file.
    pub file_offset: u64,
    /// How many bytes of it are in the file.
    pub file_len: u64,
    /// Where it is loaded.
    pub load_addr: LoadAddr,
    /// How many bytes it takes in memory; those beyond `file_len` are zero.
    pub memory_len: u64,
    /// Its virtual address by the file. The loader makes no use of it.
    pub virt_addr: GuestVirt,
    /// The accesses it is meant for.
    pub access: Access,
}

impl Segment {
    /// The bytes in the file that are loaded.
    pub fn file_range(&self) -> Range<u64> {
        self.file_offset..self.file_offset + self.file_len
    }

    /// The first address behind the segment.
    pub fn load_end(&self) -> LoadAddr {
        LoadAddr(self.load_addr.0 + self.memory_len)
    }
}

/// The accesses a segment is meant for. Xen maps everything read-write-execute, whatever these say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    flags: u32,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(number::PF_R, 'r'), (number::PF_W, 'w'), (number::PF_X, 'x')] {
            fmt::Write::write_char(f, if self.flags & flag == 0 { '-' } else { letter })?;
        }
        Ok(())
    }
}

impl Serialize for Access {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A kernel's ELF file.
#[derive(Clone, Debug)]
pub struct Elf {
    /// The width of the kernel.
    pub guest: Guest,
    /// `e_entry`: the entry point for loaders that know nothing better.
    pub entry: GuestVirt,
    /// The loadable segments, by their load addresses. There is at least one.
    pub segments: Vec<Segment>,
    /// The length of the ELF file. More may follow it, such as Linux's relocations.
    pub len: u64,
    /// The places of the `PT_NOTE` segments that Xen looks at, by the numbers of their program headers.
    pub(super) note_segments: Vec<(usize, Option<Range<u64>>)>,
    sections: Vec<Section>,
    section_names: usize,
}

impl Elf {
    /// Reads the headers and checks what they say.
    pub(super) fn read(contents: &Contents<'_>) -> Result<Self, ElfError> {
        let file_len = contents.len();
        let head = contents.get(&(0..file_len.min(HEADER_MAX as u64))).unwrap_or_default();
        let header = Header::read(head, file_len)?;
        let programs = header.programs.bytes(contents)?.map(|bytes| header.class.program(bytes));
        let programs: Vec<ProgramHeader> = programs.collect();
        let sections = header.sections.offsets().zip(header.sections.bytes(contents)?);
        let sections: Vec<Section> =
            sections.map(|(offset, bytes)| header.class.section(offset, bytes)).collect();

        let len = [header.programs.range(), header.sections.range()]
            .into_iter()
            .flatten()
            .chain(programs.iter().filter_map(ProgramHeader::file_range))
            .chain(
                sections
                    .iter()
                    .filter(|section| section.kind != number::SHT_NOBITS)
                    .filter_map(|section| section.range.clone()),
            )
            .filter(|range| range.start < range.end)
            .map(|range| range.end)
            .fold(header.class.header_len() as u64, u64::max)
            .min(file_len);
        Ok(Self {
            guest: header.class.0,
            entry: GuestVirt(header.entry),
            segments: segments(&programs, file_len)?,
            len,
            note_segments: programs
                .iter()
                .enumerate()
                .filter(|(_, program)| program.has_notes())
                .map(|(index, program)| (index, program.file_range()))
                .collect(),
            sections,
            section_names: usize::from(header.section_names),
        })
    }

    /// The lowest load address and the end of the highest segment.
    pub fn load_range(&self) -> Range<LoadAddr> {
        let start = self.segments.iter().map(|segment| segment.load_addr).min();
        let end = self.segments.iter().map(Segment::load_end).max();
        start.unwrap_or(LoadAddr(0))..end.unwrap_or(LoadAddr(0))
    }

    /// The places of the `SHT_NOTE` sections, by their numbers. `None`: the place is no range at all.
    pub(super) fn note_sections(&self) -> impl Iterator<Item = (usize, Option<Range<u64>>)> {
        // Section 0 is a placeholder in every ELF file.
        self.sections
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, section)| section.kind == number::SHT_NOTE)
            .map(|(index, section)| (index, section.range.clone()))
    }

    /// The sections of the symbol table and of its names: the first table, and what it links to.
    pub(super) fn symbol_sections(&self) -> Result<(SectionPlace, SectionPlace), NoSymbolTable> {
        let is_table = |section: &Section| section.kind == number::SHT_SYMTAB;
        let index = 1 + self.sections.iter().skip(1).position(is_table).ok_or(NoSymbolTable::None)?;
        let link = self.sections[index].link;
        let names = usize::try_from(link)
            .ok()
            .filter(|&link| self.sections.get(link).is_some_and(|names| names.kind == number::SHT_STRTAB))
            .ok_or(NoSymbolTable::NoNames { symbols: index, names: link })?;
        let place = |section: usize| {
            let Section { header, range, .. } = &self.sections[section];
            // The file's length counts only what lies in it.
            let range = range.clone().filter(|range| range.end <= self.len);
            let bytes = range.ok_or(NoSymbolTable::Outside { section })?;
            Ok(SectionPlace { header: *header, bytes })
        };
        Ok((place(index)?, place(names)?))
    }

    /// The bytes of the first section of that name, as far as they lie in the file.
    pub(super) fn section_named<'c>(&self, contents: &'c Contents<'_>, name: &str) -> Option<&'c [u8]> {
        let names = contents.get(self.sections.get(self.section_names)?.range.as_ref()?)?;
        let section = self.sections.iter().skip(1).find(|section| {
            let text = usize::try_from(section.name).ok().and_then(|start| names.get(start..));
            text.and_then(|text| text.strip_prefix(name.as_bytes()))
                .is_some_and(|rest| rest.starts_with(&[0]))
        })?;
        let range = section.range.as_ref()?;
        contents.get(&(range.start..range.end.min(contents.len())))
    }
}

/// Where a section is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SectionPlace {
    /// Where its header begins.
    pub(super) header: u64,
    /// The place of its bytes.
    pub(super) bytes: Range<u64>,
}

/// What the first bytes of a file tell before the rest of it is known.
pub(super) struct Outline {
    /// The places of the note segments.
    pub(super) notes: Vec<Range<u64>>,
    /// The place of the section headers.
    pub(super) section_headers: Range<u64>,
}

impl Outline {
    /// The outline of the file that begins with `head`; `None` if `head` does not hold all the program
    /// headers, or they make no sense.
    pub(super) fn read(head: &[u8]) -> Option<Self> {
        let header = Header::read(head, u64::MAX).ok()?;
        let section_headers = header.sections.range()?;
        let head = Contents::all(head);
        let programs = header.programs.bytes(&head).ok()?;
        let notes = programs
            .map(|bytes| header.class.program(bytes))
            .filter(ProgramHeader::has_notes)
            .map(|program| program.file_range())
            .collect::<Option<_>>()?;
        Some(Self { notes, section_headers })
    }
}

/// Checks the loadable segments of a file of `file_len` bytes and puts them in the order of their addresses.
fn segments(programs: &[ProgramHeader], file_len: u64) -> Result<Vec<Segment>, ElfError> {
    let mut segments = Vec::new();
    for (index, program) in programs.iter().enumerate().filter(|(_, program)| program.is_loadable()) {
        let (offset, len) = (program.offset, program.file_len);
        // A segment without bytes in the file, such as a .bss of its own, may name any offset.
        if len > 0 && program.file_range().is_none_or(|range| range.end > file_len) {
            return Err(ElfError::SegmentOutside { index, offset, len, file_len });
        }
        if program.memory_len < len {
            return Err(ElfError::SegmentShrinks { index, file_len: len, memory_len: program.memory_len });
        }
        segments.push(Segment {
            index,
            file_offset: if len > 0 { offset } else { 0 },
            file_len: len,
            load_addr: LoadAddr(program.load_addr),
            memory_len: program.memory_len,
            virt_addr: GuestVirt(program.virt_addr),
            access: Access { flags: program.flags },
        });
    }
    segments.sort_by_key(|segment| (segment.load_addr, segment.memory_len));
    let start = segments.first().ok_or(ElfError::NothingToLoad)?.load_addr;
    for segment in &segments {
        let (index, addr, len) = (segment.index, segment.load_addr, segment.memory_len);
        let end = addr.0.checked_add(len);
        if end.is_none_or(|end| end - start.0 > SPAN_MAX_BYTES) {
            return Err(ElfError::TooLarge { index, addr, len, start });
        }
    }
    for pair in segments.windows(2) {
        if pair[0].load_end() > pair[1].load_addr {
            return Err(ElfError::SegmentsOverlap {
                first: pair[0].index,
                second: pair[1].index,
                end: pair[0].load_end(),
                start: pair[1].load_addr,
            });
        }
    }
    Ok(segments)
}
