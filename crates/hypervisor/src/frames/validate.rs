//! Validation of page tables and descriptor pages, and its undoing.
//!
//! A frame becomes a page table of level *n* when all its present entries are acceptable: an L1 entry maps a frame
//! of the guest's, for writing only if that is no page table or descriptor page; an entry above names a frame
//! that is, or can become, a table of the level below. Each entry then holds a reference to its frame, and a count
//! on the frame's use unless it maps it for reading only. Entries that are not present are the guest's own affair.
//!
//! # Recursive tables
//!
//! An entry of L2 and above may name a table of its *own* level, read-only: then the table's entries double as
//! mappings of the tables they name. A table that names itself holds nothing on itself. To keep chains finite, a
//! table that names another of its level cannot be so named, and only validated tables can be.
//!
//! Source: `promote_l1_table` ... `demote_l4_table`, `get_page_from_l1e`, `define_get_linear_pagetable`,
//! `init_xen_l4_slots` in `xen/arch/x86/mm.c`; `validate_segdesc_page` in `xen/arch/x86/pv/descriptor-tables.c`.

use core::ops::Range;

use paravane_abi::{
    errno::Errno,
    units::{MachAddr, Mfn, PAGE_SIZE},
};
use paravane_x86::{
    descriptor::Descriptor,
    mode::Mode,
    submit::{Submission, submit},
};
use zerocopy::IntoBytes;

use super::{
    counts::Frames,
    entry::{ENTRIES, Entry, FRAME},
    level::{Level, Use, below},
    machine::M2P_TABLE,
    table::{BadEntry, Owner},
};

/// The slots of an L4 table that are Xen's: addresses from `0xffff800000000000` to `0xffff87ffffffffff`.
pub(crate) const XEN_SLOTS: Range<usize> = 256..272;
/// The slot of the machine-to-physical table.
const M2P_SLOT: usize = XEN_SLOTS.start;

/// Whose frames L1 entries may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mappable {
    /// The guest's own.
    Own,
    /// Those of devices (`DOMID_IO`), of which there are none.
    Devices,
}

/// Whether the guest decides about a slot of a table of `level`.
pub(crate) fn is_guest_slot(level: Level, slot: usize) -> bool {
    level != Level::L4 || !XEN_SLOTS.contains(&slot)
}

/// Where an entry lies.
pub(crate) fn slot_address(table: Mfn, slot: usize) -> MachAddr {
    MachAddr(table.0 * PAGE_SIZE + slot as u64 * 8)
}

impl Frames<'_> {
    /// A copy of a table's entries.
    pub(crate) fn entries(&self, table: Mfn) -> [u64; ENTRIES] {
        let mut entries = [0; ENTRIES];
        let read = self.memory.read(slot_address(table, 0), entries.as_mut_bytes());
        debug_assert!(read.is_ok(), "the guest's frames lie in memory");
        entries
    }

    /// Checks all entries of a frame that is to become a table of `level`, takes what they hold and stores them as Xen
    /// does. On failure nothing is held, and the entries stay as they were.
    pub(super) fn validate_table(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        self.table.work += ENTRIES as u64;
        let entries = self.entries(table);
        let mut stored = entries;
        for (slot, &raw) in entries.iter().enumerate() {
            let entry = Entry(raw);
            if !entry.is_present() || !is_guest_slot(level, slot) {
                continue;
            }
            self.table.bad_entry = None;
            if let Err(errno) = self.get_entry(table, level, entry, Mappable::Own) {
                // The innermost table is the one that says why.
                if self.table.bad_entry.is_none() {
                    let bad = BadEntry { table, level, slot, entry: raw };
                    log::debug!("a page table is refused with {errno}: {}", bad.explain(errno));
                    self.table.bad_entry = Some(bad);
                }
                self.put_entries(table, level, &entries[..slot]);
                return Err(errno);
            }
            stored[slot] = entry.adjusted(level).0;
        }
        if level == Level::L4 {
            stored[XEN_SLOTS].fill(0);
        }
        // All at once: that is quicker than entry by entry, and whatever a vCPU writes through a stale translation while
        // the entries are looked at is gone.
        let written = self.memory.write(slot_address(table, 0), stored.as_bytes());
        debug_assert!(written.is_ok(), "the guest's frames lie in memory");
        if level == Level::L4 && self.strict_m2p {
            self.show_m2p(table);
        }
        Ok(())
    }

    /// Drops what the entries of a table of `level` hold.
    pub(super) fn devalidate_table(&mut self, table: Mfn, level: Level) {
        self.table.work += ENTRIES as u64;
        let entries = self.entries(table);
        self.put_entries(table, level, &entries);
    }

    fn put_entries(&mut self, table: Mfn, level: Level, entries: &[u64]) {
        for (slot, &entry) in entries.iter().enumerate() {
            if is_guest_slot(level, slot) {
                self.put_entry(table, level, Entry(entry));
            }
        }
    }

    /// Takes what a present entry of `table` holds.
    ///
    /// # Errors
    ///
    /// `EINVAL` for forbidden bits and for frames that cannot become a table of the level below; for L1 entries see
    /// [`Frames::get_mapped`].
    pub(super) fn get_entry(
        &mut self,
        table: Mfn,
        level: Level,
        entry: Entry,
        mappable: Mappable,
    ) -> Result<(), Errno> {
        if entry.is_forbidden(level) {
            return Err(Errno::Einval);
        }
        match below(level) {
            None => self.get_mapped(entry, mappable),
            Some(child) => match self.get_with_use(entry.frame(), Use::table(child)) {
                Err(Errno::Einval) => self.get_linear(table, level, entry),
                result => result,
            },
        }
    }

    /// Takes what a mapping holds.
    ///
    /// # Errors
    ///
    /// `EPERM` for a frame that is not memory (`EINVAL` for the highest of all, by which guests mean "none"), `EBUSY`
    /// for a frame that is not the guest's, or that may not be written.
    fn get_mapped(&mut self, entry: Entry, mappable: Mappable) -> Result<(), Errno> {
        let frame = entry.frame();
        let record = self.table.own_record_mut(frame).filter(|_| mappable == Mappable::Own);
        let Some(record) = record else { return Err(self.unmappable(entry)) };
        let refs = record.refs.checked_add(1).ok_or(Errno::Ebusy)?;
        // By far the most mappings are of pages that are mapped writable already, or are not to be.
        if entry.is_writable() && record.is_used_as(Use::Writable) {
            record.uses = record.uses.checked_add(1).ok_or(Errno::Ebusy)?;
            record.refs = refs;
            return Ok(());
        }
        record.refs = refs;
        if entry.is_writable() && self.get_use(frame, Use::Writable).is_err() {
            self.put(frame);
            return Err(Errno::Ebusy);
        }
        Ok(())
    }

    /// Why a frame cannot be mapped.
    fn unmappable(&self, entry: Entry) -> Errno {
        match self.table.owner(entry.frame()) {
            Owner::Guest | Owner::Xen | Owner::Nobody => Errno::Ebusy,
            Owner::Outside if entry.0 & FRAME == FRAME => Errno::Einval,
            Owner::Outside => Errno::Eperm,
        }
    }

    /// Takes what an entry holds that names a table of its own level.
    fn get_linear(&mut self, table: Mfn, level: Level, entry: Entry) -> Result<(), Errno> {
        let named = entry.frame();
        if entry.is_writable() {
            return Err(Errno::Einval);
        }
        if named == table {
            return Ok(());
        }
        let naming = self.table.record(table).map_or(-1, |record| record.linear);
        let naming = naming.checked_add(1).filter(|count| *count > 0).ok_or(Errno::Einval)?;
        self.get(named)?;
        let taken = self.table.record_mut(named).and_then(|record| {
            let uses = record.uses.checked_add(1)?;
            let linear = record.linear.checked_sub(1).filter(|count| *count < 0)?;
            if record.table_level() != Some(level) {
                return None;
            }
            (record.uses, record.linear) = (uses, linear);
            Some(())
        });
        if taken.is_none() {
            self.put(named);
            return Err(Errno::Einval);
        }
        if let Some(record) = self.table.record_mut(table) {
            record.linear = naming;
        }
        Ok(())
    }

    /// Drops what an entry of `table` holds; nothing if it is not present.
    pub(super) fn put_entry(&mut self, table: Mfn, level: Level, entry: Entry) {
        let frame = entry.frame();
        if !entry.is_present() {
            return;
        }
        if level == Level::L1 {
            if entry.is_writable() {
                self.put_use(frame);
            }
            self.put(frame);
        } else if frame != table {
            let linear = self.table.record(frame).is_some_and(|record| record.usage == Use::table(level));
            self.put_use(frame);
            if linear {
                self.put_linear(table, frame);
            }
            self.put(frame);
        }
    }

    fn put_linear(&mut self, table: Mfn, named: Mfn) {
        let counted = |linear: Option<i16>, sign: i16| linear.is_some_and(|linear| linear.signum() == sign);
        let linear = |frame| self.table.record(frame).map(|record| record.linear);
        if !counted(linear(table), 1) || !counted(linear(named), -1) {
            return self.table.damaged(named, "a recursive entry was dropped that nobody had made");
        }
        for (frame, step) in [(table, -1), (named, 1)] {
            if let Some(record) = self.table.record_mut(frame) {
                record.linear += step;
            }
        }
    }

    /// Stores an entry without looking at the old one.
    pub(super) fn store(&self, table: Mfn, slot: usize, entry: Entry) {
        let stored = self.memory.store_u64(slot_address(table, slot), entry.0);
        debug_assert!(stored.is_ok(), "the guest's frames lie in memory");
    }

    /// Makes the M2P visible through a root.
    pub(super) fn show_m2p(&self, root: Mfn) {
        let tables = self.table.machine.m2p_root();
        if self.table.machine.has_m2p() {
            self.store(root, M2P_SLOT, Entry((tables.0 * PAGE_SIZE) | M2P_TABLE));
        }
    }

    /// Hides the M2P from a root.
    pub(super) fn hide_m2p(&self, root: Mfn) {
        self.store(root, M2P_SLOT, Entry(0));
    }

    /// Checks all descriptors of a frame that is to become a page of a descriptor table, and stores them as Xen does.
    /// Those before a refused one stay changed.
    pub(super) fn validate_descriptors(&mut self, frame: Mfn) -> Result<(), Errno> {
        self.table.work += ENTRIES as u64;
        for (slot, &raw) in self.entries(frame).iter().enumerate() {
            match submit(Mode::Guest64, Descriptor(raw)) {
                Submission::Accepted { stored, .. } if stored.0 == raw => {}
                Submission::Accepted { stored, .. } => self.store(frame, slot, Entry(stored.0)),
                Submission::Refused(_) => return Err(Errno::Einval),
            }
        }
        Ok(())
    }
}
