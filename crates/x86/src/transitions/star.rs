//! What the hypervisor puts into the MSRs of SYSCALL and SYSENTER, and the selectors that follow.
//!
//! SYSCALL takes CS from STAR bits 47..32 and SS from the same plus 8. SYSRET takes them from bits 63..48: for
//! 64-bit code CS is that plus 16, for 32-bit code that itself, and SS is that plus 8 in both cases, all with
//! RPL 3. So three descriptors must stand in a row: 32-bit code, data, 64-bit code. That is the order of
//! 0xe023, 0xe02b and 0xe033 in the reserved part of the GDT, and the reason why a 64-bit guest's SS is 0xe02b.
//!
//! Sources: AMD APM vol. 2, "SYSCALL and SYSRET"; Intel SDM vol. 3A, "Fast System Calls in 64-Bit Mode";
//! `XEN_MSR_STAR` and `XEN_SYSCALL_MASK` in `xen/arch/x86/include/asm/processor.h`.

use serde::Serialize;

use crate::flags::rflags;
use crate::segments::{FLAT_RING3_CS32, HYPERVISOR_CS};
use crate::selector::Selector;

/// STAR bits 47..32: the base of SYSCALL's selectors.
pub const SYSCALL_BASE: u16 = HYPERVISOR_CS.0;
/// STAR bits 63..48: the base of SYSRET's selectors.
pub const SYSRET_BASE: u16 = FLAT_RING3_CS32.0;

/// CS after SYSCALL.
pub const SYSCALL_CS: Selector = Selector(SYSCALL_BASE & !3);
/// SS after SYSCALL.
pub const SYSCALL_SS: Selector = Selector((SYSCALL_BASE & !3) + 8);
/// CS after SYSRET to 64-bit code.
pub const SYSRETQ_CS: Selector = Selector((SYSRET_BASE + 16) | 3);
/// CS after SYSRET to 32-bit code.
pub const SYSRETL_CS: Selector = Selector(SYSRET_BASE | 3);
/// SS after SYSRET.
pub const SYSRET_SS: Selector = Selector((SYSRET_BASE + 8) | 3);

/// The flags that SYSCALL clears: AC, VM, RF, NT, DF, IF, TF.
pub const SYSCALL_MASK: u64 =
    rflags::AC | rflags::VM | rflags::RF | rflags::NT | rflags::DF | rflags::IF | rflags::TF;

/// STAR's value.
pub const STAR: u64 = (SYSRET_BASE as u64) << 48 | (SYSCALL_BASE as u64) << 32;

/// An MSR of SYSCALL or SYSENTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EntryMsr {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What the hypervisor puts into it, where that is the same on every CPU.
    pub value: Option<u64>,
    /// What it is for.
    pub meaning: &'static str,
}

/// The MSRs, by number.
pub const ENTRY_MSRS: [EntryMsr; 7] = [
    EntryMsr {
        number: 0x174,
        name: "SYSENTER_CS",
        value: Some(HYPERVISOR_CS.0 as u64),
        meaning: "CS of SYSENTER; SS is 8 more",
    },
    EntryMsr {
        number: 0x175,
        name: "SYSENTER_ESP",
        value: None,
        meaning: "RSP of SYSENTER: the hypervisor's stack of this CPU",
    },
    EntryMsr {
        number: 0x176,
        name: "SYSENTER_EIP",
        value: None,
        meaning: "RIP of SYSENTER: the hypervisor's SYSENTER entry",
    },
    EntryMsr {
        number: 0xc000_0081,
        name: "STAR",
        value: Some(STAR),
        meaning: "bases of the selectors of SYSCALL (bits 47..32) and SYSRET (bits 63..48)",
    },
    EntryMsr {
        number: 0xc000_0082,
        name: "LSTAR",
        value: None,
        meaning: "RIP of SYSCALL from 64-bit code: a stub of this CPU, which knows its stack by its address",
    },
    EntryMsr {
        number: 0xc000_0083,
        name: "CSTAR",
        value: None,
        meaning: "RIP of SYSCALL from 32-bit code (AMD; Intel has no such SYSCALL): another stub of this CPU",
    },
    EntryMsr {
        number: 0xc000_0084,
        name: "SFMASK",
        value: Some(SYSCALL_MASK),
        meaning: "the flags that SYSCALL clears: AC, VM, RF, NT, DF, IF, TF",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_and_its_mask_are_these_numbers() {
        assert_eq!(STAR, 0xe023_e008_0000_0000);
        assert_eq!(SYSCALL_MASK, 0x7_4700);
    }

    #[test]
    fn the_derived_selectors_are_these_numbers() {
        assert_eq!(
            [SYSCALL_CS, SYSCALL_SS, SYSRETQ_CS, SYSRETL_CS, SYSRET_SS].map(|selector| selector.0),
            [0xe008, 0xe010, 0xe033, 0xe023, 0xe02b]
        );
    }

    #[test]
    fn the_msrs_are_listed_in_the_order_of_their_numbers() {
        assert!(ENTRY_MSRS.is_sorted_by_key(|msr| msr.number));
    }
}
