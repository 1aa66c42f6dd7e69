//! Changing the layout of the table, and entries written by the hypervisor.
//!
//! A change clears the table. Only the eight reserved entries, which the builder fills and which backends keep in
//! use, are carried over.
//!
//! Source: `gnttab_set_version`, `swap_grant_ref` in `xen/common/grant_table.c`.

use paravane_abi::{
    errno::Errno,
    grant_table::{GrantEntryV1, GrantEntryV2Full, GrantStatus, RESERVED_ENTRIES, gtf},
    units::{DomId, GrantRef, Mfn},
};
use zerocopy::FromZeros;

use super::{pins::Refused, table::Version};
use crate::domain::Domain;

/// The bits that say "in use".
const IN_USE: u16 = gtf::READING | gtf::WRITING;

impl Domain {
    /// Changes the layout.
    ///
    /// # Errors
    ///
    /// `EBUSY` if an entry that is not reserved is in use, or the guest still maps the status words that would go;
    /// `EAGAIN` if a use relies on what only version 2 can say; `ERANGE` if a reserved entry does.
    pub(crate) fn set_grant_version(&mut self, version: Version) -> Result<(), Errno> {
        if self.grants.version == version {
            return Ok(());
        }
        if self.grants.pinned.keys().any(|reference| reference.0 >= RESERVED_ENTRIES) {
            return Err(Errno::Ebusy);
        }
        match version {
            Version::V2 => self.begin_version_2(),
            Version::V1 => self.return_to_version_1(),
        }
    }

    fn begin_version_2(&mut self) -> Result<(), Errno> {
        let mut entries = [GrantEntryV1::new_zeroed(); RESERVED_ENTRIES as usize];
        for (reference, entry) in references().zip(&mut entries) {
            *entry = self.memory.read_value(self.grants.entry(reference)).map_err(|_| Errno::Enomem)?;
        }
        self.grow_status_frames();
        let zeroed = self.grants.shared_frames().chain(self.grants.status_frames());
        for frame in zeroed {
            self.memory.zero_frame(frame).map_err(|_| Errno::Enomem)?;
        }
        self.grants.version = Version::V2;
        for (reference, old) in references().zip(entries) {
            let mut entry = GrantEntryV2Full::new_zeroed();
            entry.flags = old.flags & !IN_USE;
            entry.domid = old.domid;
            entry.frame = old.frame.into();
            let status = old.flags & IN_USE;
            self.store_v2(reference, &entry, status).map_err(|_| Errno::Enomem)?;
        }
        Ok(())
    }

    fn return_to_version_1(&mut self) -> Result<(), Errno> {
        if self.grants.has_part_in_use() {
            return Err(Errno::Eagain);
        }
        let mut entries = [GrantEntryV1::new_zeroed(); RESERVED_ENTRIES as usize];
        for (reference, entry) in references().zip(&mut entries) {
            let old: GrantEntryV2Full =
                self.memory.read_value(self.grants.entry(reference)).map_err(|_| Errno::Enomem)?;
            let status: u16 =
                self.memory.read_value(self.grants.status(reference)).map_err(|_| Errno::Enomem)?;
            *entry = narrowed(&old, status)?;
        }
        let mapped = |frame| self.frame_table.record(frame).is_some_and(|record| record.refs != 0);
        if self.grants.status_frames().any(mapped) {
            return Err(Errno::Ebusy);
        }
        for frame in self.grants.shared_frames() {
            self.memory.zero_frame(frame).map_err(|_| Errno::Enomem)?;
        }
        self.grants.status_count = 0;
        self.grants.version = Version::V1;
        for (reference, entry) in references().zip(entries) {
            self.memory.write_value(self.grants.entry(reference), &entry).map_err(|_| Errno::Enomem)?;
        }
        Ok(())
    }

    fn store_v2(
        &self,
        reference: GrantRef,
        entry: &GrantEntryV2Full,
        status: u16,
    ) -> Result<(), paravane_memory::OutOfRange> {
        self.memory.write_value(self.grants.status(reference), &status)?;
        self.memory.write_value(self.grants.entry(reference), entry)
    }

    /// Writes an entry that grants a page.
    pub(super) fn write_grant(
        &mut self,
        reference: GrantRef,
        domain: DomId,
        frame: Mfn,
    ) -> Result<(), Refused> {
        let out_of_table = Refused::new(GrantStatus::BadGntref, "the table has no such entry");
        if reference.0 >= self.grants.entries() {
            return Err(out_of_table);
        }
        let written = match self.grants.version {
            Version::V1 => {
                let frame = u32::try_from(frame.0).map_err(|_| {
                    Refused::new(GrantStatus::AddressTooBig, "version 1 cannot name the frame")
                })?;
                let entry = GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: domain.0, frame };
                self.memory.write_value(self.grants.entry(reference), &entry)
            }
            Version::V2 => {
                let mut entry = GrantEntryV2Full::new_zeroed();
                (entry.flags, entry.domid, entry.frame) = (gtf::PERMIT_ACCESS, domain.0, frame.0);
                self.store_v2(reference, &entry, 0)
            }
        };
        written.map_err(|_| out_of_table)
    }

    /// Exchanges two entries.
    pub(crate) fn swap_grants(&mut self, a: GrantRef, b: GrantRef) -> GrantStatus {
        if a.0.max(b.0) >= self.grants.entries() {
            return GrantStatus::BadGntref;
        }
        if a == b {
            return GrantStatus::Okay;
        }
        if self.grants.is_pinned(a) || self.grants.is_pinned(b) {
            return GrantStatus::Eagain;
        }
        let swapped = match self.grants.version {
            Version::V1 => self.swap_values::<u64>(self.grants.entry(a), self.grants.entry(b)),
            Version::V2 => self
                .swap_values::<[u64; 2]>(self.grants.entry(a), self.grants.entry(b))
                .and_then(|()| self.swap_values::<u16>(self.grants.status(a), self.grants.status(b))),
        };
        if swapped.is_ok() { GrantStatus::Okay } else { GrantStatus::BadGntref }
    }

    fn swap_values<T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable>(
        &self,
        a: paravane_abi::units::MachAddr,
        b: paravane_abi::units::MachAddr,
    ) -> Result<(), paravane_memory::OutOfRange> {
        let (first, second): (T, T) = (self.memory.read_value(a)?, self.memory.read_value(b)?);
        self.memory.write_value(a, &second)?;
        self.memory.write_value(b, &first)
    }
}

/// The reserved references.
fn references() -> impl Iterator<Item = GrantRef> {
    (0..RESERVED_ENTRIES).map(GrantRef)
}

/// An entry of version 2 as one of version 1. What was never a grant becomes none.
fn narrowed(entry: &GrantEntryV2Full, status: u16) -> Result<GrantEntryV1, Errno> {
    match entry.flags & gtf::TYPE_MASK {
        gtf::PERMIT_ACCESS => {
            let frame = u32::try_from(entry.frame).map_err(|_| Errno::Erange)?;
            Ok(GrantEntryV1 { flags: entry.flags | status, domid: entry.domid, frame })
        }
        gtf::TRANSITIVE => Err(Errno::Erange),
        _ => Ok(GrantEntryV1::new_zeroed()),
    }
}
