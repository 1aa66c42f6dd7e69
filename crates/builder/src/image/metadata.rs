//! Finding what a kernel says of itself.
//!
//! Three places are tried, and the first that has anything is the only one that counts:
//!
//! 1. `PT_NOTE` segments, for notes whose owner is "Xen";
//! 2. `SHT_NOTE` sections, for the same (some unikernels are linked without note segments);
//! 3. the `__xen_guest` section, for text (kernels of 2006, and GNU Mach, whose notes name another owner).
//!
//! Source: `elf_xen_parse` of `xen/common/libelf/libelf-dominfo.c`.

use core::fmt;
use std::ops::Range;

use paravane_abi::elfnote::{ElfNote, LEGACY_SECTION, NOTE_OWNER};
use serde::{Serialize, Serializer};

use super::contents::Contents;
use super::elf::Elf;
use super::explain::explain;
use super::legacy::{self, LegacyEntry};
use super::notes::RawNotes;
use super::problem::{NotePlace, Problem};
use super::value::Value;

/// The most notes of any owner that are looked at. Xen's own limit.
const NOTES_MAX: usize = 65536;
/// The most notes of owner "Xen" that are read. Kernels have below twenty.
const XEN_NOTES_MAX: usize = 1024;
/// The most bytes of a value that are kept beside its decoded form.
const RAW_MAX_BYTES: usize = 4096;
/// The most bytes of a foreign owner's name that are kept.
const OWNER_MAX_BYTES: usize = 64;

/// The place that an image's description of itself was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `PT_NOTE` segments.
    NoteSegment,
    /// `SHT_NOTE` sections.
    NoteSection,
    /// The `__xen_guest` section.
    LegacySection,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoteSegment => "notes in PT_NOTE segments",
            Self::NoteSection => "notes in SHT_NOTE sections, as no segment has any",
            Self::LegacySection => "the legacy __xen_guest section, as there are no notes of owner Xen",
        })
    }
}

/// A note of owner "Xen".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Its type number.
    pub number: u32,
    /// What the number stands for; `None` if Xen defines no such note. The loader skips those.
    pub note: Option<ElfNote>,
    /// The decoded value; [`Value::Opaque`] without a meaning of the number.
    pub value: Value,
    /// What the value means for this kernel, in a sentence or two.
    pub explanation: String,
    /// The value's bytes, the first 4096 of them. Hexadecimal in JSON.
    pub raw: RawBytes,
}

/// Bytes that serialize as hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct RawBytes(pub Vec<u8>);

impl fmt::Display for RawBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RawBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawBytes({self})")
    }
}

impl Serialize for RawBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A note of another owner, which no loader of Xen looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForeignNote {
    /// The owner's name.
    pub owner: String,
    /// The type number.
    pub number: u32,
    /// The length of the value in bytes.
    pub len: usize,
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Where it was found; `None` if nowhere.
    pub source: Option<Source>,
    /// The notes of owner "Xen", as they were found.
    pub notes: Vec<Note>,
    /// The notes of other owners that were met on the way.
    pub foreign_notes: Vec<ForeignNote>,
    /// The entries of the legacy section.
    pub legacy: Vec<LegacyEntry>,
    /// What is wrong with all that.
    pub problems: Vec<Problem>,
}

impl Metadata {
    /// Reads what `elf` says of itself. `None` if that takes parts of the file that were not kept.
    pub(super) fn read(elf: &Elf, contents: &Contents<'_>) -> Option<Self> {
        let mut metadata = Self::default();
        let segments = elf.note_segments.iter().cloned();
        let places = segments.map(|(index, range)| (NotePlace::Segment(index), range));
        metadata.read_notes(elf, contents, places);
        if !metadata.notes.is_empty() {
            metadata.source = Some(Source::NoteSegment);
            return Some(metadata);
        }
        contents.as_all()?;
        let places = elf.note_sections().map(|(index, range)| (NotePlace::Section(index), range));
        // The sections most often cover the segments: what those listed would be listed twice.
        metadata.foreign_notes.clear();
        metadata.read_notes(elf, contents, places);
        if !metadata.notes.is_empty() {
            metadata.source = Some(Source::NoteSection);
            return Some(metadata);
        }
        if let Some(section) = elf.section_named(contents, LEGACY_SECTION) {
            metadata.source = Some(Source::LegacySection);
            let (entries, problem) = legacy::parse(section);
            metadata.legacy = entries;
            metadata.problems.extend(problem);
            metadata.report_unreadable();
        }
        Some(metadata)
    }

    /// Reads the notes of all `places`.
    fn read_notes(
        &mut self,
        elf: &Elf,
        contents: &Contents<'_>,
        places: impl Iterator<Item = (NotePlace, Option<Range<u64>>)>,
    ) {
        let mut left = NOTES_MAX;
        for (place, range) in places {
            let Some(bytes) = range.and_then(|range| contents.get(&range)) else {
                self.problems.push(Problem::NotesOutside { place, file_len: contents.len() });
                continue;
            };
            let mut notes = RawNotes::new(bytes, place);
            for note in notes.by_ref() {
                if left == 0 || self.notes.len() == XEN_NOTES_MAX {
                    let limit = if left == 0 { NOTES_MAX } else { XEN_NOTES_MAX };
                    self.problems.push(Problem::TooManyNotes { limit });
                    self.report_unreadable();
                    return;
                }
                left -= 1;
                if note.owner == NOTE_OWNER.as_bytes() {
                    self.notes.push(decode(note.number, note.value, elf));
                } else {
                    let owner = &note.owner[..note.owner.len().min(OWNER_MAX_BYTES)];
                    self.foreign_notes.push(ForeignNote {
                        owner: String::from_utf8_lossy(owner).into_owned(),
                        number: note.number,
                        len: note.value.len(),
                    });
                }
            }
            self.problems.extend(notes.into_problem());
        }
        self.report_unreadable();
    }

    /// Every entry that has a meaning, in the order in which the image gives them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (ElfNote, &Value)> {
        let notes = self.notes.iter().filter_map(|note| Some((note.note?, &note.value)));
        notes.chain(self.legacy.iter().filter_map(|entry| Some((entry.note?, &entry.value))))
    }

    /// Lists the entries whose values make no sense.
    fn report_unreadable(&mut self) {
        let unreadable: Vec<Problem> = self
            .entries()
            .filter_map(|(note, value)| {
                let Value::Unreadable(reason) = value else { return None };
                Some(Problem::Unreadable { note, reason: reason.clone() })
            })
            .collect();
        self.problems.extend(unreadable);
    }
}

fn decode(number: u32, bytes: &[u8], elf: &Elf) -> Note {
    let note = ElfNote::from_number(number);
    let value = note.map_or(Value::Opaque, |note| Value::decode(note, bytes, elf.guest));
    let explanation = match note {
        Some(note) => explain(note, &value, elf.guest),
        None => "Xen's headers define no such note; the loader skips it.".to_owned(),
    };
    let raw = RawBytes(bytes[..bytes.len().min(RAW_MAX_BYTES)].to_vec());
    Note { number, note, value, explanation, raw }
}
