//! Requests of the memory families: `memory_op`, `mmu_update`, `mmuext_op`.

use paravane_abi::{
    memory::{
        E820Entry, ForeignMemoryMap, MachphysMfnList, MemoryExchange, MemoryMap, MemoryReservation,
        ReservedDeviceMemoryMap,
    },
    mmu::{MmuExtRequest, MmuUpdate},
    units::{DomId, Pfn},
};
use zerocopy::FromZeros;

use super::*;
use crate::testing::{FREE, frame};

/// A page for lists.
const LIST: Pfn = Pfn(FREE.0 + 1);
/// A page that is given away.
const GIVEN: Pfn = Pfn(FREE.0 + 2);
/// Pages that are unmapped and empty.
const TABLE: Pfn = Pfn(FREE.0 + 3);
const OTHER_TABLE: Pfn = Pfn(FREE.0 + 4);

impl Guest {
    /// Takes a page's mapping away, and empties it.
    pub(super) fn unmap_page(&mut self, page: Pfn) {
        assert_eq!(self.call(Hypercall::UpdateVaMapping, &[virt(page).0, 0, 0]), Ok(0));
        self.domain.memory.zero_frame(frame(page)).unwrap();
    }

    /// A reservation of one page, whose list holds `entry`.
    fn one_page(&self, entry: u64) -> MemoryReservation {
        self.put(machine_address(LIST), &entry);
        let mut reservation = MemoryReservation::new_zeroed();
        (reservation.extent_start, reservation.nr_extents) = (virt(LIST).0, 1);
        reservation.domid = DomId::SELF.0;
        reservation
    }
}

#[test]
fn memory_operations() {
    census(Hypercall::MemoryOp, |guest, op: MemoryOp| {
        let own = u32::from(DomId::SELF.0);
        let mut returns = 0;
        let argument = match op {
            MemoryOp::IncreaseReservation | MemoryOp::PopulatePhysmap => {
                guest.unmap_page(GIVEN);
                guest.domain.frames().release(frame(GIVEN)).unwrap();
                returns = 1;
                guest.place(&guest.one_page(GIVEN.0))
            }
            MemoryOp::DecreaseReservation => {
                guest.unmap_page(GIVEN);
                returns = 1;
                guest.place(&guest.one_page(frame(GIVEN).0))
            }
            MemoryOp::Exchange => {
                guest.unmap_page(GIVEN);
                let mut request = MemoryExchange::new_zeroed();
                (request.input, request.output) = (guest.one_page(frame(GIVEN).0), guest.one_page(0));
                guest.put(machine_address(LIST), &[frame(GIVEN).0, GIVEN.0]);
                request.output.extent_start += 8;
                guest.place(&request)
            }
            MemoryOp::MachphysMfnList | MemoryOp::MachphysCompatMfnList => {
                let mut list = MachphysMfnList::new_zeroed();
                (list.max_extents, list.extent_start) = (1, virt(LIST).0);
                guest.place(&list)
            }
            MemoryOp::MemoryMap => {
                guest.domain.set_memory_map(vec![E820Entry::new_zeroed()]);
                let mut map = MemoryMap::new_zeroed();
                (map.nr_entries, map.buffer) = (1, virt(LIST).0);
                guest.place(&map)
            }
            MemoryOp::SetMemoryMap => {
                let mut request = ForeignMemoryMap::new_zeroed();
                (request.map.nr_entries, request.map.buffer) = (2, virt(LIST).0);
                request.domid = DomId::SELF.0;
                guest.place(&request)
            }
            MemoryOp::ReservedDeviceMemoryMap => guest.place(&ReservedDeviceMemoryMap::new_zeroed()),
            MemoryOp::MachphysMapping
            | MemoryOp::MachineMemoryMap
            | MemoryOp::GetSharingFreedPages
            | MemoryOp::GetSharingSharedPages => guest.place(&0_u64),
            MemoryOp::CurrentReservation | MemoryOp::MaximumReservation => {
                returns = i64::try_from(crate::testing::PAGES).unwrap();
                guest.place(&own)
            }
            MemoryOp::MaximumRamPage => {
                returns = i64::try_from(guest.domain.frame_table.machine.frames.end.0).unwrap();
                0
            }
            MemoryOp::MaximumGpfn
            | MemoryOp::AddToPhysmap
            | MemoryOp::RemoveFromPhysmap
            | MemoryOp::SetPodTarget
            | MemoryOp::GetPodTarget
            | MemoryOp::PagingOp
            | MemoryOp::AccessOp
            | MemoryOp::SharingOp
            | MemoryOp::AddToPhysmapBatch
            | MemoryOp::ClaimPages
            | MemoryOp::GetVnumainfo
            | MemoryOp::AcquireResource => guest.place(&[own, 0, 0, 0]),
        };
        Request::new(&[op.number().into(), argument]).returns(returns)
    });
}

#[test]
fn updates_of_page_tables() {
    census(Hypercall::MmuUpdate, |guest, op: MmuUpdateCommand| {
        let request = MmuUpdate { ptr: machine_address(GIVEN).0 | u64::from(op.number()), val: 0x77 };
        let argument = guest.place(&request);
        Request::new(&[argument, 1, 0, DomId::SELF.0.into()]).returns(0)
    });
}

#[test]
fn operations_on_page_tables() {
    census(Hypercall::MmuextOp, |guest, op: MmuExtOp| {
        for page in [TABLE, OTHER_TABLE] {
            guest.unmap_page(page);
        }
        let (arg1, arg2) = match op {
            MmuExtOp::PinL1Table
            | MmuExtOp::PinL2Table
            | MmuExtOp::PinL3Table
            | MmuExtOp::PinL4Table
            | MmuExtOp::NewUserBaseptr
            | MmuExtOp::ClearPage
            | MmuExtOp::MarkSuper
            | MmuExtOp::UnmarkSuper => (frame(TABLE).0, 0),
            MmuExtOp::NewBaseptr => (frame(Pfn(0)).0, 0),
            MmuExtOp::UnpinTable => {
                guest.domain.frames().pin(frame(TABLE), crate::frames::Level::L1).unwrap();
                (frame(TABLE).0, 0)
            }
            MmuExtOp::CopyPage => (frame(TABLE).0, frame(OTHER_TABLE).0),
            MmuExtOp::InvlpgLocal | MmuExtOp::InvlpgAll => (virt(LIST).0, 0),
            MmuExtOp::TlbFlushMulti | MmuExtOp::InvlpgMulti => {
                guest.put(machine_address(LIST), &3_u64);
                (virt(LIST).0, virt(LIST).0)
            }
            MmuExtOp::SetLdt => (virt(LIST).0, 512),
            MmuExtOp::TlbFlushLocal
            | MmuExtOp::TlbFlushAll
            | MmuExtOp::FlushCache
            | MmuExtOp::FlushCacheGlobal => (0, 0),
        };
        let mut request = MmuExtRequest::new_zeroed();
        (request.cmd, request.arg1, request.arg2) = (op.number(), arg1, arg2);
        let argument = guest.place(&request);
        Request::new(&[argument, 1, 0, DomId::SELF.0.into()]).returns(0)
    });
}
