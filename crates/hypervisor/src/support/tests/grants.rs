//! Requests of the grant table family. What is mapped is the guest's own grant.

use core::mem::offset_of;

use paravane_abi::{
    grant_table::{
        CacheFlush, CopyBytes, GetStatusFrames, GrantEntryV1, GrantTableOp, MapGrantRef, QuerySize,
        SetupTable, SwapGrantRef, TransferPage, UnmapAndReplace, UnmapGrantRef, gntmap, gtf,
    },
    units::{DomId, Pfn},
};
use zerocopy::FromZeros;

use super::*;
use crate::{
    grants::Version,
    testing::{FREE, OWN, frame},
};

const PAGE: Pfn = Pfn(FREE.0 + 4);
const WINDOW: Pfn = Pfn(FREE.0 + 5);
const OTHER: Pfn = Pfn(FREE.0 + 6);

impl Guest {
    /// Grants a page to the guest itself, and describes a mapping of it.
    fn own_grant(&self) -> MapGrantRef {
        let table = self.domain.grants.shared_frames().next().unwrap().base().unwrap();
        let frame = u32::try_from(frame(PAGE).0).unwrap();
        let entry = GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: OWN.0, frame };
        self.put(MachAddr(table.0 + 9 * size_of::<GrantEntryV1>() as u64), &entry);
        let mut request = MapGrantRef::new_zeroed();
        (request.host_addr, request.flags) = (virt(WINDOW).0, gntmap::HOST_MAP);
        (request.reference, request.dom) = (9, OWN.0);
        request
    }

    /// A handle of a mapping at [`WINDOW`].
    fn mapped(&mut self) -> u32 {
        let request = self.own_grant();
        let argument = self.place(&request);
        let args = [GrantTableOp::MapGrantRef.number().into(), argument, 1];
        assert_eq!(self.call(Hypercall::GrantTableOp, &args), Ok(0));
        self.get::<MapGrantRef>(machine_address(BUFFER)).handle
    }
}

fn one(op: GrantTableOp, argument: u64) -> Request {
    Request::new(&[op.number().into(), argument, 1]).returns(0)
}

#[test]
fn grant_table_operations() {
    census(Hypercall::GrantTableOp, |guest, op: GrantTableOp| match op {
        GrantTableOp::MapGrantRef => {
            one(op, guest.place(&guest.own_grant())).status_at(offset_of!(MapGrantRef, status))
        }
        GrantTableOp::UnmapGrantRef => {
            let mut request = UnmapGrantRef::new_zeroed();
            (request.handle, request.host_addr) = (guest.mapped(), virt(WINDOW).0);
            one(op, guest.place(&request)).status_at(offset_of!(UnmapGrantRef, status))
        }
        GrantTableOp::UnmapAndReplace => {
            let mut request = UnmapAndReplace::new_zeroed();
            (request.handle, request.host_addr) = (guest.mapped(), virt(WINDOW).0);
            request.new_addr = virt(OTHER).0;
            one(op, guest.place(&request)).status_at(offset_of!(UnmapAndReplace, status))
        }
        GrantTableOp::SetupTable => {
            let mut request = SetupTable::new_zeroed();
            (request.dom, request.nr_frames, request.frame_list) = (DomId::SELF.0, 2, virt(OTHER).0);
            one(op, guest.place(&request)).status_at(offset_of!(SetupTable, status))
        }
        GrantTableOp::GetStatusFrames => {
            guest.domain.set_grant_version(Version::V2).unwrap();
            let mut request = GetStatusFrames::new_zeroed();
            (request.dom, request.nr_frames, request.frame_list) = (DomId::SELF.0, 1, virt(OTHER).0);
            one(op, guest.place(&request)).status_at(offset_of!(GetStatusFrames, status))
        }
        GrantTableOp::Copy => {
            let mut request = CopyBytes::new_zeroed();
            (request.source.place, request.source.domid) = (frame(PAGE).0, DomId::SELF.0);
            (request.dest.place, request.dest.domid) = (frame(OTHER).0, DomId::SELF.0);
            request.len = 16;
            one(op, guest.place(&request)).status_at(offset_of!(CopyBytes, status))
        }
        GrantTableOp::QuerySize => {
            let mut request = QuerySize::new_zeroed();
            request.dom = DomId::SELF.0;
            one(op, guest.place(&request)).status_at(offset_of!(QuerySize, status))
        }
        GrantTableOp::SetVersion => one(op, guest.place(&2_u32)),
        GrantTableOp::GetVersion => one(op, guest.place(&[u32::from(DomId::SELF.0), 0])),
        GrantTableOp::SwapGrantRef => {
            let mut request = SwapGrantRef::new_zeroed();
            (request.ref_a, request.ref_b) = (8, 9);
            one(op, guest.place(&request)).status_at(offset_of!(SwapGrantRef, status))
        }
        GrantTableOp::DumpTable => one(op, guest.place(&0_u64)),
        GrantTableOp::Transfer => one(op, guest.place(&TransferPage::new_zeroed())),
        GrantTableOp::CacheFlush => one(op, guest.place(&CacheFlush::new_zeroed())),
    });
}
