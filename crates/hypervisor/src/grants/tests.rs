//! Grant tables as a guest and its backends see them.

mod advisories;
mod copy;
mod mapping;
mod random;
mod table;
mod version;

use paravane_abi::{
    errno::Errno,
    grant_table::{GrantEntryV1, GrantEntryV2Full, GrantStatus, GrantTableOp, SetVersion, SetupTable, gtf},
    hypercall::Hypercall,
    units::{DomId, GrantRef, MachAddr, Mfn, Pfn},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::{
    CONTROL_DOMAIN,
    testing::{BUFFER, FREE, Guest, frame, machine_address, virt},
};

/// A page that tests grant.
const PAGE: Pfn = Pfn(FREE.0 + 4);
/// A page table.
const TABLE: Pfn = Pfn(3);
/// A reference that is not reserved.
const REF: GrantRef = GrantRef(9);

impl Guest {
    /// Makes one request, and returns the hypercall's own result.
    fn grant_op<T>(&mut self, op: GrantTableOp, request: &mut T) -> Result<i64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.put(machine_address(BUFFER), request);
        let args = [u64::from(op.number()), virt(BUFFER).0, 1];
        let result = self.call(Hypercall::GrantTableOp, &args);
        *request = self.get(machine_address(BUFFER));
        result
    }

    fn set_version(&mut self, version: u32) -> (Result<i64, Errno>, u32) {
        let mut request = SetVersion { version };
        let result = self.grant_op(GrantTableOp::SetVersion, &mut request);
        (result, request.version)
    }

    /// Grows the table and returns the status and the frames listed.
    fn setup_table(&mut self, frames: u32) -> (GrantStatus, Vec<Mfn>) {
        let mut request = SetupTable::new_zeroed();
        (request.dom, request.nr_frames) = (DomId::SELF.0, frames);
        request.frame_list = virt(FREE).0;
        assert_eq!(self.grant_op(GrantTableOp::SetupTable, &mut request), Ok(0));
        let listed = (0..u64::from(frames.min(512)))
            .map(|index| Mfn(self.get(MachAddr(machine_address(FREE).0 + index * 8))));
        (GrantStatus::from_number(request.status).unwrap(), listed.collect())
    }

    fn entry_v1(&self, reference: GrantRef) -> GrantEntryV1 {
        self.get(self.domain.grants.entry(reference))
    }

    fn put_v1(&self, reference: GrantRef, flags: u16, domain: DomId, page: Mfn) {
        let frame = u32::try_from(page.0).unwrap();
        self.put(self.domain.grants.entry(reference), &GrantEntryV1 { flags, domid: domain.0, frame });
    }

    fn put_v2(&self, reference: GrantRef, flags: u16, domain: DomId, page: Mfn) {
        let mut entry = GrantEntryV2Full::new_zeroed();
        (entry.flags, entry.domid, entry.frame) = (flags, domain.0, page.0);
        self.put(self.domain.grants.entry(reference), &entry);
    }

    /// Grants [`PAGE`] to the control domain.
    fn grant_page(&self, flags: u16) {
        self.put_v1(REF, gtf::PERMIT_ACCESS | flags, CONTROL_DOMAIN, frame(PAGE));
    }

    /// The bits that say that an entry is in use.
    fn in_use(&self, reference: GrantRef) -> u16 {
        self.get::<u16>(self.domain.grants.status(reference)) & (gtf::READING | gtf::WRITING)
    }
}
