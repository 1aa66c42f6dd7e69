//! The headers of an ELF file as they stand there: widths, byte order and places of tables.

use std::ops::Range;

use paravane_x86::mode::Guest;

use super::error::{ElfError, Table};
use super::{MAGIC, number};
use crate::image::container::describe;
use crate::image::contents::Contents;

/// The larger of the two classes' headers.
pub(super) const HEADER_MAX: usize = 64;

/// The parts of the ELF header that matter.
pub(super) struct Header {
    pub(super) class: Class,
    pub(super) entry: u64,
    pub(super) programs: TablePlace,
    pub(super) sections: TablePlace,
    pub(super) section_names: u16,
}

impl Header {
    /// Reads the header at the start of `head`, of a file that is `file_len` bytes long.
    pub(super) fn read(head: &[u8], file_len: u64) -> Result<Self, ElfError> {
        if !head.starts_with(MAGIC) {
            return Err(ElfError::NotElf { found: describe(head, file_len) });
        }
        let cut = |needed| ElfError::HeaderCut { needed, found: file_len };
        let [class, encoding] = head.get(4..).and_then(<[u8]>::first_chunk).ok_or(cut(HEADER_MAX))?;
        let class = match (class, encoding) {
            (1, 1) => Class(Guest::Bits32),
            (2, 1) => Class(Guest::Bits64),
            _ => {
                let found = format!("class {class} and byte order {encoding}");
                return Err(ElfError::WrongMachine { found });
            }
        };
        let head = head.get(..class.header_len()).ok_or(cut(class.header_len()))?;
        let mut fields = Fields { class, bytes: &head[16..] };
        fields.u16();
        let machine = fields.u16();
        class.check_machine(machine)?;
        fields.u32();
        let entry = fields.word();
        let (program_offset, section_offset) = (fields.word(), fields.word());
        fields.u32();
        fields.u16();
        let place = |table, offset, entry_len, count| TablePlace { table, class, offset, entry_len, count };
        let programs = place(Table::Program, program_offset, fields.u16(), fields.u16());
        let sections = place(Table::Section, section_offset, fields.u16(), fields.u16());
        Ok(Self { class, entry, programs, sections, section_names: fields.u16() })
    }
}

/// Where a table lies by the header.
#[derive(Clone, Copy)]
pub(super) struct TablePlace {
    table: Table,
    class: Class,
    offset: u64,
    entry_len: u16,
    count: u16,
}

impl TablePlace {
    /// The table's place; an empty range for an empty table, `None` on overflow.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        let len = u64::from(self.count) * u64::from(self.entry_len);
        if len == 0 { Some(0..0) } else { Some(self.offset..self.offset.checked_add(len)?) }
    }

    /// Where each entry begins in the file, if the table lies in it.
    pub(super) fn offsets(&self) -> impl Iterator<Item = u64> + use<> {
        let Self { offset, entry_len, count, .. } = *self;
        (0..u64::from(count)).map(move |index| offset.wrapping_add(index * u64::from(entry_len)))
    }

    /// The bytes of each entry, as many as the format defines.
    pub(super) fn bytes<'c>(
        &self,
        contents: &'c Contents<'_>,
    ) -> Result<impl Iterator<Item = &'c [u8]>, ElfError> {
        let Self { table, class, offset, entry_len, count } = *self;
        let expected = class.entry_len(table);
        if count > 0 && usize::from(entry_len) < expected {
            return Err(ElfError::EntryLength { table, found: entry_len, expected });
        }
        let outside = ElfError::TableOutside { table, offset, count, entry_len, file_len: contents.len() };
        let bytes = self.range().and_then(|range| contents.get(&range)).ok_or(outside)?;
        Ok(bytes.chunks_exact(usize::from(entry_len).max(1)).map(move |entry| &entry[..expected]))
    }
}

/// The file's class, which decides how wide its fields are.
#[derive(Clone, Copy)]
pub(super) struct Class(pub(super) Guest);

impl Class {
    pub(super) fn header_len(self) -> usize {
        match self.0 {
            Guest::Bits64 => 64,
            Guest::Bits32 => 52,
        }
    }

    fn entry_len(self, table: Table) -> usize {
        match (self.0, table) {
            (Guest::Bits64, Table::Program) => 56,
            (Guest::Bits32, Table::Program) => 32,
            (Guest::Bits64, Table::Section) => 64,
            (Guest::Bits32, Table::Section) => 40,
        }
    }

    fn check_machine(self, machine: u16) -> Result<(), ElfError> {
        let (width, expected) = match self.0 {
            Guest::Bits64 => (64, number::EM_X86_64),
            Guest::Bits32 => (32, number::EM_386),
        };
        if machine == expected {
            return Ok(());
        }
        let name = match machine {
            number::EM_386 => "i386",
            number::EM_X86_64 => "x86-64",
            21 => "PowerPC64",
            40 => "Arm",
            183 => "AArch64",
            243 => "RISC-V",
            _ => "an unknown machine",
        };
        Err(ElfError::WrongMachine { found: format!("machine {machine} ({name}) with {width}-bit fields") })
    }

    /// Reads a program header of [`Self::entry_len`] bytes.
    pub(super) fn program(self, bytes: &[u8]) -> ProgramHeader {
        let mut fields = Fields { class: self, bytes };
        let kind = fields.u32();
        let early_flags = match self.0 {
            Guest::Bits64 => fields.u32(),
            Guest::Bits32 => 0,
        };
        ProgramHeader {
            kind,
            offset: fields.word(),
            virt_addr: fields.word(),
            load_addr: fields.word(),
            file_len: fields.word(),
            memory_len: fields.word(),
            flags: match self.0 {
                Guest::Bits64 => early_flags,
                Guest::Bits32 => fields.u32(),
            },
        }
    }

    /// Reads a section header of [`Self::entry_len`] bytes, which stands at `header` in the file.
    pub(super) fn section(self, header: u64, bytes: &[u8]) -> Section {
        let mut fields = Fields { class: self, bytes };
        let (name, kind) = (fields.u32(), fields.u32());
        let (_flags, _addr) = (fields.word(), fields.word());
        let (offset, len) = (fields.word(), fields.word());
        Section {
            header,
            name,
            kind,
            range: offset.checked_add(len).map(|end| offset..end),
            link: fields.u32(),
        }
    }
}

/// Takes little-endian fields off the front of a structure whose length was checked.
struct Fields<'a> {
    class: Class,
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.bytes.split_first_chunk().expect("the caller checked the length");
        self.bytes = rest;
        *field
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// A field that is as wide as the class.
    fn word(&mut self) -> u64 {
        match self.class.0 {
            Guest::Bits64 => u64::from_le_bytes(self.take()),
            Guest::Bits32 => u64::from(self.u32()),
        }
    }
}

/// A program header as it stands in the file.
pub(super) struct ProgramHeader {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) virt_addr: u64,
    pub(super) load_addr: u64,
    pub(super) file_len: u64,
    pub(super) memory_len: u64,
}

impl ProgramHeader {
    pub(super) fn is_loadable(&self) -> bool {
        self.kind == number::PT_LOAD && self.flags & (number::PF_R | number::PF_W | number::PF_X) != 0
    }

    /// Whether Xen looks for notes here. Some linkers left the offset of note segments 0.
    pub(super) fn has_notes(&self) -> bool {
        self.kind == number::PT_NOTE && self.offset != 0
    }

    pub(super) fn file_range(&self) -> Option<Range<u64>> {
        Some(self.offset..self.offset.checked_add(self.file_len)?)
    }
}

/// A section, as far as notes and the symbol table need it.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// Where its header stands in the file.
    pub(super) header: u64,
    pub(super) name: u32,
    pub(super) kind: u32,
    pub(super) range: Option<Range<u64>>,
    /// `sh_link`: for a symbol table, the section of its names.
    pub(super) link: u32,
}
