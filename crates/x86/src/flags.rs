//! RFLAGS, CR0 and CR4, and what a PV guest sees of them.
//!
//! A PV kernel is not in ring 0, so none of these registers is its own. RFLAGS is the CPU's, with IF always set
//! and IOPL always 0: PUSHF shows that, POPF cannot change it, CLI and STI fault and are skipped. The interrupt
//! flag of a PV guest is `evtchn_upcall_mask` in its `vcpu_info`. Reads and writes of CR0 and CR4 fault and are
//! emulated: a few bits are the guest's, the rest shows the hypervisor's choice.
//!
//! Sources: AMD APM vol. 2, "RFLAGS Register", "CR0 Register", "CR4 Register"; Intel SDM vol. 3A, "System Flags
//! and Fields in the EFLAGS Register", "Control Registers"; `xen/arch/x86/pv/emul-priv-op.c`,
//! `xen/arch/x86/pv/domain.c` (`pv_fixup_guest_cr4`).

use crate::bits::BitField;

/// Bits of RFLAGS as masks.
pub mod rflags {
    /// Always 1.
    pub const FIXED: u64 = 1 << 1;
    /// Trap: single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// Direction of string instructions.
    pub const DF: u64 = 1 << 10;
    /// I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check.
    pub const AC: u64 = 1 << 18;
}

/// The flags that the hypervisor clears when it enters a handler of a 64-bit guest.
pub const CLEARED_AT_HANDLER_64: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC;

/// The flags that the hypervisor clears when it enters a handler of a 32-bit guest: AC stays.
pub const CLEARED_AT_HANDLER_32: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM;

/// RFLAGS, or EFLAGS in its low half.
pub const RFLAGS: &[BitField] = &[
    BitField::bit(0, "CF", "Carry out of an addition, or borrow.", ""),
    BitField::bit(1, "1", "Always set.", ""),
    BitField::bit(2, "PF", "The low byte of the result has an even number of ones.", ""),
    BitField::bit(4, "AF", "Carry out of bit 3.", ""),
    BitField::bit(6, "ZF", "The result is zero.", ""),
    BitField::bit(7, "SF", "The result is negative.", ""),
    BitField::bit(8, "TF", "Raise #DB after each instruction.", "Cleared when a handler is entered."),
    BitField::bit(
        9,
        "IF",
        "Take external interrupts.",
        "Always set while the guest runs. In frames it is the event mask inverted; in an iret frame it \
         sets the mask.",
    ),
    BitField::bit(
        10,
        "DF",
        "String instructions go downward.",
        "Cleared when the syscall callback is entered; other handlers find it as it was.",
    ),
    BitField::bit(11, "OF", "The signed result does not fit.", ""),
    BitField::group(
        13,
        12,
        "IOPL",
        "Rings up to this one may do I/O and change IF.",
        "Always 0 in the register. The guest's is kept by the hypervisor: physdev_op set_iopl sets it, and \
         with assist architectural_iopl frames and the iret hypercall carry it.",
    ),
    BitField::bit(14, "NT", "IRET returns to another task.", "Cleared when a handler is entered."),
    BitField::bit(16, "RF", "Ignore instruction breakpoints once.", "Cleared when a handler is entered."),
    BitField::bit(
        17,
        "VM",
        "Virtual-8086 mode.",
        "Cleared on every return to a 64-bit guest. A 32-bit guest gets #GP instead of it on a 64-bit \
         hypervisor.",
    ),
    BitField::bit(
        18,
        "AC",
        "Check alignment in ring 3.",
        "Cleared when a handler of a 64-bit guest is entered, since its kernel is in ring 3 too.",
    ),
    BitField::bit(19, "VIF", "Virtual interrupt flag of virtual-8086 mode.", "Of no use: VME is hidden."),
    BitField::bit(20, "VIP", "Virtual interrupt pending.", "Of no use: VME is hidden."),
    BitField::bit(21, "ID", "Can be changed where CPUID exists.", ""),
];

/// CR0.
pub const CR0: &[BitField] = &[
    BitField::bit(0, "PE", "Protected mode.", "Reads as 1; a write that changes it is #GP."),
    BitField::bit(1, "MP", "WAIT obeys TS.", "Reads as 1; a write that changes it is #GP."),
    BitField::bit(2, "EM", "No FPU: raise #NM or #UD.", "Reads as 0; a write that changes it is #GP."),
    BitField::bit(
        3,
        "TS",
        "Raise #NM at the next FPU instruction.",
        "The guest's own: fpu_taskswitch, CLTS or a write sets and clears it, and delivering #NM clears it.",
    ),
    BitField::bit(4, "ET", "Always set.", ""),
    BitField::bit(5, "NE", "Report FPU errors by #MF.", "Reads as 1; a write that changes it is #GP."),
    BitField::bit(
        16,
        "WP",
        "Rings 0 to 2 obey read-only pages.",
        "Reads as 1; a write that changes it is #GP, so a PV kernel cannot write through read-only mappings.",
    ),
    BitField::bit(18, "AM", "AC works.", "Shows the hypervisor's; a write that changes it is #GP."),
    BitField::bit(29, "NW", "Not write-through.", "Reads as 0; a write that changes it is #GP."),
    BitField::bit(30, "CD", "No caching.", "Reads as 0; a write that changes it is #GP."),
    BitField::bit(31, "PG", "Paging.", "Reads as 1; a write that changes it is #GP."),
];

/// What a PV guest has of a bit of CR4.
const HIDDEN: &str = "Reads as 0; writing it is ignored.";
/// What a PV guest has of a bit of CR4 that shows the hypervisor's setting.
const SHOWN: &str = "Shows the hypervisor's, which sets it; writing it is ignored.";
/// What a PV guest has of a bit of CR4 that is its own.
const OWN: &str = "The guest's own, where its CPUID has the feature.";

/// CR4.
pub const CR4: &[BitField] = &[
    BitField::bit(0, "VME", "Virtual-8086 mode extensions.", HIDDEN),
    BitField::bit(1, "PVI", "Protected-mode virtual interrupts.", HIDDEN),
    BitField::bit(
        2,
        "TSD",
        "RDTSC only in ring 0.",
        "The guest's own. The hypervisor may set it besides, to emulate RDTSC, without showing it.",
    ),
    BitField::bit(3, "DE", "DR4 and DR5 raise #UD; I/O breakpoints exist.", OWN),
    BitField::bit(4, "PSE", "Large pages in 32-bit paging.", HIDDEN),
    BitField::bit(5, "PAE", "Page-table entries of 64 bits.", SHOWN),
    BitField::bit(6, "MCE", "Raise #MC for machine checks.", SHOWN),
    BitField::bit(7, "PGE", "Global pages outlive a load of CR3.", HIDDEN),
    BitField::bit(8, "PCE", "RDPMC in every ring.", HIDDEN),
    BitField::bit(9, "OSFXSR", "FXSAVE saves SSE; SSE works.", SHOWN),
    BitField::bit(10, "OSXMMEXCPT", "Report SSE errors by #XM.", SHOWN),
    BitField::bit(11, "UMIP", "SGDT, SIDT, SLDT, STR and SMSW only in ring 0.", HIDDEN),
    BitField::bit(12, "LA57", "Five levels of page tables.", HIDDEN),
    BitField::bit(13, "VMXE", "VMX works.", HIDDEN),
    BitField::bit(14, "SMXE", "SMX works.", HIDDEN),
    BitField::bit(
        16,
        "FSGSBASE",
        "RDFSBASE and its like work.",
        "The guest's own in a 64-bit guest, where its CPUID has the feature.",
    ),
    BitField::bit(17, "PCIDE", "CR3 names an address space.", HIDDEN),
    BitField::bit(18, "OSXSAVE", "XSAVE, XGETBV and XSETBV work.", OWN),
    BitField::bit(20, "SMEP", "The kernel may not execute user pages.", HIDDEN),
    BitField::bit(21, "SMAP", "The kernel may not touch user pages unless AC is set.", HIDDEN),
    BitField::bit(22, "PKE", "Protection keys for user pages.", HIDDEN),
    BitField::bit(23, "CET", "Shadow stacks and branch tracking.", HIDDEN),
    BitField::bit(24, "PKS", "Protection keys for kernel pages.", HIDDEN),
    BitField::bit(25, "UINTR", "User interrupts.", HIDDEN),
];

/// The bits of CR4 that a guest can change.
pub const CR4_GUEST: u64 = 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18;

/// The bits of CR4 that show the hypervisor's setting.
pub const CR4_SHOWN: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;

/// CR4 as a guest reads it back after writing `written`.
///
/// `permitted` holds the bits of [`CR4_GUEST`] whose feature the guest's CPUID has, `hardware` the CPU's CR4.
///
/// ```
/// use paravane_x86::flags::{CR4_GUEST, read_back_cr4};
///
/// // PGE (bit 7) is dropped, OSXSAVE (bit 18) stays, PAE (bit 5) shows the hypervisor's.
/// assert_eq!(read_back_cr4(1 << 7 | 1 << 18, CR4_GUEST, 1 << 5 | 1 << 20), 1 << 18 | 1 << 5);
/// ```
pub const fn read_back_cr4(written: u64, permitted: u64, hardware: u64) -> u64 {
    written & CR4_GUEST & permitted | hardware & CR4_SHOWN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::{assert_well_formed, decode, unnamed};
    use crate::transitions::star;

    #[test]
    fn the_tables_are_in_order_and_do_not_overlap() {
        for table in [RFLAGS, CR0, CR4] {
            assert_well_formed(table);
        }
    }

    #[test]
    fn masks_and_table_agree() {
        for (name, mask) in [
            ("1", rflags::FIXED),
            ("TF", rflags::TF),
            ("IF", rflags::IF),
            ("DF", rflags::DF),
            ("IOPL", rflags::IOPL),
            ("NT", rflags::NT),
            ("RF", rflags::RF),
            ("VM", rflags::VM),
            ("AC", rflags::AC),
        ] {
            let field = RFLAGS.iter().find(|field| field.name == name).unwrap();
            assert_eq!(field.mask(), mask, "{name}");
        }
    }

    #[test]
    fn syscall_clears_what_a_handler_clears_and_df_and_if() {
        assert_eq!(star::SYSCALL_MASK, CLEARED_AT_HANDLER_64 | rflags::DF | rflags::IF);
    }

    #[test]
    fn the_initial_flags_decode_to_if_alone() {
        let set: Vec<&str> =
            decode(RFLAGS, 0x200).filter(|field| field.value != 0).map(|field| field.field.name).collect();
        assert_eq!(set, ["IF"]);
        assert_eq!(unnamed(RFLAGS, 0x200), 0);
        assert_eq!(unnamed(RFLAGS, 1 << 15 | 1 << 40), 1 << 15 | 1 << 40);
    }

    #[test]
    fn bits_of_cr4_are_the_guests_or_the_hypervisors_as_the_table_says() {
        for field in CR4 {
            let guest = CR4_GUEST & field.mask() != 0;
            let shown = CR4_SHOWN & field.mask() != 0;
            assert_eq!(guest, field.pv.starts_with("The guest's own"), "{}", field.name);
            assert_eq!(shown, field.pv == SHOWN, "{}", field.name);
        }
    }
}
