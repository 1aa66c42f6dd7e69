//! Page-table entries: what the CPU reads in them, and what a PV hypervisor permits and changes.
//!
//! A PV guest's page tables are the real ones: the CPU walks them, and their entries hold machine frames. So the
//! hypervisor checks every present entry before it takes effect ([`check`]), and changes some bits of what it
//! accepts ([`adjust`]); the guest reads back what was changed.
//!
//! ```text
//!   63  62     59 58   53 52 51                      12 11  9  8   7   6 5  4   3   2  1  0
//!  +--+---------+-------+--+---------------------------+-----+---+---+---+-+---+---+---+--+-+
//!  |NX| avail   | avail |GK|     frame (40 bits)       |avail| G |PAT| D |A|PCD|PWT| US|RW|P|
//!  +--+---------+-------+--+---------------------------+-----+---+---+---+-+---+---+---+--+-+
//! ```
//!
//! The oddest rule follows from both halves of a 64-bit guest being in ring 3: the CPU must find US set in every
//! mapping, kernel's too. A kernel mapping is told by bit 52 (GK), kept out of the user root by the guest, and
//! not global; user mappings are made global, so that they outlive the change of roots at a system call.
//!
//! Types of frames (which frames may be page tables, and which may be mapped writable) are not here: they need
//! the state of a domain.
//!
//! Sources: AMD APM vol. 2, "Page-Translation-Table Entry Fields"; Intel SDM vol. 3A, "4-Level Paging and 5-Level
//! Paging"; `xen/arch/x86/mm.c` (`base_disallow_mask`, `mod_l1_entry`), `xen/arch/x86/pv/mm.h`
//! (`adjust_guest_l1e` and its like), `xen/arch/x86/include/asm/x86_64/page.h`.

mod rules;
mod table;

use core::fmt;

use bitflags::bitflags;
use paravane_abi::units::Mfn;
use serde::Serialize;

pub use self::rules::{
    CacheRights, FlagsRefused, adjust, check, disallowed, needs_validation, unadjust_refused_l3,
};
pub use self::table::{FieldView, PTE_FIELDS, PteField, Treatment, explain};

bitflags! {
    /// The bits of an entry that are not the frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PteFlags: u64 {
        /// P: the entry is in use. A clear bit leaves all others to software.
        const PRESENT = 1 << 0;
        /// RW: writes are allowed.
        const RW = 1 << 1;
        /// US: ring 3 is allowed.
        const USER = 1 << 2;
        /// PWT: with PCD and PAT, an index into the PAT register.
        const PWT = 1 << 3;
        /// PCD: with PWT and PAT, an index into the PAT register.
        const PCD = 1 << 4;
        /// A: the CPU has used the entry.
        const ACCESSED = 1 << 5;
        /// D: the CPU has written through the entry, which must be a leaf.
        const DIRTY = 1 << 6;
        /// PAT in a leaf of level 1; PS in levels 2 and 3, where it makes a large page.
        const PAT_OR_PS = 1 << 7;
        /// G: the translation outlives a load of CR3.
        const GLOBAL = 1 << 8;
        /// Bits 11..9: for software.
        const AVAIL = 7 << 9;
        /// Bit 52: a kernel mapping of a 64-bit PV guest.
        const GUEST_KERNEL = 1 << 52;
        /// Bits 62..53: for software.
        const AVAIL_HIGH = 0x3ff << 53;
        /// NX: instructions may not be fetched.
        const NX = 1 << 63;
    }
}

impl PteFlags {
    /// The bits that choose a cache attribute in a leaf of level 1.
    pub const CACHE: Self = Self::PWT.union(Self::PCD).union(Self::PAT_OR_PS);

    /// How the domain builder maps pages: no US and no D.
    ///
    /// Source: `tools/libs/guest/xg_dom_x86.c`.
    pub const BUILDER_PAGE: Self = Self::PRESENT.union(Self::RW).union(Self::ACCESSED);

    /// How the domain builder maps pages that are page tables.
    pub const BUILDER_TABLE_PAGE: Self = Self::PRESENT.union(Self::ACCESSED);

    /// How the domain builder links page tables, on every level above 1.
    pub const BUILDER_LINK: Self =
        Self::PRESENT.union(Self::RW).union(Self::ACCESSED).union(Self::DIRTY).union(Self::USER);
}

/// A level of the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Level {
    /// The lowest: its entries map pages of 4 KiB.
    L1,
    /// 2 MiB an entry.
    L2,
    /// 1 GiB an entry; the root of a 32-bit guest.
    L3,
    /// 512 GiB an entry; the root of a 64-bit guest.
    L4,
}

impl Level {
    /// All four, from the leaf up.
    pub const ALL: [Self; 4] = [Self::L1, Self::L2, Self::L3, Self::L4];

    /// Its number, 1 to 4.
    pub const fn number(self) -> u8 {
        match self {
            Self::L1 => 1,
            Self::L2 => 2,
            Self::L3 => 3,
            Self::L4 => 4,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.number())
    }
}

/// A page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Pte(pub u64);

/// The bits of an entry that hold the frame.
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

impl Pte {
    /// The entry of that frame and those flags; `None` if the frame does not fit in 40 bits.
    pub fn new(frame: Mfn, flags: PteFlags) -> Option<Self> {
        let shifted = frame.0.checked_mul(4096).filter(|shifted| shifted & !FRAME_MASK == 0)?;
        Some(Self(shifted | flags.bits()))
    }

    /// The machine frame.
    pub const fn frame(self) -> Mfn {
        Mfn((self.0 & FRAME_MASK) >> 12)
    }

    /// The flags.
    pub const fn flags(self) -> PteFlags {
        PteFlags::from_bits_truncate(self.0)
    }

    /// Whether the entry is in use.
    pub const fn is_present(self) -> bool {
        self.flags().contains(PteFlags::PRESENT)
    }

    /// The same frame with these flags as well.
    #[must_use]
    pub const fn with(self, flags: PteFlags) -> Self {
        Self(self.0 | flags.bits())
    }

    /// The same frame without these flags.
    #[must_use]
    pub const fn without(self, flags: PteFlags) -> Self {
        Self(self.0 & !flags.bits())
    }
}

impl fmt::Debug for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pte({:#018x})", self.0)
    }
}

impl fmt::Display for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::LowerHex for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// The value for CR3 of a 32-bit guest whose L3 page is that frame: the frame's bits from 20 up are folded into
/// the low 12 bits, which CR3 otherwise leaves empty. `None` if the frame does not fit in 32 bits.
///
/// Source: `xen_pfn_to_cr3` in `xen/include/public/arch-x86/xen-x86_32.h`.
///
/// ```
/// use paravane_abi::units::Mfn;
/// use paravane_x86::pte::{fold_cr3, unfold_cr3};
///
/// assert_eq!(fold_cr3(Mfn(0x12_3456)), Some(0x2345_6001));
/// assert_eq!(unfold_cr3(0x2345_6001), Mfn(0x12_3456));
/// ```
pub fn fold_cr3(frame: Mfn) -> Option<u32> {
    u32::try_from(frame.0).ok().map(|frame| frame.rotate_left(12))
}

/// The frame behind a 32-bit guest's CR3.
pub fn unfold_cr3(cr3: u32) -> Mfn {
    Mfn(u64::from(cr3.rotate_right(12)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frame_and_flags_are_all_the_bits_there_are() {
        assert_eq!(PteFlags::all().bits() | FRAME_MASK, u64::MAX);
        assert_eq!(PteFlags::all().bits() & FRAME_MASK, 0);
    }

    #[test]
    fn a_frame_of_more_than_40_bits_has_no_entry() {
        assert_eq!(Pte::new(Mfn((1 << 40) - 1), PteFlags::empty()), Some(Pte(FRAME_MASK)));
        assert_eq!(Pte::new(Mfn(1 << 40), PteFlags::empty()), None);
        assert_eq!(Pte::new(Mfn(u64::MAX), PteFlags::empty()), None);
    }

    proptest! {
        #[test]
        fn every_entry_is_rebuilt_from_frame_and_flags(entry in any::<u64>()) {
            let pte = Pte(entry);
            prop_assert_eq!(Pte::new(pte.frame(), pte.flags()), Some(pte));
        }

        #[test]
        fn a_folded_cr3_unfolds(frame in any::<u32>()) {
            let mfn = Mfn(u64::from(frame));
            prop_assert_eq!(fold_cr3(mfn).map(unfold_cr3), Some(mfn));
        }
    }
}
