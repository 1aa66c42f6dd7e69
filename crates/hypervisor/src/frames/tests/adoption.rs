//! What a domain looks like when it starts.

use paravane_abi::{errno::Errno, memory::INVALID_M2P_ENTRY, units::Mfn};

use crate::frames::{
    AdoptError, Level,
    entry::{ACCESSED, PRESENT, USER, WRITABLE},
    level::{Use, slot_of},
    table::flags,
    test_guest::{
        BASE, GUEST_KERNEL, L1_PFN, L2_PFN, L3_PFN, L4_PFN, LEAF, PAGES, SPARE_PFN, TABLE, TestGuest,
    },
};

#[test]
fn an_adopted_domain_has_validated_and_pinned_tables() {
    let guest = TestGuest::new();
    let record = |pfn| *guest.domain.frame_table.record(guest.mfn(pfn)).unwrap();
    assert!(record(L4_PFN).is_used_as(Use::L4) && record(L4_PFN).has(flags::PINNED));
    // The pin and vCPU 0.
    assert_eq!(record(L4_PFN).uses, 2);
    for (pfn, usage) in [(L3_PFN, Use::L3), (L2_PFN, Use::L2), (L1_PFN, Use::L1), (SPARE_PFN, Use::Writable)]
    {
        assert!(record(pfn).is_used_as(usage), "page {pfn}");
        assert_eq!(record(pfn).uses, 1, "page {pfn}");
    }
    // The L2 entry and the read-only mapping.
    assert_eq!(record(L1_PFN).refs, 2);
}

#[test]
fn adoption_rewrites_entries_as_pinning_does() {
    let guest = TestGuest::new();
    let mapped = guest.peek(L1_PFN, SPARE_PFN);
    assert_eq!(mapped, guest.entry(SPARE_PFN, LEAF | USER | GUEST_KERNEL));
    let slot = |level: Level| slot_of(level, BASE) as u64;
    assert_eq!(guest.peek(L2_PFN, slot(Level::L2)), guest.entry(L1_PFN, TABLE));
    let m2p = guest.peek(L4_PFN, 256);
    assert_eq!(m2p >> 12, guest.machine.m2p_root().0);
    assert_eq!(m2p & (PRESENT | WRITABLE | USER | ACCESSED), PRESENT | WRITABLE | USER | ACCESSED);
    assert!((257..272).all(|slot| guest.peek(L4_PFN, slot) == 0));
}

#[test]
fn the_m2p_describes_every_page() {
    let guest = TestGuest::new();
    for pfn in 0..PAGES {
        assert_eq!(guest.m2p(guest.mfn(pfn)), pfn);
    }
    assert_eq!(guest.m2p(Mfn(guest.mfn(PAGES - 1).0 + 1)), INVALID_M2P_ENTRY);
    assert_eq!(guest.m2p(guest.machine.shared_info), INVALID_M2P_ENTRY);
}

#[test]
fn the_reserved_gdt_page_is_in_the_context() {
    let guest = TestGuest::new();
    assert_eq!(guest.context.descriptors.gdt[14], Some(guest.machine.gdt));
}

#[test]
fn bad_tables_are_refused_with_the_entry_to_blame() {
    for (slot, entry, errno, text) in [
        (SPARE_PFN, 0x1000 | LEAF, Errno::Eperm, "not memory"),
        (SPARE_PFN, LEAF | 1 << 3, Errno::Einval, "bits set"),
        (L1_PFN, 0, Errno::Ebusy, "page table for writing"),
    ] {
        let mut guest = TestGuest::built(1);
        let entry = if entry == 0 { guest.entry(L1_PFN, LEAF) } else { entry };
        guest.poke(L1_PFN, slot, entry);
        let machine = guest.machine.clone();
        let error = guest.domain.adopt(&machine, PAGES, &mut guest.context).unwrap_err();
        assert!(matches!(error, AdoptError::BadTables { errno: found, .. } if found == errno), "{error}");
        let message = error.to_string();
        assert!(
            message.contains(text) && message.contains("L1") && message.contains(&format!("entry {slot} ")),
            "{message}"
        );
        guest.check();
    }
}

#[test]
fn a_machine_that_does_not_fit_is_refused() {
    let mut guest = TestGuest::built(1);
    let other = crate::Machine::plan(5000).unwrap();
    let error = guest.domain.adopt(&other, PAGES, &mut guest.context).unwrap_err();
    assert!(matches!(error, AdoptError::WrongMemory { .. }), "{error}");
    let machine = guest.machine.clone();
    let error = guest.domain.adopt(&machine, machine.max_pages + 1, &mut guest.context).unwrap_err();
    assert!(matches!(error, AdoptError::TooManyPages { .. }), "{error}");
    guest.context.kernel_root = machine.m2p_root();
    let error = guest.domain.adopt(&machine, PAGES, &mut guest.context).unwrap_err();
    assert!(matches!(error, AdoptError::BadTables { errno: Errno::Einval, .. }), "{error}");
}
