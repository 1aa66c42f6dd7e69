//! `mmuext_op`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    mmu::MmuExtOp,
    units::{DomId, GuestVirt, VcpuId},
    vm::VmAssistType,
};
use paravane_engine::TlbFlush;

use crate::{
    Flush,
    frames::{
        entry::{PRESENT, WRITABLE},
        level::Use,
        test_guest::{COUNTER_PFN, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF, SPARE_PFN, TestGuest, failed},
    },
};

const SELF: u64 = DomId::SELF.0 as u64;
const DATA: u64 = SPARE_PFN;
const OTHER: u64 = SPARE_PFN + 1;

fn op(guest: &mut TestGuest, op: MmuExtOp, arg1: u64, arg2: u64) -> i64 {
    raw(guest, u64::from(op.number()), arg1, arg2)
}

fn raw(guest: &mut TestGuest, number: u64, arg1: u64, arg2: u64) -> i64 {
    let request = guest.argument(&[number, arg1, arg2]);
    guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, SELF])
}

/// An L4 table that names the usual L3 table.
fn second_root(guest: &mut TestGuest, pfn: u64) -> u64 {
    for slot in 0..512 {
        let entry = if (256..272).contains(&slot) { 0 } else { guest.peek(L4_PFN, slot) };
        guest.poke(pfn, slot, entry);
    }
    guest.protect(pfn);
    guest.mfn(pfn).0
}

#[test]
fn pins_hold_once() {
    let mut guest = TestGuest::new();
    for (pin, pfn) in
        [(MmuExtOp::PinL1Table, L1_PFN), (MmuExtOp::PinL2Table, L2_PFN), (MmuExtOp::PinL3Table, L3_PFN)]
    {
        let mfn = guest.mfn(pfn).0;
        assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, mfn, 0), failed(Errno::Einval));
        assert_eq!(op(&mut guest, pin, mfn, 0), 0);
        assert_eq!(op(&mut guest, pin, mfn, 0), failed(Errno::Einval));
        assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, mfn, 0), 0);
        assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, mfn, 0), failed(Errno::Einval));
    }
    let root = guest.mfn(L4_PFN).0;
    assert_eq!(op(&mut guest, MmuExtOp::PinL4Table, root, 0), failed(Errno::Einval));
    // vCPU 0 still uses it.
    assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, root, 0), 0);
    assert!(guest.domain.frame_table.record(guest.mfn(L4_PFN)).unwrap().is_used_as(Use::L4));
    for frame in [0, guest.machine.gdt.0, guest.machine.shared_info.0, guest.mfn(DATA).0, u64::MAX] {
        assert_eq!(op(&mut guest, MmuExtOp::PinL4Table, frame, 0), failed(Errno::Einval), "{frame:#x}");
        assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, frame, 0), failed(Errno::Einval), "{frame:#x}");
    }
}

#[test]
fn a_new_kernel_root_shows_the_m2p_and_drops_the_old_one() {
    let mut guest = TestGuest::new();
    let new = second_root(&mut guest, DATA);
    assert_eq!(op(&mut guest, MmuExtOp::NewBaseptr, new, 0), 0);
    assert_eq!(guest.context.kernel_root.0, new);
    assert_eq!(guest.peek(DATA, 256) >> 12, guest.machine.m2p_root().0);
    let old = guest.mfn(L4_PFN);
    assert_eq!(guest.domain.frame_table.record(old).unwrap().uses, 1);
    // The same root again is a flush.
    guest.domain.take_flushes();
    assert_eq!(op(&mut guest, MmuExtOp::NewBaseptr, new, 0), 0);
    assert_eq!(guest.domain.take_flushes(), [Flush { vcpu: VcpuId(0), what: TlbFlush::All }]);
    for bad in [0, guest.mfn(L3_PFN).0, guest.mfn(OTHER).0, guest.machine.gdt.0] {
        assert_eq!(op(&mut guest, MmuExtOp::NewBaseptr, bad, 0), failed(Errno::Einval));
    }
    assert_eq!(guest.context.kernel_root.0, new);
    assert_eq!(op(&mut guest, MmuExtOp::UnpinTable, old.0, 0), 0);
    assert_eq!(guest.domain.frame_table.record(old).unwrap().uses, 0);
    // It is no table any more, so it may be written.
    let entry = guest.entry(L4_PFN, LEAF);
    assert_eq!(guest.map(L4_PFN, entry), 0);
}

#[test]
fn a_user_root_may_be_none() {
    let mut guest = TestGuest::new();
    let user = second_root(&mut guest, DATA);
    assert_eq!(op(&mut guest, MmuExtOp::NewUserBaseptr, user, 0), 0);
    assert_eq!(guest.context.user_root.map(|root| root.0), Some(user));
    // Not a kernel root, so the M2P is not shown.
    assert_eq!(guest.peek(DATA, 256), 0);
    assert_eq!(op(&mut guest, MmuExtOp::NewUserBaseptr, user, 0), 0);
    let bad = guest.mfn(L3_PFN).0;
    assert_eq!(op(&mut guest, MmuExtOp::NewUserBaseptr, bad, 0), failed(Errno::Einval));
    assert_eq!(op(&mut guest, MmuExtOp::NewUserBaseptr, 0, 0), 0);
    assert_eq!(guest.context.user_root, None);
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
}

#[test]
fn a_strict_m2p_is_hidden_from_user_roots() {
    let mut guest = TestGuest::new();
    guest.domain.assists |= 1 << VmAssistType::M2pStrict.number();
    let root = second_root(&mut guest, DATA);
    assert_eq!(op(&mut guest, MmuExtOp::PinL4Table, root, 0), 0);
    assert_eq!(guest.peek(DATA, 256) >> 12, guest.machine.m2p_root().0);
    assert_eq!(op(&mut guest, MmuExtOp::NewUserBaseptr, root, 0), 0);
    assert_eq!(guest.peek(DATA, 256), 0);
}

#[test]
fn flushes_reach_the_vcpus_they_are_for() {
    let mut guest = TestGuest::with_vcpus(3);
    let at = 0xffff_ffff_8000_1234;
    let page = TlbFlush::Page(GuestVirt(0xffff_ffff_8000_1000));
    let hole = 0x0000_9000_0000_0000;
    let xen = 0xffff_8300_0000_0000;
    let bitmap = guest.va(COUNTER_PFN);
    guest.poke(COUNTER_PFN, 0, 0b110);
    for (request, arg1, arg2, what, vcpus) in [
        (MmuExtOp::TlbFlushLocal, 0, 0, TlbFlush::All, vec![0]),
        (MmuExtOp::TlbFlushAll, 0, 0, TlbFlush::All, vec![0, 1, 2]),
        (MmuExtOp::TlbFlushMulti, 0, bitmap, TlbFlush::All, vec![1, 2]),
        (MmuExtOp::InvlpgLocal, at, 0, page, vec![0]),
        (MmuExtOp::InvlpgAll, at, 0, page, vec![0, 1, 2]),
        (MmuExtOp::InvlpgMulti, at, bitmap, page, vec![1, 2]),
        (MmuExtOp::InvlpgLocal, hole, 0, page, vec![]),
        (MmuExtOp::InvlpgAll, xen, 0, page, vec![]),
        (MmuExtOp::InvlpgMulti, hole, bitmap, page, vec![]),
    ] {
        guest.domain.take_flushes();
        assert_eq!(op(&mut guest, request, arg1, arg2), 0);
        let expected: Vec<_> = vcpus.into_iter().map(|vcpu| Flush { vcpu: VcpuId(vcpu), what }).collect();
        assert_eq!(guest.domain.take_flushes(), expected, "{request:?}");
    }
    for request in [MmuExtOp::TlbFlushMulti, MmuExtOp::InvlpgMulti] {
        for bad in [0x1000, xen] {
            assert_eq!(op(&mut guest, request, at, bad), failed(Errno::Einval));
        }
    }
}

#[test]
fn pages_are_cleared_and_copied_if_they_may_be_written() {
    let mut guest = TestGuest::new();
    guest.poke(DATA, 511, 42);
    let (data, other, table) = (guest.mfn(DATA).0, guest.mfn(OTHER).0, guest.mfn(L1_PFN).0);
    assert_eq!(op(&mut guest, MmuExtOp::CopyPage, other, data), 0);
    assert_eq!(guest.peek(OTHER, 511), 42);
    assert_eq!(op(&mut guest, MmuExtOp::ClearPage, data, 0), 0);
    assert_eq!(guest.peek(DATA, 511), 0);
    // A page table may be read.
    assert_eq!(op(&mut guest, MmuExtOp::CopyPage, other, table), 0);
    assert_eq!(guest.peek(OTHER, DATA), guest.peek(L1_PFN, DATA));
    let xen = guest.machine.gdt.0;
    for (request, to, from) in [
        (MmuExtOp::ClearPage, table, 0),
        (MmuExtOp::ClearPage, xen, 0),
        (MmuExtOp::ClearPage, 0, 0),
        (MmuExtOp::CopyPage, table, data),
        (MmuExtOp::CopyPage, data, xen),
        (MmuExtOp::CopyPage, data, u64::MAX),
    ] {
        assert_eq!(op(&mut guest, request, to, from), failed(Errno::Einval), "{request:?} {to:#x} {from:#x}");
    }
}

#[test]
fn the_ldt_is_set_without_looking_at_it() {
    let mut guest = TestGuest::new();
    for (base, entries, result) in [
        (guest.va(DATA), 512, 0),
        (0x1000, 8192, 0),
        (guest.va(DATA) + 8, 512, failed(Errno::Einval)),
        (guest.va(DATA), 8193, failed(Errno::Einval)),
        (0xffff_8000_0000_0000, 1, failed(Errno::Einval)),
        (guest.va(DATA) + 8, 0, 0),
    ] {
        assert_eq!(op(&mut guest, MmuExtOp::SetLdt, base, entries), result, "{base:#x} {entries}");
    }
    assert_eq!(
        (guest.context.descriptors.ldt_entries, guest.context.descriptors.ldt_base),
        (0, GuestVirt(0))
    );
}

#[test]
fn what_a_guest_may_not_do_is_refused() {
    let mut guest = TestGuest::new();
    for (number, errno) in [
        (12, Errno::Eacces),
        (14, Errno::Enosys),
        (18, Errno::Eacces),
        (19, Errno::Eopnotsupp),
        (20, Errno::Eopnotsupp),
        (21, Errno::Enosys),
        (0xffff_ffff, Errno::Enosys),
    ] {
        assert_eq!(raw(&mut guest, number, 0, 0), failed(errno), "{number}");
    }
    let request = guest.argument(&[6_u64, 0, 0]);
    for (domain, errno) in
        [(0, Errno::Eperm), (1, Errno::Esrch), (5, Errno::Esrch), (u64::from(DomId::IO.0), Errno::Eperm)]
    {
        assert_eq!(
            guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, domain]),
            failed(errno),
            "{domain:#x}"
        );
    }
}

#[test]
fn a_list_of_operations_counts_what_was_done() {
    let mut guest = TestGuest::new();
    let (data, counter) = (guest.mfn(DATA).0, guest.va(COUNTER_PFN));
    let list = guest.argument(&[16, data, 0, 6, 0, 0, 0, data, 0, 6, 0, 0_u64]);
    guest.poke(DATA, 0, PRESENT | WRITABLE);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[list, 4, counter, SELF]), failed(Errno::Einval));
    assert_eq!(guest.peek(COUNTER_PFN, 0), 2);
    assert_eq!(guest.peek(DATA, 0), 0);
}
