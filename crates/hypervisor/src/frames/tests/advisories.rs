//! What published vulnerabilities of Xen's memory management tried: see `docs/past-vulnerabilities.md`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    memory::{MemoryExchange, MemoryOp, MemoryReservation, mem_flags},
    mmu::MmuExtOp,
    units::{DomId, Mfn},
};
use paravane_engine::TlbFlush;
use zerocopy::FromZeros;

use crate::frames::{
    Level, Owner,
    entry::{ACCESSED, PRESENT, USER, WRITABLE},
    level::{Use, slot_of},
    test_guest::{
        BASE, COUNTER_PFN, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF, MAX_PAGES, PAGES, READ_ONLY, SPARE_PFN,
        TABLE, TestGuest, failed,
    },
};

const SELF: u64 = DomId::SELF.0 as u64;
/// PS: the entry maps a large page.
const LARGE: u64 = 1 << 7;
const DATA: u64 = SPARE_PFN;
const LIST_PFN: u64 = COUNTER_PFN;
const XEN: u64 = 0xffff_8000_0000_0000;

/// Stores an entry into a slot of a table.
fn update(guest: &mut TestGuest, table: u64, slot: u64, entry: u64) -> i64 {
    let at = guest.word(table, slot).0;
    let request = guest.argument(&[at, entry]);
    guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, SELF])
}

fn extended(guest: &mut TestGuest, op: MmuExtOp, arg1: u64, arg2: u64) -> i64 {
    let request = guest.argument(&[u64::from(op.number()), arg1, arg2]);
    guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, SELF])
}

fn memory_op(guest: &mut TestGuest, op: MemoryOp, argument: u64) -> i64 {
    guest.hypercall(Hypercall::MemoryOp, &[op.number().into(), argument])
}

fn slot(level: Level) -> u64 {
    slot_of(level, BASE) as u64
}

/// One extent of a page, from the list.
fn reservation(guest: &TestGuest) -> MemoryReservation {
    let mut reservation = MemoryReservation::new_zeroed();
    (reservation.extent_start, reservation.nr_extents) = (guest.va(LIST_PFN), 1);
    reservation.domid = DomId::SELF.0;
    reservation
}

#[test]
fn a_live_entry_cannot_become_a_large_page_by_a_change_of_flags() {
    let mut guest = TestGuest::new();
    for (level, table, child) in
        [(Level::L2, L2_PFN, L1_PFN), (Level::L3, L3_PFN, L2_PFN), (Level::L4, L4_PFN, L3_PFN)]
    {
        let before = guest.peek(table, slot(level));
        assert_eq!(before, guest.entry(child, TABLE), "{level}");
        assert_eq!(update(&mut guest, table, slot(level), before | LARGE), failed(Errno::Einval), "{level}");
        let plain = before & !WRITABLE;
        assert_eq!(update(&mut guest, table, slot(level), plain | LARGE), failed(Errno::Einval), "{level}");
        assert_eq!(guest.peek(table, slot(level)), before);
    }
}

#[test]
fn a_table_with_a_large_page_at_any_level_does_not_validate() {
    let mut guest = TestGuest::new();
    for level in [Level::L2, Level::L3, Level::L4] {
        guest.protect(DATA);
        guest.poke(DATA, 5, guest.entry(SPARE_PFN + 1, PRESENT | USER | LARGE));
        let mfn = guest.mfn(DATA);
        assert_eq!(guest.domain.frames().pin(mfn, level), Err(Errno::Einval), "{level}");
        guest.check();
        let writable = guest.entry(DATA, LEAF);
        assert_eq!(guest.map(DATA, writable), 0, "nothing is left of the attempt");
    }
}

#[test]
fn a_superpage_cannot_be_marked() {
    let mut guest = TestGuest::new();
    for op in [MmuExtOp::MarkSuper, MmuExtOp::UnmarkSuper] {
        for mfn in [guest.mfn(DATA).0, 0, u64::MAX, u64::MAX >> 12] {
            assert_eq!(extended(&mut guest, op, mfn, 0), failed(Errno::Eopnotsupp), "{mfn:#x}");
        }
    }
}

#[test]
fn a_recursive_entry_never_gains_the_right_to_write() {
    let mut guest = TestGuest::new();
    let read_only = guest.entry(L4_PFN, READ_ONLY);
    assert_eq!(update(&mut guest, L4_PFN, 300, read_only), 0);
    for flags in [WRITABLE, WRITABLE | USER, WRITABLE | USER | ACCESSED] {
        assert_eq!(update(&mut guest, L4_PFN, 300, read_only | flags), failed(Errno::Einval), "{flags:#x}");
    }
    // What does not matter to anybody but the CPU may change.
    assert_eq!(update(&mut guest, L4_PFN, 300, read_only | USER | 1 << 63), 0);
    assert_eq!(guest.peek(L4_PFN, 300) & WRITABLE, 0);
}

#[test]
fn a_refused_recursive_entry_leaves_no_count_behind() {
    let mut guest = TestGuest::new();
    let [a, b] = [SPARE_PFN, SPARE_PFN + 1];
    for pfn in [a, b] {
        guest.protect(pfn);
    }
    // b is no table yet, then one of another level, then one that cannot be written to.
    let naming = guest.entry(b, READ_ONLY);
    guest.poke(a, 3, naming);
    guest.poke(a, 4, guest.entry(b, READ_ONLY) | LARGE);
    let (first, second) = (guest.mfn(a), guest.mfn(b));
    for level in [Level::L2, Level::L3, Level::L4] {
        assert_eq!(guest.domain.frames().pin(first, level), Err(Errno::Einval), "{level}");
        guest.check();
        for frame in [first, second] {
            let record = guest.domain.frame_table.record(frame).unwrap();
            assert_eq!((record.uses, record.linear), (0, 0), "{level} {frame}");
        }
    }
}

#[test]
fn every_page_is_flushed_again_each_time_it_stops_being_writable() {
    let mut guest = TestGuest::with_vcpus(3);
    let (mfn, writable) = (guest.mfn(DATA), guest.entry(DATA, LEAF));
    for round in 0..3 {
        assert_eq!(guest.map(DATA, writable), 0);
        guest.protect(DATA);
        guest.domain.take_flushes();
        guest.domain.frames().pin(mfn, Level::L1).unwrap();
        let flushed = guest.domain.take_flushes();
        assert_eq!(flushed.iter().filter(|flush| flush.what == TlbFlush::All).count(), 3, "{round}");
        guest.domain.frames().unpin(mfn).unwrap();
    }
}

#[test]
fn a_flush_of_an_address_that_nobody_has_is_harmless() {
    let mut guest = TestGuest::with_vcpus(2);
    guest.poke(LIST_PFN, 0, 3);
    let bitmap = guest.va(LIST_PFN);
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_f000, XEN, u64::MAX ^ 1 << 63] {
        guest.domain.take_flushes();
        for op in [MmuExtOp::InvlpgLocal, MmuExtOp::InvlpgMulti, MmuExtOp::InvlpgAll] {
            assert_eq!(extended(&mut guest, op, address, bitmap), 0, "{op} {address:#x}");
        }
        // Local flush by address, and everywhere: an entry that is not changed is not flushed.
        for flags in [2, 2 | 4, 1 | 4] {
            let args = [address, 0, flags];
            assert_eq!(guest.hypercall(Hypercall::UpdateVaMapping, &args), failed(Errno::Einval));
        }
        assert_eq!(guest.domain.take_flushes(), [], "{address:#x}");
    }
}

#[test]
fn an_entry_cannot_choose_how_memory_is_cached() {
    let mut guest = TestGuest::new();
    for bits in [1 << 3, 1 << 4, 1 << 7, 1 << 3 | 1 << 4, 1 << 3 | 1 << 7] {
        let entry = guest.entry(DATA, LEAF) | bits;
        assert_eq!(guest.map(DATA, entry), failed(Errno::Einval), "{bits:#x}");
    }
    for op in [MmuExtOp::FlushCache, MmuExtOp::FlushCacheGlobal] {
        assert_eq!(extended(&mut guest, op, 0, 0), failed(Errno::Eacces));
    }
}

#[test]
fn a_pinned_page_that_is_given_back_stays_until_it_is_unpinned() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA);
    assert_eq!(extended(&mut guest, MmuExtOp::PinL1Table, mfn.0, 0), 0);
    assert_eq!(guest.map(DATA, 0), 0);
    guest.poke(LIST_PFN, 0, mfn.0);
    let argument = guest.argument(&reservation(&guest));
    for _ in 0..3 {
        assert_eq!(memory_op(&mut guest, MemoryOp::DecreaseReservation, argument), 1);
    }
    assert_eq!(guest.domain.frame_table.owner(mfn), Owner::Guest);
    assert!(guest.domain.frame_table.record(mfn).unwrap().is_used_as(Use::L1));
    assert_eq!(extended(&mut guest, MmuExtOp::UnpinTable, mfn.0, 0), 0);
    assert_eq!(guest.domain.frame_table.owner(mfn), Owner::Nobody);
    assert_eq!(guest.domain.frame_table.owned(), PAGES - 1);
}

#[test]
fn a_node_of_the_host_is_an_index_into_nothing() {
    let mut guest = TestGuest::new();
    guest.poke(LIST_PFN, 0, PAGES);
    for node in [1, 2, 0x41, 0xff] {
        for exact in [0, mem_flags::EXACT_NODE_REQUEST] {
            let mut request = reservation(&guest);
            request.mem_flags = node << mem_flags::NODE_SHIFT | exact;
            let argument = guest.argument(&request);
            let done = memory_op(&mut guest, MemoryOp::IncreaseReservation, argument);
            assert_eq!(done, i64::from(exact == 0), "{node} {exact:#x}");
        }
    }
}

#[test]
fn extents_above_the_limit_are_not_even_begun() {
    let mut guest = TestGuest::new();
    let owned = guest.domain.frame_table.owned();
    for order in [10, 18, 31, 63, u32::MAX] {
        let mut request = reservation(&guest);
        request.extent_order = order;
        let argument = guest.argument(&request);
        for op in [MemoryOp::IncreaseReservation, MemoryOp::DecreaseReservation, MemoryOp::PopulatePhysmap] {
            assert_eq!(memory_op(&mut guest, op, argument), 0, "{op} {order}");
        }
        let mut exchange = MemoryExchange::new_zeroed();
        (exchange.input, exchange.output) = (request, request);
        let argument = guest.argument(&exchange);
        assert_eq!(memory_op(&mut guest, MemoryOp::Exchange, argument), failed(Errno::Eperm), "{order}");
    }
    assert_eq!(guest.domain.frame_table.owned(), owned);
}

#[test]
fn an_exchange_cannot_be_told_to_write_where_xen_is() {
    let mut guest = TestGuest::new();
    guest.poke(LIST_PFN, 0, guest.mfn(DATA).0);
    assert_eq!(guest.map(DATA, 0), 0);
    let target = guest.machine.gdt;
    let before: [u64; 512] = guest.domain.memory.read_value(target.base().unwrap()).unwrap();
    for (list, exchanged) in [
        (XEN, 0),
        (XEN - 8, 0),
        // The counter moves the place that is written: by wrapping, or from below into the range.
        (0x10_0000, (XEN - 0x10_0000) >> 3),
        (u64::MAX - 7, 1),
        (0x7fff_ffff_fff8, 1),
    ] {
        let mut exchange = MemoryExchange::new_zeroed();
        (exchange.input, exchange.output) = (reservation(&guest), reservation(&guest));
        exchange.output.extent_start = list;
        exchange.nr_exchanged = exchanged;
        let argument = guest.argument(&exchange);
        let result = memory_op(&mut guest, MemoryOp::Exchange, argument);
        let nothing_left = exchanged == 1;
        assert!(result < 0 || nothing_left && result == 0, "{list:#x} {exchanged:#x}: {result}");
    }
    let after: [u64; 512] = guest.domain.memory.read_value(target.base().unwrap()).unwrap();
    assert_eq!(before, after);
    // The page was given up for another at most, and the guest has as many as before.
    assert_eq!(guest.domain.frame_table.owned(), PAGES);
}

#[test]
fn a_page_that_was_exchanged_comes_back_as_nothing() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA);
    guest.domain.frames().pin(mfn, Level::L1).unwrap();
    guest.domain.frames().unpin(mfn).unwrap();
    assert_eq!(guest.map(DATA, 0), 0);
    guest.poke(LIST_PFN, 0, mfn.0);
    let mut exchange = MemoryExchange::new_zeroed();
    (exchange.input, exchange.output) = (reservation(&guest), reservation(&guest));
    let argument = guest.argument(&exchange);
    assert_eq!(memory_op(&mut guest, MemoryOp::Exchange, argument), 0);
    let got = Mfn(guest.peek(LIST_PFN, 0));
    for frame in [mfn, got] {
        let record = guest.domain.frame_table.record(frame).unwrap();
        assert_eq!((record.uses, record.refs, record.table_level()), (0, 0, None), "{frame}");
    }
    // Whatever it was, it is validated when it becomes something.
    guest.domain.memory.store_u64(got.base().unwrap(), XEN | PRESENT | LARGE).unwrap();
    assert_eq!(guest.domain.frames().pin(got, Level::L2), Err(Errno::Einval));
    guest.check();
}

#[test]
fn the_limit_on_memory_cannot_be_overrun() {
    let mut guest = TestGuest::new();
    for count in [MAX_PAGES, u64::from(u32::MAX >> 6), u64::MAX] {
        let mut request = reservation(&guest);
        (request.extent_start, request.nr_extents) = (0, count);
        let argument = guest.argument(&request);
        assert!(memory_op(&mut guest, MemoryOp::IncreaseReservation, argument) >= 0);
        assert!(guest.domain.frame_table.owned() <= MAX_PAGES, "{count:#x}");
    }
    assert_eq!(guest.domain.frame_table.owned(), MAX_PAGES);
    // What comes out of an exchange is no more than what went in.
    guest.poke(LIST_PFN, 0, guest.mfn(DATA).0);
    assert_eq!(guest.map(DATA, 0), 0);
    let mut exchange = MemoryExchange::new_zeroed();
    (exchange.input, exchange.output) = (reservation(&guest), reservation(&guest));
    let argument = guest.argument(&exchange);
    assert_eq!(memory_op(&mut guest, MemoryOp::Exchange, argument), 0);
    assert_eq!(guest.domain.frame_table.owned(), MAX_PAGES);
}

#[test]
fn pages_of_xen_and_of_others_cannot_be_had() {
    let mut guest = TestGuest::new();
    let machine = guest.machine.clone();
    for frame in
        [machine.gdt, machine.grant_status.start, machine.m2p_root(), Mfn(0), Mfn(1), machine.memory.end]
    {
        for flags in [LEAF, READ_ONLY] {
            assert!(guest.map(DATA, frame.0 << 12 | flags) < 0, "{frame} {flags:#x}");
        }
        for op in [
            MmuExtOp::PinL1Table,
            MmuExtOp::PinL4Table,
            MmuExtOp::UnpinTable,
            MmuExtOp::NewBaseptr,
            MmuExtOp::NewUserBaseptr,
            MmuExtOp::ClearPage,
            MmuExtOp::CopyPage,
        ] {
            // No user root is no frame, and allowed.
            if (op, frame) != (MmuExtOp::NewUserBaseptr, Mfn(0)) {
                let own = guest.mfn(DATA).0;
                assert!(extended(&mut guest, op, frame.0, own) < 0, "{op} {frame}");
            }
        }
        let own = guest.mfn(DATA).0;
        assert!(extended(&mut guest, MmuExtOp::CopyPage, own, frame.0) < 0, "{frame}");
        for (command, value) in [(0, 0), (1, 5)] {
            let request = guest.argument(&[frame.0 << 12 | command, value]);
            assert!(guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, SELF]) < 0, "{frame} {command}");
        }
        let request = guest.argument(&frame.0);
        assert_eq!(guest.hypercall(Hypercall::SetGdt, &[request, 8]), failed(Errno::Einval), "{frame}");
        let at = frame.0 << 12;
        assert_eq!(guest.hypercall(Hypercall::UpdateDescriptor, &[at, 0]), failed(Errno::Einval), "{frame}");
    }
}

#[test]
fn resources_of_other_domains_cannot_be_mapped() {
    let mut guest = TestGuest::new();
    for domain in [0_u64, 1, 9, SELF] {
        let argument = guest.argument(&[domain, 0, 0, 0, 0]);
        assert!(memory_op(&mut guest, MemoryOp::AcquireResource, argument) < 0, "{domain:#x}");
    }
}
