//! Copies.

use paravane_abi::{
    grant_table::{CopyBytes, CopySide, GrantEntryV2Sub, GrantEntryV2Transitive, gntcopy},
    units::PAGE_SIZE,
};

use super::*;
use crate::testing::OWN;

const SOURCE: Pfn = PAGE;
const DEST: Pfn = Pfn(PAGE.0 + 1);

fn side(domain: DomId, place: u64, offset: u16) -> CopySide {
    let mut side = CopySide::new_zeroed();
    (side.domid, side.place, side.offset) = (domain.0, place, offset);
    side
}

/// A side named by its frame.
fn page(page: Pfn, offset: u16) -> CopySide {
    side(DomId::SELF, frame(page).0, offset)
}

fn copy(source: CopySide, dest: CopySide, len: u16, flags: u16) -> CopyBytes {
    let mut request = CopyBytes::new_zeroed();
    (request.source, request.dest, request.len, request.flags) = (source, dest, len, flags);
    request
}

impl Guest {
    fn copy_once(&mut self, mut request: CopyBytes) -> GrantStatus {
        assert_eq!(self.grant_op(GrantTableOp::Copy, &mut request), Ok(0));
        self.domain.recount().unwrap();
        GrantStatus::from_number(request.status).unwrap()
    }
}

#[test]
fn bytes_go_from_page_to_page() {
    let mut guest = Guest::new(1);
    guest.domain.memory.write(MachAddr(machine_address(SOURCE).0 + 100), b"granted").unwrap();
    assert_eq!(guest.copy_once(copy(page(SOURCE, 100), page(DEST, 4089), 7, 0)), GrantStatus::Okay);
    assert_eq!(guest.get::<[u8; 7]>(MachAddr(machine_address(DEST).0 + 4089)), *b"granted");
    assert_eq!(guest.copy_once(copy(page(SOURCE, 0), page(DEST, 0), 0, 0)), GrantStatus::Okay);
}

#[test]
fn own_grants_are_used_and_released() {
    let mut guest = Guest::new(1);
    guest.put_v1(REF, gtf::PERMIT_ACCESS | gtf::READONLY, OWN, frame(SOURCE));
    guest.put_v1(GrantRef(10), gtf::PERMIT_ACCESS, OWN, frame(DEST));
    guest.put(machine_address(SOURCE), b"abcd");
    let both = gntcopy::SOURCE_GREF | gntcopy::DEST_GREF;
    let (source, dest) = (side(OWN, 9, 0), side(DomId::SELF, 10, 8));
    assert_eq!(guest.copy_once(copy(source, dest, 4, both)), GrantStatus::Okay);
    assert_eq!(guest.get::<[u8; 4]>(MachAddr(machine_address(DEST).0 + 8)), *b"abcd");
    assert_eq!(guest.copy_once(copy(dest, source, 4, both)), GrantStatus::GeneralError, "read-only");
    assert_eq!((guest.in_use(REF), guest.in_use(GrantRef(10))), (0, 0));
}

#[test]
fn bad_sides_are_refused_each_in_its_way() {
    let mut guest = Guest::new(1);
    guest.put_v1(REF, gtf::PERMIT_ACCESS, CONTROL_DOMAIN, frame(SOURCE));
    guest.put_v1(GrantRef(10), gtf::PERMIT_ACCESS, OWN, Mfn(1));
    let good = page(DEST, 0);
    let gref = gntcopy::SOURCE_GREF;
    for (source, dest, len, flags, status) in [
        (side(OWN, frame(SOURCE).0, 0), good, 1, 0, GrantStatus::PermissionDenied),
        (side(CONTROL_DOMAIN, frame(SOURCE).0, 0), good, 1, 0, GrantStatus::PermissionDenied),
        (good, side(OWN, frame(DEST).0, 0), 1, 0, GrantStatus::PermissionDenied),
        (side(DomId(50), 9, 0), good, 1, gref, GrantStatus::BadDomain),
        (side(CONTROL_DOMAIN, 9, 0), good, 1, gref, GrantStatus::GeneralError),
        (side(CONTROL_DOMAIN, 512, 0), good, 1, gref, GrantStatus::BadGntref),
        (side(OWN, 9, 0), good, 1, gref, GrantStatus::GeneralError),
        (side(OWN, 10, 0), good, 1, gref, GrantStatus::BadPage),
        (side(OWN, 512, 0), good, 1, gref, GrantStatus::BadGntref),
        (side(DomId::SELF, 1, 0), good, 1, 0, GrantStatus::BadPage),
        (side(DomId::SELF, u64::MAX, 0), good, 1, 0, GrantStatus::BadPage),
        (good, page(TABLE, 0), 1, 0, GrantStatus::GeneralError),
        (page(SOURCE, 4095), good, 2, 0, GrantStatus::BadCopyArg),
        (good, page(SOURCE, 1), 4096, 0, GrantStatus::BadCopyArg),
        (good, page(SOURCE, 0), u16::MAX, 0, GrantStatus::BadCopyArg),
        (page(SOURCE, u16::MAX), good, 1, 0, GrantStatus::BadCopyArg),
        // Nothing is looked at for nothing.
        (side(DomId(50), 9, 0), good, 0, gref, GrantStatus::Okay),
    ] {
        let request = copy(source, dest, len, flags);
        assert_eq!(guest.copy_once(request), status, "{request:?}");
    }
    assert_eq!((guest.in_use(REF), guest.in_use(GrantRef(10))), (0, 0));
}

#[test]
fn a_part_of_a_page_is_copied_within_its_bounds() {
    let mut guest = Guest::new(1);
    guest.set_version(2).0.unwrap();
    let mut entry = GrantEntryV2Sub::new_zeroed();
    (entry.flags, entry.domid) = (gtf::PERMIT_ACCESS | gtf::SUB_PAGE, OWN.0);
    (entry.frame, entry.page_off, entry.length) = (frame(SOURCE).0, 100, 50);
    guest.put(guest.domain.grants.entry(REF), &entry);
    for (offset, len, status) in [
        (100, 50, GrantStatus::Okay),
        (149, 1, GrantStatus::Okay),
        (99, 2, GrantStatus::GeneralError),
        (149, 2, GrantStatus::GeneralError),
    ] {
        let request = copy(side(OWN, 9, offset), page(DEST, 0), len, gntcopy::SOURCE_GREF);
        assert_eq!(guest.copy_once(request), status, "{offset} {len}");
    }
    assert_eq!(guest.in_use(REF), 0);
}

#[test]
fn a_grant_of_a_grant_leads_nowhere() {
    let mut guest = Guest::new(1);
    guest.set_version(2).0.unwrap();
    for (domain, gref, status) in [
        (OWN, 1, GrantStatus::GeneralError),
        (DomId(50), 1, GrantStatus::GeneralError),
        (CONTROL_DOMAIN, 1, GrantStatus::GeneralError),
        (CONTROL_DOMAIN, 512, GrantStatus::BadGntref),
    ] {
        let mut entry = GrantEntryV2Transitive::new_zeroed();
        (entry.flags, entry.domid, entry.trans_domid, entry.gref) = (gtf::TRANSITIVE, OWN.0, domain.0, gref);
        guest.put(guest.domain.grants.entry(REF), &entry);
        let request = copy(side(OWN, 9, 0), page(DEST, 0), 1, gntcopy::SOURCE_GREF);
        assert_eq!(guest.copy_once(request), status, "{domain} {gref}");
        assert_eq!(guest.in_use(REF), 0);
    }
}

#[test]
fn many_requests_are_answered_in_batches() {
    let mut guest = Guest::new(1);
    let good = copy(page(SOURCE, 0), page(DEST, 0), 1, 0);
    let size = size_of::<CopyBytes>() as u64;
    let at = |index: u64| MachAddr(machine_address(FREE).0 + index * size);
    for index in 0..100 {
        let mut request = good;
        request.status = 77;
        guest.put(at(index), &request);
    }
    let op = GrantTableOp::Copy.number().into();
    assert_eq!(guest.call(Hypercall::GrantTableOp, &[op, virt(FREE).0, 100]), Ok(0));
    assert!((0..100).all(|index| guest.get::<CopyBytes>(at(index)).status == 0));
    // A list that leaves the guest's memory fails there.
    let last = Pfn(crate::testing::PAGES - 1);
    let near_the_end = virt(last).0 + PAGE_SIZE - size;
    guest.put(MachAddr(machine_address(last).0 + PAGE_SIZE - size), &good);
    let result = guest.call(Hypercall::GrantTableOp, &[op, near_the_end, 2]);
    assert_eq!(result, Err(Errno::Efault));
}
