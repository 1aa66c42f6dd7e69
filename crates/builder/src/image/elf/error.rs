//! Why an ELF file cannot be a kernel.

use core::fmt;

use thiserror::Error;

use super::{LoadAddr, SPAN_MAX_BYTES};

/// One of the two tables of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The program headers.
    Program,
    /// The section headers.
    Section,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "program headers",
            Self::Section => "section headers",
        })
    }
}

/// Why an ELF file cannot be a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ElfError {
    /// The data is not ELF.
    #[error("looked for an ELF file inside, found {found}")]
    NotElf {
        /// What the data looks like.
        found: String,
    },
    /// The file ends within its header.
    #[error("the ELF header needs {needed} bytes, the file has {found}: it is cut short")]
    HeaderCut {
        /// The size of the header.
        needed: usize,
        /// The length of the file.
        found: u64,
    },
    /// The file is for another kind of computer.
    #[error(
        "the ELF file is for {found}; a PV kernel is little-endian x86: 64-bit with machine x86-64, or \
         32-bit with machine i386"
    )]
    WrongMachine {
        /// What the header says.
        found: String,
    },
    /// A table does not lie in the file.
    #[error(
        "the ELF file's {table} should be at {offset:#x}, {count} of {entry_len} bytes each, but the file \
         has {file_len} bytes: it is cut short; fetch or build it again"
    )]
    TableOutside {
        /// Which table.
        table: Table,
        /// Where it should begin.
        offset: u64,
        /// The number of its entries.
        count: u16,
        /// The length of an entry.
        entry_len: u16,
        /// The length of the file.
        file_len: u64,
    },
    /// The entries of a table have a length that the format does not know.
    #[error("the ELF file's {table} are {found} bytes each; they must be {expected}")]
    EntryLength {
        /// Which table.
        table: Table,
        /// The length by the header.
        found: u16,
        /// The length by the format.
        expected: usize,
    },
    /// There is nothing to load.
    #[error("the ELF file has no loadable segment (PT_LOAD with any access): it is no kernel")]
    NothingToLoad,
    /// A segment does not lie in the file.
    #[error(
        "segment {index} should be {len} bytes at offset {offset:#x}, but the ELF file has {file_len} \
         bytes: it is cut short; fetch or build it again"
    )]
    SegmentOutside {
        /// The number of the program header.
        index: usize,
        /// Where the segment should begin.
        offset: u64,
        /// Its length in the file.
        len: u64,
        /// The length of the file.
        file_len: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("segment {index} has {file_len} bytes in the file but only {memory_len} in memory")]
    SegmentShrinks {
        /// The number of the program header.
        index: usize,
        /// Its length in the file.
        file_len: u64,
        /// Its length in memory.
        memory_len: u64,
    },
    /// The segments reach over more memory than any kernel needs, or beyond the address space.
    #[error(
        "the segments span memory from {start} on for more than {SPAN_MAX_BYTES:#x} bytes (segment {index}: \
         {len:#x} bytes at {addr}); no kernel needs that"
    )]
    TooLarge {
        /// The number of the program header that reaches farthest.
        index: usize,
        /// Where it is loaded.
        addr: LoadAddr,
        /// Its length in memory.
        len: u64,
        /// The lowest address of any segment.
        start: LoadAddr,
    },
    /// Two segments claim the same memory.
    #[error(
        "segments {first} and {second} overlap in memory: the former ends at {end}, the latter begins at \
         {start}; the image is damaged or was linked wrongly"
    )]
    SegmentsOverlap {
        /// The number of the program header of the lower segment.
        first: usize,
        /// The number of the program header of the higher segment.
        second: usize,
        /// Where the lower segment ends.
        end: LoadAddr,
        /// Where the higher segment begins.
        start: LoadAddr,
    },
}
