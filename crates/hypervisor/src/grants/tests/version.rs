//! Changing versions, and swapping entries.

use paravane_abi::grant_table::{GetStatusFrames, GetVersion, GrantEntryV2Sub, SwapGrantRef};

use super::*;
use crate::GrantAccess;

const CONSOLE: GrantRef = GrantRef(0);

impl Guest {
    fn swap_refs(&mut self, a: u32, b: u32) -> GrantStatus {
        let mut request = SwapGrantRef::new_zeroed();
        (request.ref_a, request.ref_b) = (a, b);
        assert_eq!(self.grant_op(GrantTableOp::SwapGrantRef, &mut request), Ok(0));
        GrantStatus::from_number(request.status).unwrap()
    }

    fn status_frames(&mut self, frames: u32) -> (GrantStatus, Mfn) {
        let mut request = GetStatusFrames::new_zeroed();
        (request.dom, request.nr_frames, request.frame_list) = (DomId::SELF.0, frames, virt(FREE).0);
        assert_eq!(self.grant_op(GrantTableOp::GetStatusFrames, &mut request), Ok(0));
        let status = GrantStatus::from_number(request.status).unwrap();
        (status, Mfn(self.get(machine_address(FREE))))
    }
}

#[test]
fn the_version_in_use_is_written_back_whatever_happens() {
    let mut guest = Guest::new(1);
    for (asked, result, now) in [
        (0, Err(Errno::Einval), 1),
        (3, Err(Errno::Einval), 1),
        (1, Ok(0), 1),
        (2, Ok(0), 2),
        (2, Ok(0), 2),
        (u32::MAX, Err(Errno::Einval), 2),
        (1, Ok(0), 1),
    ] {
        assert_eq!(guest.set_version(asked), (result, now), "{asked}");
        let mut version = GetVersion { dom: DomId::SELF.0, pad: 0, version: 0 };
        assert_eq!(guest.grant_op(GrantTableOp::GetVersion, &mut version), Ok(0));
        assert_eq!(version.version, now);
    }
    for (domain, errno) in [(CONTROL_DOMAIN, Errno::Eperm), (DomId(9), Errno::Esrch)] {
        let mut version = GetVersion { dom: domain.0, pad: 0, version: 0 };
        assert_eq!(guest.grant_op(GrantTableOp::GetVersion, &mut version), Err(errno));
    }
}

#[test]
fn a_change_keeps_the_reserved_entries_and_clears_the_others() {
    let mut guest = Guest::new(1);
    guest.setup_table(2);
    guest.domain.seed_grant(CONSOLE, frame(PAGE)).unwrap();
    guest.grant_page(0);
    let console = guest.domain.backend_grant(CONSOLE, GrantAccess::Write).unwrap();
    assert_eq!(guest.set_version(2).0, Ok(0));
    let entry: GrantEntryV2Full = guest.get(guest.domain.grants.entry(CONSOLE));
    assert_eq!((entry.flags, entry.domid, entry.frame), (gtf::PERMIT_ACCESS, 0, frame(PAGE).0));
    assert_eq!(guest.in_use(CONSOLE), gtf::READING | gtf::WRITING, "the backend uses it all the while");
    assert_eq!(guest.get::<[u64; 2]>(guest.domain.grants.entry(REF)), [0, 0]);
    assert_eq!(guest.domain.grants.entries(), 2 * 256);
    assert_eq!(guest.set_version(1).0, Ok(0));
    let flags = gtf::PERMIT_ACCESS | gtf::READING | gtf::WRITING;
    assert_eq!(guest.entry_v1(CONSOLE).flags, flags);
    guest.domain.release_grant(console);
    assert_eq!(guest.entry_v1(CONSOLE).flags, gtf::PERMIT_ACCESS);
}

#[test]
fn a_table_in_use_keeps_its_version() {
    let mut guest = Guest::new(1);
    guest.grant_page(0);
    let grant = guest.domain.backend_grant(REF, GrantAccess::Read).unwrap();
    assert_eq!(guest.set_version(2), (Err(Errno::Ebusy), 1));
    guest.domain.release_grant(grant);
    assert_eq!(guest.set_version(2), (Ok(0), 2));
    guest.put_v2(GrantRef(7), gtf::PERMIT_ACCESS, CONTROL_DOMAIN, Mfn(1 << 32));
    assert_eq!(guest.set_version(1), (Err(Errno::Erange), 2));
    guest.put_v2(GrantRef(7), gtf::TRANSITIVE, CONTROL_DOMAIN, frame(PAGE));
    assert_eq!(guest.set_version(1), (Err(Errno::Erange), 2));
    guest.put_v2(GrantRef(7), gtf::ACCEPT_TRANSFER, CONTROL_DOMAIN, frame(PAGE));
    assert_eq!(guest.set_version(1), (Ok(0), 1));
    assert_eq!(guest.entry_v1(GrantRef(7)).flags, 0, "what was no grant becomes none");
}

#[test]
fn status_words_exist_in_version_2_and_go_when_nobody_maps_them() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.status_frames(1).0, GrantStatus::GeneralError);
    guest.set_version(2).0.unwrap();
    let (status, words) = guest.status_frames(1);
    assert_eq!(status, GrantStatus::Okay);
    assert_eq!(guest.status_frames(2).0, GrantStatus::GeneralError);
    guest.setup_table(9);
    assert_eq!(guest.status_frames(2).0, GrantStatus::Okay);
    let slot = machine_address(TABLE).0 + FREE.0 * 8;
    for (entry, result) in [(words.0 << 12 | 7, Err(Errno::Ebusy)), (0, Ok(0))] {
        guest.put(machine_address(BUFFER), &[slot, entry]);
        let args = [virt(BUFFER).0, 1, 0, u64::from(DomId::SELF.0)];
        assert_eq!(guest.call(Hypercall::MmuUpdate, &args), Ok(0));
        assert_eq!(guest.set_version(1).0, result);
    }
}

#[test]
fn version_2_keeps_use_apart_from_the_entry() {
    let mut guest = Guest::new(1);
    guest.set_version(2).0.unwrap();
    guest.put_v2(REF, gtf::PERMIT_ACCESS, CONTROL_DOMAIN, frame(PAGE));
    let odd = GrantRef(11);
    guest.put_v2(odd, gtf::PERMIT_ACCESS | gtf::READONLY, CONTROL_DOMAIN, frame(PAGE));
    let writer = guest.domain.backend_grant(REF, GrantAccess::Write).unwrap();
    let reader = guest.domain.backend_grant(odd, GrantAccess::Read).unwrap();
    assert_eq!(guest.in_use(REF), gtf::READING | gtf::WRITING);
    assert_eq!(guest.in_use(odd), gtf::READING);
    assert_eq!(guest.in_use(GrantRef(10)), 0);
    let entry: GrantEntryV2Full = guest.get(guest.domain.grants.entry(REF));
    assert_eq!(entry.flags, gtf::PERMIT_ACCESS);
    let refusal = guest.domain.backend_grant(odd, GrantAccess::Write).unwrap_err();
    assert_eq!(refusal.status, GrantStatus::GeneralError);
    assert_eq!(guest.in_use(odd), gtf::READING, "the reader's bit stays");
    guest.domain.release_grant(writer);
    guest.domain.release_grant(reader);
    assert_eq!((guest.in_use(REF), guest.in_use(odd)), (0, 0));
}

#[test]
fn a_part_of_a_page_cannot_be_mapped() {
    let mut guest = Guest::new(1);
    guest.set_version(2).0.unwrap();
    let mut entry = GrantEntryV2Sub::new_zeroed();
    (entry.flags, entry.frame, entry.length) = (gtf::PERMIT_ACCESS | gtf::SUB_PAGE, frame(PAGE).0, 64);
    guest.put(guest.domain.grants.entry(REF), &entry);
    let refusal = guest.domain.backend_grant(REF, GrantAccess::Read).unwrap_err();
    assert_eq!(refusal.status, GrantStatus::GeneralError);
    assert_eq!(guest.in_use(REF), 0);
}

#[test]
fn entries_swap_unless_they_are_in_use() {
    for version in [1, 2] {
        let mut guest = Guest::new(1);
        guest.set_version(version).0.unwrap();
        let (a, b) = (GrantRef(8), GrantRef(9));
        guest.domain.seed_grant(a, frame(PAGE)).unwrap();
        guest.domain.seed_grant(b, frame(FREE)).unwrap();
        assert_eq!(guest.swap_refs(8, 9), GrantStatus::Okay);
        let grant = guest.domain.backend_grant(a, GrantAccess::Read).unwrap();
        assert_eq!(grant.frame(), frame(FREE));
        assert_eq!(guest.swap_refs(8, 9), GrantStatus::Eagain);
        assert_eq!(guest.swap_refs(9, 8), GrantStatus::Eagain);
        assert_eq!(guest.swap_refs(8, 8), GrantStatus::Okay);
        guest.domain.release_grant(grant);
        assert_eq!(guest.swap_refs(9, 8), GrantStatus::Okay);
        for (a, b) in [(8, 512), (u32::MAX, 8), (600, 600)] {
            assert_eq!(guest.swap_refs(a, b), GrantStatus::BadGntref, "{a} {b}");
        }
    }
}
