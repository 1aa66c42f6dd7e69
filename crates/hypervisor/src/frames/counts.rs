//! [`Frames`]: taking and dropping references to frames and to their uses.
//!
//! Whoever drops something must have taken it. Should a count be found wrong all the same, nothing is changed and
//! [`FrameTable::damage`] remembers it; the domain is then crashed, because its page tables can no longer be
//! trusted.
//!
//! Source: `get_page`, `put_page`, `_get_page_type`, `_put_page_type` in `xen/arch/x86/mm.c`.

use paravane_abi::{
    errno::Errno,
    memory::INVALID_M2P_ENTRY,
    units::{Mfn, Pfn},
};
use paravane_memory::Memory;

use super::{
    level::Use,
    table::{FrameTable, Owner, Record, flags},
};
use crate::domain::Flush;

/// The frames of a domain, with all that a change of a count may touch.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    /// The contents.
    pub(crate) memory: &'a Memory,
    /// The records.
    pub(crate) table: &'a mut FrameTable,
    /// The flushes that a change of use makes necessary.
    pub(crate) flushes: &'a mut Vec<Flush>,
    /// `vm_assist` type `m2p_strict`: roots of user mode do not see the M2P.
    pub(crate) strict_m2p: bool,
}

/// A frame is not the guest's, or has as many references as can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoFrame;

impl From<NoFrame> for Errno {
    fn from(_: NoFrame) -> Self {
        Self::Einval
    }
}

impl Frames<'_> {
    /// Takes a reference to a frame of the guest's.
    pub(crate) fn get(&mut self, frame: Mfn) -> Result<(), NoFrame> {
        let record = self.table.own_record_mut(frame).ok_or(NoFrame)?;
        record.refs = record.refs.checked_add(1).ok_or(NoFrame)?;
        Ok(())
    }

    /// Drops a reference. A frame that was given back is freed with its last one.
    pub(crate) fn put(&mut self, frame: Mfn) {
        let Some(record) = self.table.record_mut(frame) else { return };
        match record.refs.checked_sub(1) {
            Some(refs) => record.refs = refs,
            None => return self.table.damaged(frame, "a reference was dropped that nobody had taken"),
        }
        if record.refs == 0 && record.has(flags::RELEASED) {
            self.free(frame);
        }
    }

    /// Takes a count on the use of a frame that the caller holds a reference to, if need be by making it fit for the
    /// use.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the frame is in use as something else, does not validate, or cannot be counted.
    pub(crate) fn get_use(&mut self, frame: Mfn, usage: Use) -> Result<(), Errno> {
        let record = self.table.record_mut(frame).ok_or(Errno::Einval)?;
        let uses = record.uses.checked_add(1).ok_or(Errno::Einval)?;
        if record.uses > 0 {
            // A table that is not validated yet is being validated right now, by a table above that names it twice.
            if !record.is_used_as(usage) {
                return Err(Errno::Einval);
            }
            record.uses = uses;
            return Ok(());
        }
        let (before, since) = (record.usage, record.used_until);
        if before != usage {
            record.usage = usage;
            record.flags &= !flags::VALIDATED;
        }
        record.linear = 0;
        record.uses = uses;
        let validated = record.has(flags::VALIDATED);
        if before != usage && before != Use::None {
            self.table.flush_stale(since, self.flushes);
        }
        if validated { Ok(()) } else { self.make_fit(frame, usage) }
    }

    /// Validates a frame whose use has just begun; if that fails, the use ends.
    fn make_fit(&mut self, frame: Mfn, usage: Use) -> Result<(), Errno> {
        let fit = match usage {
            Use::None | Use::Writable => Ok(()),
            Use::SegmentDescriptors => self.validate_descriptors(frame),
            Use::L1 | Use::L2 | Use::L3 | Use::L4 => match usage.level() {
                Some(level) => self.validate_table(frame, level),
                None => Ok(()),
            },
        };
        let now = self.table.clock();
        if let Some(record) = self.table.record_mut(frame) {
            match fit {
                Ok(()) => record.flags |= flags::VALIDATED,
                Err(_) => (record.uses, record.usage, record.used_until) = (0, Use::None, now),
            }
        }
        fit
    }

    /// Drops a count on a frame's use. A page table that loses its last one drops all that its entries held.
    pub(crate) fn put_use(&mut self, frame: Mfn) {
        let now = self.table.clock();
        let Some(record) = self.table.record_mut(frame) else { return };
        if record.uses == 0 || !record.has(flags::VALIDATED) {
            return self.table.damaged(frame, "a use was dropped that nobody had taken");
        }
        if record.uses > 1 {
            record.uses -= 1;
            return;
        }
        if let Some(level) = record.usage.level() {
            // The count stays until the entries are gone: nobody can take the frame for something else meanwhile.
            record.flags &= !flags::VALIDATED;
            self.devalidate_table(frame, level);
        }
        if let Some(record) = self.table.record_mut(frame) {
            record.uses = 0;
            record.used_until = now;
        }
    }

    /// [`Frames::get`] and [`Frames::get_use`].
    pub(crate) fn get_with_use(&mut self, frame: Mfn, usage: Use) -> Result<(), Errno> {
        self.get(frame)?;
        self.get_use(frame, usage).inspect_err(|_| self.put(frame))
    }

    /// [`Frames::put_use`] and [`Frames::put`].
    pub(crate) fn put_with_use(&mut self, frame: Mfn) {
        self.put_use(frame);
        self.put(frame);
    }

    /// Drops the owner's hold on a frame: it is freed at once, or when the last reference goes.
    ///
    /// # Errors
    ///
    /// [`NoFrame`] if the frame is not the guest's, or is shared with it by Xen.
    pub(crate) fn release(&mut self, frame: Mfn) -> Result<(), NoFrame> {
        self.get(frame)?;
        if let Some(record) = self.table.record_mut(frame)
            && !record.has(flags::SHARED)
        {
            record.flags |= flags::RELEASED;
        }
        self.put(frame);
        Ok(())
    }

    /// Whether nothing refers to a frame of the guest's memory.
    pub(crate) fn is_unreferenced(&self, frame: Mfn) -> bool {
        let unreferenced =
            |record: &Record| record.refs == 0 && record.uses == 0 && !record.has(flags::SHARED);
        self.table.owner(frame) == Owner::Guest && self.table.record(frame).is_some_and(unreferenced)
    }

    /// Sets a frame's entry in the machine-to-physical table.
    pub(crate) fn set_m2p(&self, frame: Mfn, entry: u64) {
        if let Some(at) = self.table.machine.m2p_entry(frame) {
            let stored = self.memory.store_u64(at, entry);
            debug_assert!(stored.is_ok(), "the M2P lies in memory");
        }
    }

    /// Takes a run of `1 << order` free frames below `limit` for the guest, which calls the first one `pfn` and the
    /// others by the numbers after it.
    pub(crate) fn allocate(&mut self, order: u32, limit: u64, pfn: Option<Pfn>) -> Option<Mfn> {
        let first = self.table.allocate(order, limit)?;
        if let Some(pfn) = pfn {
            for offset in 0..1 << order {
                self.set_m2p(Mfn(first.0 + offset), pfn.0.wrapping_add(offset));
            }
        }
        Some(first)
    }

    fn free(&mut self, frame: Mfn) {
        if self.table.record(frame).is_none_or(|record| record.uses != 0) {
            return self.table.damaged(frame, "the last reference was dropped while the frame was in use");
        }
        self.set_m2p(frame, INVALID_M2P_ENTRY);
        if self.memory.release_frame(frame).is_err() {
            // The host keeps the page; the next owner must still find it empty.
            let zeroed = self.memory.zero_frame(frame);
            debug_assert!(zeroed.is_ok(), "the guest's frames lie in memory");
        }
        self.table.free(frame);
    }
}
