//! `memory_op`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    memory::{
        E820Entry, ForeignMemoryMap, INVALID_M2P_ENTRY, MachphysMapping, MachphysMfnList, MemoryExchange,
        MemoryMap, MemoryOp, MemoryReservation, ReservedDeviceMemoryMap, e820, mem_flags,
    },
    units::{DomId, Mfn},
};
use zerocopy::FromZeros;

use crate::frames::{
    Owner,
    test_guest::{
        BUFFER_PFN, COUNTER_PFN, L1_PFN, L4_PFN, LEAF, MAX_PAGES, PAGES, SPARE_PFN, TestGuest, failed,
    },
};

const SELF: u16 = DomId::SELF.0;
/// Where the lists of extents lie.
const LIST_PFN: u64 = COUNTER_PFN;
const DATA: u64 = SPARE_PFN;

fn op(guest: &mut TestGuest, op: MemoryOp, argument: u64) -> i64 {
    guest.hypercall(Hypercall::MemoryOp, &[u64::from(op.number()), argument])
}

fn reservation(guest: &TestGuest, count: u64, order: u32) -> MemoryReservation {
    with(MemoryReservation::new_zeroed(), |all| {
        (all.extent_start, all.nr_extents) = (guest.va(LIST_PFN), count);
        (all.extent_order, all.domid) = (order, SELF);
    })
}

/// `base` with a change.
fn with<T>(mut base: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut base);
    base
}

/// A reservation call for the extents in `list`, which it leaves in the list page.
fn reserve(guest: &mut TestGuest, what: MemoryOp, list: &[u64], order: u32) -> i64 {
    for (index, extent) in (0..).zip(list) {
        guest.poke(LIST_PFN, index, *extent);
    }
    let argument = guest.argument(&reservation(guest, list.len() as u64, order));
    op(guest, what, argument)
}

fn pages(guest: &mut TestGuest) -> i64 {
    let argument = guest.argument(&SELF);
    op(guest, MemoryOp::CurrentReservation, argument)
}

#[test]
fn a_page_that_is_given_back_is_free_when_its_last_mapping_goes() {
    let mut guest = TestGuest::new();
    let mfn = guest.mfn(DATA);
    guest.poke(DATA, 0, 42);
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &[mfn.0], 0), 1);
    // Still mapped.
    assert_eq!(pages(&mut guest), 64);
    assert_eq!((guest.domain.frame_table.owner(mfn), guest.m2p(mfn)), (Owner::Guest, DATA));
    assert_eq!(guest.map(DATA, 0), 0);
    assert_eq!(pages(&mut guest), 63);
    assert_eq!((guest.domain.frame_table.owner(mfn), guest.m2p(mfn)), (Owner::Nobody, INVALID_M2P_ENTRY));
    assert_eq!(guest.peek(DATA, 0), 0);
    // It is not the guest's any more.
    let entry = guest.entry(DATA, LEAF);
    assert_eq!(guest.map(DATA, entry), failed(Errno::Ebusy));
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &[mfn.0], 0), 0);
}

#[test]
fn populating_hands_out_pages_up_to_the_limit() {
    let mut guest = TestGuest::new();
    let list: Vec<_> = (PAGES..MAX_PAGES + 1).collect();
    let room = MAX_PAGES - PAGES;
    assert_eq!(reserve(&mut guest, MemoryOp::PopulatePhysmap, &list, 0), room.cast_signed());
    for index in 0..room {
        let mfn = Mfn(guest.peek(LIST_PFN, index));
        assert_eq!((guest.domain.frame_table.owner(mfn), guest.m2p(mfn)), (Owner::Guest, PAGES + index));
    }
    let mfns: Vec<_> = (0..room).map(|index| guest.peek(LIST_PFN, index)).collect();
    // The one that was not done is as it was.
    assert_eq!(guest.peek(LIST_PFN, room), MAX_PAGES);
    assert_eq!(pages(&mut guest), MAX_PAGES.cast_signed());
    assert_eq!(reserve(&mut guest, MemoryOp::IncreaseReservation, &[0], 0), 0);
    let argument = guest.argument(&SELF);
    assert_eq!(op(&mut guest, MemoryOp::MaximumReservation, argument), MAX_PAGES.cast_signed());
    // Balloon down and up again.
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &mfns, 0), room.cast_signed());
    assert_eq!(pages(&mut guest), PAGES.cast_signed());
    assert_eq!(reserve(&mut guest, MemoryOp::IncreaseReservation, &[7, 7], 2), 2);
    let first = Mfn(guest.peek(LIST_PFN, 0));
    assert_eq!((first.0 % 4, guest.m2p(first)), (0, INVALID_M2P_ENTRY));
    assert_eq!(pages(&mut guest), PAGES.cast_signed() + 8);
}

#[test]
fn whatever_goes_wrong_with_a_reservation_is_a_smaller_number() {
    let mut guest = TestGuest::new();
    let good = reservation(&guest, 1, 0);
    guest.poke(LIST_PFN, 0, guest.mfn(DATA).0);
    for bad in [
        with(good, |it| {
            it.domid = 0;
        }),
        with(good, |it| {
            it.domid = 9;
        }),
        with(good, |it| {
            it.extent_order = 10;
        }),
        with(good, |it| {
            it.extent_order = 64;
        }),
        with(good, |it| {
            it.nr_extents = 1 << 26;
        }),
        with(good, |it| {
            it.nr_extents = u64::MAX;
        }),
        with(good, |it| {
            it.extent_start = 0x1000;
        }),
        with(good, |it| {
            it.extent_start = 0xffff_8000_0000_0000;
        }),
        with(good, |it| {
            it.mem_flags = 12;
        }),
        with(good, |it| {
            it.mem_flags = mem_flags::EXACT_NODE_REQUEST;
        }),
    ] {
        for what in [MemoryOp::PopulatePhysmap, MemoryOp::DecreaseReservation] {
            let argument = guest.argument(&bad);
            assert_eq!(op(&mut guest, what, argument), 0, "{bad:?}");
        }
    }
    for what in [MemoryOp::PopulatePhysmap, MemoryOp::DecreaseReservation, MemoryOp::IncreaseReservation] {
        assert_eq!(op(&mut guest, what, 0x1000), 0);
        // The extent to go on from is the result when it is beyond the end.
        let argument = guest.argument(&good);
        let resumed = u64::from(what.number()) | 5 << 6;
        assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[resumed, argument]), 5);
    }
    // Memory below 16 MiB does not exist here; below 4 GiB it does.
    for (bits, done) in [(24, 0), (32, 1), (63, 1), (255, 1)] {
        let argument = guest.argument(&with(good, |it| {
            it.mem_flags = bits;
        }));
        assert_eq!(op(&mut guest, MemoryOp::IncreaseReservation, argument), done, "{bits}");
    }
    // The list may be left out.
    let argument = guest.argument(&with(good, |it| {
        it.extent_start = 0;
        it.nr_extents = 3;
    }));
    assert_eq!(op(&mut guest, MemoryOp::IncreaseReservation, argument), 3);
}

#[test]
fn a_page_table_that_is_given_back_stays_one_until_unused() {
    let mut guest = TestGuest::new();
    let [l1, root, shared] = [guest.mfn(L1_PFN), guest.mfn(L4_PFN), guest.machine.shared_info];
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &[l1.0, root.0, shared.0], 0), 3);
    assert_eq!(pages(&mut guest), 64);
    let xen = guest.machine.gdt.0;
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &[xen], 0), 0);
    // Giving back twice is giving back once.
    assert_eq!(reserve(&mut guest, MemoryOp::DecreaseReservation, &[l1.0, l1.0], 0), 2);
    assert_eq!(guest.domain.frame_table.owner(shared), Owner::Guest);
    assert_eq!(guest.peek(L1_PFN, DATA) >> 12 & 0xff_ffff, guest.mfn(DATA).0);
}

#[test]
fn pages_are_exchanged_for_a_run() {
    let mut guest = TestGuest::new();
    let given: Vec<_> = [20, 33, 27, 41].map(|pfn| (pfn, guest.mfn(pfn).0)).to_vec();
    for (index, (pfn, mfn)) in (0..).zip(&given) {
        assert_eq!(guest.map(*pfn, 0), 0);
        guest.poke(LIST_PFN, index, *mfn);
    }
    guest.poke(LIST_PFN, 100, 20);
    let exchange = MemoryExchange {
        input: reservation(&guest, 4, 0),
        output: with(reservation(&guest, 1, 2), |it| {
            it.extent_start = guest.va(LIST_PFN) + 800;
        }),
        nr_exchanged: 0,
    };
    let argument = guest.argument(&exchange);
    assert_eq!(op(&mut guest, MemoryOp::Exchange, argument), 0);
    assert_eq!(guest.peek(BUFFER_PFN, 8), 4);
    let first = guest.peek(LIST_PFN, 100);
    assert_eq!(first % 4, 0);
    for offset in 0..4 {
        assert_eq!(guest.m2p(Mfn(first + offset)), 20 + offset);
        assert_eq!(guest.domain.frame_table.owner(Mfn(first + offset)), Owner::Guest);
    }
    assert!(given.iter().all(|(_, mfn)| guest.domain.frame_table.owner(Mfn(*mfn)) == Owner::Nobody));
    assert_eq!(pages(&mut guest), 64);
}

/// An exchange of one page for one page, and the only page of the guest's that can be exchanged.
fn exchange(guest: &mut TestGuest) -> (MemoryExchange, u64) {
    const FREE: u64 = 20;
    assert_eq!(guest.map(FREE, 0), 0);
    let output = with(reservation(guest, 1, 0), |it| it.extent_start += 800);
    (MemoryExchange { input: reservation(guest, 1, 0), output, nr_exchanged: 0 }, guest.mfn(FREE).0)
}

#[test]
fn pages_that_are_in_use_or_not_the_guests_are_not_exchanged() {
    let mut guest = TestGuest::new();
    let (good, unused) = exchange(&mut guest);
    let twice = with(good, |it| (it.input.nr_extents, it.output.extent_order) = (2, 1));
    let table = guest.mfn(L1_PFN).0;
    for (what, list) in [
        (good, [guest.mfn(DATA).0, 0]),
        (good, [table, 0]),
        (good, [guest.machine.gdt.0, 0]),
        (good, [guest.machine.shared_info.0, 0]),
        (good, [u64::MAX, 0]),
        (twice, [unused, unused]),
        (twice, [unused, table]),
    ] {
        guest.poke(LIST_PFN, 0, list[0]);
        guest.poke(LIST_PFN, 1, list[1]);
        let argument = guest.argument(&what);
        assert_eq!(op(&mut guest, MemoryOp::Exchange, argument), failed(Errno::Einval), "{list:x?}");
        assert_eq!(guest.peek(BUFFER_PFN, 8), 0);
        assert_eq!(guest.domain.frame_table.owner(Mfn(unused)), Owner::Guest);
    }
}

#[test]
fn an_exchange_that_cannot_be_made_changes_nothing() {
    let mut guest = TestGuest::new();
    let (good, unused) = exchange(&mut guest);
    guest.poke(LIST_PFN, 0, unused);
    let sides = |change: fn(&mut MemoryReservation)| {
        with(good, |it| {
            change(&mut it.input);
            change(&mut it.output);
        })
    };
    for (what, errno) in [
        (with(good, |it| it.nr_exchanged = 2), Errno::Einval),
        (with(good, |it| it.input.nr_extents = 2), Errno::Einval),
        (with(good, |it| it.input.domid = 5), Errno::Einval),
        (with(good, |it| it.output.mem_flags = mem_flags::EXACT_NODE_REQUEST), Errno::Einval),
        (sides(|side| (side.nr_extents, side.extent_order) = (u64::MAX, 9)), Errno::Einval),
        (sides(|side| side.domid = 5), Errno::Esrch),
        (sides(|side| side.domid = 0), Errno::Eperm),
        (with(good, |it| it.input.extent_order = 10), Errno::Eperm),
        (with(good, |it| it.output.mem_flags = 20), Errno::Enomem),
        (with(good, |it| it.input.extent_start = 0x1000), Errno::Efault),
    ] {
        let argument = guest.argument(&what);
        assert_eq!(op(&mut guest, MemoryOp::Exchange, argument), failed(errno), "{what:?}");
        assert_eq!(guest.domain.frame_table.owner(Mfn(unused)), Owner::Guest);
    }
    assert_eq!(op(&mut guest, MemoryOp::Exchange, 0x1000), failed(Errno::Efault));
    // The frames are exchanged even if the guest cannot be told.
    let argument = guest.argument(&with(good, |it| it.output.extent_start = 0x1000));
    assert_eq!(op(&mut guest, MemoryOp::Exchange, argument), failed(Errno::Efault));
    assert_eq!(guest.domain.frame_table.owner(Mfn(unused)), Owner::Nobody);
}

#[test]
fn the_m2p_is_where_the_guest_is_told() {
    let mut guest = TestGuest::new();
    let argument = guest.argument(&[0_u64; 3]);
    assert_eq!(op(&mut guest, MemoryOp::MachphysMapping, argument), 0);
    let mapping: MachphysMapping = guest.domain.memory.read_value(guest.word(BUFFER_PFN, 0)).unwrap();
    assert_eq!(
        (mapping.v_start, mapping.v_end, mapping.max_mfn),
        (0xffff_8000_0000_0000, 0xffff_8040_0000_0000, (1 << 35) - 1)
    );
    assert_eq!(op(&mut guest, MemoryOp::MachphysMapping, 0x1000), failed(Errno::Efault));
    let list = with(MachphysMfnList::new_zeroed(), |it| {
        it.max_extents = 4;
        it.extent_start = guest.va(LIST_PFN);
    });
    let argument = guest.argument(&list);
    assert_eq!(op(&mut guest, MemoryOp::MachphysMfnList, argument), 0);
    assert_eq!(guest.peek(BUFFER_PFN, 2) & 0xffff_ffff, 1);
    assert_eq!(
        guest.peek(LIST_PFN, 0),
        guest.machine.m2p_entry(guest.machine.frames.start).unwrap().frame().0
    );
    let end = op(&mut guest, MemoryOp::MaximumRamPage, 0);
    assert_eq!(end, guest.machine.frames.end.0.cast_signed());
}

#[test]
fn the_memory_map_is_what_was_set() {
    let mut guest = TestGuest::new();
    let request = with(MemoryMap::new_zeroed(), |it| {
        it.nr_entries = 8;
        it.buffer = guest.va(LIST_PFN);
    });
    let argument = guest.argument(&request);
    assert_eq!(op(&mut guest, MemoryOp::MemoryMap, argument), failed(Errno::Enosys));
    let entry = |addr: u64, size: u64, kind: u32| E820Entry {
        addr: addr.into(),
        size: size.into(),
        kind: kind.into(),
    };
    let map = vec![entry(0, 0x3_0000, e820::RAM), entry(0x3_0000, 0x1_0000, e820::RESERVED)];
    guest.domain.set_memory_map(map.clone());
    assert_eq!(op(&mut guest, MemoryOp::MemoryMap, argument), 0);
    assert_eq!(guest.peek(BUFFER_PFN, 0) & 0xffff_ffff, 2);
    let found: [E820Entry; 2] = guest.domain.memory.read_value(guest.word(LIST_PFN, 0)).unwrap();
    assert_eq!(found.to_vec(), map);
    let argument = guest.argument(&with(request, |it| {
        it.nr_entries = 1;
    }));
    assert_eq!(op(&mut guest, MemoryOp::MemoryMap, argument), 0);
    assert_eq!(guest.peek(BUFFER_PFN, 0) & 0xffff_ffff, 1);
    let argument = guest.argument(&with(request, |it| {
        it.buffer = 0x1000;
    }));
    assert_eq!(op(&mut guest, MemoryOp::MemoryMap, argument), failed(Errno::Efault));
}

#[test]
fn questions_about_other_domains_are_refused() {
    let mut guest = TestGuest::new();
    for what in [MemoryOp::CurrentReservation, MemoryOp::MaximumReservation, MemoryOp::MaximumGpfn] {
        for (domain, errno) in [(0_u16, Errno::Eperm), (9, Errno::Esrch)] {
            let argument = guest.argument(&domain);
            assert_eq!(op(&mut guest, what, argument), failed(errno), "{what:?}");
        }
        assert_eq!(op(&mut guest, what, 0x1000), failed(Errno::Efault));
        let argument = guest.argument(&1_u16);
        assert!(op(&mut guest, what, argument) >= 0);
        let resumed = u64::from(what.number()) | 1 << 6;
        assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[resumed, argument]), failed(Errno::Einval));
    }
    for (what, errno) in [
        (MemoryOp::MachineMemoryMap, Errno::Eperm),
        (MemoryOp::MachphysCompatMfnList, Errno::Eopnotsupp),
        (MemoryOp::GetVnumainfo, Errno::Eopnotsupp),
    ] {
        assert_eq!(op(&mut guest, what, 0), failed(errno), "{what:?}");
    }
    for (what, errno) in [
        (MemoryOp::AddToPhysmap, Errno::Eacces),
        (MemoryOp::AddToPhysmapBatch, Errno::Eacces),
        (MemoryOp::RemoveFromPhysmap, Errno::Eacces),
        (MemoryOp::SetPodTarget, Errno::Einval),
        (MemoryOp::GetPodTarget, Errno::Einval),
    ] {
        for (domain, errno) in [(0x7ff0_u16, errno), (0, errno), (9, Errno::Esrch)] {
            let argument = guest.argument(&domain);
            assert_eq!(op(&mut guest, what, argument), failed(errno), "{what:?} {domain}");
        }
        assert_eq!(op(&mut guest, what, 0x1000), failed(Errno::Efault), "{what:?}");
    }
    assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[63, 0]), failed(Errno::Enosys));
    assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[8, 0]), failed(Errno::Enosys));
}

#[test]
fn the_memory_map_is_the_guests_to_change() {
    let mut guest = TestGuest::new();
    let entry = E820Entry { addr: 0.into(), size: 0x4_0000.into(), kind: e820::RAM.into() };
    guest.domain.memory.write_value(guest.word(LIST_PFN, 0), &entry).unwrap();
    let request = with(ForeignMemoryMap::new_zeroed(), |it| {
        it.domid = DomId::SELF.0;
        it.map.nr_entries = 1;
        it.map.buffer = guest.va(LIST_PFN);
    });
    let mut set = |change: fn(&mut ForeignMemoryMap)| {
        let argument = guest.argument(&with(request, change));
        (op(&mut guest, MemoryOp::SetMemoryMap, argument), guest.domain.memory_map.clone())
    };
    assert_eq!(set(|it| it.map.nr_entries = 1025), (failed(Errno::Einval), vec![]));
    assert_eq!(set(|it| it.domid = 0), (failed(Errno::Eperm), vec![]));
    assert_eq!(set(|it| it.domid = 9), (failed(Errno::Esrch), vec![]));
    assert_eq!(set(|_| {}), (0, vec![entry]));
    assert_eq!(set(|it| it.map.buffer = 0x1000), (failed(Errno::Efault), vec![entry]), "the old one stays");
}

#[test]
fn no_memory_is_reserved_for_devices() {
    let mut guest = TestGuest::new();
    let request = with(ReservedDeviceMemoryMap::new_zeroed(), |it| it.nr_entries = 7);
    let argument = guest.argument(&request);
    assert_eq!(op(&mut guest, MemoryOp::ReservedDeviceMemoryMap, argument), 0);
    assert_eq!(guest.peek(BUFFER_PFN, 0), 0, "no flags, no ranges");
    let argument = guest.argument(&with(request, |it| it.flags = 2));
    assert_eq!(op(&mut guest, MemoryOp::ReservedDeviceMemoryMap, argument), failed(Errno::Einval));
    let argument = guest.argument(&with(request, |it| it.buffer = 0xffff_8000_0000_0000));
    assert_eq!(op(&mut guest, MemoryOp::ReservedDeviceMemoryMap, argument), failed(Errno::Efault));
}

#[test]
fn only_what_takes_long_can_be_resumed() {
    let mut guest = TestGuest::new();
    let argument = guest.argument(&0x7ff0_u16);
    let mut resumed = |what: MemoryOp, from: u64| {
        guest.hypercall(Hypercall::MemoryOp, &[u64::from(what.number()) | from << 6, argument])
    };
    for (what, errno) in [
        (MemoryOp::Exchange, Errno::Einval),
        (MemoryOp::MaximumRamPage, Errno::Einval),
        (MemoryOp::RemoveFromPhysmap, Errno::Einval),
        (MemoryOp::ClaimPages, Errno::Einval),
        (MemoryOp::MemoryMap, Errno::Enosys),
        (MemoryOp::MachphysMapping, Errno::Enosys),
        (MemoryOp::SetMemoryMap, Errno::Enosys),
        (MemoryOp::AddToPhysmap, Errno::Eacces),
        (MemoryOp::AcquireResource, Errno::Eperm),
    ] {
        assert_eq!(resumed(what, 1), failed(errno), "{what:?}");
    }
    assert_eq!(resumed(MemoryOp::AddToPhysmap, 0xffff), failed(Errno::Eacces));
    assert_eq!(resumed(MemoryOp::AddToPhysmap, 0x1_0000), failed(Errno::Edom));
}

#[test]
fn an_exchange_is_checked_before_anything_is_given_up() {
    let mut guest = TestGuest::new();
    guest.poke(LIST_PFN, 0, guest.mfn(SPARE_PFN).0);
    guest.map(SPARE_PFN, 0);
    let request = with(MemoryExchange::new_zeroed(), |it| {
        for side in [&mut it.input, &mut it.output] {
            (side.extent_start, side.nr_extents, side.domid) = (guest.va(LIST_PFN), 1, DomId::SELF.0);
        }
    });
    let mut exchange = |change: fn(&mut MemoryExchange)| {
        let argument = guest.argument(&with(request, change));
        let result = op(&mut guest, MemoryOp::Exchange, argument);
        (result, guest.peek(BUFFER_PFN, 8))
    };
    assert_eq!(exchange(|it| it.input.extent_start = 0xffff_8000_0000_0000).0, failed(Errno::Efault));
    assert_eq!(exchange(|it| it.output.extent_start = 0xffff_8000_0000_0000).0, failed(Errno::Efault));
    // Memory of one node of the host, and memory that no machine has.
    assert_eq!(exchange(|it| it.output.mem_flags = 1 << 17).0, failed(Errno::Einval));
    assert_eq!(exchange(|it| it.output.mem_flags = 5).0, failed(Errno::Enomem));
    assert_eq!(exchange(|it| it.nr_exchanged = 1), (0, 1), "all of it was done already");
    assert_eq!(exchange(|it| it.nr_exchanged = 2).0, failed(Errno::Einval));
    assert_eq!(exchange(|_| {}), (0, 1));
}

#[test]
fn population_cannot_be_put_off() {
    let mut guest = TestGuest::new();
    guest.poke(LIST_PFN, 0, PAGES);
    let request = with(MemoryReservation::new_zeroed(), |it| {
        (it.extent_start, it.nr_extents, it.domid) = (guest.va(LIST_PFN), 1, DomId::SELF.0);
        it.mem_flags = mem_flags::POPULATE_ON_DEMAND;
    });
    let argument = guest.argument(&request);
    assert_eq!(op(&mut guest, MemoryOp::PopulatePhysmap, argument), 0);
    // The flag means nothing to the others.
    assert_eq!(op(&mut guest, MemoryOp::IncreaseReservation, argument), 1);
}
