//! What Xen does to a descriptor that a guest submits.
//!
//! Every way for a descriptor into a live table (`set_gdt` for whole pages, `update_descriptor` for one, the
//! first use of an LDT page) goes through one check, which accepts the descriptor, accepts it changed, or
//! refuses it. What the guest reads back can therefore differ from what it wrote.
//!
//! The check guards the ring boundary only. Base and limit are free, except on the 32-bit hypervisor, which
//! protected itself with segment limits and therefore cuts them.
//!
//! Source: `check_descriptor` in `xen/arch/x86/pv/descriptor-tables.c`; for the 32-bit hypervisors
//! `xen/arch/x86/x86_32/mm.c` of Xen 4.2.5.

use core::fmt;

use serde::Serialize;

use crate::{
    descriptor::{Descriptor, Kind, SystemType, bits},
    gdt,
    mode::{Hypervisor, Mode},
    segments::{FLAT_RING1_CS, FLAT_RING3_CS64},
    selector::{Ring, Selector, Table},
};

/// Where 64-bit Xen's part of a 32-bit guest's address space begins (`HYPERVISOR_COMPAT_VIRT_START`).
const COMPAT_VIRT_START: u64 = 0xf580_0000;

/// What became of a submitted descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Submission {
    /// Stored; `changes` is empty if it is stored as it was.
    Accepted {
        /// What is in the table afterwards.
        stored: Descriptor,
        /// What Xen changed, in the order in which it did.
        changes: Vec<Change>,
        /// The rule that let it pass.
        rule: AcceptRule,
    },
    /// The hypercall fails with `-EINVAL` and the table is unchanged.
    Refused(Refusal),
}

/// Why a descriptor was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceptRule {
    /// P = 0.
    NotPresent,
    /// S = 1: code or data.
    CodeOrData,
    /// System type 0: the upper half of a 16-byte gate.
    UpperHalf,
    /// A call gate with an allowed target.
    CallGate,
}

/// One change that Xen makes before storing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The DPL was below the guest kernel's ring.
    DplRaised {
        /// As submitted.
        from: Ring,
        /// As stored.
        to: Ring,
    },
    /// A flat segment that ends just below Xen gets a limit of 4 GiB, so that it covers the larger M2P table
    /// of a 64-bit hypervisor.
    LimitWidened {
        /// The 20-bit field as submitted.
        from: u32,
    },
    /// A segment that reached into Xen's memory ends below it (32-bit hypervisor only).
    LimitCut {
        /// The 20-bit field as submitted.
        from: u32,
        /// The field as stored.
        to: u32,
    },
    /// A call gate's DPL becomes 0, so that using the gate faults and Xen can emulate it; the DPL is kept in
    /// the RPL bits of the target selector.
    GateDplParked {
        /// The DPL, after it was raised to the guest kernel's ring.
        dpl: Ring,
    },
    /// A call gate's target selector asks for at least the guest kernel's ring (32-bit hypervisor only).
    GateRplRaised {
        /// The selector as submitted.
        from: Selector,
        /// As stored.
        to: Selector,
    },
}

/// Why a descriptor was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A 32-bit guest may not have 64-bit code.
    LongIn32BitGuest,
    /// A system descriptor other than a call gate.
    SystemType(SystemType),
    /// A call gate to one of Xen's own segments.
    GateTarget(Selector),
    /// Reserved bits of a call gate, as a mask of the quadword.
    GateReservedBits(u64),
    /// The base is within a page of Xen's memory or above it (32-bit hypervisor only).
    BaseInXen(u32),
    /// The segment reaches into Xen's memory and its limit counts bytes, which Xen does not try to cut
    /// (32-bit hypervisor only).
    ByteLimitIntoXen,
}

/// Passes `submitted` through Xen's check as a guest in `mode` would.
pub fn submit(mode: Mode, submitted: Descriptor) -> Submission {
    if !submitted.is_present() {
        return Submission::Accepted { stored: submitted, changes: Vec::new(), rule: AcceptRule::NotPresent };
    }
    let mut check = Check { mode, stored: submitted, changes: Vec::new() };
    let outcome = match submitted.kind() {
        Kind::Code(_) | Kind::Data(_) => check.code_or_data(),
        Kind::System(system) => check.system(system),
    };
    match outcome {
        Ok(rule) => Submission::Accepted { stored: check.stored, changes: check.changes, rule },
        Err(refusal) => Submission::Refused(refusal),
    }
}

/// A check under way: the descriptor as changed so far.
struct Check {
    mode: Mode,
    stored: Descriptor,
    changes: Vec<Change>,
}

impl Check {
    fn code_or_data(&mut self) -> Result<AcceptRule, Refusal> {
        self.raise_dpl();
        match (self.mode, self.mode.hypervisor()) {
            (Mode::Guest64, _) => {}
            (_, Hypervisor::Bits64) => {
                if self.stored.has(bits::L) {
                    return Err(Refusal::LongIn32BitGuest);
                }
                self.widen_limit();
            }
            (_, Hypervisor::Bits32Pae | Hypervisor::Bits32NonPae) => self.cut_limit()?,
        }
        Ok(AcceptRule::CodeOrData)
    }

    fn system(&mut self, system: SystemType) -> Result<AcceptRule, Refusal> {
        let on_64_bit_xen = self.mode.hypervisor() == Hypervisor::Bits64;
        if system == SystemType::Reserved0 && on_64_bit_xen {
            // Accepted as it stands, its DPL included.
            return Ok(AcceptRule::UpperHalf);
        }
        if system != SystemType::CallGate {
            return Err(Refusal::SystemType(system));
        }
        self.raise_dpl();
        if on_64_bit_xen {
            self.park_gate_dpl()?
        } else {
            self.raise_gate_rpl()?
        }
        let reserved = self.stored.0 & if self.mode == Mode::Guest64 { 0xff << 32 } else { 0xe0 << 32 };
        if reserved != 0 {
            return Err(Refusal::GateReservedBits(reserved));
        }
        Ok(AcceptRule::CallGate)
    }

    fn raise_dpl(&mut self) {
        let (from, to) = (self.stored.dpl(), gdt::kernel_ring(self.mode));
        if from < to {
            self.stored = self.stored.with_dpl(to);
            self.changes.push(Change::DplRaised { from, to });
        }
    }

    /// 64-bit Xen, 32-bit guest: a flat segment made for the old, smaller M2P reaches the new one.
    fn widen_limit(&mut self) {
        let from = self.stored.limit_field();
        if self.stored.base() == 0 && byte_count(self.stored) > COMPAT_VIRT_START && from != 0xf_ffff {
            self.stored = self.stored.with_limit_field(0xf_ffff);
            self.changes.push(Change::LimitWidened { from });
        }
    }

    /// 32-bit Xen: no segment reaches Xen's memory. All arithmetic is in 32 bits, as on that hypervisor.
    fn cut_limit(&mut self) -> Result<(), Refusal> {
        let Some(top) = guest_segment_top(self.mode) else {
            return Ok(());
        };
        let base = self.stored.base();
        if base >= top - 4096 {
            return Err(Refusal::BaseInXen(base));
        }
        // A count of 4 GiB is 0 in Xen's 32-bit arithmetic.
        let end = base.wrapping_add(self.stored.limit().wrapping_add(1));
        let expand_down = match self.stored.kind() {
            Kind::Data(data) => data.expand_down,
            Kind::Code(_) | Kind::System(_) => false,
        };
        let allowed = if expand_down {
            if end <= base {
                return Ok(());
            }
            (base & !0xfff).wrapping_neg()
        } else {
            if end > base && end <= top {
                return Ok(());
            }
            top - base
        };
        if !self.stored.has(bits::G) {
            return Err(Refusal::ByteLimitIntoXen);
        }
        let (from, to) = (self.stored.limit_field(), (allowed >> 12).wrapping_sub(1) & 0xf_ffff);
        self.stored = self.stored.with_limit_field(to);
        if from != to {
            self.changes.push(Change::LimitCut { from, to });
        }
        Ok(())
    }

    fn gate_target(&self) -> Selector {
        // The mask leaves sixteen bits.
        Selector((self.stored.0 >> 16 & 0xffff) as u16)
    }

    fn set_gate_target(&mut self, selector: Selector) {
        self.stored = Descriptor(self.stored.0 & !0xffff_0000 | u64::from(selector.0) << 16);
    }

    fn park_gate_dpl(&mut self) -> Result<(), Refusal> {
        let target = self.gate_target();
        if !gate_target_allowed(self.mode, target) {
            return Err(Refusal::GateTarget(target));
        }
        let dpl = self.stored.dpl();
        self.stored = self.stored.with_dpl(Ring::R0);
        self.set_gate_target(target.with_rpl(dpl));
        self.changes.push(Change::GateDplParked { dpl });
        Ok(())
    }

    fn raise_gate_rpl(&mut self) -> Result<(), Refusal> {
        let from = self.gate_target();
        let to = raise_rpl(self.mode, from);
        if !gate_target_allowed(self.mode, to) {
            return Err(Refusal::GateTarget(to));
        }
        if from != to {
            self.set_gate_target(to);
            self.changes.push(Change::GateRplRaised { from, to });
        }
        Ok(())
    }
}

/// A selector as Xen stores it where it must not name a ring below the guest kernel's.
///
/// Source: `__fixup_guest_selector` in `xen/arch/x86/include/asm/desc.h`.
pub fn raise_rpl(mode: Mode, selector: Selector) -> Selector {
    let floor = gdt::kernel_ring(mode);
    if selector.rpl() >= floor { selector } else { selector.with_rpl(floor) }
}

/// Whether a gate may lead to `target`: a segment of the guest's own, or the flat kernel code segment, whose
/// selector must match with its RPL.
///
/// Source: `guest_gate_selector_okay` in `xen/arch/x86/include/asm/desc.h`.
pub fn gate_target_allowed(mode: Mode, target: Selector) -> bool {
    let flat_kernel_cs = match mode {
        Mode::Guest64 => FLAT_RING3_CS64,
        Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => FLAT_RING1_CS,
    };
    target.index() < gdt::FIRST_RESERVED_ENTRY || target == flat_kernel_cs || target.table() == Table::Ldt
}

/// The first address beyond a 32-bit hypervisor's guest segments (`GUEST_SEGMENT_MAX_ADDR`); `None` on 64-bit
/// hypervisors, which do not cut segments.
pub fn guest_segment_top(mode: Mode) -> Option<u32> {
    match mode {
        Mode::Guest64 | Mode::Guest32On64 => None,
        Mode::Guest32On32Pae => Some(0xf680_0000),
        Mode::Guest32On32NonPae => Some(0xfc40_0000),
    }
}

/// The number of bytes from the segment's base to its limit, at most 4 GiB. For byte-granular limits that is
/// the field plus one; for page-granular ones the field plus one, times 4096.
fn byte_count(descriptor: Descriptor) -> u64 {
    u64::from(descriptor.limit()) + 1
}

impl fmt::Display for AcceptRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPresent => "not present: it faults whenever it is loaded, so it is stored unseen",
            Self::CodeOrData => "code and data are accepted with any type",
            Self::UpperHalf => "system type 0 is the upper half of a 16-byte gate, and harmless",
            Self::CallGate => "a call gate to a segment of the guest's is accepted",
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DplRaised { from, to } => {
                write!(f, "DPL raised from {from} to {to}: the guest kernel's own ring is {to}")
            }
            Self::LimitWidened { from } => write!(
                f,
                "limit field widened from {from:#x} to 0xfffff: a flat segment that ends above {COMPAT_VIRT_START:#x} \
                 is made to cover all of the M2P table"
            ),
            Self::LimitCut { from, to } => {
                write!(f, "limit field cut from {from:#x} to {to:#x}: segments must end below Xen's memory")
            }
            Self::GateDplParked { dpl } => write!(
                f,
                "DPL {dpl} moved into the RPL of the gate's selector, and the gate's DPL set to 0: calling through it \
                 faults, and Xen emulates the transfer"
            ),
            Self::GateRplRaised { from, to } => write!(f, "the gate's selector raised from {from} to {to}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongIn32BitGuest => f.write_str("a 32-bit guest may not have a descriptor with the L bit"),
            Self::SystemType(system) => write!(
                f,
                "{}: the only system descriptor that a guest may install is a call gate; tasks do not exist, the LDT \
                 is set by MMUEXT_SET_LDT, and interrupt handlers by set_trap_table",
                system.name()
            ),
            Self::GateTarget(selector) => write!(
                f,
                "the gate leads to {selector}, which is Xen's: allowed are the guest's own GDT entries, the LDT and \
                 the flat kernel code segment"
            ),
            Self::GateReservedBits(mask) => write!(f, "reserved bits of the call gate are set: {mask:#018x}"),
            Self::BaseInXen(base) => {
                write!(f, "the base {base:#010x} lies within a page of Xen's memory or above")
            }
            Self::ByteLimitIntoXen => f.write_str(
                "the segment reaches into Xen's memory, and only a page-granular limit (G = 1) is cut",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(mode: Mode, raw: u64) -> Result<(u64, Vec<Change>), Refusal> {
        match submit(mode, Descriptor(raw)) {
            Submission::Accepted { stored, changes, .. } => Ok((stored.0, changes)),
            Submission::Refused(refusal) => Err(refusal),
        }
    }

    #[test]
    fn a_64_bit_guest_gets_dpl_3_and_any_base_and_limit() {
        let raised = |from| Change::DplRaised { from, to: Ring::R3 };
        for (raw, stored, change) in [
            (0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff, Some(raised(Ring::R0))),
            (0x12cf_b345_6789_abcd, 0x12cf_f345_6789_abcd, Some(raised(Ring::R1))),
            (0x00cf_f300_0000_ffff, 0x00cf_f300_0000_ffff, None),
            (0x00ef_fb00_0000_ffff, 0x00ef_fb00_0000_ffff, None),
        ] {
            assert_eq!(accepted(Mode::Guest64, raw), Ok((stored, change.into_iter().collect())), "{raw:#x}");
        }
    }

    #[test]
    fn a_32_bit_guest_may_not_have_64_bit_code() {
        assert_eq!(accepted(Mode::Guest32On64, 0x00af_fb00_0000_ffff), Err(Refusal::LongIn32BitGuest));
    }

    #[test]
    fn an_old_flat_limit_is_widened_on_64_bit_xen() {
        for (raw, stored, changed) in [
            (0x00cf_ba00_0000_67ff, 0x00cf_ba00_0000_ffff, true),
            // Ends exactly where Xen begins: 0xf57ff pages make 0xf5800000 bytes.
            (0x00cf_ba00_0000_57ff, 0x00cf_ba00_0000_57ff, false),
            (0x00cf_ba00_0000_5800, 0x00cf_ba00_0000_ffff, true),
            // Not flat.
            (0x00cf_ba00_1000_67ff, 0x00cf_ba00_1000_67ff, false),
        ] {
            let (result, changes) = accepted(Mode::Guest32On64, raw).unwrap();
            assert_eq!((result, !changes.is_empty()), (stored, changed), "{raw:#x}");
        }
    }

    #[test]
    fn the_32_bit_hypervisor_cuts_segments_below_itself() {
        let cut = |from, to| Change::LimitCut { from, to };
        for (mode, raw, expected) in [
            (
                Mode::Guest32On32Pae,
                0x00cf_ba00_0000_ffff,
                Ok((0x00cf_ba00_0000_67ff, vec![cut(0xf_ffff, 0xf_67ff)])),
            ),
            (
                Mode::Guest32On32NonPae,
                0x00cf_ba00_0000_ffff,
                Ok((0x00cf_ba00_0000_c3ff, vec![cut(0xf_ffff, 0xf_c3ff)])),
            ),
            (Mode::Guest32On32Pae, 0x00cf_ba00_0000_67ff, Ok((0x00cf_ba00_0000_67ff, vec![]))),
            (Mode::Guest32On32Pae, 0xf640_b27f_f000_0000, Err(Refusal::BaseInXen(0xf67f_f000))),
            (Mode::Guest32On32Pae, 0xf64f_b200_0000_ffff, Ok((0xf64f_b200_0000_ffff, vec![]))),
            (Mode::Guest32On32Pae, 0xf64f_b278_0000_ffff, Err(Refusal::ByteLimitIntoXen)),
        ] {
            assert_eq!(accepted(mode, raw), expected, "{mode}: {raw:#x}");
        }
    }

    #[test]
    fn an_expand_down_segment_is_cut_where_it_would_wrap_into_xen() {
        // Base 0x1000, limit 0: valid are the offsets above 0xfff, which wrap round to all of memory.
        let (stored, changes) = accepted(Mode::Guest32On32Pae, 0x00c0_b600_1000_0000).unwrap();
        assert_eq!(Descriptor(stored).limit_field(), 0xf_fffe);
        assert_eq!(changes, [Change::LimitCut { from: 0, to: 0xf_fffe }]);
    }

    #[test]
    fn system_descriptors_are_refused_except_call_gates_and_upper_halves() {
        for system in SystemType::ALL {
            let raw = bits::P | u64::from(system.type_bits()) << 40 | 0x10 << 16;
            let expected = match system {
                SystemType::Reserved0 | SystemType::CallGate => None,
                SystemType::Tss16Available
                | SystemType::Ldt
                | SystemType::Tss16Busy
                | SystemType::CallGate16
                | SystemType::TaskGate
                | SystemType::InterruptGate16
                | SystemType::TrapGate16
                | SystemType::Reserved8
                | SystemType::TssAvailable
                | SystemType::Reserved10
                | SystemType::TssBusy
                | SystemType::Reserved13
                | SystemType::InterruptGate
                | SystemType::TrapGate => Some(Refusal::SystemType(system)),
            };
            for mode in [Mode::Guest64, Mode::Guest32On64] {
                assert_eq!(accepted(mode, raw).err(), expected, "{system:?}");
            }
        }
        let upper_half = Descriptor(bits::P);
        assert_eq!(
            accepted(Mode::Guest32On32Pae, upper_half.0),
            Err(Refusal::SystemType(SystemType::Reserved0))
        );
    }

    #[test]
    fn a_call_gate_keeps_its_dpl_in_its_selector() {
        // To selector 0x10, DPL 3, offset 0x12345678.
        for (mode, raw, stored) in [
            (Mode::Guest64, 0x1234_ec00_0010_5678, 0x1234_8c00_0013_5678),
            (Mode::Guest32On64, 0x1234_ec00_0010_5678, 0x1234_8c00_0013_5678),
            (Mode::Guest32On64, 0x1234_8c00_0010_5678, 0x1234_8c00_0011_5678),
            (Mode::Guest64, 0x1234_ec00_e033_5678, 0x1234_8c00_e033_5678),
            (Mode::Guest32On32Pae, 0x1234_ec00_0010_5678, 0x1234_ec00_0011_5678),
        ] {
            assert_eq!(accepted(mode, raw).map(|(stored, _)| stored), Ok(stored), "{mode}: {raw:#x}");
        }
    }

    #[test]
    fn a_call_gate_into_xen_or_with_reserved_bits_is_refused() {
        for (mode, raw, refusal) in [
            (Mode::Guest64, 0x1234_ec00_e008_5678, Refusal::GateTarget(Selector(0xe008))),
            // The flat code segment, but not with the RPL it is known by.
            (Mode::Guest64, 0x1234_ec00_e030_5678, Refusal::GateTarget(Selector(0xe030))),
            (Mode::Guest64, 0x1234_ec01_0010_5678, Refusal::GateReservedBits(1 << 32)),
            (Mode::Guest32On64, 0x1234_ec20_0010_5678, Refusal::GateReservedBits(0x20 << 32)),
        ] {
            assert_eq!(accepted(mode, raw), Err(refusal), "{mode}: {raw:#x}");
        }
        assert!(accepted(Mode::Guest32On64, 0x1234_ec1f_0010_5678).is_ok());
    }

    proptest! {
        #[test]
        fn nothing_below_the_kernel_ring_is_ever_stored(raw: u64, mode in prop::sample::select(&Mode::ALL[..])) {
            if let Submission::Accepted { stored, rule, .. } = submit(mode, Descriptor(raw)) {
                match rule {
                    AcceptRule::CodeOrData => prop_assert!(stored.dpl() >= gdt::kernel_ring(mode)),
                    AcceptRule::NotPresent => prop_assert!(!stored.is_present()),
                    AcceptRule::UpperHalf => prop_assert_eq!(stored, Descriptor(raw)),
                    AcceptRule::CallGate => prop_assert_eq!(stored.kind(), Kind::System(SystemType::CallGate)),
                }
            }
        }

        #[test]
        fn code_and_data_once_stored_are_accepted_unchanged(raw: u64, mode in prop::sample::select(&Mode::ALL[..])) {
            let first = submit(mode, Descriptor(raw));
            if let Submission::Accepted { stored, rule: AcceptRule::CodeOrData, .. } = first {
                match submit(mode, stored) {
                    Submission::Accepted { stored: again, .. } => prop_assert_eq!(again, stored),
                    Submission::Refused(refusal) => prop_assert!(false, "{stored} refused: {refusal}"),
                }
            }
        }

        #[test]
        fn no_segment_reaches_a_32_bit_hypervisor(raw: u64) {
            let mode = Mode::Guest32On32Pae;
            if let Submission::Accepted { stored, rule: AcceptRule::CodeOrData, .. } = submit(mode, Descriptor(raw))
                && !matches!(stored.kind(), Kind::Data(data) if data.expand_down)
            {
                    let top = u64::from(guest_segment_top(mode).unwrap());
                    prop_assert!(u64::from(stored.base()) + byte_count(stored) <= top);
            }
        }
    }
}
