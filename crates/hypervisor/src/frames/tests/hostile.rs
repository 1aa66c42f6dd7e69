//! Guests that mean harm: nothing they ask for panics, and nothing gives them write access to a page table.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    units::{DomId, VcpuId},
};
use paravane_engine::{Exit, Gpr};
use paravane_memory::paging::{Access, Privilege, walk};
use proptest::prelude::*;

use crate::{
    CrashCause, Tsc,
    domain::Verdict,
    frames::{
        Level,
        entry::{ENTRIES, Entry},
        level::Use,
        test_guest::{
            BUFFER_PFN, COUNTER_PFN, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF, PAGES, READ_ONLY, SPARE_PFN,
            TABLE, TestGuest, failed,
        },
    },
};

const SELF: u64 = DomId::SELF.0 as u64;
const DATA: u64 = SPARE_PFN;
const MMU_CALLS: [Hypercall; 7] = [
    Hypercall::MmuUpdate,
    Hypercall::MmuextOp,
    Hypercall::UpdateVaMapping,
    Hypercall::UpdateVaMappingOtherdomain,
    Hypercall::SetGdt,
    Hypercall::UpdateDescriptor,
    Hypercall::MemoryOp,
];

/// Whether any address of the guest's kernel leads to a page table or descriptor page for writing.
fn can_write_tables(guest: &TestGuest) -> bool {
    let table = &guest.domain.frame_table;
    let protected = |pfn: &u64| {
        table.record(guest.mfn(*pfn)).is_some_and(|record| {
            record.uses > 0 && (record.usage.level().is_some() || record.usage == Use::SegmentDescriptors)
        })
    };
    let protected: Vec<_> = (0..PAGES).filter(protected).map(|pfn| guest.mfn(pfn)).collect();
    (0..ENTRIES as u64).any(|page| {
        let va = paravane_abi::units::GuestVirt(guest.va(page));
        walk(&guest.domain.memory, guest.context.kernel_root, va, Access::Write, Privilege::User)
            .is_ok_and(|found| protected.contains(&found.frame))
    })
}

#[test]
fn no_way_of_mapping_makes_a_page_table_writable() {
    let mut guest = TestGuest::new();
    for victim in [L4_PFN, L3_PFN, L2_PFN, L1_PFN] {
        let entry = guest.entry(victim, LEAF);
        assert_eq!(guest.map(victim, entry), failed(Errno::Ebusy));
        let at = guest.word(L1_PFN, DATA).0;
        for command in [0, 2, 3] {
            let request = guest.argument(&[at | command, entry]);
            assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, SELF]), failed(Errno::Ebusy));
        }
        // Through a table that is built first and hung in afterwards.
        let built = DATA + 1;
        let writable = guest.entry(built, LEAF);
        assert_eq!(guest.map(built, writable), 0);
        guest.poke(built, 5, entry);
        guest.protect(built);
        let (l2, table) = (guest.word(L2_PFN, 9).0, guest.entry(built, TABLE));
        let request = guest.argument(&[l2, table]);
        assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, SELF]), failed(Errno::Ebusy));
        // As an upper table of the wrong level, which would make its entries mappings.
        let (l2, table) = (guest.word(L2_PFN, 9).0, guest.entry(victim, TABLE));
        let request = guest.argument(&[l2, table]);
        let wrong = guest.hypercall(Hypercall::MmuUpdate, &[request, 1, 0, SELF]);
        assert_eq!(wrong, if victim == L1_PFN { 0 } else { failed(Errno::Einval) });
        // By clearing or copying over it.
        let mfn = guest.mfn(victim).0;
        let request = guest.argument(&[16_u64, mfn, 0, 17, mfn, mfn]);
        for skip in [0, 24] {
            let args = [request + skip, 1, 0, SELF];
            assert_eq!(guest.hypercall(Hypercall::MmuextOp, &args), failed(Errno::Einval));
        }
        // As a descriptor.
        assert_eq!(guest.hypercall(Hypercall::UpdateDescriptor, &[mfn << 12, 0]), failed(Errno::Einval));
        assert!(!can_write_tables(&guest));
    }
}

#[test]
fn a_descriptor_page_is_no_page_table_and_the_other_way_round() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA);
    let list = guest.argument(&[mfn.0]);
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[list, 1]), 0);
    for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
        assert_eq!(guest.domain.frames().pin(mfn, level), Err(Errno::Einval));
    }
    let entry = guest.entry(DATA, LEAF);
    assert_eq!(guest.map(DATA, entry), failed(Errno::Ebusy));
    assert!(!can_write_tables(&guest));
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[0, 0]), 0);
    assert_eq!(guest.domain.frames().pin(mfn, Level::L2), Ok(()));
    let list = guest.argument(&[mfn.0]);
    assert_eq!(guest.hypercall(Hypercall::SetGdt, &[list, 1]), failed(Errno::Einval));
}

#[test]
fn a_root_that_is_in_use_outlives_unpinning_and_giving_back() {
    let mut guest = TestGuest::new();
    let root = guest.mfn(L4_PFN);
    let request = guest.argument(&[4, root.0, 0]);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, SELF]), 0);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, SELF]), failed(Errno::Einval));
    guest.poke(COUNTER_PFN, 0, root.0);
    let reservation = guest.argument(&[guest.va(COUNTER_PFN), 1, 0, SELF]);
    assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[1, reservation]), 1);
    assert!(guest.domain.frame_table.record(root).unwrap().is_used_as(Use::L4));
    assert_eq!(guest.peek(L4_PFN, 511) >> 12 & 0xff_ffff, guest.mfn(L3_PFN).0);
}

#[test]
fn pinning_and_unpinning_in_turn_from_a_list_keeps_the_counts() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA).0;
    let mut list = Vec::new();
    for level in 0..4_u64 {
        list.extend([level, mfn, 0, 4, mfn, 0]);
    }
    let list = guest.argument(list.as_slice());
    for vcpu in 0..3 {
        assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[list, 8, 0, SELF]), 0, "round {vcpu}");
    }
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
}

#[test]
fn pointers_into_the_range_of_xen_are_bad_addresses() {
    let mut guest = TestGuest::new();
    let m2p = 0xffff_8000_0000_0000 + guest.machine.memory.start.0 * 8;
    for pointer in [m2p, 0xffff_8000_0000_0000, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_f000] {
        for (call, args) in [
            (Hypercall::MmuUpdate, [pointer, 1, 0, SELF]),
            (Hypercall::MmuextOp, [pointer, 1, 0, SELF]),
            (Hypercall::SetGdt, [pointer, 1, 0, 0]),
            (Hypercall::MemoryOp, [12, pointer, 0, 0]),
            (Hypercall::MemoryOp, [11, pointer, 0, 0]),
            (Hypercall::MemoryOp, [9, pointer, 0, 0]),
        ] {
            assert_eq!(guest.hypercall(call, &args), failed(Errno::Efault), "{call:?} {pointer:#x}");
        }
        assert_eq!(guest.hypercall(Hypercall::MemoryOp, &[6, pointer]), 0);
    }
    // The guest itself may read the M2P, and only read it.
    let at = paravane_abi::units::GuestVirt(m2p);
    let root = guest.context.kernel_root;
    assert!(walk(&guest.domain.memory, root, at, Access::Read, Privilege::User).is_ok());
    assert!(walk(&guest.domain.memory, root, at, Access::Write, Privilege::User).is_err());
}

#[test]
fn lists_may_lie_anywhere() {
    let mut guest = TestGuest::new();
    let at = guest.word(DATA, 0).0;
    // Unaligned, and across two pages.
    let list = guest.va(BUFFER_PFN + 1) - 3;
    let request = [at.to_le_bytes(), 77_u64.to_le_bytes()].concat();
    guest.call().space().write(paravane_abi::units::GuestVirt(list), &request).unwrap();
    let counter = guest.va(COUNTER_PFN) + 65;
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[list, 1, counter, SELF]), 0);
    assert_eq!(guest.peek(DATA, 0), 77);
    assert_eq!(guest.peek(COUNTER_PFN, 8), 1 << 8);
    // The list may be a page table, and change itself.
    let table = guest.va(L1_PFN) + 8 * 400;
    let entry = guest.entry(DATA, READ_ONLY);
    let mine = guest.word(L1_PFN, 400).0;
    let fill = guest.argument(&[mine, mine & !1, mine + 8, entry & !1]);
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[fill, 2, 0, SELF]), 0);
    assert_eq!(guest.hypercall(Hypercall::MmuUpdate, &[table, 1, 0, SELF]), 0);
    assert_eq!(Entry(guest.peek(L1_PFN, 400)), Entry(entry & !1));
}

#[test]
fn a_page_table_that_was_changed_behind_the_hypervisors_back_crashes_the_domain() {
    let mut guest = TestGuest::new();
    guest.protect(DATA);
    let mfn = guest.mfn(DATA);
    guest.domain.frames().pin(mfn, Level::L1).unwrap();
    // One writer is counted, these are two more.
    for slot in 0..2 {
        guest.poke(DATA, slot, guest.entry(DATA + 1, LEAF));
    }
    let request = guest.argument(&[4, mfn.0, 0]);
    for (register, value) in
        [(Gpr::Rax, 26), (Gpr::Rdi, request), (Gpr::Rsi, 1), (Gpr::Rdx, 0), (Gpr::R10, SELF)]
    {
        guest.context.set_gpr(register, value);
    }
    let verdict = guest.domain.handle(VcpuId(0), Exit::Hypercall, &mut guest.context, Tsc(0));
    let Verdict::Crash(report) = verdict else { panic!("{verdict:?}") };
    assert!(matches!(report.cause, CrashCause::Fatal(_)), "{:?}", report.cause);
    assert!(report.cause.to_string().contains("stale translation"), "{}", report.cause);
    assert!(guest.domain.recount().is_err());
}

/// A number that is likely to mean something.
fn argument() -> impl Strategy<Value = u64> {
    let guest = TestGuest::new();
    let addresses = vec![
        guest.va(BUFFER_PFN),
        guest.va(BUFFER_PFN) + 4090,
        guest.va(L1_PFN),
        guest.mfn(DATA).0,
        guest.mfn(DATA).0 << 12,
        guest.word(L1_PFN, 300).0,
        guest.machine.gdt.0 << 12,
        0xffff_8000_0000_0000,
        0x0000_7fff_ffff_fff8,
        u64::MAX - 7,
        SELF,
    ];
    prop_oneof![any::<u64>(), 0..64_u64, any::<u32>().prop_map(u64::from), prop::sample::select(addresses)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_arguments_panic_or_spoil_the_counts(
        calls in prop::collection::vec((0..MMU_CALLS.len(), prop::array::uniform5(argument()), any::<bool>()), 1..12),
        buffer in prop::collection::vec(argument(), 64),
    ) {
        let mut guest = TestGuest::new();
        for (call, args, fill) in calls {
            if fill {
                guest.argument(buffer.as_slice());
            }
            guest.hypercall(MMU_CALLS[call], &args);
            prop_assert!(!can_write_tables(&guest));
        }
    }
}
