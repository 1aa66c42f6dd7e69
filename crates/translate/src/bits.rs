//! Picking low bits out of numbers, where cutting is the point.
#![expect(clippy::cast_possible_truncation, reason = "this module is where truncation is meant")]

/// Bits 7..0.
pub(crate) fn low8(value: u64) -> u8 {
    value as u8
}

/// Bits 15..0.
pub(crate) fn low16(value: u64) -> u16 {
    value as u16
}

/// Bits 31..0.
pub(crate) fn low32(value: u64) -> u32 {
    value as u32
}

/// A number as an index or a length: the engine only runs where `usize` has 64 bits.
pub(crate) fn index(value: u64) -> usize {
    value as usize
}
