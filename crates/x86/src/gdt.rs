//! The reserved end of the GDT: the descriptors that Xen puts into every guest's table.
//!
//! A PV guest owns the first 14 pages of its GDT (entries 0 to 7167) and fills them with `set_gdt`. Page 14
//! belongs to Xen: entry 7168, byte 0xE000, is its first. The CPU's GDT limit is always 0xEFFF, so every
//! selector from 0xe000 on names something of Xen's, whether or not the guest ever installed a table. That is
//! why a guest can start, and many run for ever, without a GDT of their own.
//!
//! Xen's private descriptors have DPL 0 and cannot be loaded by a guest. The flat guest segments sit between
//! them, in an order that SYSCALL and SYSRET dictate on 64-bit: they derive SS as "CS + 8" (see
//! [`crate::segments`]).
//!
//! Source: `xen/include/public/arch-x86/xen.h` (`FIRST_RESERVED_GDT_*`), `xen/arch/x86/include/asm/desc.h`,
//! `xen/arch/x86/desc.c` (`boot_gdt`, `boot_compat_gdt`); for the 32-bit hypervisors
//! `xen/arch/x86/boot/x86_32.S` of Xen 3.0.2 and 4.2.5.

use serde::Serialize;

use crate::{
    descriptor::Descriptor,
    mode::Mode,
    selector::{Ring, Selector, Table},
};

/// Descriptors in one 4 KiB page of a table.
pub const ENTRIES_PER_PAGE: u16 = 512;
/// The first page of the GDT that a guest may not fill; also the number of pages it may.
pub const FIRST_RESERVED_PAGE: u16 = 14;
/// The byte at which the reserved page starts.
pub const FIRST_RESERVED_BYTE: u16 = FIRST_RESERVED_PAGE * 4096;
/// The first entry that a guest may not fill; also the number of entries it may.
pub const FIRST_RESERVED_ENTRY: u16 = FIRST_RESERVED_PAGE * ENTRIES_PER_PAGE;
/// Pages that Xen reserves.
pub const RESERVED_PAGES: u16 = 1;
/// The limit in the CPU's GDTR, whatever the guest installed.
pub const HARDWARE_LIMIT: u16 = FIRST_RESERVED_BYTE + RESERVED_PAGES * 4096 - 1;
/// Entries an LDT may have.
pub const LDT_MAX_ENTRIES: u16 = 8192;

/// Where Xen's entries began before May 2005 (commit 9aeab194c2), with the same order of descriptors.
///
/// The comments beside the flat selectors in Xen's public headers still count from here, and call
/// entry 7174 "GDT index 262".
pub const OLD_FIRST_RESERVED_ENTRY: u16 = 256;

/// One entry of the reserved page, or a pair that forms one 16-byte descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReservedEntry {
    /// The selector as it is used, with its RPL.
    pub selector: Selector,
    /// What is stored there.
    pub contents: Contents,
    /// Who may load it.
    pub access: Access,
    /// The names of Xen's headers for it, without the `FLAT_` variants that are aliases.
    pub names: &'static [&'static str],
    /// What it is for.
    pub purpose: &'static str,
}

/// What a reserved entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// Always zero.
    Hole,
    /// Zero today; older releases had a descriptor here.
    FormerlyUsed {
        /// What older releases stored.
        older: Descriptor,
    },
    /// A fixed descriptor.
    Fixed {
        /// The quadword.
        current: Descriptor,
        /// The quadword of older releases, which left the accessed bit clear; `None` if it never changed.
        older: Option<Descriptor>,
    },
    /// One quadword whose contents differ from CPU to CPU; the fixed part is given.
    PerCpu {
        /// The bits that are the same everywhere.
        fixed: Descriptor,
    },
    /// Two quadwords (a 16-byte system descriptor) whose contents differ from CPU to CPU.
    PerCpuWide,
}

/// Who can load a reserved descriptor into a segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nobody in the guest: DPL 0, a system descriptor, or nothing.
    XenOnly,
    /// Guest code in the ring of the descriptor's DPL (for data also in more privileged guest rings).
    Guest,
}

impl ReservedEntry {
    const fn xen(
        selector: u16,
        contents: Contents,
        names: &'static [&'static str],
        purpose: &'static str,
    ) -> Self {
        Self { selector: Selector(selector), contents, access: Access::XenOnly, names, purpose }
    }

    const fn guest(
        selector: u16,
        contents: Contents,
        names: &'static [&'static str],
        purpose: &'static str,
    ) -> Self {
        Self { selector: Selector(selector), contents, access: Access::Guest, names, purpose }
    }

    /// The entry's number in the GDT.
    pub fn index(&self) -> u16 {
        self.selector.index()
    }

    /// How many entries it takes: 2 for a 16-byte descriptor.
    pub fn entry_count(&self) -> u16 {
        match self.contents {
            Contents::PerCpuWide => 2,
            Contents::Hole
            | Contents::FormerlyUsed { .. }
            | Contents::Fixed { .. }
            | Contents::PerCpu { .. } => 1,
        }
    }

    /// The quadword stored today, where it does not differ from CPU to CPU.
    pub fn descriptor(&self) -> Option<Descriptor> {
        match self.contents {
            Contents::Hole | Contents::FormerlyUsed { .. } => Some(Descriptor::NULL),
            Contents::Fixed { current, .. } => Some(current),
            Contents::PerCpu { .. } | Contents::PerCpuWide => None,
        }
    }
}

/// A fixed descriptor whose older form differs only in the accessed bit.
const fn accessed(current: u64) -> Contents {
    Contents::Fixed {
        current: Descriptor(current),
        older: Some(Descriptor(current & !crate::descriptor::bits::ACCESSED)),
    }
}

/// A fixed descriptor of a hypervisor that never set the accessed bit beforehand.
const fn fixed(current: u64) -> Contents {
    Contents::Fixed { current: Descriptor(current), older: None }
}

const PER_CPU: Contents = Contents::PerCpu { fixed: Descriptor(0x0000_9100_0000_0000) };
const PER_CPU_PURPOSE: &str =
    "per-CPU data segment whose limit is the physical CPU number; read with LSL by Xen";
const HOLE_PURPOSE: &str = "nothing";
const XEN_CODE64_PURPOSE: &str = "Xen's 64-bit code; SYSCALL loads it into CS";
const XEN_DATA_PURPOSE: &str = "Xen's data; SYSCALL loads it into SS";

/// The 64-bit table (`boot_gdt`).
static GUEST64: [ReservedEntry; 12] = [
    ReservedEntry::xen(0xe000, Contents::Hole, &[], HOLE_PURPOSE),
    ReservedEntry::xen(0xe008, accessed(0x00af_9b00_0000_ffff), &["__HYPERVISOR_CS"], XEN_CODE64_PURPOSE),
    ReservedEntry::xen(0xe010, accessed(0x00cf_9300_0000_ffff), &["__HYPERVISOR_DS32"], XEN_DATA_PURPOSE),
    ReservedEntry::xen(0xe018, Contents::Hole, &[], HOLE_PURPOSE),
    ReservedEntry::guest(
        0xe023,
        accessed(0x00cf_fb00_0000_ffff),
        &["FLAT_RING3_CS32", "FLAT_KERNEL_CS32", "FLAT_USER_CS32"],
        "32-bit code in ring 3, for 32-bit user programs; SYSRETL returns to it",
    ),
    ReservedEntry::guest(
        0xe02b,
        accessed(0x00cf_f300_0000_ffff),
        &["FLAT_RING3_SS64", "FLAT_RING3_SS32", "FLAT_RING3_DS32", "FLAT_KERNEL_SS", "FLAT_USER_SS"],
        "data and stack in ring 3, for kernel and user alike: SS of every 64-bit guest",
    ),
    ReservedEntry::guest(
        0xe033,
        accessed(0x00af_fb00_0000_ffff),
        &["FLAT_RING3_CS64", "FLAT_KERNEL_CS", "FLAT_USER_CS"],
        "64-bit code in ring 3, for kernel and user alike: CS of every 64-bit guest",
    ),
    ReservedEntry::xen(
        0xe038,
        Contents::FormerlyUsed { older: Descriptor(0x00cf_9a00_0000_ffff) },
        &["__HYPERVISOR_CS32"],
        "nothing; Xen 4.2 and older kept 32-bit ring-0 code here",
    ),
    ReservedEntry::xen(0xe040, Contents::PerCpuWide, &["TSS_SELECTOR"], "the TSS, 16 bytes"),
    ReservedEntry::xen(
        0xe050,
        Contents::PerCpuWide,
        &["LDT_SELECTOR"],
        "the guest's LDT, 16 bytes: written by Xen for MMUEXT_SET_LDT",
    ),
    ReservedEntry::xen(0xe060, PER_CPU, &["PER_CPU_SELECTOR"], PER_CPU_PURPOSE),
    ReservedEntry::xen(0xe068, Contents::Hole, &[], "nothing, up to the end of the page at 0xefff"),
];

const RING1_CODE: &str = "32-bit code in ring 1: CS of a 32-bit guest kernel";
const RING1_DATA: &str = "data and stack in ring 1: SS, DS, ES, FS and GS of a 32-bit guest kernel";
const RING3_CODE: &str = "32-bit code in ring 3, for user programs";
const RING3_DATA: &str = "data and stack in ring 3, for user programs";
const RING1_CODE_NAMES: &[&str] = &["FLAT_RING1_CS", "FLAT_KERNEL_CS"];
const RING1_DATA_NAMES: &[&str] = &["FLAT_RING1_DS", "FLAT_RING1_SS", "FLAT_KERNEL_DS", "FLAT_KERNEL_SS"];
const RING3_CODE_NAMES: &[&str] = &["FLAT_RING3_CS", "FLAT_USER_CS"];
const RING3_DATA_NAMES: &[&str] = &["FLAT_RING3_DS", "FLAT_RING3_SS", "FLAT_USER_DS", "FLAT_USER_SS"];

/// The table of a 32-bit guest on 64-bit Xen (`boot_compat_gdt`).
static GUEST32_ON_64: [ReservedEntry; 12] = [
    ReservedEntry::xen(0xe000, Contents::Hole, &[], HOLE_PURPOSE),
    ReservedEntry::xen(0xe008, accessed(0x00af_9b00_0000_ffff), &["__HYPERVISOR_CS"], "Xen's 64-bit code"),
    ReservedEntry::xen(0xe010, accessed(0x00cf_9300_0000_ffff), &["__HYPERVISOR_DS32"], "Xen's data"),
    ReservedEntry::guest(0xe019, accessed(0x00cf_bb00_0000_ffff), RING1_CODE_NAMES, RING1_CODE),
    ReservedEntry::guest(0xe021, accessed(0x00cf_b300_0000_ffff), RING1_DATA_NAMES, RING1_DATA),
    ReservedEntry::guest(0xe02b, accessed(0x00cf_fb00_0000_ffff), RING3_CODE_NAMES, RING3_CODE),
    ReservedEntry::guest(0xe033, accessed(0x00cf_f300_0000_ffff), RING3_DATA_NAMES, RING3_DATA),
    ReservedEntry::xen(
        0xe038,
        Contents::FormerlyUsed { older: Descriptor(0x00cf_9a00_0000_ffff) },
        &["__HYPERVISOR_CS32"],
        "nothing; Xen 4.2 and older kept 32-bit ring-0 code here",
    ),
    ReservedEntry::xen(0xe040, Contents::PerCpuWide, &["TSS_SELECTOR"], "the TSS, 16 bytes"),
    ReservedEntry::xen(
        0xe050,
        Contents::PerCpuWide,
        &["LDT_SELECTOR"],
        "the guest's LDT, 16 bytes: written by Xen for MMUEXT_SET_LDT",
    ),
    ReservedEntry::xen(0xe060, PER_CPU, &["PER_CPU_SELECTOR"], PER_CPU_PURPOSE),
    ReservedEntry::xen(0xe068, Contents::Hole, &[], "nothing, up to the end of the page at 0xefff"),
];

/// The tables of the 32-bit hypervisors, which differ in one number: the limit of the guest segments.
///
/// `limit` is the low 16 bits of the limit field; its upper four bits are 0xf.
const fn historical(limit: u64) -> [ReservedEntry; 12] {
    const TSS: Contents = Contents::PerCpu { fixed: Descriptor(0x0000_8900_0000_0000) };
    const LDT: Contents = Contents::PerCpu { fixed: Descriptor(0x0000_8200_0000_0000) };
    [
        ReservedEntry::xen(
            0xe000,
            TSS,
            &["DOUBLEFAULT_TSS_ENTRY"],
            "the TSS for double faults in Xen 4.2; nothing in Xen 3.0",
        ),
        ReservedEntry::xen(0xe008, fixed(0x00cf_9a00_0000_ffff), &["__HYPERVISOR_CS"], "Xen's code"),
        ReservedEntry::xen(0xe010, fixed(0x00cf_9200_0000_ffff), &["__HYPERVISOR_DS"], "Xen's data"),
        ReservedEntry::guest(0xe019, fixed(0x00cf_ba00_0000_0000 | limit), RING1_CODE_NAMES, RING1_CODE),
        ReservedEntry::guest(0xe021, fixed(0x00cf_b200_0000_0000 | limit), RING1_DATA_NAMES, RING1_DATA),
        ReservedEntry::guest(0xe02b, fixed(0x00cf_fa00_0000_0000 | limit), RING3_CODE_NAMES, RING3_CODE),
        ReservedEntry::guest(0xe033, fixed(0x00cf_f200_0000_0000 | limit), RING3_DATA_NAMES, RING3_DATA),
        ReservedEntry::xen(0xe038, Contents::Hole, &[], HOLE_PURPOSE),
        ReservedEntry::xen(
            0xe040,
            TSS,
            &["TSS_SELECTOR"],
            "the TSS, 8 bytes; Xen 3.0 had a TSS and an LDT entry for each physical CPU from here on",
        ),
        ReservedEntry::xen(0xe048, LDT, &["LDT_SELECTOR"], "the guest's LDT, 8 bytes"),
        ReservedEntry::xen(0xe050, PER_CPU, &["PER_CPU_SELECTOR"], PER_CPU_PURPOSE),
        ReservedEntry::xen(0xe058, Contents::Hole, &[], "nothing, up to the end of the page at 0xefff"),
    ]
}

static GUEST32_ON_32_PAE: [ReservedEntry; 12] = historical(0x67ff);
static GUEST32_ON_32_NONPAE: [ReservedEntry; 12] = historical(0xc3ff);

/// The reserved page of the GDT in `mode`, in order; the last row stands for the empty rest of the page.
pub fn reserved_entries(mode: Mode) -> &'static [ReservedEntry] {
    match mode {
        Mode::Guest64 => &GUEST64,
        Mode::Guest32On64 => &GUEST32_ON_64,
        Mode::Guest32On32Pae => &GUEST32_ON_32_PAE,
        Mode::Guest32On32NonPae => &GUEST32_ON_32_NONPAE,
    }
}

/// The row of [`reserved_entries`] that covers entry `index` of the GDT; `None` if the entry is the guest's
/// own or beyond the hardware limit.
pub fn reserved_entry(mode: Mode, index: u16) -> Option<&'static ReservedEntry> {
    if !(FIRST_RESERVED_ENTRY..=HARDWARE_LIMIT >> 3).contains(&index) {
        return None;
    }
    reserved_entries(mode).iter().rev().find(|entry| entry.index() <= index)
}

/// The descriptor that Xen supplies for `selector`, where it is fixed: what the hypervisor loads.
pub fn supplied_descriptor(mode: Mode, selector: Selector) -> Option<Descriptor> {
    match selector.table() {
        Table::Gdt => reserved_entry(mode, selector.index())?.descriptor(),
        Table::Ldt => None,
    }
}

/// The number that comments in old headers give for a reserved entry: 262 for 7174. `None` for the guest's
/// own entries.
pub fn old_index(index: u16) -> Option<u16> {
    index.checked_sub(FIRST_RESERVED_ENTRY).map(|offset| offset + OLD_FIRST_RESERVED_ENTRY)
}

/// The least privileged ring that Xen leaves to a guest kernel: DPL and RPL are raised to it.
pub fn kernel_ring(mode: Mode) -> Ring {
    match mode {
        Mode::Guest64 => Ring::R3,
        Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => Ring::R1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every fixed descriptor, literally, as (selector, current, older).
    fn fixed_descriptors(mode: Mode) -> Vec<(u16, u64, Option<u64>)> {
        reserved_entries(mode)
            .iter()
            .filter_map(|entry| match entry.contents {
                Contents::Fixed { current, older } => {
                    Some((entry.selector.0, current.0, older.map(|older| older.0)))
                }
                Contents::Hole
                | Contents::FormerlyUsed { .. }
                | Contents::PerCpu { .. }
                | Contents::PerCpuWide => None,
            })
            .collect()
    }

    #[test]
    fn a_64_bit_guest_finds_the_descriptors_of_boot_gdt() {
        assert_eq!(
            fixed_descriptors(Mode::Guest64),
            [
                (0xe008, 0x00af_9b00_0000_ffff, Some(0x00af_9a00_0000_ffff)),
                (0xe010, 0x00cf_9300_0000_ffff, Some(0x00cf_9200_0000_ffff)),
                (0xe023, 0x00cf_fb00_0000_ffff, Some(0x00cf_fa00_0000_ffff)),
                (0xe02b, 0x00cf_f300_0000_ffff, Some(0x00cf_f200_0000_ffff)),
                (0xe033, 0x00af_fb00_0000_ffff, Some(0x00af_fa00_0000_ffff)),
            ]
        );
    }

    #[test]
    fn a_32_bit_guest_on_64_bit_xen_finds_the_descriptors_of_boot_compat_gdt() {
        assert_eq!(
            fixed_descriptors(Mode::Guest32On64),
            [
                (0xe008, 0x00af_9b00_0000_ffff, Some(0x00af_9a00_0000_ffff)),
                (0xe010, 0x00cf_9300_0000_ffff, Some(0x00cf_9200_0000_ffff)),
                (0xe019, 0x00cf_bb00_0000_ffff, Some(0x00cf_ba00_0000_ffff)),
                (0xe021, 0x00cf_b300_0000_ffff, Some(0x00cf_b200_0000_ffff)),
                (0xe02b, 0x00cf_fb00_0000_ffff, Some(0x00cf_fa00_0000_ffff)),
                (0xe033, 0x00cf_f300_0000_ffff, Some(0x00cf_f200_0000_ffff)),
            ]
        );
    }

    #[test]
    fn a_32_bit_guest_on_32_bit_xen_finds_truncated_limits() {
        let expected = |limit: u64| {
            [
                (0xe008, 0x00cf_9a00_0000_ffff, None),
                (0xe010, 0x00cf_9200_0000_ffff, None),
                (0xe019, 0x00cf_ba00_0000_0000 | limit, None),
                (0xe021, 0x00cf_b200_0000_0000 | limit, None),
                (0xe02b, 0x00cf_fa00_0000_0000 | limit, None),
                (0xe033, 0x00cf_f200_0000_0000 | limit, None),
            ]
        };
        assert_eq!(fixed_descriptors(Mode::Guest32On32Pae), expected(0x67ff));
        assert_eq!(fixed_descriptors(Mode::Guest32On32NonPae), expected(0xc3ff));
    }

    #[test]
    fn the_reserved_page_is_covered_without_gap_or_overlap() {
        for mode in Mode::ALL {
            let mut next = FIRST_RESERVED_ENTRY;
            for entry in reserved_entries(mode) {
                assert_eq!(entry.index(), next, "{mode}: {entry:?}");
                next += entry.entry_count();
            }
            for index in FIRST_RESERVED_ENTRY..FIRST_RESERVED_ENTRY + ENTRIES_PER_PAGE {
                assert!(reserved_entry(mode, index).is_some());
            }
            assert_eq!(reserved_entry(mode, FIRST_RESERVED_ENTRY - 1), None);
            assert_eq!(reserved_entry(mode, FIRST_RESERVED_ENTRY + ENTRIES_PER_PAGE), None);
        }
    }

    #[test]
    fn what_a_guest_may_load_has_the_dpl_its_selector_asks_for() {
        for mode in Mode::ALL {
            for entry in reserved_entries(mode) {
                let loadable = entry.descriptor().is_some_and(|descriptor| {
                    descriptor.is_present() && descriptor.dpl() >= kernel_ring(mode)
                });
                assert_eq!(entry.access == Access::Guest, loadable, "{mode}: {entry:?}");
                if loadable {
                    assert_eq!(entry.descriptor().map(Descriptor::dpl), Some(entry.selector.rpl()));
                }
            }
        }
    }

    #[test]
    fn the_numbers_of_the_abi_are_what_the_header_says() {
        assert_eq!(FIRST_RESERVED_BYTE, 0xe000);
        assert_eq!(FIRST_RESERVED_ENTRY, 7168);
        assert_eq!(HARDWARE_LIMIT, 0xefff);
        assert_eq!([7171, 7172, 7173, 7174].map(old_index), [259, 260, 261, 262].map(Some));
        assert_eq!(old_index(7167), None);
    }
}
