//! What published vulnerabilities of Xen's grant tables tried: see `docs/past-vulnerabilities.md`.

use paravane_abi::grant_table::{CacheFlush, CopyBytes, GetStatusFrames, TransferPage, gntcopy, gntmap};

use super::*;
use crate::testing::OWN;

const WINDOW: Pfn = Pfn(FREE.0 + 20);
const DEST: Pfn = Pfn(FREE.0 + 21);
const HOST: u32 = gntmap::HOST_MAP;

/// The L1 entry of a page.
fn entry_address(page: Pfn) -> u64 {
    machine_address(TABLE).0 + page.0 * 8
}

impl Guest {
    fn granting_to_itself(flags: u16) -> Self {
        let guest = Self::new(1);
        guest.put_v1(REF, gtf::PERMIT_ACCESS | flags, OWN, frame(PAGE));
        guest
    }

    /// Copies four bytes out of the grant.
    fn copy_from_grant(&mut self, dest: Mfn) -> GrantStatus {
        let mut request = CopyBytes::new_zeroed();
        (request.source.place, request.source.domid) = (REF.0.into(), OWN.0);
        (request.dest.place, request.dest.domid) = (dest.0, DomId::SELF.0);
        (request.len, request.flags) = (4, gntcopy::SOURCE_GREF);
        self.copied(request)
    }

    fn copied(&mut self, mut request: CopyBytes) -> GrantStatus {
        assert_eq!(self.grant_op(GrantTableOp::Copy, &mut request), Ok(0));
        self.domain.recount().unwrap();
        GrantStatus::from_number(request.status).unwrap()
    }
}

#[test]
fn an_entry_between_two_others_is_no_place_for_a_mapping() {
    let mut guest = Guest::granting_to_itself(0);
    for offset in 1..8 {
        let at = entry_address(WINDOW) + offset;
        let before: [u64; 2] = guest.get(MachAddr(entry_address(WINDOW)));
        let (status, _) = guest.map(at, HOST | gntmap::CONTAINS_PTE);
        assert_eq!(status, GrantStatus::GeneralError, "{offset}");
        assert_eq!(guest.get::<[u64; 2]>(MachAddr(entry_address(WINDOW))), before);
        assert_eq!(guest.in_use(REF), 0);
    }
}

#[test]
fn a_copy_that_fails_leaves_no_mark_on_either_side() {
    let mut guest = Guest::granting_to_itself(0);
    for dest in [frame(TABLE), Mfn(1), guest.domain.frame_table.machine.gdt] {
        assert_ne!(guest.copy_from_grant(dest), GrantStatus::Okay);
        assert_eq!(guest.in_use(REF), 0, "{dest}");
    }
    let mut request = CopyBytes::new_zeroed();
    (request.source.place, request.source.domid) = (frame(PAGE).0, DomId::SELF.0);
    (request.dest.place, request.dest.domid) = (REF.0.into(), OWN.0);
    (request.source.offset, request.len, request.flags) = (4095, 2, gntcopy::DEST_GREF);
    assert_eq!(guest.copied(request), GrantStatus::BadCopyArg);
    assert_eq!(guest.in_use(REF), 0);
}

#[test]
fn caches_cannot_be_flushed_through_a_grant() {
    let mut guest = Guest::granting_to_itself(0);
    for operation in [1_u32, 2, 1 << 31] {
        let mut request = CacheFlush::new_zeroed();
        (request.a, request.op) = (REF.0.into(), operation);
        assert_eq!(guest.grant_op(GrantTableOp::CacheFlush, &mut request), Err(Errno::Enosys));
    }
}

#[test]
fn a_mapping_whose_rights_were_changed_is_not_unmapped() {
    for (flags, rights, other) in [(HOST, 7, 5), (HOST | gntmap::READONLY, 5, 7)] {
        let mut guest = Guest::granting_to_itself(0);
        let window = virt(WINDOW).0;
        let (status, mapped) = guest.map(window, flags);
        assert_eq!(status, GrantStatus::Okay);
        let remap = |guest: &mut Guest, flags: u64| {
            let args = [window, machine_address(PAGE).0 | flags, 0];
            assert_eq!(guest.call(Hypercall::UpdateVaMapping, &args), Ok(0));
        };
        remap(&mut guest, other);
        assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::GeneralError);
        remap(&mut guest, rights);
        assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::Okay);
        assert_eq!(guest.in_use(REF), 0);
    }
}

#[test]
fn a_granted_page_that_is_given_back_is_not_given_out_while_it_is_mapped() {
    let mut guest = Guest::granting_to_itself(0);
    let bus = machine_address(PAGE).0;
    for (address, flags) in [(virt(WINDOW).0, HOST), (0, gntmap::DEVICE_MAP)] {
        let (status, mapped) = guest.map(address, flags);
        assert_eq!(status, GrantStatus::Okay);
        assert_eq!(guest.call(Hypercall::UpdateVaMapping, &[virt(PAGE).0, 0, 0]), Ok(0));
        guest.domain.frames().release(frame(PAGE)).unwrap();
        guest.domain.recount().unwrap();
        assert_eq!(guest.domain.frame_table.owner(frame(PAGE)), crate::frames::Owner::Guest);
        let (host, device) = if flags == HOST { (address, 0) } else { (0, bus) };
        assert_eq!(guest.unmap(host, device, mapped.handle), GrantStatus::Okay);
        assert_eq!(guest.domain.frame_table.owner(frame(PAGE)), crate::frames::Owner::Nobody);
        // For the next round.
        let got = guest.domain.frames().allocate(0, u64::MAX, Some(PAGE));
        assert_eq!(got, Some(frame(PAGE)));
    }
}

#[test]
fn a_page_cannot_be_transferred() {
    let mut guest = Guest::new(1);
    for mfn in [frame(PAGE), frame(TABLE), Mfn(0)] {
        let mut request = TransferPage::new_zeroed();
        request.mfn = mfn.0;
        assert_eq!(guest.grant_op(GrantTableOp::Transfer, &mut request), Err(Errno::Eopnotsupp));
    }
    guest.domain.recount().unwrap();
}

#[test]
fn a_refused_mapping_has_a_negative_status_and_takes_no_handle() {
    let mut guest = Guest::new(1);
    for _ in 0..3 {
        let (status, request) = guest.map(virt(WINDOW).0, HOST);
        assert_eq!((status, request.status), (GrantStatus::GeneralError, -1), "nothing is granted");
    }
    guest.put_v1(REF, gtf::PERMIT_ACCESS, OWN, frame(PAGE));
    let (status, request) = guest.map(virt(WINDOW).0, HOST);
    assert_eq!((status, request.handle), (GrantStatus::Okay, 0), "the first handle is free");
}

#[test]
fn a_list_of_status_frames_is_no_longer_than_was_asked_for() {
    let mut guest = Guest::new(1);
    guest.set_version(2).0.unwrap();
    guest.domain.grow_grant_table(64);
    for asked in [0, 1, 7, 8, 9, u32::MAX] {
        let list = machine_address(DEST);
        guest.domain.memory.write(list, &[0xff; 4096]).unwrap();
        let mut request = GetStatusFrames::new_zeroed();
        (request.dom, request.nr_frames, request.frame_list) = (DomId::SELF.0, asked, virt(DEST).0);
        assert_eq!(guest.grant_op(GrantTableOp::GetStatusFrames, &mut request), Ok(0));
        let fits = asked <= 8;
        assert_eq!(request.status == GrantStatus::Okay.number(), fits, "{asked}");
        let written = if fits { u64::from(asked) } else { 0 };
        assert_eq!(guest.get::<u64>(MachAddr(list.0 + 8 * written)), u64::MAX, "{asked}");
    }
}

#[test]
fn a_copy_of_nothing_looks_at_nothing() {
    let mut guest = Guest::new(1);
    let mut request = CopyBytes::new_zeroed();
    (request.source.domid, request.dest.domid) = (999, 998);
    (request.source.place, request.dest.place) = (u64::MAX, u64::MAX);
    (request.source.offset, request.dest.offset) = (u16::MAX, u16::MAX);
    for flags in 0..4 {
        request.flags = flags;
        assert_eq!(guest.copied(request), GrantStatus::Okay, "{flags}");
    }
}

#[test]
fn an_entry_that_changed_while_in_use_cannot_be_copied_to() {
    let mut guest = Guest::granting_to_itself(0);
    let (_, mapped) = guest.map(virt(WINDOW).0, HOST | gntmap::READONLY);
    // The entry now names a page table.
    guest.put_v1(REF, gtf::PERMIT_ACCESS | gtf::READING, OWN, frame(TABLE));
    let before: [u64; 4] = guest.get(machine_address(TABLE));
    let mut request = CopyBytes::new_zeroed();
    (request.source.place, request.source.domid) = (frame(DEST).0, DomId::SELF.0);
    (request.dest.place, request.dest.domid) = (REF.0.into(), OWN.0);
    (request.len, request.flags) = (32, gntcopy::DEST_GREF);
    assert_eq!(guest.copied(request), GrantStatus::GeneralError);
    assert_eq!(guest.get::<[u64; 4]>(machine_address(TABLE)), before);
    assert_eq!(guest.in_use(REF), gtf::READING, "the mapping's use goes on, and no more");
    assert_eq!(guest.unmap(virt(WINDOW).0, 0, mapped.handle), GrantStatus::Okay);
}
