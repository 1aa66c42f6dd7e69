//! Descriptors as a guest submits them, and what a guest can then do with them.
//!
//! The input is a table of quadwords, as a guest's GDT page is one. Every mode sees every entry.

use paravane_x86::descriptor::findings::{CpuMode, findings};
use paravane_x86::descriptor::gate::Gate;
use paravane_x86::descriptor::wide::WideDescriptor;
use paravane_x86::descriptor::{Descriptor, Kind};
use paravane_x86::gdt::kernel_ring;
use paravane_x86::load::{Privilege, may_load};
use paravane_x86::mode::Mode;
use paravane_x86::segments::SegmentRegister;
use paravane_x86::selector::Ring;
use paravane_x86::submit::{Submission, submit};

const REGISTERS: [SegmentRegister; 6] = [
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Es,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// Takes `data` as a table of descriptors; bytes after the last whole one are left out.
pub fn check(data: &[u8]) {
    let (entries, _) = data.as_chunks::<8>();
    let entries: Vec<u64> = entries.iter().map(|entry| u64::from_le_bytes(*entry)).collect();
    for (index, entry) in entries.iter().enumerate() {
        let next = entries.get(index + 1).copied();
        check_decoding(Descriptor(*entry), next);
        for mode in Mode::ALL {
            check_submission(mode, Descriptor(*entry));
        }
    }
}

/// Taking a descriptor apart and putting it together again gives the same one.
fn check_decoding(descriptor: Descriptor, high: Option<u64>) {
    assert_eq!(Descriptor::from_fields(&descriptor.fields()), Some(descriptor));
    for cpu in [CpuMode::Legacy, CpuMode::Long] {
        for finding in findings(descriptor, high, cpu) {
            assert!(!finding.to_string().is_empty());
        }
    }
    if let Some(gate) = Gate::from_legacy(descriptor) {
        let again = gate.to_legacy().and_then(Gate::from_legacy);
        assert_eq!(again, Some(gate), "a gate is the same when it is written and read again");
    }
    if let Some(high) = high {
        let wide = WideDescriptor { low: descriptor, high };
        if let Some(gate) = Gate::from_wide(wide) {
            assert_eq!(gate.to_wide().and_then(Gate::from_wide), Some(gate));
        }
    }
}

/// No descriptor that Xen lets into a table gives the guest a ring below its kernel's.
fn check_submission(mode: Mode, submitted: Descriptor) {
    let stored = match submit(mode, submitted) {
        Submission::Accepted { stored, changes, .. } => {
            // The other way round need not hold: raising and then parking a gate's DPL can end where it began.
            assert!(!changes.is_empty() || stored == submitted, "every change is told");
            for change in changes {
                assert!(!change.to_string().is_empty());
            }
            stored
        }
        Submission::Refused(refusal) => {
            assert!(!refusal.to_string().is_empty());
            return;
        }
    };
    let is_segment = matches!(stored.kind(), Kind::Code(_) | Kind::Data(_));
    if stored.is_present() && is_segment {
        assert!(stored.dpl() >= kernel_ring(mode), "{stored:?} in {mode} is for Xen's ring");
    }
    for register in REGISTERS {
        for cpl in [kernel_ring(mode), Ring::R3] {
            for rpl in [Ring::R0, Ring::R1, Ring::R2, Ring::R3] {
                if let Err(obstacle) = may_load(mode, stored, register, Privilege { cpl, rpl }) {
                    assert!(!obstacle.to_string().is_empty());
                    assert!(!obstacle.fault(register).to_string().is_empty());
                }
            }
        }
    }
}
