//! One descriptor as it lies in a table: a quadword, or two of them.
//!
//! Whether two quadwords belong together depends on the CPU. In long mode TSS, LDT and gates are 16 bytes
//! long; in legacy mode everything is 8. A 32-bit guest on a 64-bit hypervisor sits in between: the CPU is in
//! long mode, so Xen's own TSS and LDT entries are wide, but Xen emulates the guest's call gates as the
//! 8-byte ones that the guest wrote.

use paravane_x86::{
    descriptor::{
        Descriptor, Kind, SystemType,
        findings::{CpuMode, Finding, Severity, findings},
        gate::Gate,
        wide::WideDescriptor,
    },
    mode::{Guest, Hypervisor, Mode},
};

/// A descriptor with its upper half, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) struct Entry {
    /// The quadword at the lower address.
    pub low: Descriptor,
    /// The quadword after it, where both form one 16-byte descriptor.
    pub high: Option<u64>,
}

impl Entry {
    /// The gate this is, if it is one.
    pub(in crate::commands) fn gate(self) -> Option<Gate> {
        match self.wide() {
            Some(wide) => Gate::from_wide(wide),
            None => Gate::from_legacy(self.low),
        }
    }

    /// The segment's base, with all 64 bits of a wide one.
    pub(in crate::commands) fn base(self) -> u64 {
        self.wide().map_or(u64::from(self.low.base()), WideDescriptor::base)
    }

    /// Both quadwords, of a descriptor that has two.
    pub(in crate::commands) fn wide(self) -> Option<WideDescriptor> {
        self.high.map(|high| WideDescriptor { low: self.low, high })
    }

    /// How many quadwords it takes.
    pub(in crate::commands) fn len(self) -> u16 {
        if self.high.is_some() { 2 } else { 1 }
    }

    /// Whether nothing is here.
    pub(in crate::commands) fn is_empty(self) -> bool {
        self.low == Descriptor::NULL && self.high.is_none()
    }

    /// What is odd about it in `mode`, contradictions first.
    pub(in crate::commands) fn findings(self, mode: Mode) -> Vec<Finding> {
        let mut found = findings(self.low, self.high, cpu_mode(mode, self.low));
        found.sort_by_key(|finding| match finding.severity() {
            Severity::Contradiction => 0,
            Severity::Note => 1,
        });
        found
    }
}

/// Groups `quadwords` into descriptors as `mode` reads them.
///
/// The quadword after a system descriptor that is 16 bytes long in `mode` is its upper half if it can be one,
/// that is if its own upper 32 bits are zero; with [`Pairing::Forced`] whatever it holds.
pub(in crate::commands) fn group(quadwords: &[u64], mode: Mode, pairing: Pairing) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut rest = quadwords;
    while let [first, tail @ ..] = rest {
        let low = Descriptor(*first);
        let high = tail.first().copied().filter(|&high| match pairing {
            Pairing::Forced => WideDescriptor::is_low_half(low),
            Pairing::WherePlausible => {
                is_wide(mode, low) && WideDescriptor { low, high }.reserved_bits() == 0
            }
        });
        entries.push(Entry { low, high });
        rest = if high.is_some() { &tail[1..] } else { tail };
    }
    entries
}

/// When two quadwords are taken for one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Pairing {
    /// When the mode and the contents of both allow it.
    WherePlausible,
    /// Whenever the first is of a type that is 16 bytes long in long mode.
    Forced,
}

/// Whether `low` is the first half of a 16-byte descriptor in the tables of a guest in `mode`.
pub(in crate::commands) fn is_wide(mode: Mode, low: Descriptor) -> bool {
    WideDescriptor::is_low_half(low) && cpu_mode(mode, low) == CpuMode::Long
}

/// The rules by which `descriptor` is read in `mode`.
fn cpu_mode(mode: Mode, descriptor: Descriptor) -> CpuMode {
    let gate = matches!(descriptor.kind(), Kind::System(system) if SystemType::is_gate(system));
    match (mode.hypervisor(), mode.guest()) {
        (Hypervisor::Bits64, Guest::Bits32) if gate => CpuMode::Legacy,
        (Hypervisor::Bits64, _) => CpuMode::Long,
        (Hypervisor::Bits32Pae | Hypervisor::Bits32NonPae, _) => CpuMode::Legacy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSS: u64 = 0x8000_8953_1040_0067;
    const TSS_HIGH: u64 = 0xffff_82d0;
    const CODE: u64 = 0x00af_fb00_0000_ffff;
    const CALL_GATE: u64 = 0x1234_ec00_0010_5678;

    fn sizes(quadwords: &[u64], mode: Mode, pairing: Pairing) -> Vec<u16> {
        group(quadwords, mode, pairing).into_iter().map(Entry::len).collect()
    }

    #[test]
    fn a_long_mode_system_descriptor_takes_the_quadword_after_it() {
        use Pairing::{Forced, WherePlausible};
        for (quadwords, mode, pairing, expected) in [
            (&[TSS, TSS_HIGH, CODE][..], Mode::Guest64, WherePlausible, &[2, 1][..]),
            (&[TSS, TSS_HIGH], Mode::Guest32On64, WherePlausible, &[2]),
            (&[TSS, TSS_HIGH], Mode::Guest32On32Pae, WherePlausible, &[1, 1]),
            (&[TSS], Mode::Guest64, WherePlausible, &[1]),
            (&[TSS], Mode::Guest64, Forced, &[1]),
            // The next descriptor is no upper half, unless the user says so.
            (&[TSS, CODE], Mode::Guest64, WherePlausible, &[1, 1]),
            (&[TSS, CODE], Mode::Guest64, Forced, &[2]),
            (&[CODE, 0], Mode::Guest64, Forced, &[1, 1]),
            (&[CALL_GATE, 0], Mode::Guest64, WherePlausible, &[2]),
            (&[CALL_GATE, 0], Mode::Guest32On64, WherePlausible, &[1, 1]),
            (&[], Mode::Guest64, WherePlausible, &[]),
        ] {
            assert_eq!(sizes(quadwords, mode, pairing), expected, "{quadwords:x?} {mode} {pairing:?}");
        }
    }

    #[test]
    fn contradictions_come_before_notes() {
        // L and D both set, and the accessed bit clear.
        let entry = Entry { low: Descriptor(0x00ef_7a00_0000_ffff), high: None };
        let severities: Vec<Severity> =
            entry.findings(Mode::Guest64).into_iter().map(Finding::severity).collect();
        assert_eq!(severities, [Severity::Contradiction, Severity::Note]);
    }
}
