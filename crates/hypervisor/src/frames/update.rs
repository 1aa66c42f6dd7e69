//! Changing one entry of a live page table.
//!
//! The new entry takes what it holds before the old one drops what it held, so a frame that both name never
//! becomes free in between. A change of nothing but bits that matter to the CPU alone is stored as it is.
//!
//! The CPUs set accessed and dirty bits at any time; nothing else in a page table changes without the hypervisor.
//!
//! Source: `mod_l1_entry` ... `mod_l4_entry` in `xen/arch/x86/mm.c`, `update_intpte` in `xen/arch/x86/pv/mm.h`.

use paravane_abi::{
    errno::Errno,
    units::{MachAddr, Mfn, PAGE_BYTES},
};

use super::{
    counts::Frames,
    entry::{ACCESSED, DIRTY, Entry},
    level::{Level, Use},
    validate::{Mappable, is_guest_slot, slot_address},
};

/// How an entry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// As it is.
    Plain,
    /// With the accessed and dirty bits that the old entry has.
    KeepAccessed,
    /// Only if the old entry is still this one.
    Replace(Entry),
}

/// What became of a conditional update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Updated {
    /// The entry is stored.
    Stored,
    /// The old entry was not the expected one; nothing changed.
    Raced,
}

impl Frames<'_> {
    /// Changes the entry in `slot` of `table`, which is in use as a table of `level`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for Xen's own slots of an L4 table; else see [`Frames::get_entry`].
    pub(crate) fn update_entry(
        &mut self,
        (table, level, slot): (Mfn, Level, usize),
        new: Entry,
        how: Store,
        mappable: Mappable,
    ) -> Result<Updated, Errno> {
        if !is_guest_slot(level, slot) {
            return Err(Errno::Einval);
        }
        self.table.work += 1;
        let at = slot_address(table, slot);
        let old = Entry(self.memory.load_u64(at).map_err(|_| Errno::Einval)?);
        if !new.is_present() {
            let updated = self.exchange(at, old, new, how);
            if updated == Updated::Stored {
                self.put_entry(table, level, old);
            }
            return Ok(updated);
        }
        if new.is_forbidden(level) {
            return Err(Errno::Einval);
        }
        let new = new.adjusted(level);
        if old.differs_cosmetically(new) {
            return Ok(self.exchange(at, old, new, how));
        }
        self.get_entry(table, level, new, mappable)?;
        let updated = self.exchange(at, old, new, how);
        let dropped = match updated {
            Updated::Stored => old,
            Updated::Raced => new,
        };
        self.put_entry(table, level, dropped);
        Ok(updated)
    }

    /// Stores `new` over `old`.
    fn exchange(&self, at: MachAddr, old: Entry, new: Entry, how: Store) -> Updated {
        let mut seen = old.0;
        let swapped = match how {
            Store::Plain => self.memory.store_u64(at, new.0).is_ok(),
            Store::Replace(expected) => {
                seen == expected.0 && matches!(self.memory.compare_exchange_u64(at, seen, new.0), Ok(Ok(_)))
            }
            // Only a CPU that sets one of two bits can interfere, so this ends.
            Store::KeepAccessed => loop {
                let kept = new.0 | seen & (ACCESSED | DIRTY);
                match self.memory.compare_exchange_u64(at, seen, kept) {
                    Ok(Ok(_)) => break true,
                    Ok(Err(found)) => seen = found,
                    Err(_) => break false,
                }
            },
        };
        if swapped { Updated::Stored } else { Updated::Raced }
    }

    /// Stores a word into a page that is no page table, which becomes writable for the moment.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it holds descriptors.
    pub(crate) fn store_plain(&mut self, at: MachAddr, value: u64) -> Result<(), Errno> {
        self.get_with_use(at.frame(), Use::Writable)?;
        let stored = self.memory.store_u64(at, value).map_err(|_| Errno::Einval);
        self.put_with_use(at.frame());
        stored
    }

    /// Overwrites a whole frame, which becomes writable for the moment.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the frame is not the guest's, or is a page table or holds descriptors.
    pub(crate) fn fill(&mut self, frame: Mfn, contents: &[u8; PAGE_BYTES]) -> Result<(), Errno> {
        self.get_with_use(frame, Use::Writable)?;
        let written = self.memory.write(slot_address(frame, 0), contents);
        self.put_with_use(frame);
        written.map_err(|_| Errno::Einval)
    }
}
