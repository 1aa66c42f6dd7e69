//! The frames of a grant table, and where an entry is in them.

use core::ops::Range;
use std::collections::BTreeMap;

use paravane_abi::units::{GrantRef, MachAddr, Mfn, PAGE_SIZE};

use super::{mapping::Mappings, pins::Pinned};
use crate::domain::Domain;

/// Frames of the table that exist from the start.
const INITIAL_FRAMES: u32 = 1;

/// How many frames of entries one frame of status words describes: 256 entries a frame, 2048 words a frame.
const FRAMES_PER_STATUS_FRAME: u32 = 8;

/// The machine frames set aside for a domain's grant table. Their numbers bound the table's size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GrantFrames {
    /// Frames for the entries.
    pub(crate) shared: Range<Mfn>,
    /// Frames for the status words of version 2: one for every eight of the others.
    pub(crate) status: Range<Mfn>,
}

/// The layout of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// 8 bytes, with the bits that say "in use".
    V1,
    /// 16 bytes, and a status word elsewhere.
    V2,
}

impl Version {
    /// The version of that number.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    /// Its number.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// Entries in a page.
    fn entries_per_page(self) -> u32 {
        match self {
            Self::V1 => 512,
            Self::V2 => 256,
        }
    }

    /// Bytes of an entry.
    fn entry_bytes(self) -> u64 {
        PAGE_SIZE / u64::from(self.entries_per_page())
    }
}

/// A domain's grant table, and what it has mapped of others' grants.
#[derive(Debug)]
pub(crate) struct GrantTable {
    frames: GrantFrames,
    /// The layout in use.
    pub(crate) version: Version,
    /// How many frames hold entries.
    pub(crate) frame_count: u32,
    /// How many frames hold status words.
    pub(crate) status_count: u32,
    /// The entries in use.
    pub(super) pinned: BTreeMap<GrantRef, Pinned>,
    /// The guest's own mappings.
    pub(super) mappings: Mappings,
}

impl GrantTable {
    /// An empty table of version 1.
    pub(crate) fn new(frames: &GrantFrames) -> Self {
        let mut table = Self {
            frames: frames.clone(),
            version: Version::V1,
            frame_count: 0,
            status_count: 0,
            pinned: BTreeMap::new(),
            mappings: Mappings::default(),
        };
        table.frame_count = INITIAL_FRAMES.min(table.max_frames());
        table
    }

    /// How many frames may hold entries: never more than there are status words for.
    pub(crate) fn max_frames(&self) -> u32 {
        let count = |range: &Range<Mfn>| range.end.0.saturating_sub(range.start.0);
        let described = count(&self.frames.status).saturating_mul(FRAMES_PER_STATUS_FRAME.into());
        u32::try_from(count(&self.frames.shared).min(described)).unwrap_or(u32::MAX)
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> u32 {
        self.frame_count.saturating_mul(self.version.entries_per_page())
    }

    /// The frames that hold entries.
    pub(crate) fn shared_frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        let first = self.frames.shared.start.0;
        (first..first + u64::from(self.frame_count)).map(Mfn)
    }

    /// The frames that hold status words.
    pub(crate) fn status_frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        let first = self.frames.status.start.0;
        (first..first + u64::from(self.status_count)).map(Mfn)
    }

    /// Where an entry is. The reference must be below [`GrantTable::entries`].
    pub(super) fn entry(&self, reference: GrantRef) -> MachAddr {
        let offset = u64::from(reference.0) * self.version.entry_bytes();
        MachAddr(self.frames.shared.start.0 * PAGE_SIZE + offset)
    }

    /// Where the bits that say "in use" are: in the entry's flags, or in its status word.
    pub(super) fn status(&self, reference: GrantRef) -> MachAddr {
        match self.version {
            Version::V1 => self.entry(reference),
            Version::V2 => {
                let offset = u64::from(reference.0) * size_of::<u16>() as u64;
                MachAddr(self.frames.status.start.0 * PAGE_SIZE + offset)
            }
        }
    }
}

/// Frames of status words for so many frames of entries.
pub(super) fn status_frames_for(frames: u32) -> u32 {
    frames.div_ceil(FRAMES_PER_STATUS_FRAME)
}

impl Domain {
    /// Gives the domain an empty table in frames of Xen's, which are zero.
    pub(crate) fn set_grant_frames(&mut self, shared: Range<Mfn>, status: Range<Mfn>) {
        self.grants = GrantTable::new(&GrantFrames { shared, status });
        self.share_grant_frames();
    }

    /// Lets the guest map the frames that hold entries.
    fn share_grant_frames(&mut self) {
        for frame in self.grants.shared_frames() {
            self.frame_table.share(frame);
        }
    }

    /// Grows the table to `frames` frames of entries, and in version 2 of the status words for them.
    pub(crate) fn grow_grant_table(&mut self, frames: u32) {
        let frames = frames.max(INITIAL_FRAMES).min(self.grants.max_frames());
        self.grants.frame_count = self.grants.frame_count.max(frames);
        self.share_grant_frames();
        if self.grants.version == Version::V2 {
            self.grow_status_frames();
        }
    }

    /// Makes status words for every entry. New frames of them are zero.
    pub(super) fn grow_status_frames(&mut self) {
        self.grants.status_count = self.grants.status_count.max(status_frames_for(self.grants.frame_count));
        for frame in self.grants.status_frames() {
            self.frame_table.share(frame);
        }
    }
}
