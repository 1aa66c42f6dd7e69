//! The initial page tables: how many there are, and what is in them.
//!
//! Flags are those of the real tools: P, RW, A on leaves, without USER; P, RW, A, D, USER above. The hypervisor adds
//! what it needs when it validates. A page that holds a page table is mapped read-only.
//!
//! Source: `setup_pgtables_pv` and `get_pg_prot_x86` in `xen/tools/libs/guest/xg_dom_x86.c`.

use core::ops::RangeInclusive;
use std::collections::BTreeMap;

use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SHIFT, Pfn};
use paravane_memory::{Memory, OutOfRange};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// What entries above the leaves carry.
const TABLE_FLAGS: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | USER;
/// What leaves carry, except that tables are not writable.
const LEAF_FLAGS: u64 = PRESENT | WRITABLE | ACCESSED;

/// log2 of the bytes that one table of each level below the root covers: L3, L2, L1.
const COVERAGE: [u32; 3] = [39, 30, 21];

/// How many tables of each level a mapping needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableCount {
    root: u64,
    lower: [u64; 3],
}

impl TableCount {
    /// The tables of a mapping of `range`, the root included.
    pub(super) fn of(range: &RangeInclusive<u64>) -> Self {
        Self { root: 1, lower: COVERAGE.map(|shift| covered(range, shift)) }
    }

    /// The tables that a mapping of `range` needs beside those that `other` has.
    pub(super) fn beside(range: &RangeInclusive<u64>, other: &RangeInclusive<u64>) -> Self {
        let lower = COVERAGE.map(|shift| {
            let (first, last) = (range.start() >> shift, range.end() >> shift);
            let shared = (first.max(other.start() >> shift)..=last.min(other.end() >> shift)).count() as u64;
            last - first + 1 - shared
        });
        Self { root: 0, lower }
    }

    pub(super) fn total(&self) -> u64 {
        self.root + self.lower.iter().sum::<u64>()
    }
}

fn covered(range: &RangeInclusive<u64>, shift: u32) -> u64 {
    (range.end() >> shift) - (range.start() >> shift) + 1
}

/// Builds tables out of given pages, in the order root, L3s, L2s, L1s of each mapping.
pub(super) struct Tables<'a> {
    memory: &'a Memory,
    mfn_of: &'a dyn Fn(Pfn) -> Mfn,
    root: Pfn,
    /// The tables below the root, by level (3 to 1) and the bits of the address that lead to them.
    lower: BTreeMap<(u32, u64), Pfn>,
}

impl<'a> Tables<'a> {
    pub(super) fn new(memory: &'a Memory, mfn_of: &'a dyn Fn(Pfn) -> Mfn, root: Pfn) -> Self {
        Self { memory, mfn_of, root, lower: BTreeMap::new() }
    }

    /// Takes pages from `free` for the tables of `range` that do not exist yet and hangs them in.
    pub(super) fn reserve(
        &mut self,
        range: &RangeInclusive<u64>,
        free: &mut impl Iterator<Item = Pfn>,
    ) -> Result<(), OutOfRange> {
        for (level, shift) in [(3, COVERAGE[0]), (2, COVERAGE[1]), (1, COVERAGE[2])] {
            for prefix in range.start() >> shift..=range.end() >> shift {
                if self.lower.contains_key(&(level, prefix)) {
                    continue;
                }
                // The plan counted the same tables in the same way.
                let Some(page) = free.next() else { return Ok(()) };
                self.lower.insert((level, prefix), page);
                let parent = self.table(level + 1, prefix << shift);
                self.store(parent, index(prefix << shift, level + 1), self.entry(page, TABLE_FLAGS))?;
            }
        }
        Ok(())
    }

    /// Maps `pages` pages from `first` at `at`, whose tables were reserved.
    pub(super) fn map(
        &self,
        at: GuestVirt,
        first: Pfn,
        pages: u64,
        is_table: &dyn Fn(Pfn) -> bool,
    ) -> Result<(), OutOfRange> {
        for page in 0..pages {
            let (address, pfn) = (at.wrapping_add(page << PAGE_SHIFT).0, Pfn(first.0 + page));
            let flags = if is_table(pfn) { LEAF_FLAGS & !WRITABLE } else { LEAF_FLAGS };
            self.store(self.table(1, address), index(address, 1), self.entry(pfn, flags))?;
        }
        Ok(())
    }

    /// The table of `level` through which `address` is reached.
    fn table(&self, level: u32, address: u64) -> Pfn {
        match level {
            4 => self.root,
            _ => {
                let shift = COVERAGE[3 - level as usize];
                self.lower.get(&(level, address >> shift)).copied().unwrap_or(self.root)
            }
        }
    }

    fn entry(&self, pfn: Pfn, flags: u64) -> u64 {
        (self.mfn_of)(pfn).0 << PAGE_SHIFT | flags
    }

    fn store(&self, table: Pfn, index: u64, entry: u64) -> Result<(), OutOfRange> {
        self.memory.store_u64(MachAddr((self.mfn_of)(table).0 << PAGE_SHIFT | (index * 8)), entry)
    }
}

/// Which entry of a table of `level` leads to `address`.
fn index(address: u64, level: u32) -> u64 {
    address >> (PAGE_SHIFT + 9 * (level - 1)) & 0x1ff
}
