//! Registers as tables of named bits.

use serde::Serialize;

/// A named bit or group of bits of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BitField {
    /// The highest bit.
    pub high: u8,
    /// The lowest bit.
    pub low: u8,
    /// The manuals' name.
    pub name: &'static str,
    /// What the CPU makes of it.
    pub meaning: &'static str,
    /// What is different for a PV guest; empty if nothing is.
    pub pv: &'static str,
}

/// A field with its value in some register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FieldValue {
    /// The field.
    #[serde(flatten)]
    pub field: &'static BitField,
    /// Its value, shifted down.
    pub value: u64,
}

impl BitField {
    /// A single bit.
    pub(crate) const fn bit(bit: u8, name: &'static str, meaning: &'static str, pv: &'static str) -> Self {
        Self { high: bit, low: bit, name, meaning, pv }
    }

    /// A group of bits.
    pub(crate) const fn group(
        high: u8,
        low: u8,
        name: &'static str,
        meaning: &'static str,
        pv: &'static str,
    ) -> Self {
        Self { high, low, name, meaning, pv }
    }

    /// The field's bits.
    pub const fn mask(&self) -> u64 {
        (u64::MAX >> (63 - (self.high - self.low))) << self.low
    }

    /// The field's value in a register, shifted down.
    pub const fn extract(&self, register: u64) -> u64 {
        (register & self.mask()) >> self.low
    }
}

/// Every field of a table with its value in a register.
pub fn decode(table: &'static [BitField], register: u64) -> impl Iterator<Item = FieldValue> {
    table.iter().map(move |field| FieldValue { field, value: field.extract(register) })
}

/// The set bits of a register that no field of the table covers: reserved ones.
pub fn unnamed(table: &[BitField], register: u64) -> u64 {
    register & !table.iter().fold(0, |covered, field| covered | field.mask())
}

/// Checks that apply to every table: order, no overlap, sentences.
#[cfg(test)]
pub(crate) fn assert_well_formed(table: &'static [BitField]) {
    let mut covered = 0;
    for (index, field) in table.iter().enumerate() {
        assert!(field.low <= field.high && field.high < 64, "{field:?}");
        assert_eq!(covered & field.mask(), 0, "{field:?} overlaps");
        covered |= field.mask();
        assert!(table[index + 1..].iter().all(|other| other.low > field.high && other.name != field.name));
        assert!(field.meaning.ends_with('.'), "{field:?}");
        assert!(field.pv.is_empty() || field.pv.ends_with('.'), "{field:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: BitField = BitField::group(63, 0, "all", "Everything.", "");

    #[test]
    fn a_field_may_be_a_bit_or_the_whole_register() {
        assert_eq!(BitField::bit(63, "top", "The top.", "").mask(), 1 << 63);
        assert_eq!(ALL.mask(), u64::MAX);
        assert_eq!(ALL.extract(0x1234), 0x1234);
    }

    proptest! {
        #[test]
        fn a_field_and_its_mask_agree(low in 0_u8..64, width in 0_u8..64, register in any::<u64>()) {
            let high = low.saturating_add(width).min(63);
            let field = BitField::group(high, low, "field", "Some bits.", "");
            prop_assert_eq!(field.extract(register) << low, register & field.mask());
            prop_assert_eq!(field.mask().count_ones(), u32::from(high - low) + 1);
        }
    }
}
