//! The value of a Xen note, decoded as its type demands.

use core::fmt;

use paravane_abi::elfnote::{ElfNote, NoteValue};
use paravane_abi::units::GuestVirt;
use paravane_x86::mode::Guest;
use serde::Serialize;

use super::notes::until_nul;

/// The longest string that is taken from an image. Xen's own limit for a string in an ELF file.
const TEXT_MAX_BYTES: usize = 4096;

/// A decoded value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "value", rename_all = "kebab-case")]
pub enum Value {
    /// Text, without the NUL that may end it.
    Text(String),
    /// A guest virtual address.
    Address(GuestVirt),
    /// A physical address, as a PVH start has it before there are page tables.
    Physical(u64),
    /// An offset between address spaces, in bytes.
    Offset(u64),
    /// A number of which only zero or not matters.
    Flag(u64),
    /// The index of a page from `VIRT_BASE` on. Only the legacy section has such.
    PageIndex(u64),
    /// Bitmaps of features, one word per submap.
    FeatureWords(Vec<u32>),
    /// Masks and what an entry must equal under them.
    MaskedEntries(Vec<MaskedEntry>),
    /// Where a PVH image may be moved.
    Relocation(Relocation),
    /// Not decoded: it has no meaning in a kernel image.
    Opaque,
    /// Not in the form that the type demands.
    Unreadable(String),
}

/// One pair of `L1_MFN_VALID`: an entry holds a machine frame if `entry & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MaskedEntry {
    /// The bits that matter.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// The three words of `PHYS32_RELOC`, the last of which may be missing. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Relocation {
    /// The alignment; absent: the largest of the segments' own.
    pub align: Option<u32>,
    /// The lowest address.
    pub min: Option<u32>,
    /// The highest address.
    pub max: Option<u32>,
}

impl Value {
    /// Decodes `bytes`, the value of `note` in a kernel of that width.
    pub fn decode(note: ElfNote, bytes: &[u8], guest: Guest) -> Self {
        let number = |wrap: fn(u64) -> Self| integer(bytes).map_or_else(Self::Unreadable, wrap);
        match note.facts().value {
            NoteValue::String => text(bytes),
            NoteValue::Address if note == ElfNote::Phys32Entry => number(Self::Physical),
            NoteValue::Address => number(|address| Self::Address(GuestVirt(address))),
            NoteValue::Offset => number(Self::Offset),
            NoteValue::Flag => number(Self::Flag),
            NoteValue::FeatureWords => match words(bytes) {
                Some(words) if !words.is_empty() => Self::FeatureWords(words),
                Some(_) | None => wrong_length(bytes, "a row of 32-bit words"),
            },
            NoteValue::MaskValuePairs => masked_entries(bytes, guest),
            NoteValue::Relocation => match words(bytes) {
                Some(words) if words.len() <= 3 => {
                    let word = |index: usize| words.get(index).copied();
                    Self::Relocation(Relocation { align: word(0), min: word(1), max: word(2) })
                }
                Some(_) | None => wrong_length(bytes, "up to three 32-bit words"),
            },
            NoteValue::Structure => Self::Opaque,
        }
    }

    /// The text of a text.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The address of a virtual address.
    pub fn as_address(&self) -> Option<GuestVirt> {
        if let Self::Address(address) = self { Some(*address) } else { None }
    }

    /// The number of an offset, a flag or a physical address.
    pub fn as_number(&self) -> Option<u64> {
        if let Self::Offset(number) | Self::Flag(number) | Self::Physical(number) = self {
            Some(*number)
        } else {
            None
        }
    }

    /// The index of a page index.
    pub fn as_page_index(&self) -> Option<u64> {
        if let Self::PageIndex(index) = self { Some(*index) } else { None }
    }

    /// The words of feature bitmaps; none of anything else.
    pub fn as_words(&self) -> &[u32] {
        if let Self::FeatureWords(words) = self { words } else { &[] }
    }

    /// The pairs of masks and values; none of anything else.
    pub fn as_masked_entries(&self) -> &[MaskedEntry] {
        if let Self::MaskedEntries(entries) = self { entries } else { &[] }
    }

    /// The words of a relocation.
    pub fn as_relocation(&self) -> Option<Relocation> {
        if let Self::Relocation(relocation) = self { Some(*relocation) } else { None }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Physical(number) | Self::Offset(number) | Self::PageIndex(number) => {
                write!(f, "{number:#x}")
            }
            Self::Flag(number) => write!(f, "{number}"),
            Self::FeatureWords(words) => {
                let mut separator = "";
                for word in words {
                    write!(f, "{separator}{word:#010x}")?;
                    separator = ", ";
                }
                Ok(())
            }
            Self::MaskedEntries(entries) => {
                let mut separator = "";
                for entry in entries {
                    write!(f, "{separator}(entry & {:#x}) == {:#x}", entry.mask, entry.value)?;
                    separator = " or ";
                }
                Ok(())
            }
            Self::Relocation(relocation) => {
                let words = [relocation.align, relocation.min, relocation.max];
                for (name, word) in ["align", "min", "max"].iter().zip(words) {
                    if let Some(word) = word {
                        write!(f, "{}{name} {word:#x}", if *name == "align" { "" } else { ", " })?;
                    }
                }
                Ok(())
            }
            Self::Opaque => f.write_str("(not decoded)"),
            Self::Unreadable(reason) => write!(f, "(unreadable: {reason})"),
        }
    }
}

/// Text up to its NUL or, where the writer left that to the padding, up to the value's end.
fn text(bytes: &[u8]) -> Value {
    let text = until_nul(bytes);
    if text.len() > TEXT_MAX_BYTES {
        return Value::Unreadable(format!("{} bytes of text are more than {TEXT_MAX_BYTES}", text.len()));
    }
    match core::str::from_utf8(text) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Unreadable(format!("\"{}\" is not text", text.escape_ascii())),
    }
}

/// A little-endian number of 1, 2, 4 or 8 bytes.
fn integer(bytes: &[u8]) -> Result<u64, String> {
    match bytes.len() {
        1 | 2 | 4 | 8 => Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))),
        len => Err(format!("a number has 1, 2, 4 or 8 bytes, not {len}")),
    }
}

/// Little-endian 32-bit words; `None` if the length is odd.
fn words(bytes: &[u8]) -> Option<Vec<u32>> {
    let (words, rest) = bytes.as_chunks();
    rest.is_empty().then(|| words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

/// Pairs of mask and value. They are as wide as the guest's page-table entries: 64 bits, but 32 in a
/// kernel without PAE, where one pair of 8 bytes is all there is.
fn masked_entries(bytes: &[u8], guest: Guest) -> Value {
    let narrow = guest == Guest::Bits32 && bytes.len() == 8;
    let numbers: Option<Vec<u64>> = if narrow {
        words(bytes).map(|words| words.into_iter().map(u64::from).collect())
    } else {
        let (numbers, rest) = bytes.as_chunks();
        rest.is_empty().then(|| numbers.iter().map(|number| u64::from_le_bytes(*number)).collect())
    };
    match numbers.as_deref().map(<[u64]>::as_chunks) {
        Some((pairs @ [_, ..], [])) => {
            Value::MaskedEntries(pairs.iter().map(|&[mask, value]| MaskedEntry { mask, value }).collect())
        }
        Some(_) | None => wrong_length(bytes, "pairs of mask and value, 16 bytes each"),
    }
}

fn wrong_length(bytes: &[u8], expected: &str) -> Value {
    Value::Unreadable(format!("{} bytes are not {expected}", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_have_any_of_four_widths() {
        for (bytes, expected) in [
            (&b"\x12"[..], 0x12),
            (b"\x12\x34", 0x3412),
            (b"\x12\x34\x56\x78", 0x7856_3412),
            (b"\x12\x34\x56\x78\x9a\xbc\xde\xf0", 0xf0de_bc9a_7856_3412),
        ] {
            let value = Value::decode(ElfNote::VirtBase, bytes, Guest::Bits64);
            assert_eq!(value, Value::Address(GuestVirt(expected)));
        }
        for len in [0, 3, 5, 6, 7, 9, 16] {
            let value = Value::decode(ElfNote::VirtBase, &vec![0; len], Guest::Bits64);
            assert!(matches!(value, Value::Unreadable(_)), "{len} bytes: {value}");
        }
    }

    #[test]
    fn text_ends_at_its_nul_or_at_the_end_of_the_value() {
        for bytes in [&b"linux\0\0\0"[..], b"linux\0rest", b"linux"] {
            let value = Value::decode(ElfNote::GuestOs, bytes, Guest::Bits64);
            assert_eq!(value, Value::Text("linux".into()));
        }
    }

    #[test]
    fn text_that_is_too_long_or_no_text_is_unreadable() {
        for bytes in [&vec![b'a'; TEXT_MAX_BYTES + 1][..], b"\xff\xfe"] {
            let value = Value::decode(ElfNote::GuestOs, bytes, Guest::Bits64);
            assert!(matches!(value, Value::Unreadable(_)));
        }
    }

    #[test]
    fn mask_pairs_are_as_wide_as_the_guests_page_table_entries() {
        let wide = [1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
        let narrow = [1_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
        let expected = Value::MaskedEntries(vec![MaskedEntry { mask: 1, value: 1 }]);
        for (bytes, guest) in [(&wide, Guest::Bits64), (&wide, Guest::Bits32), (&narrow, Guest::Bits32)] {
            assert_eq!(Value::decode(ElfNote::L1MfnValid, bytes, guest), expected);
        }
        let value = Value::decode(ElfNote::L1MfnValid, &narrow, Guest::Bits64);
        assert!(matches!(value, Value::Unreadable(_)));
    }

    #[test]
    fn a_relocation_has_up_to_three_words() {
        let bytes: Vec<u8> = [1_u32, 2, 3, 4].iter().flat_map(|word| word.to_le_bytes()).collect();
        let decode = |len| Value::decode(ElfNote::Phys32Reloc, &bytes[..len], Guest::Bits64);
        let relocation = |align, min, max| Value::Relocation(Relocation { align, min, max });
        assert_eq!(decode(0), relocation(None, None, None));
        assert_eq!(decode(8), relocation(Some(1), Some(2), None));
        assert_eq!(decode(12), relocation(Some(1), Some(2), Some(3)));
        assert!(matches!(decode(16), Value::Unreadable(_)));
        assert_eq!(decode(8).to_string(), "align 0x1, min 0x2");
    }
}
