//! Uses of frames, and the validation of whole tables.

use paravane_abi::{errno::Errno, hypercall::Hypercall, units::VcpuId};
use paravane_engine::TlbFlush;

use crate::{
    Flush,
    frames::{
        Level,
        entry::{PRESENT, USER, WRITABLE},
        level::Use,
        test_guest::{
            GUEST_KERNEL, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF, READ_ONLY, SPARE_PFN, TABLE, TestGuest,
            failed,
        },
    },
};

/// Four pages for tables of the test's own.
const TABLES: [u64; 4] = [SPARE_PFN, SPARE_PFN + 1, SPARE_PFN + 2, SPARE_PFN + 3];
/// A page for them to map.
const DATA: u64 = SPARE_PFN + 4;

#[test]
fn a_page_table_cannot_be_mapped_writable() {
    let mut guest = TestGuest::new();
    for pfn in [L4_PFN, L3_PFN, L2_PFN, L1_PFN] {
        let entry = guest.entry(pfn, LEAF);
        assert_eq!(guest.map(pfn, entry), failed(Errno::Ebusy));
    }
}

#[test]
fn a_writable_page_cannot_become_a_page_table() {
    let mut guest = TestGuest::new();
    let mfn = guest.mfn(DATA);
    for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
        assert_eq!(guest.domain.frames().pin(mfn, level), Err(Errno::Einval));
    }
    guest.protect(DATA);
    assert_eq!(guest.domain.frames().pin(mfn, Level::L1), Ok(()));
    let entry = guest.entry(DATA, LEAF);
    assert_eq!(guest.map(DATA, entry), failed(Errno::Ebusy));
    assert_eq!(guest.domain.frames().unpin(mfn), Ok(()));
    assert_eq!(guest.map(DATA, entry), 0);
}

#[test]
fn a_tree_is_validated_from_its_root_and_taken_apart_again() {
    let mut guest = TestGuest::new();
    let [l4, l3, l2, l1] = TABLES;
    for pfn in TABLES {
        guest.protect(pfn);
    }
    for (table, child) in [(l4, l3), (l3, l2), (l2, l1)] {
        guest.poke(table, 0, guest.entry(child, PRESENT | WRITABLE));
    }
    guest.poke(l1, 7, guest.entry(DATA, PRESENT | WRITABLE));
    guest.poke(l1, 8, guest.entry(DATA, PRESENT | USER));
    guest.poke(l4, 300, 0xdead_0000);
    guest.poke(l4, 256, 0xdead_b00f);
    let root = guest.mfn(l4);
    let before = *guest.domain.frame_table.record(guest.mfn(DATA)).unwrap();
    guest.domain.frames().pin(root, Level::L4).unwrap();
    guest.check();
    let during = *guest.domain.frame_table.record(guest.mfn(DATA)).unwrap();
    assert_eq!((during.refs, during.uses), (before.refs + 2, before.uses + 1));
    assert_eq!(guest.peek(l1, 7), guest.entry(DATA, PRESENT | WRITABLE | USER | GUEST_KERNEL));
    assert_eq!(guest.peek(l1, 8), guest.entry(DATA, PRESENT | USER | 1 << 8));
    assert_eq!(guest.peek(l4, 0) & 0x27, PRESENT | WRITABLE | USER | 1 << 5);
    assert_eq!(guest.peek(l4, 300), 0xdead_0000);
    assert_eq!(guest.peek(l4, 256), 0);
    guest.domain.frames().unpin(root).unwrap();
    guest.check();
    let after = *guest.domain.frame_table.record(guest.mfn(DATA)).unwrap();
    assert_eq!((after.refs, after.uses), (before.refs, before.uses));
    for pfn in TABLES {
        let record = guest.domain.frame_table.record(guest.mfn(pfn)).unwrap();
        assert_eq!(record.uses, 0, "page {pfn}");
    }
}

#[test]
fn a_bad_entry_at_any_level_undoes_the_whole_tree() {
    let [l4, l3, l2, l1] = TABLES;
    // (table, slot, entry without frame, the page it names, error)
    for (table, flags, named, errno) in [
        (l1, LEAF, L4_PFN, Errno::Ebusy),
        (l1, LEAF | 1 << 4, DATA, Errno::Einval),
        (l2, TABLE, l3, Errno::Einval),
        (l2, TABLE | 1 << 7, DATA, Errno::Einval),
        (l3, TABLE, l1, Errno::Einval),
        (l3, TABLE | 1 << 8, l2, Errno::Einval),
        (l4, TABLE, DATA, Errno::Einval),
        (l4, TABLE | 1 << 3, l3, Errno::Einval),
    ] {
        let mut guest = TestGuest::new();
        for pfn in TABLES {
            guest.protect(pfn);
        }
        for (table, child) in [(l4, l3), (l3, l2), (l2, l1)] {
            guest.poke(table, 0, guest.entry(child, TABLE));
        }
        guest.poke(l1, 0, guest.entry(DATA, LEAF));
        guest.poke(table, 400, guest.entry(named, flags));
        let root = guest.mfn(l4);
        assert_eq!(guest.domain.frames().pin(root, Level::L4), Err(errno), "{table} {flags:#x} {named}");
        guest.check();
        guest.poke(table, 400, 0);
        assert_eq!(guest.domain.frames().pin(root, Level::L4), Ok(()));
        guest.check();
    }
}

#[test]
fn a_table_of_one_level_is_none_of_another() {
    let mut guest = TestGuest::new();
    let levels = [(L4_PFN, Level::L4), (L3_PFN, Level::L3), (L2_PFN, Level::L2), (L1_PFN, Level::L1)];
    for (pfn, is) in levels {
        for (_, wanted) in levels {
            let mfn = guest.mfn(pfn);
            let pinned = guest.domain.frames().pin(mfn, wanted);
            let expected = if is == wanted && is != Level::L4 { Ok(()) } else { Err(Errno::Einval) };
            assert_eq!(pinned, expected, "{is:?} as {wanted:?}");
            guest.check();
        }
    }
}

#[test]
fn a_table_may_name_itself_read_only() {
    let mut guest = TestGuest::new();
    let mfn = guest.mfn(L4_PFN).0 * 4096;
    let own = mfn | (300 * 8);
    let update = |guest: &mut TestGuest, entry: u64| {
        let request = guest.argument(&[own, entry]);
        guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, 0x7ff0])
    };
    let writable = guest.entry(L4_PFN, TABLE);
    assert_eq!(update(&mut guest, writable), failed(Errno::Einval));
    let read_only = guest.entry(L4_PFN, READ_ONLY);
    assert_eq!(update(&mut guest, read_only), 0);
    // The L1 entry that the recursion shows for an address is an L4 entry, and cannot be changed as an L1 one.
    let recursive = 0xffff_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12;
    assert_eq!(guest.hypercall(Hypercall::UpdateVaMapping, &[recursive, 0, 0]), failed(Errno::Einval));
    assert_eq!(update(&mut guest, 0), 0);
}

#[test]
fn a_chain_of_recursive_tables_has_two_links() {
    let mut guest = TestGuest::new();
    let [a, b, c, _] = TABLES;
    for pfn in [a, b, c] {
        guest.protect(pfn);
        let mfn = guest.mfn(pfn);
        guest.domain.frames().pin(mfn, Level::L2).unwrap();
    }
    let link = |guest: &mut TestGuest, from: u64, to: u64, flags: u64| {
        let entry = if flags == 0 { 0 } else { guest.entry(to, flags) };
        let at = guest.mfn(from).0 * 4096 + 8 * to;
        let request = guest.argument(&[at, entry]);
        guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, 0x7ff0])
    };
    assert_eq!(link(&mut guest, a, b, READ_ONLY), 0);
    assert_eq!(link(&mut guest, b, c, READ_ONLY), failed(Errno::Einval));
    assert_eq!(link(&mut guest, c, a, READ_ONLY), failed(Errno::Einval));
    assert_eq!(link(&mut guest, c, b, READ_ONLY), 0);
    // The named table outlives its pin.
    let named = guest.mfn(b);
    guest.domain.frames().unpin(named).unwrap();
    guest.check();
    assert_eq!(link(&mut guest, a, b, 0), 0);
    assert!(guest.domain.frame_table.record(named).unwrap().is_used_as(Use::L2));
    assert_eq!(link(&mut guest, c, b, 0), 0);
    assert_eq!(guest.domain.frame_table.record(named).unwrap().uses, 0);
}

#[test]
fn a_page_that_was_writable_is_flushed_before_it_becomes_a_table() {
    let mut guest = TestGuest::with_vcpus(2);
    guest.protect(DATA);
    let both = [0, 1].map(|vcpu| Flush { vcpu: VcpuId(vcpu), what: TlbFlush::All });
    let mfn = guest.mfn(DATA);
    guest.domain.take_flushes();
    guest.domain.frames().pin(mfn, Level::L1).unwrap();
    assert_eq!(guest.domain.take_flushes(), both);
    // Who has flushed since need not again.
    let other = SPARE_PFN + 9;
    guest.protect(other);
    guest.call().flush_one(VcpuId(0), TlbFlush::All);
    guest.domain.take_flushes();
    let mfn = guest.mfn(other);
    guest.domain.frames().pin(mfn, Level::L1).unwrap();
    assert_eq!(guest.domain.take_flushes(), [both[1]]);
}

#[test]
fn counts_that_are_full_refuse_and_stay() {
    let mut guest = TestGuest::new();
    let mfn = guest.mfn(DATA);
    let record = |guest: &mut TestGuest| *guest.domain.frame_table.record(mfn).unwrap();
    let (refs, uses) = (record(&mut guest).refs, record(&mut guest).uses);
    let entry = guest.entry(DATA, LEAF);
    let other = SPARE_PFN + 9;
    guest.domain.frame_table.record_mut(mfn).unwrap().refs = u32::MAX;
    let va = guest.va(other);
    let result = guest.hypercall_unchecked(Hypercall::UpdateVaMapping, &[va, entry, 0]);
    assert_eq!(result, failed(Errno::Ebusy));
    guest.domain.frame_table.record_mut(mfn).unwrap().refs = refs;
    guest.domain.frame_table.record_mut(mfn).unwrap().uses = u32::MAX;
    let result = guest.hypercall_unchecked(Hypercall::UpdateVaMapping, &[va, entry, 0]);
    assert_eq!(result, failed(Errno::Ebusy));
    guest.domain.frame_table.record_mut(mfn).unwrap().uses = uses;
    guest.check();
    assert_eq!(guest.map(other, entry), 0);
}

#[test]
fn a_lent_page_cannot_become_a_table_until_it_is_back() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA);
    guest.domain.frames().lend(mfn, true).unwrap();
    guest.check();
    assert_eq!(guest.domain.frames().pin(mfn, Level::L1), Err(Errno::Einval));
    assert_eq!(guest.domain.frames().take_back(mfn, false), Err(Errno::Einval));
    guest.domain.frames().take_back(mfn, true).unwrap();
    guest.domain.frames().pin(mfn, Level::L1).unwrap();
    assert_eq!(guest.domain.frames().lend(mfn, true), Err(Errno::Einval));
    guest.domain.frames().lend(mfn, false).unwrap();
    guest.check();
    let root = guest.mfn(L4_PFN);
    assert_eq!(guest.domain.frames().lend(root, true), Err(Errno::Einval));
}
