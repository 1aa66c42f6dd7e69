//! The bytes of an ELF file, or those parts of it that matter.
//!
//! A distribution's kernel decompresses to some 60 MiB of which an inspection reads a few hundred bytes:
//! headers and notes. Holding all of it beside the decompressor's own dictionary (32 MiB and more) would
//! cost most of the memory that `inspect` uses, and an ELF file cannot be read backwards from a stream. So
//! the program headers, which lie at its start, decide what else is kept: the note segments and the table of
//! section headers. If they name no notes, everything is kept, for notes may hide in any section.

use std::borrow::Cow;
use std::ops::Range;

use super::elf;
use super::payload::{DecompressError, Stream};

/// The most that is kept of a stream whose headers call for parts only. Note segments beyond it are so
/// strange that holding the whole file is no worse.
const PARTS_MAX_BYTES: u64 = 16 << 20;

/// The most parts that are kept. Kernels have one or two note segments.
const PARTS_MAX: usize = 64;

/// The bytes of an ELF file, of which some may not have been kept.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    kept: Kept<'a>,
    len: u64,
}

#[derive(Debug)]
enum Kept<'a> {
    All(Cow<'a, [u8]>),
    /// Disjoint parts with their offsets, in order.
    Parts(Vec<(u64, Vec<u8>)>),
}

impl<'a> Contents<'a> {
    /// All of a file.
    pub(super) fn all(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { len: bytes.len() as u64, kept: Kept::All(bytes) }
    }

    /// Decompresses `stream` and keeps everything.
    pub(super) fn unpack(stream: &Stream<'_>, limit: u64) -> Result<Self, DecompressError> {
        let mut bytes = Vec::with_capacity(stream.plausible_len(limit));
        stream.decode(limit, |piece| bytes.extend_from_slice(piece))?;
        Ok(Self::all(bytes))
    }

    /// Decompresses `stream`, all of it, and keeps what [`plan`] says.
    pub(super) fn unpack_parts(stream: &Stream<'_>, limit: u64) -> Result<Self, DecompressError> {
        let mut collector: Option<Collector> = None;
        let mut at = 0;
        stream.decode(limit, |piece| {
            collector.get_or_insert_with(|| Collector::new(piece)).push(at, piece);
            at += piece.len() as u64;
        })?;
        Ok(match collector {
            Some(Collector::Parts(parts)) => {
                let parts = parts.into_iter().map(|part| (part.range.start, part.bytes)).collect();
                Self { kept: Kept::Parts(parts), len: at }
            }
            Some(Collector::All(bytes)) => Self::all(bytes),
            None => Self::all(Vec::new()),
        })
    }

    /// The length of the file, kept or not.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All bytes, if all were kept.
    pub(super) fn as_all(&self) -> Option<&[u8]> {
        match &self.kept {
            Kept::All(bytes) => Some(bytes),
            Kept::Parts(_) => None,
        }
    }

    /// All bytes, if all were kept.
    pub(super) fn into_all(self) -> Option<Cow<'a, [u8]>> {
        match self.kept {
            Kept::All(bytes) => Some(bytes),
            Kept::Parts(_) => None,
        }
    }

    /// The bytes of `range`; `None` if they do not lie in the file or were not kept.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<&[u8]> {
        let within = |offset: u64, bytes: &'_ [u8]| -> Option<Range<usize>> {
            let start = usize::try_from(range.start.checked_sub(offset)?).ok()?;
            let end = usize::try_from(range.end.checked_sub(offset)?).ok()?;
            (start <= end && end <= bytes.len()).then_some(start..end)
        };
        match &self.kept {
            Kept::All(bytes) => within(0, bytes).map(|range| &bytes[range]),
            Kept::Parts(parts) => {
                parts.iter().find_map(|(offset, bytes)| within(*offset, bytes).map(|range| &bytes[range]))
            }
        }
    }
}

/// Gathers what is to be kept while the pieces of a file go by.
enum Collector {
    All(Vec<u8>),
    Parts(Vec<Part>),
}

struct Part {
    range: Range<u64>,
    bytes: Vec<u8>,
}

impl Collector {
    /// Decides by the first piece of the file.
    fn new(head: &[u8]) -> Self {
        match plan(head) {
            Some(ranges) => {
                Self::Parts(ranges.into_iter().map(|range| Part { range, bytes: Vec::new() }).collect())
            }
            None => Self::All(Vec::new()),
        }
    }

    /// Takes the piece that begins at offset `at`.
    fn push(&mut self, at: u64, piece: &[u8]) {
        match self {
            Self::All(bytes) => bytes.extend_from_slice(piece),
            Self::Parts(parts) => {
                // Where an offset of the file lies in the piece, or the nearer end of the piece.
                let place = |offset: u64| {
                    usize::try_from(offset.saturating_sub(at)).map_or(piece.len(), |at| at.min(piece.len()))
                };
                for part in parts {
                    let (start, end) = (place(part.range.start), place(part.range.end));
                    part.bytes.extend_from_slice(&piece[start..end]);
                }
            }
        }
    }
}

/// The ranges to keep of a file that begins with `head`, disjoint and in order; `None` to keep everything.
fn plan(head: &[u8]) -> Option<Vec<Range<u64>>> {
    let outline = elf::Outline::read(head)?;
    if outline.notes.is_empty() {
        return None;
    }
    let mut ranges = outline.notes;
    ranges.push(0..head.len() as u64);
    ranges.push(outline.section_headers);
    ranges.sort_by_key(|range| range.start);
    let mut disjoint: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match disjoint.last_mut() {
            // Touching ranges are joined too, so that one part holds whatever lies across them.
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            Some(_) | None => disjoint.push(range),
        }
    }
    let total = disjoint.iter().map(|range| range.end - range.start).try_fold(0, u64::checked_add)?;
    (total <= PARTS_MAX_BYTES && disjoint.len() <= PARTS_MAX).then_some(disjoint)
}

#[cfg(test)]
mod tests {
    use paravane_x86::mode::Guest;

    use super::*;
    use crate::testing::elf::{ElfFile, PT_NOTE, Program, linux};

    fn with_notes(places: &[(u64, u64)]) -> Vec<u8> {
        let note = |&(offset, file_len): &(u64, u64)| Program {
            kind: PT_NOTE,
            offset,
            file_len,
            ..Program::default()
        };
        let file = ElfFile::new(Guest::Bits64);
        places.iter().map(note).fold(file, ElfFile::program).build()
    }

    #[test]
    fn headers_and_notes_are_kept_and_overlaps_are_joined() {
        let head = with_notes(&[(0x9000, 0x1000), (0x9000, 4), (0x9800, 0x1000), (0xa800, 8), (0x8000, 4)]);
        let len = head.len() as u64;
        assert_eq!(plan(&head), Some(vec![0..len, 0x8000..0x8004, 0x9000..0xa808]));
    }

    #[test]
    fn everything_is_kept_without_notes_or_with_strange_ones() {
        assert_eq!(plan(&ElfFile::new(Guest::Bits64).load(0, b"code", 4).build()), None);
        assert_eq!(plan(&with_notes(&[(0x9000, PARTS_MAX_BYTES)])), None);
        assert_eq!(plan(&with_notes(&[(u64::MAX, 2)])), None);
        let many: Vec<_> = (1..=PARTS_MAX as u64).map(|place| (place << 20, 4)).collect();
        assert_eq!(plan(&with_notes(&many)), None);
        assert_eq!(plan(&linux().build()[..100]), None);
        assert_eq!(plan(b"no ELF file"), None);
    }

    #[test]
    fn only_what_was_kept_is_found() {
        let parts = vec![(0, b"0123".to_vec()), (10, b"abcd".to_vec())];
        let contents = Contents { kept: Kept::Parts(parts), len: 20 };
        assert_eq!(contents.get(&(1..3)), Some(&b"12"[..]));
        assert_eq!(contents.get(&(10..14)), Some(&b"abcd"[..]));
        for missing in [3..5, 9..11, 13..15, 4..10, 20..21] {
            assert_eq!(contents.get(&missing), None, "{missing:?}");
        }
    }
}
