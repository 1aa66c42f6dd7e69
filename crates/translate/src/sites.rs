//! Places in translated code that Rust must know about.
//!
//! Code leaves with the index of a [`Site`] in a register; the site says what was going on and where to continue.
//! A [`Mark`] maps host instructions back to guest instructions, for faults that the host CPU raises.

use paravane_abi::units::PAGE_SIZE;
use paravane_engine::SegmentRegister;

use crate::state::Path;

/// A code page's number, as code-page tables hold it. Zero is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageId(pub(crate) u32);

/// Where in a [`Site`] the access is, if its first byte is zero.
pub(crate) const ACCESS: usize = align_of::<Access>();

/// Why translated code left. Translated code itself looks at accesses, hence the layout.
#[derive(Clone, Copy, Debug)]
#[repr(C, u8)]
pub(crate) enum Site {
    /// A memory access missed the TLB, crosses pages or is a write next to code. The first, and so number zero.
    Access(Access),
    /// A jump through the jump cache found nothing; the target is in `scratch`.
    Indirect,
    /// A computed branch to an address that is not canonical: undone, and refused.
    Refused {
        /// The branch.
        rip: u64,
        /// Bytes that it popped.
        popped: i32,
    },
    /// A jump to a constant target, not yet linked.
    Chain(Chain),
    /// Execution is at this guest address and a check failed (page mapping, kick, step limit): look again.
    Enter {
        /// The guest address.
        rip: u64,
    },
    /// A pad found that its page is not what is mapped any more.
    Moved {
        /// The guest address.
        rip: u64,
        /// The pad's entry for direct jumps.
        far: u32,
        /// The page that the pad belongs to.
        page: PageId,
    },
    /// An instruction ran on the bounce pages; its result goes to guest memory.
    Commit(Commit),
    /// An instruction that Rust performs.
    Helper(HelperSite),
    /// An instruction that stores where the x87 unit's last one was comes next.
    Pointers {
        /// Its guest address.
        rip: u64,
        /// Its code.
        resume: u32,
    },
}

/// A direct jump.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// The displacement to patch.
    pub(crate) at: u32,
    /// The guest address it goes to.
    pub(crate) target: u64,
    /// The page the jump is in.
    pub(crate) page: PageId,
    /// How target and flags are to be treated.
    pub(crate) kind: ChainKind,
    /// Whether the flags are in memory, and nobody needs them in the host's register.
    pub(crate) flags_in_memory: bool,
    /// Whether the flags may be looked at here.
    pub(crate) flags_exact: bool,
}

/// Where a direct jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainKind {
    /// Forward in the same page: to the block's body.
    Near,
    /// Backward in the same page: as `Near`, but the block must poll for kicks.
    Loop,
    /// To another page: to the block's pad, flags in memory.
    Far,
    /// Nowhere else: to the same place in the variant of the block that checks each access by itself.
    Plain,
}

/// A memory access.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Access {
    /// The guest instruction.
    pub(crate) rip: u64,
    /// Bytes accessed.
    pub(crate) size: u32,
    /// Read or write.
    pub(crate) path: Path,
    /// Where to continue with the host address in R14.
    pub(crate) resume: u32,
    /// Whether the check covers further accesses of the block: whatever goes wrong, the plain variant finds out what.
    pub(crate) shared: bool,
    /// For writes: a copy of the instruction that comes back afterwards ([`Commit`]).
    pub(crate) aside: u32,
    /// What to subtract from the host address (the offset in the page, when the code adds it itself).
    pub(crate) bias: u16,
    /// Whether elements can be masked out, which then must not fault.
    pub(crate) masked: bool,
    /// Whether a non-canonical address is #SS rather than #GP.
    pub(crate) stack: bool,
    /// The segment, if its limit or type must be checked.
    pub(crate) segment: Option<SegmentRegister>,
    /// The page the code is in.
    pub(crate) page: PageId,
}

/// What follows an instruction that ran aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    /// The next guest instruction, if it is known here.
    pub(crate) next: Option<u64>,
    /// Where translated code continues.
    pub(crate) resume: u32,
    /// The page the code is in.
    pub(crate) page: PageId,
}

/// An instruction for Rust.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HelperSite {
    /// The guest instruction.
    pub(crate) rip: u64,
    /// What it is.
    pub(crate) helper: crate::classify::Helper,
    /// Its index among the remembered instructions.
    pub(crate) instruction: u32,
    /// Where translated code continues if the instruction just completes; zero to look the next one up.
    pub(crate) resume: u32,
    /// The page the code is in.
    pub(crate) page: PageId,
}

/// The guest instruction that host code from `host` on belongs to. There are a few of them for each instruction, so that
/// their size counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The host address, ascending within a part of the cache.
    pub(crate) host: u32,
    /// Number of the borrowed register whose value is in spill slot 1.
    pub(crate) borrowed: Option<u8>,
    /// Whether the guest's flags are the host's here (otherwise in memory).
    pub(crate) host_flags: bool,
    /// Whether an x87 instruction starts right here.
    pub(crate) is_x87: bool,
    /// The page of the guest instruction ...
    pub(crate) page: PageId,
    /// ... and where it is in there.
    pub(crate) offset: u16,
}

impl Mark {
    /// Whether it belongs to the instruction at `rip` in a page.
    pub(crate) fn is_of(&self, rip: u64, page: PageId) -> bool {
        self.page == page && u64::from(self.offset) == rip & (PAGE_SIZE - 1)
    }
}

/// Where in its page an instruction is.
pub(crate) fn offset_in_page(rip: u64) -> u16 {
    // Fits.
    (rip & (PAGE_SIZE - 1)) as u16
}

/// The mark that covers a host address, in an ascending list.
pub(crate) fn find_mark(marks: &[Mark], host: u32) -> Option<&Mark> {
    let after = marks.partition_point(|mark| mark.host <= host);
    marks.get(after.checked_sub(1)?)
}
