//! Counting all over again.
//!
//! Every count is the sum of what page tables, pins, roots, descriptor tables and loans hold. [`recount`] computes
//! the sums from nothing, by reading every table, and compares. It also looks for what must never be: a present
//! entry that maps a frame for writing which is not in use as a writable one, or a use of a free frame.

use std::collections::BTreeMap;

use paravane_abi::units::Mfn;
use paravane_memory::Memory;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::{
    entry::{ENTRIES, Entry},
    level::{Level, Use, below},
    table::{FrameTable, Owner, Record, flags},
    validate::{is_guest_slot, slot_address},
};

/// A count is not the sum of what is there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "frame {frame}: {what} is {kept}, but {found} were found; the tables of this domain cannot be trusted"
)]
pub struct Miscount {
    /// The frame.
    pub frame: Mfn,
    /// The count.
    pub what: &'static str,
    /// Its value.
    pub kept: i64,
    /// What it should be.
    pub found: i64,
}

/// What was found of one frame.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    refs: i64,
    uses: i64,
    /// Entries of the frame that name a table of its level.
    naming: i64,
    /// Entries that name the frame from a table of its level.
    named: i64,
    /// Whether somebody relies on a use that the frame does not have.
    misused: i64,
}

/// Compares all counts with what is there.
///
/// # Errors
///
/// The first difference, by frame number.
pub(crate) fn recount(table: &FrameTable, memory: &Memory) -> Result<(), Miscount> {
    let mut tally = Tally { table, found: BTreeMap::new() };
    for frame in table.frames() {
        let Some(record) = table.record(frame) else { continue };
        if let Some(level) = record.table_level() {
            tally.add_table(memory, frame, level);
        }
        if record.has(flags::PINNED) {
            let level = record.usage.level();
            tally.add_use(frame, level.map_or(Use::None, Use::table));
        }
        if record.has(flags::SHARED) {
            tally.found.entry(frame).or_default().uses += 1;
        }
    }
    for vcpu in &table.vcpus {
        for root in [vcpu.kernel_root, vcpu.user_root].into_iter().flatten() {
            tally.add_use(root, Use::L4);
        }
        for page in vcpu.gdt.iter().chain(&vcpu.ldt).flatten() {
            tally.add_use(*page, Use::SegmentDescriptors);
        }
    }
    for (frame, loan) in &table.loans {
        tally.found.entry(*frame).or_default().refs += i64::from(loan.readers);
        for _ in 0..loan.writers {
            tally.add_use(*frame, Use::Writable);
        }
    }
    tally.compare()
}

struct Tally<'a> {
    table: &'a FrameTable,
    found: BTreeMap<Mfn, Found>,
}

impl Tally<'_> {
    fn add_use(&mut self, frame: Mfn, usage: Use) {
        let fits = self.table.record(frame).is_some_and(|record| record.is_used_as(usage));
        let found = self.found.entry(frame).or_default();
        found.refs += 1;
        found.uses += 1;
        found.misused += i64::from(!fits);
    }

    fn add_table(&mut self, memory: &Memory, table: Mfn, level: Level) {
        let mut entries = [0; ENTRIES];
        if memory.read(slot_address(table, 0), entries.as_mut_bytes()).is_err() {
            return;
        }
        for (slot, entry) in entries.into_iter().map(Entry).enumerate() {
            let frame = entry.frame();
            if !entry.is_present() || !is_guest_slot(level, slot) {
                continue;
            }
            match below(level) {
                None if entry.is_writable() => self.add_use(frame, Use::Writable),
                None => self.found.entry(frame).or_default().refs += 1,
                Some(_) if frame == table => {}
                Some(child) => {
                    let own_level = Use::table(level);
                    if self.table.record(frame).is_some_and(|record| record.usage == own_level) {
                        self.add_use(frame, own_level);
                        self.found.entry(table).or_default().naming += 1;
                        self.found.entry(frame).or_default().named += 1;
                    } else {
                        self.add_use(frame, Use::table(child));
                    }
                }
            }
        }
    }

    fn compare(&self) -> Result<(), Miscount> {
        if let Some((frame, _)) = self.found.iter().find(|(frame, _)| self.table.record(**frame).is_none()) {
            return Err(Miscount {
                frame: *frame,
                what: "the count of uses of no memory",
                kept: 0,
                found: 1,
            });
        }
        let mut owned = 0;
        for frame in self.table.frames() {
            let Some(record) = self.table.record(frame) else { continue };
            let owner = self.table.owner(frame);
            owned += i64::from(owner == Owner::Guest && self.table.machine.memory.contains(&frame));
            let found = self.found.get(&frame).copied().unwrap_or_default();
            self.compare_frame(frame, record, owner, found)?;
        }
        let kept = i64::try_from(self.table.owned()).unwrap_or(i64::MAX);
        if kept != owned {
            let frame = self.table.machine.memory.start;
            let what = "the number of pages of the guest, from here on,";
            return Err(Miscount { frame, what, kept, found: owned });
        }
        Ok(())
    }

    fn compare_frame(&self, frame: Mfn, record: &Record, owner: Owner, found: Found) -> Result<(), Miscount> {
        let unowned = match owner {
            Owner::Guest => 0,
            Owner::Xen | Owner::Nobody | Owner::Outside => i64::from(record.refs) + i64::from(record.uses),
        };
        let leaked = i64::from(record.has(flags::RELEASED) && record.refs == 0);
        for (what, kept, found) in [
            ("the count of references", i64::from(record.refs), found.refs),
            ("the count of uses", i64::from(record.uses), found.uses),
            ("the count of recursive entries", i64::from(record.linear), found.naming - found.named),
            ("the count of wrong uses", 0, found.misused),
            ("the count of uses of a frame that is not the guest's", 0, unowned),
            ("the count of frames that should be free", 0, leaked),
        ] {
            if kept != found {
                return Err(Miscount { frame, what, kept, found });
            }
        }
        Ok(())
    }
}
