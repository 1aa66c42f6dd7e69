//! Page-table entries: what a guest may put into them and what is made of it.
//!
//! Both modes of a 64-bit guest run in ring 3, so every entry needs the user bit; validation sets it, and marks
//! what the guest meant as a kernel page with [`GUEST_KERNEL`]. Kernel pages are kept from user mode by a root of
//! its own, and by not being global.
//!
//! Source: `l1_disallow_mask`, `L2_DISALLOW_MASK` ... in `xen/arch/x86/include/asm/x86_64/page.h`,
//! `adjust_guest_l1e` ... in `xen/arch/x86/pv/mm.h`, `FASTPATH_FLAG_WHITELIST` in `xen/arch/x86/mm.c`; AMD APM
//! vol. 2, "Page-Translation-Table Entry Fields".

use paravane_abi::units::{Mfn, PAGE_SHIFT};

use super::level::Level;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;

/// P.
pub(crate) const PRESENT: u64 = 1 << 0;
/// R/W.
pub(crate) const WRITABLE: u64 = 1 << 1;
/// U/S.
pub(crate) const USER: u64 = 1 << 2;
/// A.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// D.
pub(crate) const DIRTY: u64 = 1 << 6;
/// G.
pub(crate) const GLOBAL: u64 = 1 << 8;
/// NX.
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
/// `_PAGE_GUEST_KERNEL`: the guest wrote the entry without the user bit.
pub(crate) const GUEST_KERNEL: u64 = 1 << 52;
/// Bits 51..12.
pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bits 11..9 and 62..52, which the CPU ignores.
const AVAILABLE: u64 = 7 << 9 | 0x7ff << 52;

/// Bits that may be set at every level.
const COMMON: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY | AVAILABLE | NO_EXECUTE | FRAME;
/// Bits whose change needs no new look at the frame.
const COSMETIC: u64 = USER | ACCESSED | DIRTY | GLOBAL | AVAILABLE | NO_EXECUTE;

/// An entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    /// Whether the CPU looks at the rest.
    pub(crate) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether it allows writes.
    pub(crate) fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// The frame it names.
    pub(crate) fn frame(self) -> Mfn {
        Mfn((self.0 & FRAME) >> PAGE_SHIFT)
    }

    /// The bits that a guest without access to devices may not set at `level`: cache attributes and large pages
    /// everywhere, global beyond L1.
    pub(crate) fn forbidden(self, level: Level) -> u64 {
        let allowed = match level {
            Level::L1 => COMMON | GLOBAL,
            Level::L2 | Level::L3 | Level::L4 => COMMON,
        };
        self.0 & !allowed
    }

    /// The entry as it is stored at `level`.
    pub(crate) fn adjusted(self, level: Level) -> Self {
        if !self.is_present() {
            return self;
        }
        let added = match level {
            Level::L1 if self.0 & USER == 0 => USER | GUEST_KERNEL,
            Level::L1 if self.0 & GUEST_KERNEL == 0 => GLOBAL,
            Level::L1 => 0,
            Level::L2 | Level::L3 => USER,
            Level::L4 => USER | ACCESSED,
        };
        Self(self.0 | added)
    }

    /// Whether the two map the same frame with the same right to write.
    pub(crate) fn differs_cosmetically(self, other: Self) -> bool {
        (self.0 ^ other.0) & !COSMETIC == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_stored_as_xen_would() {
        for (level, written, stored) in [
            (Level::L1, 0x1000 | PRESENT, 0x1000 | PRESENT | USER | GUEST_KERNEL),
            (Level::L1, 0x1000 | PRESENT | USER, 0x1000 | PRESENT | USER | GLOBAL),
            (Level::L1, PRESENT | USER | GUEST_KERNEL, PRESENT | USER | GUEST_KERNEL),
            (Level::L1, 0x1000 | WRITABLE, 0x1000 | WRITABLE),
            (Level::L2, PRESENT, PRESENT | USER),
            (Level::L3, PRESENT, PRESENT | USER),
            (Level::L4, PRESENT, PRESENT | USER | ACCESSED),
        ] {
            assert_eq!(Entry(written).adjusted(level), Entry(stored), "{level:?} {written:#x}");
        }
    }

    #[test]
    fn cache_attributes_and_large_pages_are_forbidden() {
        for (bit, l1, upper) in [
            (3, true, true),
            (4, true, true),
            (7, true, true),
            (8, false, true),
            (9, false, false),
            (52, false, false),
            (62, false, false),
            (63, false, false),
            (51, false, false),
        ] {
            assert_eq!(Entry(1 << bit).forbidden(Level::L1) != 0, l1, "bit {bit}");
            for level in [Level::L2, Level::L3, Level::L4] {
                assert_eq!(Entry(1 << bit).forbidden(level) != 0, upper, "bit {bit} {level:?}");
            }
        }
    }

    #[test]
    fn a_change_of_frame_or_write_access_is_not_cosmetic() {
        let entry = Entry(0x5000 | PRESENT | USER);
        for (bit, cosmetic) in
            [(0, false), (1, false), (5, true), (6, true), (8, true), (12, false), (63, true)]
        {
            assert_eq!(entry.differs_cosmetically(Entry(entry.0 ^ 1 << bit)), cosmetic, "bit {bit}");
        }
    }
}
