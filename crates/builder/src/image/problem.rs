//! What is wrong with an image's description of itself without making it unreadable.

use core::fmt;

use paravane_abi::elfnote::ElfNote;
use paravane_abi::units::GuestVirt;
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::symbol_table::NoSymbolTable;

/// Where notes were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotePlace {
    /// The `PT_NOTE` segment with that program header number.
    Segment(usize),
    /// The `SHT_NOTE` section with that number.
    Section(usize),
}

impl fmt::Display for NotePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(index) => write!(f, "note segment {index}"),
            Self::Section(index) => write!(f, "note section {index}"),
        }
    }
}

/// Something wrong in notes or legacy text. The rest of the image was still understood.
///
/// A sentence in JSON. What follows for the image is the [verdict](super::verdict)'s business.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A segment or section with notes does not lie in the file.
    #[error("{place} does not lie in the ELF file ({file_len} bytes): its notes cannot be read")]
    NotesOutside {
        /// Which one.
        place: NotePlace,
        /// The length of the ELF file.
        file_len: u64,
    },
    /// The last bytes of a segment or section are no note.
    #[error(
        "{place} ends in {left} bytes at offset {offset:#x} that are too short for a note: it is cut short"
    )]
    HeaderCut {
        /// Which one.
        place: NotePlace,
        /// Where the bytes begin, from the start of the segment or section.
        offset: usize,
        /// How many there are.
        left: usize,
    },
    /// A note claims more bytes than there are.
    #[error(
        "the note of type {number} at offset {offset:#x} of {place} claims {claimed} bytes, {left} are there: \
         it was read as far as it goes, and what may follow it cannot be found"
    )]
    NoteCut {
        /// Where it is.
        place: NotePlace,
        /// Where it begins, from the start of the segment or section.
        offset: usize,
        /// Its type number.
        number: u32,
        /// The length it claims for its value, or its owner's name.
        claimed: u32,
        /// How much of that there is.
        left: usize,
    },
    /// There are more notes than anybody needs.
    #[error("there are more than {limit} notes; the rest was not read")]
    TooManyNotes {
        /// How many were read.
        limit: usize,
    },
    /// The value of a note does not have the form that its type demands.
    #[error("{note} cannot be used: {reason}")]
    Unreadable {
        /// The note.
        note: ElfNote,
        /// What is wrong with its value.
        reason: String,
    },
    /// The legacy section is longer than anybody needs.
    #[error("the __xen_guest section has {found} bytes; only the first {limit} were read")]
    LegacyTooLong {
        /// Its length.
        found: usize,
        /// How much was read.
        limit: usize,
    },
    /// INIT_P2M has no effect.
    #[error("INIT_P2M {address} is ignored, the p2m list goes into the initial region: {reason}")]
    InitP2mIgnored {
        /// The address in the note.
        address: GuestVirt,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// BSD_SYMTAB has no effect.
    #[error("BSD_SYMTAB asks for the symbol table behind the kernel, and none is loaded: {0}")]
    NoSymbolTable(NoSymbolTable),
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
