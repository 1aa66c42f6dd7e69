//! The symbol table that a kernel with BSD_SYMTAB wants loaded behind itself.
//!
//! Kernels of the BSD family look up names at run time (in their debugger), from a small ELF file in memory that
//! has nothing but a symbol table and its names:
//!
//! ```text
//! the kernel's last segment
//! ─── rounded up to a word
//! size          u32: the bytes from the ELF header to the end of the names
//! ELF header    that of the file, with three section headers right behind it (at 64) and no program headers
//! headers 0..3  none; symbols, linked to 2; names. Their offsets count from this ELF header
//! ─── rounded up to a word
//! symbols       as they are in the file
//! ─── rounded up to a word
//! names         as they are in the file
//! ```
//!
//! The ELF header is 4 bytes off the alignment that its fields would like, and the guests know it. Section header
//! 0 is zero here; Xen leaves there whatever was on its stack. Space for a 64-bit ELF header is taken for 32-bit
//! kernels too.
//!
//! A kernel that asks and has no table boots without one, as under Xen.
//!
//! Source: `elf_init`, `elf_parse_bsdsyms` and `elf_load_bsdsyms` of `xen/common/libelf/libelf-loader.c`.

use std::borrow::Cow;
use std::ops::Range;

use paravane_abi::units::GuestVirt;
use paravane_x86::mode::Guest;
use serde::Serialize;
use thiserror::Error;

use super::elf::{Elf, LoadAddr, SectionPlace};
use super::notes::until_nul;

/// Bytes of the size in front of everything.
const SIZE_BYTES: u64 = 4;
/// Bytes from the ELF header to the section headers, for either width.
const ELF_HEADER_BYTES: u64 = 64;
/// Section headers: none, symbols, names.
const SECTIONS: u64 = 3;
/// Bytes that are kept free for a section header, for either width.
const SECTION_BYTES: u64 = 64;
/// The number of the names' section header.
const NAMES: u32 = 2;

/// A symbol table behind a kernel: where it goes, and what of the file it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SymbolTable {
    /// Where it begins, with its size.
    pub load_addr: LoadAddr,
    /// The first address behind it.
    pub load_end: LoadAddr,
    /// How many symbols it has, the empty first one included.
    pub symbols: u64,
    /// Where the symbols go.
    #[serde(skip)]
    symbols_addr: LoadAddr,
    /// Where their names go.
    #[serde(skip)]
    names_addr: LoadAddr,
    #[serde(skip)]
    symbols_place: SectionPlace,
    #[serde(skip)]
    names_place: SectionPlace,
}

/// Why there is no symbol table to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoSymbolTable {
    /// The file has none: it was stripped.
    #[error("the file has no symbol table (section of type SHT_SYMTAB); was it stripped?")]
    None,
    /// The names are missing.
    #[error("the symbol table in section {symbols} links to section {names}, which is no table of names")]
    NoNames {
        /// The section of the symbols.
        symbols: usize,
        /// The section that should be of names.
        names: u32,
    },
    /// A table is not in the file.
    #[error("section {section}, of the symbol table, does not lie in the file")]
    Outside {
        /// Which section.
        section: usize,
    },
    /// The table would end beyond the last address.
    #[error("there are no addresses left behind the kernel")]
    NoAddresses,
}

impl SymbolTable {
    /// Finds the symbol table of `elf` and the place for it behind a kernel that ends at `pend`.
    pub(super) fn place(elf: &Elf, pend: LoadAddr) -> Result<Self, NoSymbolTable> {
        let (symbols, names) = elf.symbol_sections()?;
        let word = word(elf.guest);
        let len = |place: &SectionPlace| place.bytes.end - place.bytes.start;
        let header = SIZE_BYTES + ELF_HEADER_BYTES + SECTIONS * SECTION_BYTES;
        let places = || {
            let start = pend.0.checked_next_multiple_of(word)?;
            let symbols_addr = start.checked_add(header)?.checked_next_multiple_of(word)?;
            let names_addr = symbols_addr.checked_add(len(&symbols))?.checked_next_multiple_of(word)?;
            let end = names_addr.checked_add(len(&names))?.checked_next_multiple_of(word)?;
            Some([start, symbols_addr, names_addr, end].map(LoadAddr))
        };
        let [load_addr, symbols_addr, names_addr, load_end] = places().ok_or(NoSymbolTable::NoAddresses)?;
        Ok(Self {
            load_addr,
            load_end,
            symbols: len(&symbols) / symbol_bytes(elf.guest),
            symbols_addr,
            names_addr,
            symbols_place: symbols,
            names_place: names,
        })
    }

    /// The bytes to load, in pieces, made from those of the ELF file that the table was found in.
    pub(super) fn pieces<'a>(&self, guest: Guest, file: &'a [u8]) -> [(LoadAddr, Cow<'a, [u8]>); 3] {
        [
            (self.load_addr, Cow::Owned(self.headers(guest, file))),
            (self.symbols_addr, Cow::Borrowed(slice(file, &self.symbols_place.bytes))),
            (self.names_addr, Cow::Borrowed(slice(file, &self.names_place.bytes))),
        ]
    }

    /// The size, the ELF header and the section headers.
    fn headers(&self, guest: Guest, file: &[u8]) -> Vec<u8> {
        let fields = Fields::of(guest);
        let elf_header = self.load_addr.0 + SIZE_BYTES;
        let names_len = self.names_place.bytes.end - self.names_place.bytes.start;

        let mut header = copy(file, 0, fields.header_len);
        fields.put(&mut header, fields.version, 4, 1);
        fields.put(&mut header, fields.program_offset, fields.word, 0);
        fields.put(&mut header, fields.section_offset, fields.word, ELF_HEADER_BYTES);
        fields.put(&mut header, fields.header_len_at, 2, fields.header_len as u64);
        // Length and number of program headers, length and number of section headers, section of names.
        let section_len = fields.section_len as u64;
        for (index, value) in [0, 0, section_len, SECTIONS, 0].into_iter().enumerate() {
            fields.put(&mut header, fields.header_len_at + 2 + index * 2, 2, value);
        }
        header.resize(usize::try_from(ELF_HEADER_BYTES).unwrap_or(64), 0);

        let mut symbols = copy(file, self.symbols_place.header, fields.section_len);
        fields.put(&mut symbols, fields.offset, fields.word, self.symbols_addr.0 - elf_header);
        fields.put(&mut symbols, fields.link, 4, NAMES.into());
        let mut names = copy(file, self.names_place.header, fields.section_len);
        fields.put(&mut names, fields.offset, fields.word, self.names_addr.0 - elf_header);

        let size = (self.names_addr.0 + names_len - elf_header).to_le_bytes();
        [&size[..4], &header, &vec![0; fields.section_len], &symbols, &names].concat()
    }
}

/// A symbol that stands for code or data of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address.
    pub address: GuestVirt,
    /// How many bytes it covers; 0 if the file does not say.
    pub len: u64,
}

/// The symbols of `elf`, whose bytes are `file`.
pub(super) fn symbols<'a>(elf: &Elf, file: &'a [u8]) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
    let guest = elf.guest;
    let (table, names) = match elf.symbol_sections() {
        Ok((table, names)) => (slice(file, &table.bytes), slice(file, &names.bytes)),
        Err(_) => (&[][..], &[][..]),
    };
    let entry_len = usize::try_from(symbol_bytes(guest)).unwrap_or(usize::MAX);
    table.chunks_exact(entry_len).filter_map(move |entry| symbol(guest, entry, names))
}

/// Reads an entry of a symbol table. `None` for one that stands for no place in the kernel, or has no name.
fn symbol<'a>(guest: Guest, entry: &[u8], names: &'a [u8]) -> Option<Symbol<'a>> {
    /// Types of symbols that stand for a section or a source file, and larger ones for other things still.
    const FUNCTION: u8 = 2;
    /// Section numbers: undefined, and constants that are no addresses.
    const UNDEFINED: u64 = 0;
    const ABSOLUTE: u64 = 0xfff1;
    let number = |at: usize, len: usize| {
        entry[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    let (info, section, address, len) = match guest {
        Guest::Bits64 => (entry[4], number(6, 2), number(8, 8), number(16, 8)),
        Guest::Bits32 => (entry[12], number(14, 2), number(4, 4), number(8, 4)),
    };
    if info & 0xf > FUNCTION || section == UNDEFINED || section == ABSOLUTE {
        return None;
    }
    let name = names.get(usize::try_from(number(0, 4)).ok()?..)?;
    let name = core::str::from_utf8(until_nul(name)).ok().filter(|name| !name.is_empty())?;
    Some(Symbol { name, address: GuestVirt(address), len })
}

/// Bytes of a machine word.
fn word(guest: Guest) -> u64 {
    match guest {
        Guest::Bits64 => 8,
        Guest::Bits32 => 4,
    }
}

/// Bytes of an entry of a symbol table.
fn symbol_bytes(guest: Guest) -> u64 {
    match guest {
        Guest::Bits64 => 24,
        Guest::Bits32 => 16,
    }
}

/// Where the fields that change lie in an ELF header and in a section header. Lengths in bytes.
struct Fields {
    word: usize,
    header_len: usize,
    section_len: usize,
    version: usize,
    program_offset: usize,
    section_offset: usize,
    /// `e_ehsize`, which five more fields of two bytes follow.
    header_len_at: usize,
    /// `sh_offset`.
    offset: usize,
    /// `sh_link`.
    link: usize,
}

impl Fields {
    fn of(guest: Guest) -> Self {
        match guest {
            Guest::Bits64 => Self {
                word: 8,
                header_len: 64,
                section_len: 64,
                version: 20,
                program_offset: 32,
                section_offset: 40,
                header_len_at: 52,
                offset: 24,
                link: 40,
            },
            Guest::Bits32 => Self {
                word: 4,
                header_len: 52,
                section_len: 40,
                version: 20,
                program_offset: 28,
                section_offset: 32,
                header_len_at: 40,
                offset: 16,
                link: 24,
            },
        }
    }

    /// Writes the low `len` bytes of `value`.
    #[expect(clippy::unused_self, reason = "reads as part of the fields")]
    fn put(&self, header: &mut [u8], at: usize, len: usize, value: u64) {
        header[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
}

/// The bytes of `range`; none if the file is not the one that the range was checked against.
fn slice<'a>(file: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    let place = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    place.and_then(|(start, end)| file.get(start..end)).unwrap_or_default()
}

/// `len` bytes at `at`, zeros where the file has none.
fn copy(file: &[u8], at: u64, len: usize) -> Vec<u8> {
    let mut bytes = slice(file, &(at..at.saturating_add(len as u64))).to_vec();
    bytes.resize(len, 0);
    bytes
}
