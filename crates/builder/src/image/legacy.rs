//! The `__xen_guest` section: the kernel's description of itself from before there were ELF notes.
//!
//! It holds text, `KEY=value,KEY=value,…`, up to the first NUL. A key without `=` has an empty value.
//! Numbers are written as C writes them: decimal, `0x` hexadecimal, or octal after a leading zero.
//!
//! What Xen lets pass and this refuses, as no kernel can have meant it: text where a number should be, which Xen takes
//! for 0 or for the digits that it begins with; an unknown required feature, at which Xen stops reading and goes on
//! without the keys behind it. Xen cuts a key behind 31 bytes and a value behind 127 and takes the rest for another
//! entry; here they are read whole.
//!
//! Source: `elf_xen_parse_guest_info` of `xen/common/libelf/libelf-dominfo.c`.

use paravane_abi::elfnote::{ElfNote, LegacyKey, NoteValue};
use paravane_abi::units::GuestVirt;
use serde::Serialize;

use super::notes::until_nul;
use super::problem::Problem;
use super::value::Value;

/// How much of the text is read.
const TEXT_MAX_BYTES: usize = 16 << 10;

/// One `KEY=value` of the section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LegacyEntry {
    /// What stands before the `=`.
    pub key: String,
    /// What stands behind it.
    pub text: String,
    /// The note that replaced the key; `None` if nobody knows the key.
    pub note: Option<ElfNote>,
    /// The decoded text; [`Value::Opaque`] if nobody knows the key.
    pub value: Value,
    /// What it means.
    pub explanation: String,
}

/// Reads the section.
pub fn parse(section: &[u8]) -> (Vec<LegacyEntry>, Option<Problem>) {
    let text = until_nul(section);
    let too_long = (text.len() > TEXT_MAX_BYTES)
        .then_some(Problem::LegacyTooLong { found: text.len(), limit: TEXT_MAX_BYTES });
    let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX_BYTES)]);
    (text.split(',').filter(|entry| !entry.is_empty()).map(entry).collect(), too_long)
}

fn entry(entry: &str) -> LegacyEntry {
    let (key, text) = entry.split_once('=').unwrap_or((entry, ""));
    let row = LegacyKey::from_key(key);
    let value = row.map_or(Value::Opaque, |row| decode(row.note, text));
    let explanation = match row {
        None => "Nobody reads this key.".to_owned(),
        Some(row) if row.quirk.is_empty() => row.note.meaning().to_owned(),
        Some(row) => format!("{} In this section: {}.", row.note.meaning(), row.quirk),
    };
    LegacyEntry {
        key: key.to_owned(),
        text: text.to_owned(),
        note: row.map(|row| row.note),
        value,
        explanation,
    }
}

fn decode(note: ElfNote, text: &str) -> Value {
    let number = |wrap: fn(u64) -> Value| match number(text) {
        Some(number) => wrap(number),
        None => Value::Unreadable(format!("{text:?} is not a number")),
    };
    match note.facts().value {
        NoteValue::Address if note == ElfNote::HypercallPage => number(Value::PageIndex),
        NoteValue::Address => number(|address| Value::Address(GuestVirt(address))),
        NoteValue::Offset => number(Value::Offset),
        NoteValue::Flag => number(Value::Flag),
        NoteValue::String => Value::Text(text.to_owned()),
        // No key stands for a note of these kinds.
        NoteValue::FeatureWords
        | NoteValue::MaskValuePairs
        | NoteValue::Relocation
        | NoteValue::Structure => Value::Opaque,
    }
}

/// A number as C writes it.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // `from_str_radix` would also take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u64::from_str_radix(digits, radix).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_values_are_separated_by_commas() {
        let (entries, problem) = parse(b"GUEST_OS=GNU Mach,VIRT_BASE=0xC0000000,BSD_SYMTAB,,X=1\0,LOADER=no");
        let read: Vec<_> =
            entries.iter().map(|entry| (&*entry.key, entry.note, entry.value.clone())).collect();
        assert_eq!(
            read,
            [
                ("GUEST_OS", Some(ElfNote::GuestOs), Value::Text("GNU Mach".into())),
                ("VIRT_BASE", Some(ElfNote::VirtBase), Value::Address(GuestVirt(0xc000_0000))),
                ("BSD_SYMTAB", Some(ElfNote::BsdSymtab), Value::Text(String::new())),
                ("X", None, Value::Opaque),
            ]
        );
        assert_eq!(problem, None);
    }

    #[test]
    fn numbers_are_written_as_in_c() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("017", Some(15)),
            ("0x1F", Some(0x1f)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("", None),
            ("0x", None),
            ("+1", None),
            ("0x-1", None),
            ("12 ", None),
            ("yes", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_hypercall_page_is_an_index() {
        let (entries, _) = parse(b"HYPERCALL_PAGE=0x2");
        assert_eq!(entries[0].value, Value::PageIndex(2));
        assert!(entries[0].explanation.contains("page index"), "{}", entries[0].explanation);
    }

    #[test]
    fn endless_text_is_cut_and_reported() {
        let (entries, problem) = parse(&b"A,".repeat(1 << 20));
        assert_eq!(entries.len(), TEXT_MAX_BYTES / 2);
        assert!(matches!(problem, Some(Problem::LegacyTooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (entries, problem) = parse(&bytes);
            prop_assert!(entries.len() <= bytes.len());
            prop_assert_eq!(problem, None);
        }
    }
}
