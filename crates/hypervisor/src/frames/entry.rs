//! Page-table entries as the hypervisor handles them: numbers of 64 bits.
//!
//! What a guest may put into them, and what is made of it, says [`paravane_x86::pte`]; here its rules are those of a
//! 64-bit guest without access to devices.

use paravane_abi::units::Mfn;
use paravane_x86::{
    mode::Guest,
    pte::{self, CacheRights, Pte, PteFlags},
};

use super::level::Level;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;

/// P.
pub(crate) const PRESENT: u64 = PteFlags::PRESENT.bits();
/// R/W.
pub(crate) const WRITABLE: u64 = PteFlags::RW.bits();
/// U/S.
pub(crate) const USER: u64 = PteFlags::USER.bits();
/// A.
pub(crate) const ACCESSED: u64 = PteFlags::ACCESSED.bits();
/// D.
pub(crate) const DIRTY: u64 = PteFlags::DIRTY.bits();
/// NX.
pub(crate) const NO_EXECUTE: u64 = PteFlags::NX.bits();
/// Bits 51..12.
pub(crate) const FRAME: u64 = !PteFlags::all().bits();

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
        Pte(self.0).frame()
    }

    /// Whether it has bits that may not be set at `level`.
    pub(crate) fn is_forbidden(self, level: Level) -> bool {
        pte::check(level, Guest::Bits64, CacheRights::None, Pte(self.0)).is_err()
    }

    /// The entry as it is stored at `level`.
    pub(crate) fn adjusted(self, level: Level) -> Self {
        Self(pte::adjust(level, Guest::Bits64, Pte(self.0)).0)
    }

    /// Whether putting `new` in its place needs no look at the frame.
    pub(crate) fn differs_cosmetically(self, new: Self) -> bool {
        !pte::needs_validation(Pte(self.0), Pte(new.0))
    }
}
