//! The table's frames, and use by backends.

use paravane_abi::grant_table::{GetStatusFrames, QuerySize};

use super::*;
use crate::{GrantAccess, GrantRefusal};

#[test]
fn the_table_starts_with_a_frame_and_grows_to_its_limit() {
    let mut guest = Guest::new(1);
    let mut size = QuerySize::new_zeroed();
    size.dom = DomId::SELF.0;
    assert_eq!(guest.grant_op(GrantTableOp::QuerySize, &mut size), Ok(0));
    assert_eq!((size.nr_frames, size.max_nr_frames, size.status), (1, 64, 0));
    let (status, first) = guest.setup_table(1);
    assert_eq!((status, first.len()), (GrantStatus::Okay, 1));
    let (status, all) = guest.setup_table(64);
    assert_eq!((status, all[0]), (GrantStatus::Okay, first[0]));
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(guest.setup_table(65).0, GrantStatus::GeneralError);
    assert_eq!(guest.setup_table(u32::MAX).0, GrantStatus::GeneralError);
    assert_eq!(guest.setup_table(2).0, GrantStatus::Okay, "it never shrinks");
    assert_eq!(guest.domain.grants.entries(), 64 * 512);
    guest.domain.recount().unwrap();
}

#[test]
fn the_guest_can_map_its_table() {
    let mut guest = Guest::new(1);
    let (_, frames) = guest.setup_table(2);
    let slot = machine_address(TABLE).0 + FREE.0 * 8;
    guest.put(machine_address(BUFFER), &[slot, frames[1].0 << 12 | 7]);
    let args = [virt(BUFFER).0, 1, 0, u64::from(DomId::SELF.0)];
    assert_eq!(guest.call(Hypercall::MmuUpdate, &args), Ok(0));
    guest.domain.space(guest.contexts[0].kernel_root).write_value(virt(FREE), &gtf::PERMIT_ACCESS).unwrap();
    assert_eq!(guest.entry_v1(GrantRef(512)).flags, gtf::PERMIT_ACCESS);
    guest.domain.recount().unwrap();
}

#[test]
fn one_request_at_a_time_where_more_make_no_sense() {
    let mut guest = Guest::new(1);
    for op in [GrantTableOp::SetupTable, GrantTableOp::QuerySize, GrantTableOp::GetStatusFrames] {
        for count in [0, 2, 64] {
            let args = [u64::from(op.number()), virt(BUFFER).0, count];
            assert_eq!(guest.call(Hypercall::GrantTableOp, &args), Err(Errno::Einval), "{op} {count}");
        }
    }
    for &op in GrantTableOp::ALL {
        let negative = [u64::from(op.number()), virt(BUFFER).0, 1 << 31];
        assert_eq!(guest.call(Hypercall::GrantTableOp, &negative), Err(Errno::Einval), "{op}");
        let continued = [u64::from(op.number()) | 1 << 12, virt(BUFFER).0, 1];
        assert_eq!(guest.call(Hypercall::GrantTableOp, &continued), Err(Errno::Einval), "{op}");
    }
    assert_eq!(guest.call(Hypercall::GrantTableOp, &[13, virt(BUFFER).0, 1]), Err(Errno::Enosys));
}

#[test]
fn what_cannot_be_reached_is_a_fault() {
    let mut guest = Guest::new(1);
    for &op in GrantTableOp::ALL {
        let expected = match op {
            GrantTableOp::DumpTable | GrantTableOp::CacheFlush => Errno::Enosys,
            GrantTableOp::Transfer => Errno::Eopnotsupp,
            GrantTableOp::MapGrantRef
            | GrantTableOp::UnmapGrantRef
            | GrantTableOp::SetupTable
            | GrantTableOp::Copy
            | GrantTableOp::QuerySize
            | GrantTableOp::UnmapAndReplace
            | GrantTableOp::SetVersion
            | GrantTableOp::GetStatusFrames
            | GrantTableOp::GetVersion
            | GrantTableOp::SwapGrantRef => Errno::Efault,
        };
        let args = [u64::from(op.number()), 0, 1];
        assert_eq!(guest.call(Hypercall::GrantTableOp, &args), Err(expected), "{op}");
        let reserved = [u64::from(op.number()), 0xffff_8000_0000_0000, 1];
        let expected = if expected == Errno::Eopnotsupp { Errno::Efault } else { expected };
        assert_eq!(guest.call(Hypercall::GrantTableOp, &reserved), Err(expected), "{op}");
    }
    let mut request = SetupTable::new_zeroed();
    (request.dom, request.nr_frames, request.frame_list) = (DomId::SELF.0, 1, 0xffff_8000_0000_0000);
    assert_eq!(guest.grant_op(GrantTableOp::SetupTable, &mut request), Err(Errno::Efault));
    request.frame_list = 0x1000;
    assert_eq!(guest.grant_op(GrantTableOp::SetupTable, &mut request), Ok(0));
    assert_eq!(request.status, GrantStatus::BadVirtAddr.number());
}

#[test]
fn only_the_own_table_can_be_commanded() {
    let mut guest = Guest::new(1);
    for (domain, status) in [
        (DomId::SELF, GrantStatus::Okay),
        (crate::testing::OWN, GrantStatus::Okay),
        (CONTROL_DOMAIN, GrantStatus::PermissionDenied),
        (DomId(99), GrantStatus::BadDomain),
    ] {
        let mut setup = SetupTable::new_zeroed();
        (setup.dom, setup.nr_frames, setup.frame_list) = (domain.0, 1, virt(FREE).0);
        guest.grant_op(GrantTableOp::SetupTable, &mut setup).unwrap();
        let mut size = QuerySize::new_zeroed();
        size.dom = domain.0;
        guest.grant_op(GrantTableOp::QuerySize, &mut size).unwrap();
        let mut frames = GetStatusFrames::new_zeroed();
        (frames.dom, frames.frame_list) = (domain.0, virt(FREE).0);
        guest.grant_op(GrantTableOp::GetStatusFrames, &mut frames).unwrap();
        assert_eq!([setup.status, size.status, frames.status], [status.number(); 3], "{domain}");
    }
}

#[test]
fn a_backend_marks_the_entry_while_it_uses_it() {
    let mut guest = Guest::new(1);
    guest.grant_page(0);
    let reader = guest.domain.backend_grant(REF, GrantAccess::Read).unwrap();
    assert_eq!((reader.frame(), reader.access()), (frame(PAGE), GrantAccess::Read));
    assert_eq!(guest.in_use(REF), gtf::READING);
    let writer = guest.domain.backend_grant(REF, GrantAccess::Write).unwrap();
    assert_eq!(guest.in_use(REF), gtf::READING | gtf::WRITING);
    guest.domain.recount().unwrap();
    guest.domain.release_grant(writer);
    assert_eq!(guest.in_use(REF), gtf::READING);
    guest.domain.release_grant(reader);
    assert_eq!(guest.in_use(REF), 0);
    assert_eq!(guest.entry_v1(REF).flags, gtf::PERMIT_ACCESS);
    guest.domain.recount().unwrap();
}

#[test]
fn what_was_granted_at_first_holds_until_the_last_use_ends() {
    let mut guest = Guest::new(1);
    guest.grant_page(0);
    let first = guest.domain.backend_grant(REF, GrantAccess::Write).unwrap();
    guest.put_v1(REF, 0, DomId(5), frame(FREE));
    let second = guest.domain.backend_grant(REF, GrantAccess::Read).unwrap();
    assert_eq!(second.frame(), frame(PAGE));
    guest.domain.release_grant(first);
    guest.domain.release_grant(second);
    let refusal = guest.domain.backend_grant(REF, GrantAccess::Read).unwrap_err();
    assert_eq!(refusal.status, GrantStatus::GeneralError);
}

#[test]
fn a_grant_is_checked_before_it_is_used() {
    type Spoil = fn(&Guest);
    let cases: [(GrantRef, GrantAccess, GrantStatus, Spoil); 9] = [
        (GrantRef(512), GrantAccess::Read, GrantStatus::BadGntref, |_| {}),
        (GrantRef(u32::MAX), GrantAccess::Read, GrantStatus::BadGntref, |_| {}),
        (GrantRef(10), GrantAccess::Read, GrantStatus::GeneralError, |_| {}),
        (REF, GrantAccess::Read, GrantStatus::GeneralError, |guest| {
            guest.put_v1(REF, gtf::PERMIT_ACCESS, DomId(3), frame(PAGE));
        }),
        (REF, GrantAccess::Read, GrantStatus::GeneralError, |guest| {
            guest.put_v1(REF, gtf::ACCEPT_TRANSFER, CONTROL_DOMAIN, frame(PAGE));
        }),
        (REF, GrantAccess::Read, GrantStatus::GeneralError, |guest| guest.grant_page(gtf::SUB_PAGE)),
        (REF, GrantAccess::Write, GrantStatus::GeneralError, |guest| guest.grant_page(gtf::READONLY)),
        (REF, GrantAccess::Read, GrantStatus::BadPage, |guest| {
            guest.put_v1(REF, gtf::PERMIT_ACCESS, CONTROL_DOMAIN, Mfn(1));
        }),
        (REF, GrantAccess::Write, GrantStatus::GeneralError, |guest| {
            guest.put_v1(REF, gtf::PERMIT_ACCESS, CONTROL_DOMAIN, frame(TABLE));
        }),
    ];
    for (index, (reference, access, status, spoil)) in cases.into_iter().enumerate() {
        let mut guest = Guest::new(1);
        spoil(&guest);
        let refusal = guest.domain.backend_grant(reference, access).unwrap_err();
        assert_eq!((refusal.reference, refusal.status), (reference, status), "case {index}: {refusal}");
        assert_eq!(guest.in_use(REF), 0, "case {index}");
        guest.domain.recount().unwrap();
    }
}

#[test]
fn a_granted_page_stays_what_it_is() {
    let mut guest = Guest::new(1);
    guest.grant_page(gtf::READONLY);
    guest.put_v1(GrantRef(10), gtf::PERMIT_ACCESS, CONTROL_DOMAIN, frame(TABLE));
    let table = guest.domain.backend_grant(GrantRef(10), GrantAccess::Read).unwrap();
    assert_eq!(table.frame(), frame(TABLE), "reading a page table is harmless");
    guest.domain.release_grant(table);
    let text = GrantRefusal { reference: REF, status: GrantStatus::BadPage, why: "so" }.to_string();
    assert_eq!(text, "grant 9 of the guest cannot be used: so (bad_page)");
}

#[test]
fn uses_are_counted_up_to_a_limit() {
    let mut guest = Guest::new(1);
    guest.grant_page(0);
    let grants: Vec<_> =
        (0..128).map(|_| guest.domain.backend_grant(REF, GrantAccess::Read).unwrap()).collect();
    assert_eq!(
        guest.domain.backend_grant(REF, GrantAccess::Read).unwrap_err().status,
        GrantStatus::GeneralError
    );
    let writer = guest.domain.backend_grant(REF, GrantAccess::Write).unwrap();
    guest.domain.release_grant(writer);
    for grant in grants {
        assert_eq!(guest.in_use(REF), gtf::READING);
        guest.domain.release_grant(grant);
    }
    assert_eq!(guest.in_use(REF), 0);
}

#[test]
fn the_builder_seeds_grants_in_either_version() {
    for version in [1, 2] {
        let mut guest = Guest::new(1);
        guest.set_version(version).0.unwrap();
        guest.domain.seed_grant(GrantRef(0), frame(PAGE)).unwrap();
        let grant = guest.domain.backend_grant(GrantRef(0), GrantAccess::Write).unwrap();
        assert_eq!(grant.frame(), frame(PAGE));
        guest.domain.release_grant(grant);
        let refusal = guest.domain.seed_grant(GrantRef(512), frame(PAGE)).unwrap_err();
        assert_eq!(refusal.status, GrantStatus::BadGntref);
    }
    let mut guest = Guest::new(1);
    let refusal = guest.domain.seed_grant(GrantRef(0), Mfn(1 << 32)).unwrap_err();
    assert_eq!(refusal.status, GrantStatus::AddressTooBig);
}
