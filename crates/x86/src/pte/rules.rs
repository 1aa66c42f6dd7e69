//! Which flags are permitted, which are changed, and which changes need no new check.

use paravane_abi::errno::Errno;
use serde::Serialize;
use thiserror::Error;

use super::{Level, Pte, PteFlags};
use crate::mode::Guest;

/// Whether a domain may choose how its mappings are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheRights {
    /// It has no device and no I/O memory: everything is write-back.
    None,
    /// It may use PWT, PCD and PAT in level 1.
    Granted,
}

/// An entry has flags that a PV guest may not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{level} entry {pte}: flags {:#x} are not permitted to a PV guest: clear them", flags.bits())]
pub struct FlagsRefused {
    /// The level.
    pub level: Level,
    /// The entry.
    pub pte: Pte,
    /// The flags that are not permitted.
    pub flags: PteFlags,
}

impl FlagsRefused {
    /// What the hypercall returns.
    pub const ERRNO: Errno = Errno::Einval;
}

/// The flags that the hypervisor refuses in every table but a 32-bit guest's L3 and any L1.
const BASE: PteFlags = PteFlags::CACHE.union(PteFlags::GLOBAL);

/// The flags that the hypervisor refuses in a present entry.
pub const fn disallowed(level: Level, guest: Guest, rights: CacheRights) -> PteFlags {
    match (level, guest) {
        (Level::L1, _) => match rights {
            CacheRights::None => PteFlags::CACHE,
            CacheRights::Granted => PteFlags::empty(),
        },
        // A real PAE L3 has no permissions and no bits for software above the frame.
        (Level::L3, Guest::Bits32) => {
            BASE.union(PteFlags::GUEST_KERNEL).union(PteFlags::AVAIL_HIGH).union(PteFlags::NX)
        }
        (Level::L2 | Level::L3 | Level::L4, _) => BASE,
    }
}

/// Whether the flags of an entry are permitted. An entry that is not present may hold anything.
///
/// # Errors
///
/// [`FlagsRefused`] with the flags to blame; the guest gets [`FlagsRefused::ERRNO`].
pub fn check(level: Level, guest: Guest, rights: CacheRights, pte: Pte) -> Result<(), FlagsRefused> {
    let flags = pte.flags().intersection(disallowed(level, guest, rights));
    if pte.is_present() && !flags.is_empty() { Err(FlagsRefused { level, pte, flags }) } else { Ok(()) }
}

/// The entry as the hypervisor stores it. An entry that is not present is stored as it is.
///
/// ```
/// use paravane_x86::mode::Guest;
/// use paravane_x86::pte::{Level, Pte, PteFlags, adjust};
///
/// // What a guest writes as a kernel mapping comes back with US and bit 52.
/// let written = Pte(0x1234_0003);
/// let stored = adjust(Level::L1, Guest::Bits64, written);
/// assert_eq!(stored, written.with(PteFlags::USER | PteFlags::GUEST_KERNEL));
/// ```
#[must_use]
pub const fn adjust(level: Level, guest: Guest, pte: Pte) -> Pte {
    if !pte.is_present() {
        return pte;
    }
    match (level, guest) {
        (Level::L1, Guest::Bits64) => adjust_l1(pte),
        (Level::L2 | Level::L3, Guest::Bits64) => pte.with(PteFlags::USER),
        (Level::L4, Guest::Bits64) => pte.with(PteFlags::USER.union(PteFlags::ACCESSED)),
        (Level::L1 | Level::L2, Guest::Bits32) => pte,
        (Level::L3, Guest::Bits32) => pte.with(PteFlags::USER.union(PteFlags::RW)),
        // The hypervisor's own root above the guest's L3; the guest has no such table.
        (Level::L4, Guest::Bits32) => pte.with(PteFlags::ACCESSED),
    }
}

/// A present L1 entry of a 64-bit guest.
const fn adjust_l1(pte: Pte) -> Pte {
    let flags = pte.flags();
    if !flags.contains(PteFlags::USER) {
        // Ring 3 must reach it, and bit 52 remembers that user mode must not.
        pte.with(PteFlags::USER.union(PteFlags::GUEST_KERNEL))
    } else if !flags.contains(PteFlags::GUEST_KERNEL) {
        // A user mapping: keep it in the TLB when the roots change.
        pte.with(PteFlags::GLOBAL)
    } else {
        pte
    }
}

/// A 32-bit guest's L3 entry as it is left when its page is refused after all.
#[must_use]
pub const fn unadjust_refused_l3(pte: Pte) -> Pte {
    if pte.is_present() {
        pte.without(PteFlags::USER.union(PteFlags::RW).union(PteFlags::ACCESSED))
    } else {
        pte
    }
}

/// The flags that may change without the entry being checked anew.
const FREE: PteFlags = PteFlags::NX
    .union(PteFlags::GUEST_KERNEL)
    .union(PteFlags::AVAIL_HIGH)
    .union(PteFlags::AVAIL)
    .union(PteFlags::GLOBAL)
    .union(PteFlags::DIRTY)
    .union(PteFlags::ACCESSED)
    .union(PteFlags::USER);

/// Whether replacing the present entry `old` by the present, adjusted entry `new` needs the frame to be checked
/// and counted anew. Flags are checked and adjusted in any case.
pub const fn needs_validation(old: Pte, new: Pte) -> bool {
    (old.0 ^ new.0) & !FREE.bits() != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUESTS: [Guest; 2] = [Guest::Bits64, Guest::Bits32];

    /// The flags in the form of Xen's 24-bit masks: bits 63..52 above bits 11..0.
    fn mask_24(flags: PteFlags) -> u64 {
        flags.bits() >> 40 & 0xff_f000 | flags.bits() & 0xfff
    }

    #[test]
    fn the_masks_are_xens() {
        let of = |level, guest| mask_24(disallowed(level, guest, CacheRights::None));
        assert_eq!(of(Level::L1, Guest::Bits64), 0x098);
        assert_eq!(of(Level::L1, Guest::Bits32), 0x098);
        for level in [Level::L2, Level::L3, Level::L4] {
            assert_eq!(of(level, Guest::Bits64), 0x198);
        }
        assert_eq!(of(Level::L2, Guest::Bits32), 0x198);
        assert_eq!(of(Level::L3, Guest::Bits32), 0xff_f198);
        assert!(disallowed(Level::L1, Guest::Bits64, CacheRights::Granted).is_empty());
    }

    #[test]
    fn a_leaf_of_a_64_bit_guest_is_adjusted_by_two_bits() {
        let page = PteFlags::PRESENT;
        let kernel = PteFlags::USER | PteFlags::GUEST_KERNEL;
        for (written, stored) in [
            (page, page | kernel),
            (page | PteFlags::GLOBAL, page | PteFlags::GLOBAL | kernel),
            (page | PteFlags::GUEST_KERNEL, page | kernel),
            (page | PteFlags::USER, page | PteFlags::USER | PteFlags::GLOBAL),
            (page | kernel, page | kernel),
            (PteFlags::empty(), PteFlags::empty()),
        ] {
            let stored_pte = adjust(Level::L1, Guest::Bits64, Pte(written.bits()));
            assert_eq!(stored_pte.flags(), stored, "{written:?}");
        }
    }

    #[test]
    fn the_builders_entries_are_permitted() {
        for guest in GUESTS {
            for flags in [PteFlags::BUILDER_PAGE, PteFlags::BUILDER_TABLE_PAGE] {
                assert_eq!(check(Level::L1, guest, CacheRights::None, Pte(flags.bits())), Ok(()));
            }
            for level in [Level::L2, Level::L3, Level::L4] {
                let link = Pte(PteFlags::BUILDER_LINK.bits());
                assert_eq!(check(level, guest, CacheRights::None, link), Ok(()));
            }
        }
    }

    #[test]
    fn a_large_page_is_refused_with_the_flag_named() {
        let pte = Pte(PteFlags::PRESENT.bits() | 1 << 7);
        let refused = check(Level::L2, Guest::Bits64, CacheRights::Granted, pte).unwrap_err();
        assert_eq!(refused.flags, PteFlags::PAT_OR_PS);
        assert_eq!(
            refused.to_string(),
            "L2 entry 0x0000000000000081: flags 0x80 are not permitted to a PV guest: clear them"
        );
    }

    proptest! {
        #[test]
        fn adjusting_twice_changes_nothing_more(entry in any::<u64>()) {
            for level in Level::ALL {
                for guest in GUESTS {
                    let once = adjust(level, guest, Pte(entry));
                    prop_assert_eq!(adjust(level, guest, once), once);
                    prop_assert_eq!(once.frame(), Pte(entry).frame());
                }
            }
        }

        #[test]
        fn an_entry_that_is_not_present_is_left_alone(entry in any::<u64>()) {
            let pte = Pte(entry & !1);
            for level in Level::ALL {
                for guest in GUESTS {
                    prop_assert_eq!(check(level, guest, CacheRights::None, pte), Ok(()));
                    prop_assert_eq!(adjust(level, guest, pte), pte);
                }
            }
            prop_assert_eq!(unadjust_refused_l3(pte), pte);
        }

        #[test]
        fn adjustment_never_sets_what_is_refused(entry in any::<u64>()) {
            for (level, guest) in [
                (Level::L1, Guest::Bits64),
                (Level::L2, Guest::Bits64),
                (Level::L3, Guest::Bits64),
                (Level::L4, Guest::Bits64),
                (Level::L3, Guest::Bits32),
            ] {
                let pte = Pte(entry);
                let permitted = check(level, guest, CacheRights::None, pte).is_ok();
                let adjusted = adjust(level, guest, pte);
                prop_assert_eq!(check(level, guest, CacheRights::None, adjusted).is_ok(), permitted);
            }
        }

        #[test]
        fn only_frame_p_rw_and_cache_bits_need_a_new_check(entry in any::<u64>(), bit in 0_u32..64) {
            let changed = Pte(entry ^ 1 << bit);
            let expected = matches!(bit, 0 | 1 | 3 | 4 | 7 | 12..=51);
            prop_assert_eq!(needs_validation(Pte(entry), changed), expected);
        }
    }
}
