//! `mmu_update`, `update_va_mapping`, `update_descriptor`, `set_gdt`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    units::{DomId, VcpuId},
};
use paravane_engine::TlbFlush;

use crate::{
    Flush,
    frames::{
        Level,
        entry::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE},
        level::{Use, slot_of},
        test_guest::{
            BASE, BUFFER_PFN, COUNTER_PFN, GLOBAL, GUEST_KERNEL, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF,
            READ_ONLY, SPARE_PFN, TABLE, TestGuest, failed,
        },
    },
};

const SELF: u64 = DomId::SELF.0 as u64;
const IO: u64 = DomId::IO.0 as u64;
const DATA: u64 = SPARE_PFN;
const OTHER: u64 = SPARE_PFN + 1;

/// One request; the command is in the low bits of the address.
fn update_as(guest: &mut TestGuest, domains: u64, ptr: u64, val: u64) -> i64 {
    let request = guest.argument(&[ptr, val]);
    guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, domains])
}

fn update(guest: &mut TestGuest, ptr: u64, val: u64) -> i64 {
    update_as(guest, SELF, ptr, val)
}

#[test]
fn an_l1_entry_is_checked_and_adjusted() {
    let mut guest = TestGuest::new();
    let at = guest.word(L1_PFN, OTHER).0;
    let data = guest.entry(DATA, 0);
    let kernel = USER | GUEST_KERNEL;
    for (val, result, stored) in [
        (data | PRESENT | WRITABLE, 0, data | PRESENT | WRITABLE | kernel),
        (data | PRESENT | USER, 0, data | PRESENT | USER | GLOBAL),
        (data | PRESENT | USER | GUEST_KERNEL, 0, data | PRESENT | kernel),
        (data | PRESENT | NO_EXECUTE | 7 << 9, 0, data | PRESENT | NO_EXECUTE | 7 << 9 | kernel),
        // Not present: whatever the guest likes.
        (0xffff_ffff_ffff_fffe, 0, 0xffff_ffff_ffff_fffe),
        (data | PRESENT | 1 << 3, failed(Errno::Einval), 0xffff_ffff_ffff_fffe),
        (data | PRESENT | 1 << 4, failed(Errno::Einval), 0xffff_ffff_ffff_fffe),
        (data | PRESENT | 1 << 7, failed(Errno::Einval), 0xffff_ffff_ffff_fffe),
        (0x000f_ffff_ffff_f000 | PRESENT, failed(Errno::Einval), 0xffff_ffff_ffff_fffe),
        (0x0000_1000 | PRESENT, failed(Errno::Eperm), 0xffff_ffff_ffff_fffe),
        (0x000e_ffff_ffff_f000 | PRESENT, failed(Errno::Eperm), 0xffff_ffff_ffff_fffe),
        (guest.machine.gdt.0 << 12 | PRESENT, failed(Errno::Ebusy), 0xffff_ffff_ffff_fffe),
        (guest.machine.m2p_root().0 << 12 | PRESENT, failed(Errno::Ebusy), 0xffff_ffff_ffff_fffe),
        ((guest.machine.memory.end.0 - 1) << 12 | PRESENT, failed(Errno::Ebusy), 0xffff_ffff_ffff_fffe),
        (guest.entry(L4_PFN, LEAF), failed(Errno::Ebusy), 0xffff_ffff_ffff_fffe),
        (guest.entry(L4_PFN, READ_ONLY), 0, guest.entry(L4_PFN, READ_ONLY | kernel)),
        (guest.machine.shared_info.0 << 12 | LEAF, 0, guest.machine.shared_info.0 << 12 | LEAF | kernel),
        (0, 0, 0),
    ] {
        assert_eq!(update(&mut guest, at, val), result, "{val:#x}");
        assert_eq!(guest.peek(L1_PFN, OTHER), stored, "{val:#x}");
    }
}

#[test]
fn preserving_keeps_accessed_and_dirty_bits_that_the_entry_has() {
    let mut guest = TestGuest::new();
    let at = guest.word(L1_PFN, OTHER).0;
    let read_only = guest.entry(OTHER, PRESENT);
    guest.poke(L1_PFN, OTHER, guest.peek(L1_PFN, OTHER) | DIRTY);
    assert_eq!(update(&mut guest, at | 2, read_only), 0);
    assert_eq!(guest.peek(L1_PFN, OTHER), read_only | ACCESSED | DIRTY | USER | GUEST_KERNEL);
    assert_eq!(update(&mut guest, at, read_only), 0);
    assert_eq!(guest.peek(L1_PFN, OTHER), read_only | USER | GUEST_KERNEL);
    assert_eq!(update(&mut guest, at | 3, read_only | USER), 0);
    assert_eq!(guest.peek(L1_PFN, OTHER), read_only | USER | GLOBAL);
}

#[test]
fn upper_entries_take_tables_of_the_level_below_and_flush() {
    let mut guest = TestGuest::with_vcpus(2);
    guest.protect(DATA);
    guest.domain.take_flushes();
    for (table, good) in [(L2_PFN, DATA), (L3_PFN, L2_PFN), (L4_PFN, L3_PFN)] {
        let at = guest.word(table, 10).0;
        let entry = guest.entry(good, TABLE);
        assert_eq!(update(&mut guest, at, entry), 0, "table {table}");
        let flushed: Vec<_> = guest.domain.take_flushes();
        for vcpu in [0, 1].map(VcpuId) {
            assert!(flushed.contains(&Flush { vcpu, what: TlbFlush::All }), "table {table}");
        }
        for (bad, errno) in [
            (guest.entry(good, TABLE | 1 << 7), Errno::Einval),
            (guest.entry(good, TABLE | GLOBAL), Errno::Einval),
            (guest.entry(OTHER, TABLE), Errno::Einval),
            (guest.entry(table, TABLE), Errno::Einval),
            (0x1000 | TABLE, Errno::Einval),
            (guest.machine.m2p_root().0 << 12 | TABLE, Errno::Einval),
        ] {
            assert_eq!(update(&mut guest, at, bad), failed(errno), "table {table}: {bad:#x}");
        }
        assert_eq!(guest.peek(table, 10) & !ACCESSED, entry & !ACCESSED);
        assert_eq!(update(&mut guest, at, 0), 0);
    }
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
}

#[test]
fn the_slots_of_xen_cannot_be_changed() {
    let mut guest = TestGuest::new();
    for slot in [256, 257, 260, 271] {
        let at = guest.word(L4_PFN, slot).0;
        assert_eq!(update(&mut guest, at, 0), failed(Errno::Einval));
    }
    let m2p = guest.peek(L4_PFN, 256);
    assert_eq!(m2p >> 12, guest.machine.m2p_root().0);
    for slot in [255, 272] {
        let at = guest.word(L4_PFN, slot).0;
        assert_eq!(update(&mut guest, at, 0), 0);
    }
}

#[test]
fn plain_pages_take_any_value() {
    let mut guest = TestGuest::new();
    let at = guest.word(DATA, 3).0;
    assert_eq!(update(&mut guest, at, 0x1234_5678_9abc_def1), 0);
    assert_eq!(guest.peek(DATA, 3), 0x1234_5678_9abc_def1);
    // Not mapped writable, so the page becomes writable for the moment.
    guest.protect(DATA);
    assert_eq!(update(&mut guest, at, u64::MAX), 0);
    assert_eq!(guest.peek(DATA, 3), u64::MAX);
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
}

#[test]
fn pages_that_are_not_the_guests_take_none() {
    let mut guest = TestGuest::new();
    for frame in [0, guest.machine.gdt.0, guest.machine.memory.end.0 - 1, u64::MAX >> 12] {
        for command in [0, 1, 2, 3] {
            assert_eq!(
                update(&mut guest, frame << 12 | command, 0),
                failed(Errno::Einval),
                "{frame:#x} {command}"
            );
        }
    }
    for command in 4..8 {
        let at = guest.word(DATA, 0).0;
        assert_eq!(update(&mut guest, at | command, 0), failed(Errno::Enosys));
    }
}

#[test]
fn the_m2p_can_be_set_for_own_pages() {
    let mut guest = TestGuest::new();
    let mfn = guest.mfn(DATA);
    assert_eq!(update(&mut guest, mfn.0 << 12 | 1, 0x777), 0);
    assert_eq!(guest.m2p(mfn), 0x777);
    assert_eq!(update_as(&mut guest, IO, mfn.0 << 12 | 1, 0x888), failed(Errno::Einval));
}

#[test]
fn owners_are_checked() {
    let mut guest = TestGuest::new();
    let at = guest.word(L1_PFN, OTHER).0;
    let entry = guest.entry(OTHER, READ_ONLY);
    for (domains, result) in [
        (SELF, 0),
        // The guest's own number has to be said as DOMID_SELF for frames, and as itself for tables.
        (1, failed(Errno::Esrch)),
        (2 << 16 | SELF, 0),
        (1 << 16 | SELF, failed(Errno::Eperm)),
        (9 << 16 | SELF, failed(Errno::Esrch)),
        (0, failed(Errno::Eperm)),
        (7, failed(Errno::Esrch)),
        (u64::from(DomId::XEN.0), failed(Errno::Eperm)),
        (IO, failed(Errno::Ebusy)),
    ] {
        assert_eq!(update_as(&mut guest, domains, at, entry), result, "{domains:#x}");
        // Make the next store a real one.
        let reset = guest.entry(DATA, READ_ONLY);
        assert_eq!(update(&mut guest, at, reset), 0);
    }
    assert_eq!(update_as(&mut guest, IO, at, 0x1000 | PRESENT), failed(Errno::Eperm));
    let l2 = guest.word(L2_PFN, 10).0;
    assert_eq!(update_as(&mut guest, IO, l2, 0), failed(Errno::Einval));
}

#[test]
fn a_list_stops_at_its_first_error_and_counts_what_was_done() {
    let mut guest = TestGuest::new();
    let at = guest.word(DATA, 0).0;
    let list = guest.argument(&[at, 1, at + 8, 2, at + 8 + 4, 3, at + 16, 4]);
    let counter = guest.va(COUNTER_PFN);
    guest.poke(COUNTER_PFN, 0, 0xffff_ffff_0000_0009);
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, 4, counter, SELF]), failed(Errno::Enosys));
    assert_eq!([0, 1, 2].map(|index| guest.peek(DATA, index)), [1, 2, 0]);
    // 32 bits, and not added to what was there.
    assert_eq!(guest.peek(COUNTER_PFN, 0), 0xffff_ffff_0000_0002);
    // A continuation adds.
    let marked = 2 | 1 << 31;
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, marked, counter, SELF]), 0);
    assert_eq!(guest.peek(COUNTER_PFN, 0), 0xffff_ffff_0000_0004);
    // An empty list succeeds, and so does a counter that cannot be written.
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, 0, counter, SELF]), 0);
    assert_eq!(guest.peek(COUNTER_PFN, 0), 0xffff_ffff_0000_0000);
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, 2, 0x1000, SELF]), 0);
}

#[test]
fn a_list_that_cannot_be_read_fails_where_it_ends() {
    let mut guest = TestGuest::new();
    let counter = guest.va(COUNTER_PFN);
    for list in [0xffff_8000_0000_0000, 0xffff_87ff_ffff_fff0, 0x0000_8000_0000_0000, 0x1000, u64::MAX - 3] {
        assert_eq!(
            guest.hypercall(Hypercall::MmuUpdate, &[list, 1, counter, SELF]),
            failed(Errno::Efault),
            "{list:#x}"
        );
    }
    // The last request of the buffer's page is good, the one after it lies in a page that is not mapped.
    let (after, at) = (guest.va(BUFFER_PFN + 1), guest.word(DATA, 0).0);
    let saved = guest.peek(L1_PFN, BUFFER_PFN + 1);
    assert_eq!(guest.map(BUFFER_PFN + 1, 0), 0);
    guest.poke(BUFFER_PFN, 510, at);
    guest.poke(BUFFER_PFN, 511, 42);
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[after - 16, 2, 0, SELF]), failed(Errno::Efault));
    assert_eq!(guest.peek(DATA, 0), 42);
    assert_eq!(guest.map(BUFFER_PFN + 1, saved), 0);
}

#[test]
fn a_long_list_is_cut_and_goes_on() {
    let mut guest = TestGuest::new();
    // All requests are in one page, mapped over and over by a table of the test's own.
    let slot = slot_of(Level::L2, BASE) as u64 + 1;
    let list = BASE + (2 << 20);
    guest.protect(DATA);
    for entry in 0..512 {
        guest.poke(DATA, entry, guest.entry(BUFFER_PFN, PRESENT));
    }
    let (at, table) = (guest.word(L2_PFN, slot).0, guest.entry(DATA, TABLE));
    assert_eq!(update(&mut guest, at, table), 0);
    let target = guest.word(OTHER, 0).0;
    for request in 0..256 {
        guest.poke(BUFFER_PFN, 2 * request, target);
        guest.poke(BUFFER_PFN, 2 * request + 1, request);
    }
    let counter = guest.va(COUNTER_PFN);
    let count = 512 * 256;
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, count, counter, SELF]), 0);
    assert_eq!(guest.peek(COUNTER_PFN, 0) & 0xffff_ffff, count);
    assert_eq!(guest.peek(OTHER, 0), 255);
    // One more is beyond the end.
    let result = guest.hypercall(Hypercall::MmuUpdate, &[list, 0x7fff_ffff, counter, SELF]);
    assert_eq!(result, failed(Errno::Efault));
    assert_eq!(guest.peek(COUNTER_PFN, 0) & 0xffff_ffff, count);
}

#[test]
fn a_virtual_address_names_its_l1_entry() {
    let mut guest = TestGuest::new();
    let entry = guest.entry(OTHER, READ_ONLY);
    assert_eq!(guest.map(DATA, entry), 0);
    assert_eq!(guest.peek(L1_PFN, DATA), entry | USER | GUEST_KERNEL);
    for va in [0, 0x1000, BASE + (1 << 21), BASE - 1, 0xffff_8000_0000_0000, 0x0000_8000_0000_0000] {
        let result = guest.hypercall(Hypercall::UpdateVaMapping, &[va, entry, 2]);
        assert_eq!(result, failed(Errno::Einval), "{va:#x}");
    }
    let va = guest.va(DATA);
    for (domain, result) in
        [(SELF, 0), (1, failed(Errno::Esrch)), (0, failed(Errno::Eperm)), (IO, failed(Errno::Ebusy))]
    {
        let entry = guest.entry(if domain == SELF { DATA } else { OTHER }, LEAF);
        let args = [va, entry, 0, domain];
        assert_eq!(guest.hypercall(Hypercall::UpdateVaMappingOtherdomain, &args), result, "{domain:#x}");
    }
}

#[test]
fn a_mapping_is_flushed_where_the_flags_say() {
    let mut guest = TestGuest::with_vcpus(3);
    let va = guest.va(DATA);
    let bitmap = guest.argument(&[0xffff_ffff_ffff_fff5_u64]);
    let page = TlbFlush::Page(paravane_abi::units::GuestVirt(va));
    let all = TlbFlush::All;
    for (flags, what, vcpus) in [
        (0, all, vec![]),
        (1, all, vec![0]),
        (2, page, vec![0]),
        (3, all, vec![]),
        (1 | 4, all, vec![0, 1, 2]),
        (2 | 4, page, vec![0, 1, 2]),
        (4, all, vec![]),
        (1 | bitmap, all, vec![0, 2]),
        (2 | bitmap, page, vec![0, 2]),
    ] {
        guest.domain.take_flushes();
        assert_eq!(guest.hypercall(Hypercall::UpdateVaMapping, &[va, 0, flags]), 0);
        let expected: Vec<_> = vcpus.into_iter().map(|vcpu| Flush { vcpu: VcpuId(vcpu), what }).collect();
        assert_eq!(guest.domain.take_flushes(), expected, "{flags:#x}");
    }
    // A bad bitmap is found when the entry has been changed.
    let entry = guest.entry(OTHER, LEAF);
    assert_eq!(guest.hypercall(Hypercall::UpdateVaMapping, &[va, entry, 0x1000 | 1]), failed(Errno::Efault));
    assert_eq!(guest.peek(L1_PFN, DATA) & !(USER | GUEST_KERNEL), entry);
    // A failed update flushes nothing.
    guest.domain.take_flushes();
    assert_eq!(guest.hypercall(Hypercall::UpdateVaMapping, &[va, 0x1000 | PRESENT, 1]), failed(Errno::Eperm));
    assert_eq!(guest.domain.take_flushes(), []);
}

#[test]
fn a_gdt_takes_pages_of_good_descriptors_that_nobody_writes() {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const TSS: u64 = 0x0000_8900_0000_0067;
    let mut guest = TestGuest::new();
    let set = |guest: &mut TestGuest, pfns: &[u64], entries: u64| {
        let numbers: Vec<u64> = pfns.iter().map(|pfn| guest.mfn(*pfn).0).collect();
        let list = guest.argument(numbers.as_slice());
        guest.hypercall(Hypercall::SetGdt, &[list, entries])
    };
    guest.poke(DATA, 2, CODE);
    assert_eq!(set(&mut guest, &[DATA], 16), failed(Errno::Einval));
    guest.protect(DATA);
    guest.protect(OTHER);
    assert_eq!(set(&mut guest, &[DATA, OTHER], 513), 0);
    assert_eq!(guest.context.descriptors.gdt[..3], [Some(guest.mfn(DATA)), Some(guest.mfn(OTHER)), None]);
    assert_eq!(guest.context.descriptors.gdt[14], Some(guest.machine.gdt));
    // The guest's ring is 3.
    assert_eq!(guest.peek(DATA, 2), 0x00af_fb00_0000_ffff);
    let entry = guest.entry(DATA, LEAF);
    assert_eq!(guest.map(DATA, entry), failed(Errno::Ebusy));
    let at = guest.word(DATA, 0).0;
    assert_eq!(update(&mut guest, at, 0), failed(Errno::Einval));
    // A page table is no descriptor page, and the old table stays when the new one fails.
    assert_eq!(set(&mut guest, &[DATA, L1_PFN], 1024), failed(Errno::Einval));
    assert_eq!(set(&mut guest, &[DATA], 7169), failed(Errno::Einval));
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[0x1000, 1]), failed(Errno::Efault));
    assert_eq!(guest.context.descriptors.gdt[1], Some(guest.mfn(OTHER)));
    assert_eq!(set(&mut guest, &[], 0), 0);
    assert_eq!(guest.context.descriptors.gdt[..14], [None; 14]);
    assert_eq!(guest.map(DATA, entry), 0);
    guest.poke(DATA, 3, TSS);
    guest.protect(DATA);
    assert_eq!(set(&mut guest, &[DATA], 16), failed(Errno::Einval));
}

#[test]
fn single_descriptors_are_checked_and_stored() {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const STORED: u64 = 0x00af_fb00_0000_ffff;
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let list = guest.argument(&[guest.mfn(DATA).0]);
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[list, 16]), 0);
    for (at, descriptor, result) in [
        (guest.word(DATA, 2).0, CODE, 0),
        (guest.word(OTHER, 2).0, CODE, 0),
        (guest.word(DATA, 2).0 + 4, CODE, failed(Errno::Einval)),
        (guest.word(DATA, 2).0, 0x0000_8900_0000_0067, failed(Errno::Einval)),
        (guest.word(L1_PFN, 2).0, CODE, failed(Errno::Einval)),
        (guest.machine.gdt.0 << 12, CODE, failed(Errno::Einval)),
        (0x1000, CODE, failed(Errno::Einval)),
    ] {
        assert_eq!(guest.hypercall(Hypercall::UpdateDescriptor, &[at, descriptor]), result, "{at:#x}");
    }
    assert_eq!([DATA, OTHER].map(|pfn| guest.peek(pfn, 2)), [STORED; 2]);
    let kept = guest.domain.frame_table.record(guest.mfn(DATA)).unwrap();
    assert!(kept.is_used_as(Use::SegmentDescriptors));
}

#[test]
fn a_list_that_cannot_be_one_is_noticed_before_a_domain_that_does_not_exist() {
    const STRANGER: u64 = 9;
    let mut guest = TestGuest::new();
    let request = guest.argument(&[0_u64; 3]);
    let counter = guest.va(COUNTER_PFN);
    let mut refused = |call: Hypercall, list: u64, domains: u64| {
        guest.poke(COUNTER_PFN, 0, 77);
        let result = guest.hypercall(call, &[list, 1, counter, domains]);
        (result, guest.peek(COUNTER_PFN, 0))
    };
    let list_of_xen = 0xffff_8000_0000_0000;
    for call in [Hypercall::MmuUpdate, Hypercall::MmuextOp] {
        assert_eq!(refused(call, list_of_xen, STRANGER), (failed(Errno::Efault), 77), "{call}");
    }
    // Only an unknown owner of the frames that are mapped is found late enough to be counted: nothing was done.
    assert_eq!(refused(Hypercall::MmuUpdate, request, STRANGER), (failed(Errno::Esrch), 0));
    let tables = (STRANGER + 1) << 16 | u64::from(DomId::SELF.0);
    assert_eq!(refused(Hypercall::MmuUpdate, request, tables), (failed(Errno::Esrch), 77));
    assert_eq!(refused(Hypercall::MmuextOp, request, STRANGER), (failed(Errno::Esrch), 77));
}

#[test]
fn a_gdt_has_fourteen_pages_of_the_guests_and_gives_them_back() {
    let mut guest = TestGuest::new();
    let pages: Vec<u64> = (0..14).map(|page| SPARE_PFN + page).collect();
    for pfn in &pages {
        guest.protect(*pfn);
    }
    let frames: Vec<u64> = pages.iter().map(|pfn| guest.mfn(*pfn).0).collect();
    let list = guest.argument(frames.as_slice());
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[list, 7168]), 0);
    for (slot, pfn) in pages.iter().enumerate() {
        assert_eq!(guest.context.descriptors.gdt[slot], Some(guest.mfn(*pfn)));
        let writable = guest.entry(*pfn, LEAF);
        assert_eq!(guest.map(*pfn, writable), failed(Errno::Ebusy), "page {slot}");
    }
    assert_eq!(guest.context.descriptors.gdt[14], Some(guest.machine.gdt), "and one of Xen's");
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[0, 0]), 0);
    for pfn in pages {
        let writable = guest.entry(pfn, LEAF);
        assert_eq!(guest.map(pfn, writable), 0);
    }
}
