//! The machine as a guest sees it: which machine frames exist and what the first of them hold.
//!
//! All frames are one contiguous range that starts at [`Machine::FIRST`], so that machine and pseudo-physical
//! frame numbers differ and a mix-up shows. Xen's own frames come first, then the guest's memory:
//!
//! ```text
//!  FIRST                                                                           2 MiB aligned
//!  +-------------+-----+--------------+--------------+------------------+-----+----+------------ ~
//!  | shared_info | GDT | grant frames | grant status | M2P L3, L2s, L1s | M2P |    | memory
//!  +-------------+-----+--------------+--------------+------------------+-----+----+------------ ~
//! ```
//!
//! The machine-to-physical table (M2P) is an array of 64-bit pseudo-physical frame numbers, indexed by machine
//! frame number, that a guest reads at [`M2P_START`]. Only the part that describes frames of the range exists;
//! the rest of its window is not mapped and faults, as the holes of a real machine do.
//!
//! Source: `xen/include/public/arch-x86/xen-x86_64.h` (`MACH2PHYS_VIRT_*`), `xen/arch/x86/x86_64/mm.c`
//! (`paging_init`).

use core::ops::Range;

use paravane_abi::{
    memory::INVALID_M2P_ENTRY,
    units::{MachAddr, Mfn, PAGE_BYTES, PAGE_SIZE, Pfn},
};
use paravane_memory::{Memory, MemoryError, OutOfRange};
use paravane_x86::{gdt, mode::Mode};
use thiserror::Error;
use zerocopy::IntoBytes;

use super::entry::{ACCESSED, DIRTY, ENTRIES, NO_EXECUTE, PRESENT, USER, WRITABLE};
use crate::guest::XEN_START;

/// Where guests read the M2P.
pub(crate) const M2P_START: u64 = XEN_START;
/// The end of the window that the ABI gives it.
pub(crate) const M2P_END: u64 = 0xffff_8040_0000_0000;
/// Entries that fit the window.
pub(crate) const M2P_ENTRIES: u64 = (M2P_END - M2P_START) / 8;

/// M2P entries in a page, and entries of a page table.
const PER_PAGE: u64 = ENTRIES as u64;
/// Frames of grant tables: 64 frames of v1 entries by default.
const GRANT_FRAMES: u64 = 64;
/// Frames of grant status words: 64 frames of v2 entries hold 16384, whose 16-bit states fill 8 frames.
const GRANT_STATUS_FRAMES: u64 = 8;
/// Frames beyond the guest's limit, so that one that has all its memory can exchange some: room for an aligned run
/// of the largest extent.
const SPARE_FRAMES: u64 = 1024;
/// Memory begins on a boundary of 2 MiB, so that runs of frames are aligned as their pseudo-physical numbers are.
const ALIGNMENT: u64 = 512;

/// A machine cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a guest of {pages} pages does not fit: give it at least one page and at most 128 TiB")]
pub struct BadSize {
    /// The pages that were asked for.
    pub pages: u64,
}

/// Which machine frames exist, and what Xen keeps in its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Every frame.
    pub frames: Range<Mfn>,
    /// `shared_info`.
    pub shared_info: Mfn,
    /// Page 14 of every vCPU's GDT.
    pub gdt: Mfn,
    /// Room for grant tables, version 1 or 2.
    pub grants: Range<Mfn>,
    /// Room for the status words of version 2.
    pub grant_status: Range<Mfn>,
    /// The page tables that map the M2P: one L3 table, then L2 tables, then L1 tables.
    m2p_tables: Range<Mfn>,
    /// How many of them are L1 tables.
    m2p_l1_tables: u64,
    /// The M2P's pages, in order.
    m2p: Range<Mfn>,
    /// Frames that can be the guest's: as many as it may ever have, and some to exchange them against.
    pub memory: Range<Mfn>,
    /// How many pages the guest may ever have.
    pub max_pages: u64,
}

impl Machine {
    /// The first machine frame: below 4 GiB, and not the first pseudo-physical one.
    pub const FIRST: Mfn = Mfn(0x1_0000);

    /// The machine of a guest that may have up to `max_pages` pages.
    ///
    /// # Errors
    ///
    /// [`BadSize`] if no machine has that many.
    pub fn plan(max_pages: u64) -> Result<Self, BadSize> {
        let bad = BadSize { pages: max_pages };
        if max_pages == 0 || max_pages >= M2P_ENTRIES - 2 * Self::FIRST.0 {
            return Err(bad);
        }
        // The M2P describes the frames that hold it: grow it until it fits.
        let mut total = max_pages + SPARE_FRAMES;
        loop {
            let plan = Self::with_m2p_for(total, max_pages);
            let needed = plan.frames.end.0 - plan.frames.start.0;
            if needed <= total {
                return if plan.frames.end.0 <= M2P_ENTRIES { Ok(plan) } else { Err(bad) };
            }
            total = needed;
        }
    }

    /// A machine whose M2P describes `described` frames.
    fn with_m2p_for(described: u64, max_pages: u64) -> Self {
        let mut next = Self::FIRST;
        let mut take = |count: u64| {
            let first = next;
            next = Mfn(next.0 + count);
            first..next
        };
        let shared_info = take(1).start;
        let gdt = take(1).start;
        let grants = take(GRANT_FRAMES);
        let grant_status = take(GRANT_STATUS_FRAMES);
        let pages = page_of(Self::FIRST.0)..page_of(Self::FIRST.0 + described - 1) + 1;
        let l1_tables = tables_for(&pages);
        let l2_tables = tables_for(&(pages.start / PER_PAGE..(pages.end - 1) / PER_PAGE + 1));
        let m2p_tables = take(1 + l2_tables + l1_tables);
        let m2p = take(pages.end - pages.start);
        let first = next.0.next_multiple_of(ALIGNMENT);
        let memory = Mfn(first)..Mfn(first + max_pages + SPARE_FRAMES);
        Self {
            frames: Self::FIRST..memory.end,
            shared_info,
            gdt,
            grants,
            grant_status,
            m2p_tables,
            m2p_l1_tables: l1_tables,
            m2p,
            memory,
            max_pages,
        }
    }

    /// A machine without frames of Xen's own but `shared_info`, and without an M2P: what a domain has until it is
    /// adopted.
    pub(crate) fn bare(memory: &Memory, shared_info: Mfn) -> Self {
        let first = memory.first_frame();
        let frames = first..Mfn(first.0 + memory.frame_count());
        Self {
            memory: frames.clone(),
            max_pages: memory.frame_count(),
            frames,
            shared_info,
            gdt: shared_info,
            grants: first..first,
            grant_status: first..first,
            m2p_tables: first..first,
            m2p_l1_tables: 0,
            m2p: first..first,
        }
    }

    /// How many machine frames there are.
    pub fn frame_count(&self) -> u64 {
        self.frames.end.0 - self.frames.start.0
    }

    /// Memory for it, all zero.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn allocate(&self) -> Result<Memory, MemoryError> {
        Memory::new(self.frames.start, self.frame_count())
    }

    /// The machine frame of a pseudo-physical one as the domain builder hands them out. `None` beyond the guest's
    /// memory.
    pub fn frame_of(&self, pfn: Pfn) -> Option<Mfn> {
        self.memory.start.checked_add(pfn.0).filter(|_| pfn.0 < self.max_pages)
    }

    /// The L3 table that slot 256 of a root names.
    pub(crate) fn m2p_root(&self) -> Mfn {
        self.m2p_tables.start
    }

    /// Whether there is an M2P.
    pub(crate) fn has_m2p(&self) -> bool {
        !self.m2p.is_empty()
    }

    /// The M2P entry of `frame`; `None` if the M2P does not describe it.
    pub(crate) fn m2p_entry(&self, frame: Mfn) -> Option<MachAddr> {
        if !self.frames.contains(&frame) {
            return None;
        }
        let page = Mfn(self.m2p.start.0 + page_of(frame.0) - page_of(self.frames.start.0));
        self.m2p.contains(&page).then(|| MachAddr(page.0 * PAGE_SIZE + frame.0 % PER_PAGE * 8))
    }

    /// The frames that hold the M2P, one for each step of `frames_per_step` described frames: the page that
    /// describes the first existing frame of the step.
    pub(crate) fn m2p_frames(&self, frames_per_step: u64) -> impl Iterator<Item = Mfn> {
        let steps = self.frames.end.0.div_ceil(frames_per_step);
        (0..steps).map(move |step| {
            let described = (step * frames_per_step).max(self.frames.start.0);
            Mfn(self.m2p.start.0 + page_of(described) - page_of(self.frames.start.0))
        })
    }

    /// Fills Xen's own frames for a guest whose first `pages` pages are populated: the M2P with its page tables, and
    /// the GDT page. The others start zero.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if `memory` is not this machine's.
    pub(crate) fn furnish(&self, memory: &Memory, pages: u64) -> Result<(), OutOfRange> {
        self.write_m2p(memory, pages)?;
        self.write_m2p_tables(memory)?;
        let at = MachAddr(self.gdt.0 * PAGE_SIZE);
        for entry in gdt::reserved_entries(Mode::Guest64) {
            let offset = u64::from(entry.selector.0 & !7) - u64::from(gdt::FIRST_RESERVED_BYTE);
            // The entries of the TSS, the LDT and the CPU number stay null: no guest can load them.
            memory.store_u64(MachAddr(at.0 + offset), entry.descriptor().unwrap_or_default().0)?;
        }
        Ok(())
    }

    /// Writes the M2P a page at a time: there are as many entries as frames.
    fn write_m2p(&self, memory: &Memory, pages: u64) -> Result<(), OutOfRange> {
        let populated = self.memory.start.0..self.memory.start.0 + pages;
        let mut described = page_of(self.frames.start.0) * PER_PAGE;
        for frame in self.m2p.start.0..self.m2p.end.0 {
            let mut page = [INVALID_M2P_ENTRY; ENTRIES];
            for (entry, mfn) in page.iter_mut().zip(described..) {
                if populated.contains(&mfn) {
                    *entry = mfn - self.memory.start.0;
                }
            }
            memory.write(MachAddr(frame * PAGE_SIZE), page.as_bytes())?;
            described += PER_PAGE;
        }
        Ok(())
    }

    /// Maps the M2P's pages readable at [`M2P_START`]. The accessed and dirty bits are set beforehand, so that no walk
    /// ever has to.
    fn write_m2p_tables(&self, memory: &Memory) -> Result<(), OutOfRange> {
        let l1_first = self.m2p_tables.end.0 - self.m2p_l1_tables;
        let pages = page_of(self.frames.start.0)..page_of(self.frames.end.0 - 1) + 1;
        let l1s = pages.start / PER_PAGE..(pages.end - 1) / PER_PAGE + 1;
        let l2s = l1s.start / PER_PAGE..(l1s.end - 1) / PER_PAGE + 1;
        let l2_first = self.m2p_tables.start.0 + 1;
        let leaf = PRESENT | USER | ACCESSED | DIRTY | NO_EXECUTE;
        fill_table(memory, self.m2p_tables.start.0, l2s.clone(), l2_first, M2P_TABLE)?;
        fill_tables(memory, l2_first, l2s.start, l1s.clone(), l1_first, M2P_TABLE)?;
        fill_tables(memory, l1_first, l1s.start, pages, self.m2p.start.0, leaf)
    }
}

/// The flags of the entries that lead to the M2P; its pages are mapped without the right to write.
pub(crate) const M2P_TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;

/// The page of the M2P that describes frame `mfn`, counted from [`M2P_START`].
fn page_of(mfn: u64) -> u64 {
    mfn / PER_PAGE
}

/// How many tables it takes to hold the entries `range`.
fn tables_for(range: &Range<u64>) -> u64 {
    (range.end - 1) / PER_PAGE - range.start / PER_PAGE + 1
}

/// Makes consecutive tables from frame `tables`, the first of which holds entries from `first_table * 512` on, map
/// the entries `range` to consecutive frames from `frame`.
fn fill_tables(
    memory: &Memory,
    tables: u64,
    first_table: u64,
    range: Range<u64>,
    frame: u64,
    flags: u64,
) -> Result<(), OutOfRange> {
    let start = range.start;
    for table in first_table..first_table + tables_for(&range) {
        let part = range.start.max(table * PER_PAGE)..range.end.min((table + 1) * PER_PAGE);
        let target = frame + part.start - start;
        fill_table(memory, tables + table - first_table, part, target, flags)?;
    }
    Ok(())
}

/// Makes the entries `range`, all of one table, name consecutive frames from `frame`.
fn fill_table(
    memory: &Memory,
    table: u64,
    range: Range<u64>,
    frame: u64,
    flags: u64,
) -> Result<(), OutOfRange> {
    let mut entries = [0_u64; PAGE_BYTES / 8];
    for (index, frame) in range.zip(frame..) {
        // Fits: below 512.
        entries[(index % PER_PAGE) as usize] = (frame * PAGE_SIZE) | flags;
    }
    memory.write(MachAddr(table * PAGE_SIZE), entries.as_bytes())
}

#[cfg(test)]
mod tests {
    use paravane_abi::units::GuestVirt;
    use paravane_memory::paging::{Access, Privilege, walk};

    use super::*;

    #[test]
    fn every_frame_has_its_place_and_its_m2p_entry() {
        for pages in [1, 511, 512, 0x2000, 0x4_0000, 0x40_0000, 1 << 30] {
            let machine = Machine::plan(pages).unwrap();
            assert_eq!(machine.max_pages, pages);
            assert_eq!(machine.memory.start.0 % ALIGNMENT, 0);
            assert!(machine.m2p.end <= machine.memory.start);
            assert_eq!(machine.m2p_tables.end, machine.m2p.start);
            assert_eq!(machine.grant_status.end, machine.m2p_tables.start);
            let last = Mfn(machine.frames.end.0 - 1);
            let entry = machine.m2p_entry(last).unwrap();
            assert!(machine.m2p.contains(&entry.frame()), "{pages}");
            assert_eq!(machine.m2p_entry(machine.frames.end), None);
            assert_eq!(machine.m2p_entry(machine.frames.start).unwrap().frame(), machine.m2p.start);
        }
        assert_eq!(Machine::plan(0), Err(BadSize { pages: 0 }));
        assert!(Machine::plan(M2P_ENTRIES).is_err());
        assert!(Machine::plan(u64::MAX).is_err());
    }

    #[test]
    fn the_m2p_reads_at_its_address_and_faults_beyond() {
        for pages in [600, 0x4_0000 * 3] {
            let machine = Machine::plan(pages).unwrap();
            let memory = machine.allocate().unwrap();
            machine.furnish(&memory, 100).unwrap();
            // A root in a page of the guest's.
            let root = machine.memory.start;
            memory
                .store_u64(
                    MachAddr(root.0 * PAGE_SIZE + 256 * 8),
                    (machine.m2p_root().0 * PAGE_SIZE) | M2P_TABLE,
                )
                .unwrap();
            let translate = |mfn: u64, access| {
                walk(&memory, root, GuestVirt(M2P_START + mfn * 8), access, Privilege::User)
            };
            for (mfn, pfn) in [
                (machine.memory.start.0, 0),
                (machine.memory.start.0 + 99, 99),
                (machine.memory.start.0 + 100, INVALID_M2P_ENTRY),
                (machine.memory.end.0 - 1, INVALID_M2P_ENTRY),
                (machine.frames.start.0, INVALID_M2P_ENTRY),
            ] {
                let page = translate(mfn, Access::Read).unwrap().frame;
                let at = MachAddr(page.0 * PAGE_SIZE + mfn % PER_PAGE * 8);
                assert_eq!(memory.load_u64(at).unwrap(), pfn, "{mfn:#x}");
                assert_eq!(machine.m2p_entry(Mfn(mfn)), Some(at));
            }
            assert!(translate(machine.memory.start.0, Access::Write).is_err());
            assert!(translate(machine.memory.start.0, Access::Execute).is_err());
            assert!(translate(0, Access::Read).is_err());
            assert!(translate(machine.frames.end.0 + PER_PAGE, Access::Read).is_err());
        }
    }

    #[test]
    fn the_reserved_gdt_page_holds_the_flat_segments() {
        let machine = Machine::plan(16).unwrap();
        let memory = machine.allocate().unwrap();
        machine.furnish(&memory, 16).unwrap();
        let at = |offset: u64| memory.load_u64(MachAddr(machine.gdt.0 * PAGE_SIZE + offset)).unwrap();
        assert_eq!(at(0x30), 0x00af_fb00_0000_ffff);
        assert_eq!(at(0x28), 0x00cf_f300_0000_ffff);
        assert_eq!(at(0x40), 0);
    }
}
