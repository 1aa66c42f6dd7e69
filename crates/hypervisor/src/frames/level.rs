//! Levels of a page table, and what frames can be used as.

use zerocopy::FromZeros;

/// A level of a long-mode page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Entries are mappings of pages.
    L1 = 1,
    /// Entries name L1 tables.
    L2,
    /// Entries name L2 tables.
    L3,
    /// Entries name L3 tables: the root.
    L4,
}

impl Level {
    /// The level of the tables that entries of this one name; `None` for L1, whose entries map pages.
    pub(crate) fn child(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// The slot of `address` in a table of this level.
    pub(crate) fn slot(self, address: u64) -> usize {
        let shift = 12 + 9 * (self as u32 - 1);
        // Fits: nine bits.
        (address >> shift & 0x1ff) as usize
    }
}

/// What a frame is used as. Only one use at a time: a page table is never writable.
///
/// Source: `PGT_*` in `xen/arch/x86/include/asm/mm.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(u8)]
pub(crate) enum Use {
    /// Never used as anything.
    #[default]
    None,
    /// An L1 page table.
    L1,
    /// An L2 page table.
    L2,
    /// An L3 page table.
    L3,
    /// An L4 page table.
    L4,
    /// A page of a GDT or LDT.
    SegmentDescriptors,
    /// Mapped writable, or written by a hypercall.
    Writable,
}

impl Use {
    /// The use as a table of `level`.
    pub(crate) fn table(level: Level) -> Self {
        match level {
            Level::L1 => Self::L1,
            Level::L2 => Self::L2,
            Level::L3 => Self::L3,
            Level::L4 => Self::L4,
        }
    }

    /// The level, if the use is as a page table.
    pub(crate) fn level(self) -> Option<Level> {
        match self {
            Self::L1 => Some(Level::L1),
            Self::L2 => Some(Level::L2),
            Self::L3 => Some(Level::L3),
            Self::L4 => Some(Level::L4),
            Self::None | Self::SegmentDescriptors | Self::Writable => None,
        }
    }
}
