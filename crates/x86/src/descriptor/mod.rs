//! Segment descriptors: the 8 bytes in the GDT or LDT behind a selector.
//!
//! ```text
//!  63      56 55 54 53 52 51   48 47 46 45 44 43   40 39             16 15              0
//! +----------+--+--+--+--+-------+--+-----+--+-------+-----------------+-----------------+
//! | base     |G |D |L |A | limit |P | DPL |S | type  | base            | limit           |
//! | 31..24   |  |/B|  |VL| 19..16|  |     |  |       | 23..0           | 15..0           |
//! +----------+--+--+--+--+-------+--+-----+--+-------+-----------------+-----------------+
//! ```
//!
//! That is the layout when S is 1 (code and data) and for the system segments LDT and TSS. Gates (S = 0 with
//! another type) use the same P, DPL, S and type bits and put a target selector and offset where base and
//! limit are: see [`gate`]. In long mode LDT, TSS and gate descriptors are 16 bytes: see [`wide`].
//!
//! [`Descriptor`] is the raw quadword with an accessor for each field; [`Fields`] is the same taken apart,
//! and the two convert without loss in both directions.
//!
//! Source: AMD APM vol. 2, "Legacy Segment Descriptors" and "Long-Mode Segment Descriptors"; Intel SDM
//! vol. 3A, "Segment Descriptors".

pub mod findings;
pub mod gate;
pub mod kind;
pub mod wide;

use core::fmt;

use serde::Serialize;

use crate::selector::Ring;

pub use kind::{CodeType, DataType, Kind, SystemType};

/// A descriptor as it lies in memory: one little-endian quadword.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Descriptor(pub u64);

/// The bits of a segment descriptor that are one field each.
pub mod bits {
    /// Accessed: bit 0 of the type of a code or data segment.
    pub const ACCESSED: u64 = 1 << 40;
    /// The four type bits.
    pub const TYPE: u64 = 0xf << 40;
    /// S: set for code and data, clear for system segments and gates.
    pub const S: u64 = 1 << 44;
    /// Position of the two DPL bits.
    pub const DPL_SHIFT: u32 = 45;
    /// The two DPL bits.
    pub const DPL: u64 = 3 << DPL_SHIFT;
    /// Present.
    pub const P: u64 = 1 << 47;
    /// Available to software.
    pub const AVL: u64 = 1 << 52;
    /// 64-bit code.
    pub const L: u64 = 1 << 53;
    /// Default operand size (code), big stack pointer (data in SS), upper bound (expand-down data).
    pub const DB: u64 = 1 << 54;
    /// Granularity: the limit counts 4 KiB units.
    pub const G: u64 = 1 << 55;
    /// The twenty limit bits, in their two places.
    pub const LIMIT: u64 = 0x000f_0000_0000_ffff;
    /// The thirty-two base bits, in their two places.
    pub const BASE: u64 = 0xff00_00ff_ffff_0000;
}

/// The fields of a segment descriptor, each as it is stored (the limit is not scaled).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Fields {
    /// Linear address of the segment's first byte.
    pub base: u32,
    /// The 20-bit limit field, in bytes or, with `granularity`, in 4 KiB units.
    pub limit: u32,
    /// The 4-bit type; its meaning depends on `code_or_data`.
    #[serde(rename = "type")]
    pub type_bits: u8,
    /// S: code or data rather than system.
    #[serde(rename = "s")]
    pub code_or_data: bool,
    /// Descriptor privilege level.
    pub dpl: Ring,
    /// P.
    #[serde(rename = "p")]
    pub present: bool,
    /// AVL: free for software.
    pub avl: bool,
    /// L: 64-bit code.
    #[serde(rename = "l")]
    pub long: bool,
    /// D or B: 32-bit default size.
    #[serde(rename = "db")]
    pub big: bool,
    /// G: the limit counts 4 KiB units.
    #[serde(rename = "g")]
    pub granularity: bool,
}

impl Descriptor {
    /// The descriptor of entry 0 and of every hole: not present.
    pub const NULL: Self = Self(0);

    /// The descriptor with these fields; `None` if the limit needs more than 20 bits or the type more than 4.
    pub fn from_fields(fields: &Fields) -> Option<Self> {
        if fields.limit > 0xf_ffff || fields.type_bits > 0xf {
            return None;
        }
        let base = u64::from(fields.base);
        let limit = u64::from(fields.limit);
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        Some(Self(
            (limit & 0xffff)
                | (limit & 0xf_0000) << 32
                | (base & 0xff_ffff) << 16
                | (base & 0xff00_0000) << 32
                | u64::from(fields.type_bits) << 40
                | u64::from(u8::from(fields.dpl)) << bits::DPL_SHIFT
                | flag(fields.code_or_data, bits::S)
                | flag(fields.present, bits::P)
                | flag(fields.avl, bits::AVL)
                | flag(fields.long, bits::L)
                | flag(fields.big, bits::DB)
                | flag(fields.granularity, bits::G),
        ))
    }

    /// Every field at once.
    pub fn fields(self) -> Fields {
        Fields {
            base: self.base(),
            limit: self.limit_field(),
            type_bits: self.type_bits(),
            code_or_data: self.has(bits::S),
            dpl: self.dpl(),
            present: self.is_present(),
            avl: self.has(bits::AVL),
            long: self.has(bits::L),
            big: self.has(bits::DB),
            granularity: self.has(bits::G),
        }
    }

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }

    /// The segment's base.
    #[expect(clippy::cast_possible_truncation, reason = "the two masked parts make 32 bits")]
    pub fn base(self) -> u32 {
        ((self.0 >> 16 & 0xff_ffff) | (self.0 >> 32 & 0xff00_0000)) as u32
    }

    /// The 20-bit limit field as stored.
    #[expect(clippy::cast_possible_truncation, reason = "the two masked parts make 20 bits")]
    pub fn limit_field(self) -> u32 {
        ((self.0 & 0xffff) | (self.0 >> 32 & 0xf_0000)) as u32
    }

    /// The offset of the last byte that the limit covers: the field itself, or scaled to 4 KiB pages when G is
    /// set. For an expand-down segment this is the last byte *outside*.
    pub fn limit(self) -> u32 {
        if self.has(bits::G) { self.limit_field() << 12 | 0xfff } else { self.limit_field() }
    }

    /// The four type bits.
    pub fn type_bits(self) -> u8 {
        // The mask leaves four bits.
        (self.0 >> 40 & 0xf) as u8
    }

    /// The descriptor privilege level.
    pub fn dpl(self) -> Ring {
        // The mask leaves two bits.
        Ring::from_bits((self.0 >> bits::DPL_SHIFT & 3) as u8)
    }

    /// The P bit.
    pub fn is_present(self) -> bool {
        self.has(bits::P)
    }

    /// The access byte: P, DPL, S and type (bits 47..40).
    pub fn access_byte(self) -> u8 {
        // Truncation is the point: one byte of the quadword.
        (self.0 >> 40 & 0xff) as u8
    }

    /// The flag nibble: G, D/B, L, AVL (bits 55..52).
    pub fn flag_nibble(self) -> u8 {
        // The mask leaves four bits.
        (self.0 >> 52 & 0xf) as u8
    }

    /// What the S and type bits say this is.
    pub fn kind(self) -> Kind {
        Kind::of(self)
    }

    /// The same descriptor with another DPL.
    pub fn with_dpl(self, ring: Ring) -> Self {
        Self(self.0 & !bits::DPL | u64::from(u8::from(ring)) << bits::DPL_SHIFT)
    }

    /// The same descriptor with another 20-bit limit field; higher bits of `limit` are dropped.
    pub fn with_limit_field(self, limit: u32) -> Self {
        let limit = u64::from(limit);
        Self(self.0 & !bits::LIMIT | (limit & 0xffff) | (limit & 0xf_0000) << 32)
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({:#018x})", self.0)
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All 256 access bytes with all 16 flag nibbles.
    fn every_access_and_flags() -> impl Iterator<Item = Descriptor> {
        (0..=0xffu64).flat_map(|access| (0..=0xfu64).map(move |flags| Descriptor(access << 40 | flags << 52)))
    }

    #[test]
    fn decode_and_encode_are_inverse_for_every_access_byte_and_flag_nibble() {
        for pattern in [0, bits::BASE | bits::LIMIT, 0x12_0003_4567_89ab & (bits::BASE | bits::LIMIT)] {
            for descriptor in every_access_and_flags() {
                let descriptor = Descriptor(descriptor.0 | pattern);
                assert_eq!(Descriptor::from_fields(&descriptor.fields()), Some(descriptor));
            }
        }
    }

    proptest! {
        #[test]
        fn decode_and_encode_are_inverse(raw: u64) {
            let descriptor = Descriptor(raw);
            prop_assert_eq!(Descriptor::from_fields(&descriptor.fields()), Some(descriptor));
        }

        #[test]
        fn every_bit_belongs_to_a_field(bit in 0u32..64) {
            prop_assert_ne!(Descriptor(1 << bit).fields(), Descriptor(0).fields());
        }
    }

    #[test]
    fn a_field_that_does_not_fit_is_refused() {
        let fields = Descriptor(0x00cf_fb00_0000_ffff).fields();
        assert_eq!(Descriptor::from_fields(&Fields { limit: 0x10_0000, ..fields }), None);
        assert_eq!(Descriptor::from_fields(&Fields { type_bits: 16, ..fields }), None);
    }

    #[test]
    fn granularity_scales_the_limit_and_fills_the_low_bits() {
        for (raw, limit) in [
            (0x00cf_fb00_0000_ffff, 0xffff_ffff),
            (0x004f_fb00_0000_ffff, 0xf_ffff),
            (0x00c0_fb00_0000_0000, 0xfff),
            (0x00cf_ba00_0000_67ff, 0xf67f_ffff),
            (0x00cf_ba00_0000_c3ff, 0xfc3f_ffff),
        ] {
            assert_eq!(Descriptor(raw).limit(), limit, "{raw:#x}");
        }
    }
}
