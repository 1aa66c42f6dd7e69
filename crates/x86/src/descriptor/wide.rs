//! Sixteen-byte descriptors: LDT, TSS and gates in long mode.
//!
//! The first quadword looks as in legacy mode. The second carries bits 63..32 of the base (LDT, TSS) or of
//! the offset (gates) and is otherwise zero; where its own type bits would be, it must hold type 0, so that
//! a selector that points into the middle of the pair finds no usable descriptor.
//!
//! Xen's GDT has two such pairs, the TSS at 0xe040 and the LDT at 0xe050. A PV guest cannot install one,
//! except that an upper half is accepted as "type 0" (see [`crate::submit`]).
//!
//! Source: AMD APM vol. 2, "System Descriptors" under "Long-Mode Segment Descriptors".

use serde::Serialize;

use super::{Descriptor, Kind, SystemType, bits};

/// Two consecutive quadwords that form one long-mode system descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WideDescriptor {
    /// The quadword at the lower address.
    pub low: Descriptor,
    /// The quadword at the higher address.
    pub high: u64,
}

impl WideDescriptor {
    /// A TSS or LDT descriptor: `base` in bytes, `limit` as the offset of the last byte; `None` if `system`
    /// has no 16-byte form or is a gate, or if the limit needs more than 20 bits.
    pub fn segment(system: SystemType, base: u64, limit: u32) -> Option<Self> {
        if system.is_gate() || !system.exists_in_long_mode() || limit > 0xf_ffff {
            return None;
        }
        let low = (base & 0xff_ffff) << 16
            | (base & 0xff00_0000) << 32
            | u64::from(system.type_bits()) << 40
            | bits::P;
        Some(Self { low: Descriptor(low).with_limit_field(limit), high: base >> 32 })
    }

    /// Whether `low` is of a type that is 16 bytes long in long mode.
    pub fn is_low_half(low: Descriptor) -> bool {
        match low.kind() {
            Kind::System(system) => system.exists_in_long_mode(),
            Kind::Code(_) | Kind::Data(_) => false,
        }
    }

    /// The 64-bit base of an LDT or TSS.
    pub fn base(self) -> u64 {
        u64::from(self.low.base()) | self.high << 32
    }

    /// The bits of the upper quadword that must be zero and are not.
    pub fn reserved_bits(self) -> u64 {
        self.high & !0xffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tss_keeps_its_64_bit_base() {
        let tss = WideDescriptor::segment(SystemType::TssAvailable, 0xffff_82d0_8053_1040, 0x67).unwrap();
        assert_eq!(tss.low, Descriptor(0x8000_8953_1040_0067));
        assert_eq!(tss.high, 0xffff_82d0);
        assert_eq!(tss.base(), 0xffff_82d0_8053_1040);
        assert_eq!(tss.reserved_bits(), 0);
    }

    #[test]
    fn only_long_mode_system_types_are_wide() {
        for (raw, wide) in [
            (0x0000_8900_0000_0067, true),
            (0x0000_8200_0000_0fff, true),
            (0x0000_8100_0000_0067, false),
            (0x00af_fb00_0000_ffff, false),
            (0, false),
        ] {
            assert_eq!(WideDescriptor::is_low_half(Descriptor(raw)), wide, "{raw:#x}");
        }
        assert_eq!(WideDescriptor::segment(SystemType::Tss16Available, 0, 0x67), None);
        assert_eq!(WideDescriptor::segment(SystemType::Ldt, 0, 0x10_0000), None);
    }
}
