//! Levels of a page table, and what frames can be used as.

pub(crate) use paravane_x86::pte::Level;
use zerocopy::FromZeros;

/// The level of the tables that entries of `level` name; `None` for L1, whose entries map pages.
pub(crate) fn below(level: Level) -> Option<Level> {
    match level {
        Level::L1 => None,
        Level::L2 => Some(Level::L1),
        Level::L3 => Some(Level::L2),
        Level::L4 => Some(Level::L3),
    }
}

/// The slot of `address` in a table of `level`.
pub(crate) fn slot_of(level: Level, address: u64) -> usize {
    let shift = 12 + 9 * (level.number() - 1);
    // Fits: nine bits.
    (address >> shift & 0x1ff) as usize
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
