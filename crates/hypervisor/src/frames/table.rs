//! [`FrameTable`]: what is known of every machine frame.
//!
//! A frame has an owner, a count of references and, apart from it, a use with a count of its own. As long as
//! somebody counts on the use it cannot change; when the last one is gone the frame may become anything. The
//! references keep a frame that its owner has given back from being handed out again.
//!
//! The table is one record of 16 bytes for each frame. The record of a frame that was populated at the start and
//! never used is all zeros, so that the host pays only for what a guest touches.
//!
//! # Stale translations
//!
//! Dropping a writable mapping flushes nothing, so a vCPU may still write to a frame whose count of writers is zero.
//! When such a frame is to become something else, every vCPU that has not flushed since must do so first. A
//! clock that ticks with every flush decides who has: each vCPU keeps the time of its last complete flush, each
//! frame the time at which its last use ended.
//!
//! Source: `struct page_info` in `xen/arch/x86/include/asm/mm.h`, `tlbflush_filter` in
//! `xen/arch/x86/include/asm/flushtlb.h`.

use std::collections::BTreeMap;

use paravane_abi::errno::Errno;
use paravane_abi::units::{Mfn, VcpuId};
use paravane_engine::{LDT_FRAMES, TlbFlush};
use zerocopy::FromZeros;

use super::{
    free::FreeFrames,
    level::{Level, Use},
    machine::Machine,
};
use crate::domain::Flush;

/// Pages of a GDT that are the guest's own.
pub(crate) const OWN_GDT_FRAMES: usize = paravane_engine::GDT_FRAMES - 1;

/// One frame.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
#[repr(C)]
pub(crate) struct Record {
    /// References beside the owner's allocation: mappings, uses, pins, roots.
    pub(crate) refs: u32,
    /// How many count on the use.
    pub(crate) uses: u32,
    /// When the last use ended, by [`FrameTable::clock`].
    pub(crate) used_until: u32,
    /// Recursive page tables: positive, the entries in this table that name tables of its own level; negative, how
    /// many such entries name this table. Never both.
    pub(crate) linear: i16,
    /// What the frame is, or was last, used as.
    pub(crate) usage: Use,
    /// Bits of [`flags`].
    pub(crate) flags: u8,
}

/// Bits of [`Record::flags`].
pub(crate) mod flags {
    /// Pinned by the guest: one reference and one use.
    pub(crate) const PINNED: u8 = 1 << 0;
    /// The contents were found fit for the use.
    pub(crate) const VALIDATED: u8 = 1 << 1;
    /// The owner has given the frame back; it is free when the last reference goes.
    pub(crate) const RELEASED: u8 = 1 << 2;
    /// The frame is owned although it was not populated at the start, or the other way round.
    pub(crate) const FLIPPED: u8 = 1 << 3;
    /// A frame of Xen's that the guest may map writable.
    pub(crate) const SHARED: u8 = 1 << 4;
}

impl Record {
    /// Whether all bits of `mask` are set.
    pub(crate) fn has(&self, mask: u8) -> bool {
        self.flags & mask == mask
    }

    /// Whether the frame is in use as `usage`, validated.
    pub(crate) fn is_used_as(&self, usage: Use) -> bool {
        self.uses > 0 && self.usage == usage && self.has(flags::VALIDATED)
    }

    /// The level of the page table that the frame is in use as.
    pub(crate) fn table_level(&self) -> Option<Level> {
        self.usage.level().filter(|_| self.uses > 0 && self.has(flags::VALIDATED))
    }
}

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The guest's, or shared with it.
    Guest,
    /// Xen's.
    Xen,
    /// Free.
    Nobody,
    /// Not memory.
    Outside,
}

/// The frames that a vCPU holds by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct VcpuFrames {
    /// The root of kernel mode.
    pub(crate) kernel_root: Option<Mfn>,
    /// The root of user mode.
    pub(crate) user_root: Option<Mfn>,
    /// The GDT's pages.
    pub(crate) gdt: [Option<Mfn>; OWN_GDT_FRAMES],
    /// The LDT's pages that were brought in.
    pub(crate) ldt: [Option<Mfn>; LDT_FRAMES],
    /// When its whole TLB was last flushed.
    pub(crate) flushed_at: u32,
}

/// How often a frame is lent to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loan {
    /// To read.
    pub(crate) readers: u32,
    /// To read and write.
    pub(crate) writers: u32,
}

/// A count that is wrong, which only a bug here or a guest that wrote to its own page tables behind its
/// hypervisor's back can bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The frame.
    pub(crate) frame: Mfn,
    /// What is wrong with it.
    pub(crate) what: &'static str,
}

/// The entry for which a page table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadEntry {
    /// The table.
    pub(crate) table: Mfn,
    /// Its level.
    pub(crate) level: Level,
    /// The entry's slot.
    pub(crate) slot: usize,
    /// The entry.
    pub(crate) entry: u64,
}

impl BadEntry {
    /// Why the entry is refused with `errno`, as a sentence.
    pub(crate) fn explain(&self, errno: Errno) -> String {
        let Self { table, level, slot, entry } = *self;
        let why = if errno == Errno::Eperm {
            "maps a frame that is not memory"
        } else if errno == Errno::Ebusy {
            "maps a frame that is not the guest's, or maps a page table for writing"
        } else if level == Level::L1 {
            "has bits set that a PV guest may not set"
        } else {
            "has bits set that a PV guest may not set, or names a frame that cannot be a table of the level below"
        };
        format!("entry {slot} ({entry:#x}) of the {level} table in frame {table} {why}")
    }
}

/// The records of all frames and what else decides about them.
#[derive(Debug)]
pub(crate) struct FrameTable {
    /// Which frames there are.
    pub(crate) machine: Machine,
    records: Vec<Record>,
    /// Frames of the guest's memory that were populated at the start.
    populated: u64,
    /// Frames that the guest has now.
    owned: u64,
    free: FreeFrames,
    /// What each vCPU holds.
    pub(crate) vcpus: Vec<VcpuFrames>,
    /// What backends hold.
    pub(crate) loans: BTreeMap<Mfn, Loan>,
    /// Ticks with every flush; stays at the maximum, where every frame counts as just used.
    clock: u32,
    /// Entries looked at: the measure of work by which long requests are cut.
    pub(crate) work: u64,
    /// The first wrong count.
    pub(crate) damage: Option<Damage>,
    /// The last refused entry.
    pub(crate) bad_entry: Option<BadEntry>,
}

impl FrameTable {
    /// The frames of a guest whose first `pages` pages are populated.
    ///
    /// If the host has no memory for the records, no frame exists.
    pub(crate) fn new(machine: Machine, pages: u64, vcpus: usize) -> Self {
        let count = usize::try_from(machine.frame_count()).unwrap_or(usize::MAX);
        let records = Record::new_vec_zeroed(count).unwrap_or_default();
        let populated = pages.min(machine.max_pages);
        let mut free = FreeFrames::default();
        let first_free = machine.memory.start.0 + populated;
        free.insert(first_free, machine.memory.end.0 - first_free);
        let shared_info = machine.shared_info;
        let mut table = Self {
            machine,
            records,
            populated,
            owned: populated,
            free,
            vcpus: vec![VcpuFrames::default(); vcpus],
            loans: BTreeMap::new(),
            clock: 1,
            work: 0,
            damage: None,
            bad_entry: None,
        };
        table.share(shared_info);
        table
    }

    /// The record of `frame`.
    pub(crate) fn record(&self, frame: Mfn) -> Option<&Record> {
        self.records.get(self.index(frame)?)
    }

    /// The record of `frame`, to change.
    pub(crate) fn record_mut(&mut self, frame: Mfn) -> Option<&mut Record> {
        let index = self.index(frame)?;
        self.records.get_mut(index)
    }

    fn index(&self, frame: Mfn) -> Option<usize> {
        usize::try_from(frame.0.checked_sub(self.machine.frames.start.0)?).ok()
    }

    /// All frames that exist.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        (self.machine.frames.start.0..self.machine.frames.end.0).map(Mfn)
    }

    /// Whose `frame` is.
    pub(crate) fn owner(&self, frame: Mfn) -> Owner {
        self.record(frame).map_or(Owner::Outside, |record| self.owner_by(frame, record))
    }

    fn owner_by(&self, frame: Mfn, record: &Record) -> Owner {
        if record.has(flags::SHARED) {
            return Owner::Guest;
        }
        let Some(offset) = frame.0.checked_sub(self.machine.memory.start.0) else { return Owner::Xen };
        if (offset < self.populated) == record.has(flags::FLIPPED) { Owner::Nobody } else { Owner::Guest }
    }

    /// The record of a frame of the guest's, to change.
    pub(crate) fn own_record_mut(&mut self, frame: Mfn) -> Option<&mut Record> {
        let index = self.index(frame)?;
        let record = self.records.get(index)?;
        (self.owner_by(frame, record) == Owner::Guest).then(|| &mut self.records[index])
    }

    /// How many pages the guest has.
    pub(crate) fn owned(&self) -> u64 {
        self.owned
    }

    /// Lets the guest map a frame of Xen's: it counts as in use as a writable page for good, so that it becomes
    /// nothing else.
    pub(crate) fn share(&mut self, frame: Mfn) {
        if let Some(record) = self.record_mut(frame)
            && !record.has(flags::SHARED)
        {
            record.flags |= flags::SHARED | flags::VALIDATED;
            record.usage = Use::Writable;
            record.uses += 1;
        }
    }

    /// Whether the guest may have `1 << order` more pages.
    pub(crate) fn has_room(&self, order: u32) -> bool {
        self.owned + (1 << order) <= self.machine.max_pages
    }

    /// Takes an aligned run of `1 << order` free frames below `limit` for the guest.
    pub(crate) fn allocate(&mut self, order: u32, limit: u64) -> Option<Mfn> {
        let first = self.free.take(order, limit)?;
        for frame in first..first + (1 << order) {
            self.flip(Mfn(frame));
        }
        self.owned += 1 << order;
        Some(Mfn(first))
    }

    /// Puts a frame of the guest's among the free ones. Its last use is remembered.
    pub(crate) fn free(&mut self, frame: Mfn) {
        self.flip(frame);
        if let Some(record) = self.record_mut(frame) {
            record.flags &= flags::FLIPPED | flags::VALIDATED;
        }
        self.owned -= 1;
        self.free.insert(frame.0, 1);
    }

    fn flip(&mut self, frame: Mfn) {
        if let Some(record) = self.record_mut(frame) {
            record.flags ^= flags::FLIPPED;
        }
    }

    /// Records that a count is wrong. The first one is kept.
    pub(crate) fn damaged(&mut self, frame: Mfn, what: &'static str) {
        self.damage.get_or_insert(Damage { frame, what });
    }

    /// The time.
    pub(crate) fn clock(&self) -> u32 {
        self.clock
    }

    /// Records that `vcpu` flushes its whole TLB.
    pub(crate) fn flushed(&mut self, vcpu: VcpuId) {
        self.clock = self.clock.saturating_add(1);
        let now = self.clock;
        if let Some(frames) = self.vcpus.get_mut(vcpu.0 as usize) {
            frames.flushed_at = now;
        }
    }

    /// Asks for the flushes without which a vCPU may still use translations from `since`.
    pub(crate) fn flush_stale(&mut self, since: u32, flushes: &mut Vec<Flush>) {
        for (number, _) in (0..).zip(&self.vcpus).filter(|(_, vcpu)| vcpu.flushed_at <= since) {
            flushes.push(Flush { vcpu: VcpuId(number), what: TlbFlush::All });
        }
        self.clock = self.clock.saturating_add(1);
        let now = self.clock;
        for vcpu in &mut self.vcpus {
            vcpu.flushed_at = if vcpu.flushed_at <= since { now } else { vcpu.flushed_at };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> FrameTable {
        FrameTable::new(Machine::plan(64).unwrap(), 40, 2)
    }

    #[test]
    fn every_frame_has_one_owner() {
        let table = table();
        let machine = &table.machine;
        for (frame, owner) in [
            (machine.shared_info, Owner::Guest),
            (machine.gdt, Owner::Xen),
            (machine.m2p_root(), Owner::Xen),
            (machine.memory.start, Owner::Guest),
            (Mfn(machine.memory.start.0 + 39), Owner::Guest),
            (Mfn(machine.memory.start.0 + 40), Owner::Nobody),
            (machine.memory.end, Owner::Outside),
            (Mfn(0), Owner::Outside),
            (Mfn(u64::MAX), Owner::Outside),
        ] {
            assert_eq!(table.owner(frame), owner, "{frame}");
        }
        assert_eq!(table.owned(), 40);
    }

    #[test]
    fn frames_change_hands_and_come_back() {
        let mut table = table();
        let room = |table: &FrameTable| table.has_room(0).then_some(());
        let taken: Vec<_> =
            std::iter::from_fn(|| room(&table).and_then(|()| table.allocate(0, u64::MAX))).collect();
        assert_eq!((taken.len(), table.owned()), (24, 64));
        assert!(taken.iter().all(|frame| table.owner(*frame) == Owner::Guest));
        let first = table.machine.memory.start;
        table.free(first);
        assert_eq!((table.owner(first), table.owned()), (Owner::Nobody, 63));
        assert_eq!(table.allocate(0, u64::MAX), Some(first));
    }

    #[test]
    fn only_vcpus_that_did_not_flush_since_are_flushed() {
        let mut table = table();
        let mut flushes = Vec::new();
        let since = table.clock();
        table.flushed(VcpuId(1));
        table.flush_stale(since, &mut flushes);
        assert_eq!(flushes, [Flush { vcpu: VcpuId(0), what: TlbFlush::All }]);
        flushes.clear();
        table.flush_stale(since, &mut flushes);
        assert_eq!(flushes, []);
        let later = table.clock();
        table.flush_stale(later, &mut flushes);
        assert_eq!(flushes.len(), 2);
    }
}
