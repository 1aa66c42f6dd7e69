//! Grant entries in use.
//!
//! An entry in use is pinned: what it said when it was first used holds until its last use ends, whatever the guest
//! writes meanwhile. The guest sees the bits READING and WRITING, and knows by them that it may not end the grant.
//!
//! The guest may change an entry at the very moment it is looked at. In version 1 entry and bits are one word, which
//! is exchanged as a whole, five times at most. In version 2 the bits are set first and the entry is looked at once
//! more: either the guest sees the bits, or its change is seen here.
//!
//! Source: `_set_status_v1`, `_set_status_v2`, `reduce_status_for_pin` in `xen/common/grant_table.c`.

use core::mem::offset_of;

use paravane_abi::{
    grant_table::{
        GrantEntryV1, GrantEntryV2Full, GrantEntryV2Sub, GrantEntryV2Transitive, GrantStatus, gtf,
    },
    units::{DomId, GrantRef, MachAddr, Mfn, PAGE_BYTES},
};

use super::table::{GrantTable, Version};
use crate::{
    claims::Unclaimable,
    domain::{CONTROL_DOMAIN, Domain},
};

/// The entries that the control domain's own table has, all of them empty: backends grant nothing.
const CONTROL_ENTRIES: u32 = 512;

/// How often an entry of version 1 is tried to be exchanged.
const TRIES: u32 = 5;

/// Bytes of a page, as grants count them.
const PAGE_LENGTH: u16 = 4096;

const _: () = assert!(PAGE_LENGTH as usize == PAGE_BYTES);

/// What a grant is used for. The uses are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    /// Also for writing.
    pub(super) writable: bool,
    /// To map the page, which a grant of a part of a page does not allow; otherwise to copy.
    pub(super) mapping: bool,
    /// How often.
    pub(super) count: Uses,
}

/// A number of uses by CPUs and by devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    pub(super) by_cpu: u8,
    pub(super) by_device: u8,
}

/// What is accessible by a grant: a frame, or bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The frame.
    pub(super) frame: Mfn,
    /// Where the bytes begin.
    pub(super) start: u16,
    /// How many there are.
    pub(super) length: u16,
    /// Whether it is a part of a page, even if that part is the whole.
    pub(super) part: bool,
}

impl Extent {
    /// A whole page.
    pub(super) fn page(frame: u64) -> Self {
        Self { frame: Mfn(frame), start: 0, length: PAGE_LENGTH, part: false }
    }
}

/// An entry in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pinned {
    /// Who uses it.
    user: DomId,
    /// What is accessible.
    extent: Extent,
    /// How often it is used for reading.
    readers: Uses,
    /// How often it is used for writing.
    writers: Uses,
}

impl Pinned {
    fn uses(&mut self, writable: bool) -> &mut Uses {
        if writable { &mut self.writers } else { &mut self.readers }
    }

    fn is_written(&self) -> bool {
        self.writers != Uses::default()
    }

    fn is_used(&self) -> bool {
        self.is_written() || self.readers != Uses::default()
    }
}

impl Uses {
    /// More uses, unless a count becomes too large: each has seven bits.
    fn plus(self, more: Self) -> Option<Self> {
        let sum = |old: u8, more: u8| old.checked_add(more).filter(|sum| more == 0 || *sum <= 0x80);
        Some(Self { by_cpu: sum(self.by_cpu, more.by_cpu)?, by_device: sum(self.by_device, more.by_device)? })
    }

    fn minus(self, fewer: Self) -> Self {
        Self {
            by_cpu: self.by_cpu.saturating_sub(fewer.by_cpu),
            by_device: self.by_device.saturating_sub(fewer.by_device),
        }
    }
}

/// Why a grant cannot be used: the status, and a sentence for whoever looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: GrantStatus,
    pub(super) why: &'static str,
}

impl Refused {
    pub(super) fn new(status: GrantStatus, why: &'static str) -> Self {
        Self { status, why }
    }

    fn general(why: &'static str) -> Self {
        Self::new(GrantStatus::GeneralError, why)
    }
}

impl From<Unclaimable> for Refused {
    fn from(why: Unclaimable) -> Self {
        match why {
            Unclaimable::NotOwned => {
                Self::new(GrantStatus::BadPage, "the frame is not the granting domain's")
            }
            Unclaimable::NotWritable => {
                Self::general("the frame is a page table or holds descriptors, and cannot be written")
            }
        }
    }
}

/// What using a grant of the control domain's would end in.
pub(super) fn control_domain_grant(reference: GrantRef) -> Refused {
    if reference.0 < CONTROL_ENTRIES {
        Refused::general("the control domain's entry is empty")
    } else {
        Refused::new(GrantStatus::BadGntref, "the control domain's table has no such entry")
    }
}

/// Flags and domain of an entry: the first word of every layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head(u32);

impl Head {
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    fn flags(self) -> u16 {
        self.0 as u16
    }

    fn domain(self) -> DomId {
        DomId((self.0 >> 16) as u16)
    }

    /// Whether it grants `user` the use, as far as its type and domain say.
    fn grants(self, version: Version, user: DomId, mapping: bool) -> bool {
        let mask = gtf::TYPE_MASK | if mapping { gtf::SUB_PAGE } else { 0 };
        let kind = self.flags() & mask;
        let transitive = version == Version::V2 && !mapping && kind == gtf::TRANSITIVE;
        (kind == gtf::PERMIT_ACCESS || transitive) && self.domain() == user
    }
}

impl Domain {
    /// Pins an entry of the guest's for `user`.
    ///
    /// The caller must claim the frame, and end the use with [`Domain::unpin_grant`].
    pub(super) fn pin_grant(
        &mut self,
        reference: GrantRef,
        user: DomId,
        purpose: Purpose,
    ) -> Result<Extent, Refused> {
        if reference.0 >= self.grants.entries() {
            return Err(Refused::new(GrantStatus::BadGntref, "the table has no such entry"));
        }
        let pinned = self.grants.pinned.get(&reference).copied();
        let before = pinned.unwrap_or(Pinned {
            user,
            extent: Extent::page(0),
            readers: Uses::default(),
            writers: Uses::default(),
        });
        if before.user != user {
            return Err(Refused::general("another domain uses the grant"));
        }
        if pinned.is_some() && purpose.mapping && before.extent.part {
            return Err(Refused::general("a grant of a part of a page cannot be mapped"));
        }
        let mut after = before;
        let uses = after.uses(purpose.writable);
        *uses = uses.plus(purpose.count).ok_or(Refused::general("the grant is used too often"))?;
        if pinned.is_none() || purpose.writable && !before.is_written() {
            self.mark_in_use(reference, pinned.is_some(), user, purpose)?;
            match self.granted(reference, purpose) {
                Ok(extent) if pinned.is_none() => after.extent = extent,
                Ok(extent) if purpose.mapping || extent == before.extent => {}
                Ok(_) => {
                    self.mark_out_of_use(reference, pinned, purpose.writable);
                    return Err(Refused::general("the entry was changed while the grant was in use"));
                }
                Err(refused) => {
                    self.mark_out_of_use(reference, pinned, purpose.writable);
                    return Err(refused);
                }
            }
        }
        self.grants.pinned.insert(reference, after);
        Ok(after.extent)
    }

    /// Ends a use of an entry.
    pub(super) fn unpin_grant(&mut self, reference: GrantRef, writable: bool, count: Uses) {
        let Some(mut pinned) = self.grants.pinned.get(&reference).copied() else { return };
        let uses = pinned.uses(writable);
        *uses = uses.minus(count);
        let left = pinned.is_used().then_some(pinned);
        match left {
            Some(pinned) => {
                self.grants.pinned.insert(reference, pinned);
            }
            None => {
                self.grants.pinned.remove(&reference);
            }
        }
        self.mark_out_of_use(reference, left, writable);
    }

    /// Sets the bits that say "in use", if the entry grants the use.
    fn mark_in_use(
        &self,
        reference: GrantRef,
        pinned: bool,
        user: DomId,
        purpose: Purpose,
    ) -> Result<(), Refused> {
        let bits = gtf::READING | if purpose.writable { gtf::WRITING } else { 0 };
        let version = self.grants.version;
        let permits = |head: Head| {
            if !pinned && !head.grants(version, user, purpose.mapping) {
                return Err(Refused::general("the entry does not grant that domain this use"));
            }
            if purpose.writable && head.flags() & gtf::READONLY != 0 {
                return Err(Refused::general("the entry grants reading only"));
            }
            Ok(())
        };
        match version {
            Version::V1 => self.exchange_head(self.grants.entry(reference), bits, permits),
            Version::V2 => {
                permits(self.head(reference))?;
                let status = self.grants.status(reference);
                self.set_flags(status, bits);
                // The guest has either seen the bits by now, or changed the entry before.
                permits(self.head(reference)).inspect_err(|_| {
                    let clear = if pinned { gtf::WRITING } else { gtf::READING | gtf::WRITING };
                    self.clear_flags(status, clear);
                })
            }
        }
    }

    /// Adds flags to an entry of version 1 while `permits` allows it.
    fn exchange_head(
        &self,
        at: MachAddr,
        bits: u16,
        permits: impl Fn(Head) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let outside = |_| Refused::general("the table is not in memory");
        let mut head = self.memory.load_u32(at).map_err(outside)?;
        for _ in 0..TRIES {
            permits(Head(head))?;
            match self.memory.compare_exchange_u32(at, head, head | u32::from(bits)).map_err(outside)? {
                Ok(_) => return Ok(()),
                Err(found) => head = found,
            }
        }
        Err(Refused::general("the guest keeps changing the entry"))
    }

    /// Clears the bits that no use needs any more.
    fn mark_out_of_use(&self, reference: GrantRef, left: Option<Pinned>, writable: bool) {
        let reading = if left.is_none() { gtf::READING } else { 0 };
        let still_written = left.is_some_and(|pinned| pinned.is_written());
        let writing = if writable && !still_written { gtf::WRITING } else { 0 };
        if reading | writing != 0 && reference.0 < self.grants.entries() {
            self.clear_flags(self.grants.status(reference), reading | writing);
        }
    }

    /// What the entry makes accessible.
    fn granted(&self, reference: GrantRef, purpose: Purpose) -> Result<Extent, Refused> {
        let outside = |_| Refused::general("the table is not in memory");
        let at = self.grants.entry(reference);
        let field = |offset: usize| MachAddr(at.0 + offset as u64);
        let memory = &self.memory;
        if self.grants.version == Version::V1 {
            let frame = memory.load_u32(field(offset_of!(GrantEntryV1, frame))).map_err(outside)?;
            return Ok(Extent::page(frame.into()));
        }
        let flags = self.head(reference).flags();
        if !purpose.mapping && flags & gtf::TYPE_MASK == gtf::TRANSITIVE {
            return Err(self.transitive(at));
        }
        let frame = memory.load_u64(field(offset_of!(GrantEntryV2Full, frame))).map_err(outside)?;
        if flags & gtf::SUB_PAGE == 0 {
            return Ok(Extent::page(frame));
        }
        let word = memory.load_u32(field(offset_of!(GrantEntryV2Sub, page_off))).map_err(outside)?;
        let [s0, s1, l0, l1] = word.to_le_bytes();
        let (start, length) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([l0, l1]));
        Ok(Extent { frame: Mfn(frame), start, length, part: true })
    }

    /// A grant of a grant leads nowhere: the granting domain's own it may not be, the control domain grants nothing,
    /// and there is no other.
    fn transitive(&self, at: MachAddr) -> Refused {
        let entry: Result<GrantEntryV2Transitive, _> = self.memory.read_value(at);
        match entry {
            Ok(entry) if DomId(entry.trans_domid) == CONTROL_DOMAIN => {
                control_domain_grant(GrantRef(entry.gref))
            }
            Ok(entry) if DomId(entry.trans_domid) == self.id => {
                Refused::general("a transitive grant cannot name its own domain")
            }
            Ok(_) => Refused::general("a transitive grant names a domain that does not exist"),
            Err(_) => Refused::general("the table is not in memory"),
        }
    }

    fn head(&self, reference: GrantRef) -> Head {
        Head(self.memory.load_u32(self.grants.entry(reference)).unwrap_or(0))
    }

    /// Sets bits of a 16-bit word that the guest shares.
    fn set_flags(&self, at: MachAddr, bits: u16) {
        let (word, shift) = containing_word(at);
        let set = self.memory.fetch_or_u32(word, u32::from(bits) << shift);
        debug_assert!(set.is_ok(), "the grant table lies in memory");
    }

    /// Clears bits of a 16-bit word that the guest shares.
    fn clear_flags(&self, at: MachAddr, bits: u16) {
        let (word, shift) = containing_word(at);
        let cleared = self.memory.fetch_and_u32(word, !(u32::from(bits) << shift));
        debug_assert!(cleared.is_ok(), "the grant table lies in memory");
    }
}

impl GrantTable {
    /// Whether an entry is in use.
    pub(super) fn is_pinned(&self, reference: GrantRef) -> bool {
        self.pinned.contains_key(&reference)
    }

    /// Whether a use relies on what only version 2 can say.
    pub(super) fn has_part_in_use(&self) -> bool {
        self.pinned.values().any(|pinned| pinned.extent.part)
    }
}

/// The 32-bit word that a 16-bit word lies in, and how far it is shifted there.
fn containing_word(at: MachAddr) -> (MachAddr, u32) {
    let shift = if at.0 & 2 == 0 { 0 } else { 16 };
    (MachAddr(at.0 & !3), shift)
}
