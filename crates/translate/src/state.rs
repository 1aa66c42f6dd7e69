//! What translated code and Rust share: the CPU's state, the tables the code indexes, and their addresses.
//!
//! Everything lies below 2 GiB, so that emitted instructions name it by a sign-extended 32-bit displacement
//! and need no base register (a `gs:` base costs cycles on every load, a general register is one less for the
//! guest). The order in the arena: [`State`], [`KickCell`], bounce pages, TLBs, code-page tables, jump caches, code.

use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use paravane_engine::{GuestMode, SegmentRegister, VcpuContext};

use crate::runs::Runs;
use crate::walk::{ALIVE_PAGES, Walk};

/// Entries of each software TLB; bits 12..23 of an address select one.
pub(crate) const TLB_ENTRIES: usize = 4096;
/// Entries of each code-page table; bits 12..23 of an address select one.
pub(crate) const CODE_PAGE_ENTRIES: usize = 4096;
/// Entries of each jump cache; bits 0..15 of a target select one.
pub(crate) const JUMP_ENTRIES: usize = 1 << 16;
/// Slots for host addresses that accesses share.
pub(crate) const SHARED_SLOTS: usize = 8;
/// Bytes of the code cache's part for the expected path.
pub(crate) const HOT_BYTES: u32 = 24 << 20;
/// Bytes of the code cache's part for everything else.
pub(crate) const COLD_BYTES: u32 = 40 << 20;

/// One translation of a page: `address - tag` is the offset in the page, `+ host` the host address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// The guest page's linear address. An empty entry holds a page that selects another entry.
    pub(crate) tag: u64,
    /// The host address of the page.
    pub(crate) host: u64,
}

/// What a signal handler learned about an instruction of translated code that faulted.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct HostFault {
    /// The faulting host instruction.
    pub(crate) host_rip: u64,
    /// The CPU's vector (`REG_TRAPNO`).
    pub(crate) vector: u64,
    /// Whether the fields are news.
    pub(crate) pending: u64,
    /// The address that could not be accessed (CR2), of a page fault.
    pub(crate) address: u64,
}

/// The part of the arena with named fields.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct State {
    /// The guest's CPU. R14 and R15 live here while the guest runs, the other registers only between runs.
    pub(crate) context: VcpuContext,
    /// Guest status flags as LAHF and SETO AL leave them in AX: bits 15..8 are SF ZF AF PF CF, bit 0 is OF.
    pub(crate) status: u32,
    /// `status` as it was before a fault handler overwrote it.
    pub(crate) kept_status: u32,
    /// The guest's direction flag, 0 or 1; the host's stays clear.
    pub(crate) direction: u32,
    /// Where to enter translated code.
    pub(crate) resume: u64,
    /// Host R14 on the way in and out: an address or a jump target.
    pub(crate) scratch: u64,
    /// Why translated code left: an index of a site.
    pub(crate) reason: u32,
    /// The site of the last computed branch, should its target turn out to be impossible.
    pub(crate) branch: u32,
    /// MXCSR for Rust code.
    pub(crate) host_mxcsr: u32,
    /// Places for values that an instruction's translation needs for a moment.
    pub(crate) spill: [u64; 4],
    /// Host addresses that several accesses of a block share.
    pub(crate) shared: [u64; SHARED_SLOTS],
    /// The host stack while the guest runs.
    pub(crate) host_rsp: u64,
    /// State components to save and restore.
    pub(crate) xsave_mask: u64,
    /// Where the leave stub jumps.
    pub(crate) leave: u64,
    /// A fault of translated code.
    pub(crate) fault: HostFault,
    /// What translated code's own page walk needs.
    pub(crate) walk: Walk,
    /// What long string moves need.
    pub(crate) runs: Runs,
    /// Which entries of the four TLBs may be filled.
    pub(crate) filled: [Filled; 4],
    /// Which entries of the two code-page tables may be filled.
    pub(crate) code_filled: [Filled; 2],
    /// The page that a step works on instead of the guest's.
    pub(crate) shadow: Shadow,
}

/// One bit for each entry of a table of 4096.
pub(crate) type Filled = [u64; 64];

/// Notes that an entry is filled.
pub(crate) fn note(filled: &mut Filled, index: usize) {
    filled[index / 64 % 64] |= 1 << (index % 64);
}

/// The noted entries.
pub(crate) fn noted(filled: Filled) -> impl Iterator<Item = usize> {
    filled.into_iter().enumerate().flat_map(|(word, mut bits)| {
        core::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(word * 64 + bit)
        })
    })
}

/// A page's copy.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct Shadow(pub(crate) [u8; 4096]);

/// The pages through which instructions reach memory that is not one plain page: two that cannot be accessed, two that
/// can, one that cannot. What lies before or behind the middle stands for guest pages that are not there, so
/// that the CPU itself says whether and where an instruction faults.
pub(crate) mod bounce {
    /// Pages in front that cannot be accessed.
    pub(crate) const GUARDS: usize = 2;
    /// Bytes of the middle.
    pub(crate) const BYTES: usize = 2 * 4096;
    /// All pages.
    pub(crate) const PAGES: usize = GUARDS + 2 + 1;
}

/// What other threads write; on a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct KickCell {
    /// Points at itself, or is null when kicked: polls that must not touch flags load through it.
    ///
    /// One word says it all, so that a kick happens at once. With a flag beside it, a kick that is taken half way
    /// leaves a null pointer and nothing that explains the fault.
    pub(crate) pointer: AtomicU64,
}

/// Read or write path of the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Loads.
    Read,
    /// Stores and read-modify-writes.
    Write,
}

/// Offsets of the arena's parts from its base.
pub(crate) mod part {
    use super::{
        ALIVE_PAGES, CODE_PAGE_ENTRIES, COLD_BYTES, HOT_BYTES, JUMP_ENTRIES, State, TLB_ENTRIES, bounce,
    };

    pub(crate) const STATE: usize = 0;
    pub(crate) const KICK: usize = size_of::<State>();
    pub(crate) const BOUNCE: usize = KICK + 4096;
    pub(crate) const TLB: usize = BOUNCE + bounce::PAGES * 4096;
    pub(crate) const TLB_BYTES: usize = TLB_ENTRIES * 16;
    pub(crate) const CODE_PAGES: usize = TLB + 4 * TLB_BYTES;
    pub(crate) const CODE_PAGES_BYTES: usize = CODE_PAGE_ENTRIES * 4;
    pub(crate) const JUMPS: usize = CODE_PAGES + 2 * CODE_PAGES_BYTES;
    pub(crate) const JUMPS_BYTES: usize = JUMP_ENTRIES * 4;
    pub(crate) const ALIVE: usize = JUMPS + 2 * JUMPS_BYTES;
    pub(crate) const CODE: usize = ALIVE + ALIVE_PAGES;
    pub(crate) const TOTAL: usize = CODE + (HOT_BYTES + COLD_BYTES) as usize;
}

/// The arena's base address, from which every address in emitted code follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout(pub(crate) u32);

#[expect(clippy::cast_possible_truncation, reason = "offsets within an arena of less than 2 GiB")]
impl Layout {
    /// The address of a field of [`State`], given its offset.
    pub(crate) fn field(self, offset: usize) -> u32 {
        self.0 + offset as u32
    }

    pub(crate) fn gpr(self, number: u8) -> u32 {
        self.field(offset_of!(State, context) + offset_of!(VcpuContext, gprs) + usize::from(number) * 8)
    }

    pub(crate) fn segment(self, register: SegmentRegister) -> u32 {
        let segments = offset_of!(State, context) + offset_of!(VcpuContext, segments);
        self.field(segments + register as usize * size_of::<paravane_engine::Segment>())
    }

    /// Where a segment register's selector is.
    pub(crate) fn selector(self, register: SegmentRegister) -> u32 {
        self.segment(register) + offset_of!(paravane_engine::Segment, selector) as u32
    }

    pub(crate) fn spill(self, index: usize) -> u32 {
        self.field(offset_of!(State, spill) + index * 8)
    }

    pub(crate) fn shared(self, slot: u8) -> u32 {
        self.field(offset_of!(State, shared) + usize::from(slot) * 8)
    }

    pub(crate) fn kick_pointer(self) -> u32 {
        self.field(part::KICK + offset_of!(KickCell, pointer))
    }

    pub(crate) fn tlb(self, mode: GuestMode, path: Path) -> u32 {
        self.field(part::TLB + part::TLB_BYTES * tlb_number(mode, path))
    }

    pub(crate) fn code_page(self, mode: GuestMode, linear: u64) -> u32 {
        let table = part::CODE_PAGES + part::CODE_PAGES_BYTES * mode as usize;
        self.field(table + code_page_index(linear) * 4)
    }

    pub(crate) fn code_pages(self, mode: GuestMode) -> u32 {
        self.code_page(mode, 0)
    }

    pub(crate) fn jumps(self, mode: GuestMode) -> u32 {
        self.field(part::JUMPS + part::JUMPS_BYTES * mode as usize)
    }

    /// The first of the bounce pages that can be accessed.
    pub(crate) fn bounce(self) -> u32 {
        self.field(part::BOUNCE + bounce::GUARDS * 4096)
    }

    pub(crate) fn alive(self) -> u32 {
        self.field(part::ALIVE)
    }

    pub(crate) fn code(self) -> u32 {
        self.field(part::CODE)
    }
}

/// Which of the four TLBs.
pub(crate) fn tlb_number(mode: GuestMode, path: Path) -> usize {
    mode as usize * 2
        + match path {
            Path::Read => 0,
            Path::Write => 1,
        }
}

/// The TLB entry that a linear address selects.
pub(crate) fn tlb_index(linear: u64) -> usize {
    ((linear >> 12) & (TLB_ENTRIES as u64 - 1)) as usize
}

/// The entry of a code-page table that a linear address selects.
pub(crate) fn code_page_index(linear: u64) -> usize {
    ((linear >> 12) & (CODE_PAGE_ENTRIES as u64 - 1)) as usize
}
