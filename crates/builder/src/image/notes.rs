//! ELF notes as they lie in a segment or section.
//!
//! A note is three little-endian `u32` (length of the owner's name, length of the value, type number), then
//! the name and the value, each padded to 4 bytes. Xen pads to 4 also where the segment's own alignment is
//! 8, and so does every kernel that carries its notes.
//!
//! Real images are sloppy: GRUB's 32-bit image ends in a note that claims more bytes than its segment has,
//! and Xen takes the value nevertheless. So a value that is cut short is given as far as it goes, and the
//! cut is reported beside it.
//!
//! Sources: System V ABI, "Note Section"; `elf_note_*` of `xen/common/libelf/libelf-tools.c`.

use super::problem::{NotePlace, Problem};

/// One note, of any owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawNote<'a> {
    /// The owner's name, up to its first NUL.
    pub owner: &'a [u8],
    /// The type number, whose meaning the owner defines.
    pub number: u32,
    /// The value, as far as it is there.
    pub value: &'a [u8],
}

/// The notes in the bytes of a segment or section, and what is wrong with them.
#[derive(Clone, Debug)]
pub struct RawNotes<'a> {
    bytes: &'a [u8],
    offset: usize,
    place: NotePlace,
    problem: Option<Problem>,
}

impl<'a> RawNotes<'a> {
    /// The notes in `bytes`, which were found at `place`.
    pub fn new(bytes: &'a [u8], place: NotePlace) -> Self {
        Self { bytes, offset: 0, place, problem: None }
    }

    /// Why the notes ended before the bytes did. Of use after the last note.
    pub fn into_problem(self) -> Option<Problem> {
        self.problem
    }

    /// Stops with a problem.
    fn stop(&mut self, problem: Problem) {
        self.offset = self.bytes.len();
        self.problem = Some(problem);
    }

    /// Takes `len` bytes and the padding behind them, or what there is of them and `false`.
    fn padded(&mut self, len: u32) -> (&'a [u8], bool) {
        let rest = &self.bytes[self.offset..];
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match rest.get(..len) {
            Some(field) => {
                // The padding of the last note may be missing.
                self.offset += len.next_multiple_of(ALIGN).min(rest.len());
                (field, true)
            }
            None => {
                self.offset = self.bytes.len();
                (rest, false)
            }
        }
    }
}

/// What name and value are padded to.
const ALIGN: usize = 4;
/// The length of a note before its name.
const HEADER_LEN: usize = 12;

impl<'a> Iterator for RawNotes<'a> {
    type Item = RawNote<'a>;

    fn next(&mut self) -> Option<RawNote<'a>> {
        let (start, place) = (self.offset, self.place);
        let rest = &self.bytes[start..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else {
            if rest.iter().any(|&byte| byte != 0) {
                self.stop(Problem::HeaderCut { place, offset: start, left: rest.len() });
            }
            return None;
        };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (name_len, value_len, number) = (word(0), word(4), word(8));
        self.offset += HEADER_LEN;
        let cut = |claimed, left| Problem::NoteCut { place, offset: start, number, claimed, left };

        let (name, whole) = self.padded(name_len);
        if !whole {
            self.stop(cut(name_len, name.len()));
            return None;
        }
        let (value, whole) = self.padded(value_len);
        if !whole {
            self.stop(cut(value_len, value.len()));
        }
        Some(RawNote { owner: until_nul(name), number, value })
    }
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..len]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::elf::note;

    const PLACE: NotePlace = NotePlace::Segment(3);

    fn scan(bytes: &[u8]) -> (Vec<RawNote<'_>>, Option<Problem>) {
        let mut notes = RawNotes::new(bytes, PLACE);
        let all = notes.by_ref().collect();
        (all, notes.into_problem())
    }

    #[test]
    fn notes_follow_each_other_at_multiples_of_four() {
        let bytes = [note("Xen", 6, b"linux\0"), note("GNU", 3, b"\x01\x02\x03")].concat();
        let (notes, problem) = scan(&bytes);
        assert_eq!(
            notes,
            [
                RawNote { owner: b"Xen", number: 6, value: b"linux\0" },
                RawNote { owner: b"GNU", number: 3, value: b"\x01\x02\x03" },
            ]
        );
        assert_eq!(problem, None);
    }

    #[test]
    fn the_last_note_needs_no_padding_and_zeros_may_follow() {
        let mut bytes = note("Xen", 6, b"linux\0");
        bytes.truncate(bytes.len() - 2);
        assert_eq!(scan(&bytes).0.len(), 1);
        assert_eq!(scan(&bytes).1, None);
        let followed = [note("Xen", 6, b"linux\0"), vec![0; 8]].concat();
        assert_eq!(scan(&followed).0.len(), 1);
        assert_eq!(scan(&followed).1, None);
    }

    #[test]
    fn a_value_that_is_cut_is_given_as_far_as_it_goes() {
        let mut bytes = note("Xen", 9, b"yes\0");
        bytes[4] = 12;
        let (notes, problem) = scan(&bytes);
        assert_eq!(notes, [RawNote { owner: b"Xen", number: 9, value: b"yes\0" }]);
        assert_eq!(
            problem,
            Some(Problem::NoteCut { place: PLACE, offset: 0, number: 9, claimed: 12, left: 4 })
        );
    }

    #[test]
    fn a_name_that_is_cut_ends_the_notes() {
        let mut bytes = note("Xen", 9, b"yes\0");
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let (notes, problem) = scan(&bytes);
        assert!(notes.is_empty());
        let expected = Problem::NoteCut { place: PLACE, offset: 0, number: 9, claimed: u32::MAX, left: 8 };
        assert_eq!(problem, Some(expected));
    }

    #[test]
    fn a_header_that_is_cut_is_reported() {
        let bytes = [note("Xen", 9, b"yes\0"), vec![4, 0, 0, 0, 1]].concat();
        let (notes, problem) = scan(&bytes);
        assert_eq!(notes.len(), 1);
        assert_eq!(problem, Some(Problem::HeaderCut { place: PLACE, offset: 20, left: 5 }));
    }

    proptest! {
        #[test]
        fn any_bytes_yield_fewer_notes_than_headers_fit(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (notes, _) = scan(&bytes);
            prop_assert!(notes.len() <= bytes.len() / HEADER_LEN);
        }

        #[test]
        fn written_notes_read_back(
            written in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..20)), 0..8),
        ) {
            let bytes: Vec<u8> = written.iter().flat_map(|(number, value)| note("Xen", *number, value)).collect();
            let (notes, problem) = scan(&bytes);
            prop_assert_eq!(problem, None);
            let read: Vec<_> = notes.iter().map(|note| (note.number, note.value.to_vec())).collect();
            prop_assert_eq!(read, written);
        }
    }
}
