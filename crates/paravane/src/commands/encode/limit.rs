//! Segment limits as people give them, and the twenty bits and the G bit that they become.

use crate::{cli::encode::Granularity, commands::descriptor::byte_size, failure::Failure, input};

/// A limit in the form that a descriptor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EncodedLimit {
    /// The 20-bit field.
    pub field: u32,
    /// G: the field counts 4 KiB units.
    pub granular: bool,
    /// The last offset that was asked for.
    pub wanted: u32,
}

/// The largest limit field.
const MAX_FIELD: u32 = 0xf_ffff;

/// Reads `text`: a plain number is the offset of the last byte, as descriptors count; a number with K, M or G is
/// a size, and the last offset is one less.
///
/// # Errors
///
/// [`Failure::Usage`] if it is no number, zero, or passes 4 GiB.
pub(super) fn parse(text: &str) -> Result<u32, Failure> {
    let shift = match text.bytes().last().map(|last| last.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => return number(text),
    };
    // The suffix is one byte long, and a byte that is a letter is a character.
    let count = input::number(&text[..text.len() - 1], 32, "the size of a segment")?;
    let last = (count << shift).checked_sub(1);
    last.and_then(|last| u32::try_from(last).ok()).ok_or_else(|| {
        Failure::Usage(format!(
            "looked for a segment's size of 1K to 4G, found {text}: segments end at 4 GiB"
        ))
    })
}

fn number(text: &str) -> Result<u32, Failure> {
    let limit = input::number(text, 32, "the limit of a segment")?;
    u32::try_from(limit).map_err(|_| Failure::Usage(format!("the limit {text} is above 0xffffffff")))
}

/// Chooses the unit for a limit of `last`, or takes the one asked for. In pages the limit is rounded up to the
/// end of a page.
///
/// # Errors
///
/// [`Failure::Usage`] if bytes are asked for and the limit needs more than twenty bits.
pub(super) fn encode(last: u32, unit: Option<Granularity>) -> Result<EncodedLimit, Failure> {
    let granular = match unit {
        Some(Granularity::Page) => true,
        Some(Granularity::Byte) if last > MAX_FIELD => {
            return Err(Failure::Usage(format!(
                "a limit in bytes is at most {MAX_FIELD:#x}, and {last:#x} is more: leave out --granularity byte"
            )));
        }
        Some(Granularity::Byte) => false,
        None => last > MAX_FIELD,
    };
    Ok(EncodedLimit { field: if granular { last >> 12 } else { last }, granular, wanted: last })
}

impl EncodedLimit {
    /// The last offset that the descriptor will cover.
    pub(super) fn last(self) -> u32 {
        if self.granular { self.field << 12 | 0xfff } else { self.field }
    }

    /// What was chosen, in words.
    pub(super) fn explain(self) -> String {
        let unit = if self.granular { "in 4 KiB pages (G = 1)" } else { "in bytes (G = 0)" };
        let size = byte_size(u64::from(self.last()) + 1);
        let rounded = if self.last() == self.wanted {
            "exact".to_owned()
        } else {
            format!("rounded up from {:#x} to the end of a page", self.wanted)
        };
        format!("{:#x} {unit}: the last offset is {:#x}, {size}; {rounded}", self.field, self.last())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_the_last_offset_and_a_size_is_one_more() {
        for (text, last) in [
            ("0xffff", Some(0xffff)),
            ("64K", Some(0xffff)),
            ("64k", Some(0xffff)),
            ("4G", Some(u32::MAX)),
            ("3944M", Some(0xf67f_ffff)),
            ("0", Some(0)),
            ("0K", None),
            ("5G", None),
            ("0x100000000", None),
            ("0xffffffffG", None),
            ("G", None),
            ("", None),
            ("4T", None),
            ("ü", None),
        ] {
            assert_eq!(parse(text).ok(), last, "{text}");
        }
    }

    #[test]
    fn bytes_are_used_as_long_as_they_suffice() {
        for (last, unit, field, granular) in [
            (0xf_ffff, None, 0xf_ffff, false),
            (0x10_0000, None, 0x100, true),
            (u32::MAX, None, 0xf_ffff, true),
            (0xffff, Some(Granularity::Page), 0xf, true),
            (0x67, Some(Granularity::Page), 0, true),
        ] {
            let limit = encode(last, unit).unwrap();
            assert_eq!((limit.field, limit.granular), (field, granular), "{last:#x}");
        }
        assert!(encode(0x10_0000, Some(Granularity::Byte)).is_err());
    }

    proptest! {
        #[test]
        fn a_limit_never_gets_smaller_and_grows_by_less_than_a_page(last: u32) {
            for unit in [None, Some(Granularity::Page)] {
                let encoded = encode(last, unit).unwrap();
                prop_assert!(encoded.field <= MAX_FIELD);
                prop_assert!(encoded.last() >= last && encoded.last() - last < 4096);
            }
        }

        #[test]
        fn any_text_is_a_limit_or_a_failure(text: String) {
            drop(parse(&text));
        }
    }
}
