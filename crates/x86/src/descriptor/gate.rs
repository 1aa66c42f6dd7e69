//! Gates: system descriptors that hold where to go instead of a base and a limit.
//!
//! ```text
//!  63             48 47 46 45 44 43   40 39          32 31             16 15              0
//! +-----------------+--+-----+--+-------+--------------+-----------------+-----------------+
//! | offset 31..16   |P | DPL |S | type  | count or IST | target selector | offset 15..0    |
//! +-----------------+--+-----+--+-------+--------------+-----------------+-----------------+
//! ```
//!
//! Bits 39..32 hold the number of stack words to copy (legacy call gate, bits 36..32), the interrupt stack
//! table index (64-bit interrupt and trap gate, bits 34..32), or nothing. In long mode a second quadword
//! carries offset bits 63..32. A task gate has a selector and no offset.
//!
//! Source: AMD APM vol. 2, "Gate Descriptors"; Intel SDM vol. 3A, "Call Gates", "IDT Descriptors",
//! "64-Bit Mode IDT".

use serde::Serialize;

use super::{Descriptor, Kind, SystemType, bits, wide::WideDescriptor};
use crate::selector::{Ring, Selector};

/// A gate, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Gate {
    /// Which of the seven gate types it is.
    #[serde(rename = "type")]
    pub system: SystemType,
    /// The code segment (or, for a task gate, the TSS) it leads to.
    pub selector: Selector,
    /// The entry point in that segment: 16, 32 or 64 bits by the gate's form; 0 for a task gate.
    pub offset: u64,
    /// The least privileged ring that may use the gate by `INT n`, `CALL` or `JMP`.
    pub dpl: Ring,
    /// P.
    #[serde(rename = "p")]
    pub present: bool,
    /// What bits 39..32 hold, as stored.
    pub low_byte: u8,
}

impl Gate {
    /// Reads an 8-byte gate; `None` if `descriptor` is not a gate.
    pub fn from_legacy(descriptor: Descriptor) -> Option<Self> {
        let Kind::System(system) = descriptor.kind() else {
            return None;
        };
        if !system.is_gate() {
            return None;
        }
        let raw = descriptor.0;
        let low = raw & 0xffff;
        let offset = match system {
            SystemType::TaskGate => 0,
            SystemType::CallGate16 | SystemType::InterruptGate16 | SystemType::TrapGate16 => low,
            SystemType::CallGate
            | SystemType::InterruptGate
            | SystemType::TrapGate
            | SystemType::Reserved0
            | SystemType::Tss16Available
            | SystemType::Ldt
            | SystemType::Tss16Busy
            | SystemType::Reserved8
            | SystemType::TssAvailable
            | SystemType::Reserved10
            | SystemType::TssBusy
            | SystemType::Reserved13 => low | raw >> 32 & 0xffff_0000,
        };
        Some(Self {
            system,
            selector: Selector((raw >> 16 & 0xffff) as u16),
            offset,
            dpl: descriptor.dpl(),
            present: descriptor.is_present(),
            low_byte: (raw >> 32 & 0xff) as u8,
        })
    }

    /// Reads a 16-byte long-mode gate; `None` if it is not a gate, or one that long mode does not have.
    pub fn from_wide(wide: WideDescriptor) -> Option<Self> {
        let gate = Self::from_legacy(wide.low)?;
        gate.system.exists_in_long_mode().then_some(Self { offset: gate.offset | wide.high << 32, ..gate })
    }

    /// The 8-byte form; `None` if the type is not a gate's or the offset does not fit that form.
    pub fn to_legacy(&self) -> Option<Descriptor> {
        let offset_limit = match self.system {
            SystemType::TaskGate => 0,
            SystemType::CallGate16 | SystemType::InterruptGate16 | SystemType::TrapGate16 => 0xffff,
            SystemType::CallGate | SystemType::InterruptGate | SystemType::TrapGate => 0xffff_ffff,
            SystemType::Reserved0
            | SystemType::Tss16Available
            | SystemType::Ldt
            | SystemType::Tss16Busy
            | SystemType::Reserved8
            | SystemType::TssAvailable
            | SystemType::Reserved10
            | SystemType::TssBusy
            | SystemType::Reserved13 => return None,
        };
        (self.offset <= offset_limit).then(|| self.low_quadword())
    }

    /// The 16-byte long-mode form; `None` if long mode has no such gate.
    pub fn to_wide(&self) -> Option<WideDescriptor> {
        (self.system.is_gate() && self.system.exists_in_long_mode())
            .then(|| WideDescriptor { low: self.low_quadword(), high: self.offset >> 32 })
    }

    /// The number of stack words a legacy call gate copies.
    pub fn parameter_count(&self) -> u8 {
        self.low_byte & 0x1f
    }

    /// The interrupt stack table index of a long-mode interrupt or trap gate; 0 means none.
    pub fn ist(&self) -> u8 {
        self.low_byte & 7
    }

    fn low_quadword(&self) -> Descriptor {
        let present = if self.present { bits::P } else { 0 };
        Descriptor(
            self.offset & 0xffff
                | u64::from(self.selector.0) << 16
                | u64::from(self.low_byte) << 32
                | u64::from(self.system.type_bits()) << 40
                | u64::from(u8::from(self.dpl)) << bits::DPL_SHIFT
                | present
                | (self.offset & 0xffff_0000) << 32,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// System types 12, 14 and 15: the gates of which every bit but the reserved ones carries meaning.
    fn full_gate_type() -> impl Strategy<Value = u64> {
        prop_oneof![Just(12u64), Just(14), Just(15)]
    }

    proptest! {
        #[test]
        fn a_legacy_gate_is_rebuilt_from_its_fields(raw: u64, gate_type in full_gate_type()) {
            let descriptor = Descriptor(raw & !(bits::TYPE | bits::S) | gate_type << 40);
            let gate = Gate::from_legacy(descriptor).unwrap();
            prop_assert_eq!(gate.to_legacy(), Some(descriptor));
        }

        #[test]
        fn a_wide_gate_is_rebuilt_from_its_fields(raw: u64, high: u32, gate_type in full_gate_type()) {
            let low = Descriptor(raw & !(bits::TYPE | bits::S) | gate_type << 40);
            let wide = WideDescriptor { low, high: u64::from(high) };
            let gate = Gate::from_wide(wide).unwrap();
            prop_assert_eq!(gate.to_wide(), Some(wide));
        }
    }

    #[test]
    fn a_gate_shows_its_target() {
        // INT3 of a Linux IDT: selector 0x10, DPL 3, offset 0xffffffff81a00ba0.
        let wide = WideDescriptor { low: Descriptor(0x81a0_ee00_0010_0ba0), high: 0xffff_ffff };
        let gate = Gate::from_wide(wide).unwrap();
        assert_eq!(gate.system, SystemType::InterruptGate);
        assert_eq!(gate.selector, Selector(0x10));
        assert_eq!(gate.offset, 0xffff_ffff_81a0_0ba0);
        assert_eq!(gate.dpl, Ring::R3);
        assert_eq!(gate.ist(), 0);
    }

    #[test]
    fn only_gates_are_gates() {
        for system in SystemType::ALL {
            let descriptor = Descriptor(u64::from(system.type_bits()) << 40);
            assert_eq!(Gate::from_legacy(descriptor).is_some(), system.is_gate(), "{system:?}");
        }
        assert_eq!(Gate::from_legacy(Descriptor(0x00cf_fb00_0000_ffff)), None);
    }

    #[test]
    fn a_64_bit_offset_has_no_legacy_form() {
        let wide = WideDescriptor { low: Descriptor(0x81a0_ee00_0010_0ba0), high: 1 };
        assert_eq!(Gate::from_wide(wide).unwrap().to_legacy(), None);
    }
}
