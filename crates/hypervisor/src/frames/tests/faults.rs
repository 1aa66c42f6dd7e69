//! Faults that are not the guest's to see: stores to page tables, spurious faults, pages of the LDT.

use paravane_abi::{
    hypercall::Hypercall,
    units::{DomId, GuestVirt, PAGE_BYTES, VcpuId},
    vm::VmAssistType,
};
use paravane_engine::{
    Engine, Exit, Gpr, GuestMode, ShadowStep, TlbFlush, rflags, scripted::Scripted, vector,
};
use paravane_memory::paging::FaultCode;

use crate::{
    Flush, Tsc,
    domain::Verdict,
    frames::{
        ShadowWrite,
        entry::{PRESENT, USER, WRITABLE},
        level::Use,
        test_guest::{GUEST_KERNEL, L1_PFN, L2_PFN, LEAF, READ_ONLY, SPARE_PFN, STACK_PFN, TestGuest},
    },
    vcpu::vcpu_info,
};

const DATA: u64 = SPARE_PFN;
const OTHER: u64 = SPARE_PFN + 1;
/// A store to a present page from ring 3.
const STORE: u32 = FaultCode::PRESENT | FaultCode::WRITE | FaultCode::USER;
const RIP: u64 = 0x1000;

/// A guest with the assist on and a page-fault handler.
fn guest() -> TestGuest {
    let mut guest = TestGuest::new();
    guest.domain.assists |= 1 << VmAssistType::WritablePagetables.number();
    guest.handle_page_faults();
    guest.context.rip = RIP;
    guest
}

/// The store that a fault asks for, if it does.
fn shadow(verdict: Verdict) -> Option<Box<ShadowWrite>> {
    if let Verdict::ShadowWrite(write) = verdict {
        return Some(write);
    }
    assert!(matches!(verdict, Verdict::Run), "{verdict:?}");
    None
}

/// The bytes of an entry in a copy of a table.
fn bytes_of(slot: u64) -> core::ops::Range<usize> {
    let at = usize::try_from(slot * 8).unwrap();
    at..at + 8
}

/// What the run loop does with the verdict, with an instruction that writes `value` to entry `slot` of the table.
fn store(guest: &mut TestGuest, slot: u64, value: u64) -> Verdict {
    let address = guest.va(L1_PFN) + 8 * slot;
    let write = shadow(guest.fault(address, STORE)).expect("a store to an L1 table");
    assert_eq!((write.page, write.frame), (GuestVirt(guest.va(L1_PFN)), guest.mfn(L1_PFN)));
    let mut engine = Scripted::new();
    *engine.context_mut() = guest.context.clone();
    engine.then_shadow(move |context, _, copy| {
        copy[bytes_of(slot)].copy_from_slice(&value.to_le_bytes());
        context.rip += 7;
        context.set_gpr(Gpr::Rax, 99);
        ShadowStep::Completed
    });
    let old = write.copy(&guest.domain.memory);
    let mut new = old.clone();
    assert_eq!(engine.step_with_shadow_page(write.page, &mut new), ShadowStep::Completed);
    guest.context = engine.context().clone();
    let verdict = guest.domain.shadow_written(VcpuId(0), &write, (&old, &new), &mut guest.context, Tsc(0));
    guest.check();
    verdict
}

fn cr2(guest: &TestGuest) -> u64 {
    guest.domain.memory.load_u64(guest.domain.vcpus[0].info(vcpu_info::CR2)).unwrap()
}

#[test]
fn a_good_store_to_a_page_table_is_made_as_an_update() {
    let mut guest = guest();
    let entry = guest.entry(OTHER, PRESENT | WRITABLE);
    assert!(matches!(store(&mut guest, DATA, entry), Verdict::Run));
    assert_eq!(guest.peek(L1_PFN, DATA), entry | USER | GUEST_KERNEL);
    assert_eq!((guest.context.rip, guest.context.gpr(Gpr::Rax)), (RIP + 7, 99));
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
    assert_eq!(guest.domain.frame_table.record(guest.mfn(OTHER)).unwrap().uses, 2);
    // A store of what is there changes nothing.
    guest.context.rip = RIP;
    let same = guest.peek(L1_PFN, DATA);
    assert!(matches!(store(&mut guest, DATA, same), Verdict::Run));
    guest.context.rip = RIP;
    assert!(matches!(store(&mut guest, DATA, 0), Verdict::Run));
    assert_eq!(guest.peek(L1_PFN, DATA), 0);
}

#[test]
fn a_bad_store_faults_with_the_registers_of_before() {
    let mut guest = guest();
    guest.context.set_gpr(Gpr::Rax, 5);
    let before = guest.peek(L1_PFN, DATA);
    let stack = guest.context.gpr(Gpr::Rsp);
    let bad = guest.entry(L1_PFN, LEAF);
    assert!(matches!(store(&mut guest, DATA, bad), Verdict::Run));
    assert_eq!(guest.peek(L1_PFN, DATA), before);
    assert_eq!((guest.context.rip, guest.context.gpr(Gpr::Rax)), (0x40_0000, 5));
    assert_eq!(cr2(&guest), guest.va(L1_PFN) + 8 * DATA);
    // The frame: RCX, R11, error code, RIP.
    let at = GuestVirt(guest.context.gpr(Gpr::Rsp));
    let frame: [u64; 4] = guest.call().space().read_value(at).unwrap();
    assert_eq!((frame[2], frame[3]), (u64::from(STORE & !FaultCode::USER), RIP));
    assert_eq!(guest.context.gpr(Gpr::Rsp), stack - 64);
}

#[test]
fn a_store_across_entries_faults() {
    let mut guest = guest();
    let address = guest.va(L1_PFN) + 8 * DATA;
    let write = shadow(guest.fault(address, STORE)).unwrap();
    let old = write.copy(&guest.domain.memory);
    let mut new = old.clone();
    new[bytes_of(DATA).start] ^= 0x20;
    new[bytes_of(OTHER).start] ^= 0x20;
    let done = guest.domain.shadow_written(VcpuId(0), &write, (&old, &new), &mut guest.context, Tsc(0));
    assert!(matches!(done, Verdict::Run));
    assert_eq!(guest.context.rip, 0x40_0000);
    guest.check();
}

#[test]
fn a_store_that_lost_a_race_is_made_again() {
    let mut guest = guest();
    let address = guest.va(L1_PFN) + 8 * DATA;
    let write = shadow(guest.fault(address, STORE)).unwrap();
    let old = write.copy(&guest.domain.memory);
    let mut new = old.clone();
    new[bytes_of(DATA)].fill(0);
    // Another vCPU changes the entry meanwhile.
    let entry = guest.entry(OTHER, READ_ONLY);
    assert_eq!(guest.map(DATA, entry), 0);
    guest.context.rip = RIP + 3;
    let done = guest.domain.shadow_written(VcpuId(0), &write, (&old, &new), &mut guest.context, Tsc(0));
    assert!(matches!(done, Verdict::Run));
    assert_eq!(guest.context.rip, RIP);
    assert_eq!(guest.peek(L1_PFN, DATA), entry | USER | GUEST_KERNEL);
    guest.check();
    // Or the page is no page table any more.
    let write = shadow(guest.fault(address, STORE)).unwrap();
    let current = write.copy(&guest.domain.memory);
    let gone: [u8; PAGE_BYTES] = *new;
    let mut write = write;
    write.frame = guest.mfn(OTHER);
    let done = guest.domain.shadow_written(VcpuId(0), &write, (&current, &gone), &mut guest.context, Tsc(0));
    assert!(matches!(done, Verdict::Run));
    assert_eq!(guest.context.rip, RIP);
}

#[test]
fn only_stores_to_live_l1_tables_are_emulated() {
    let mut guest = guest();
    let table = guest.va(L1_PFN);
    for code in [
        FaultCode::WRITE | FaultCode::USER,
        STORE | FaultCode::RESERVED,
        FaultCode::PRESENT | FaultCode::USER | FaultCode::FETCH | FaultCode::WRITE,
    ] {
        guest.context.rip = RIP;
        assert!(shadow(guest.fault(table, code)).is_none(), "{code:#x}");
        assert_eq!(guest.context.rip, 0x40_0000, "{code:#x}");
    }
    let l2 = guest.va(L2_PFN);
    guest.protect(DATA);
    let plain = guest.va(DATA);
    for address in [l2, plain, 0x1000, 0xffff_8000_0000_0000] {
        guest.context.rip = RIP;
        assert!(shadow(guest.fault(address, STORE)).is_none(), "{address:#x}");
        assert_eq!(guest.context.rip, 0x40_0000);
    }
    guest.domain.assists = 0;
    guest.context.rip = RIP;
    assert!(shadow(guest.fault(table, STORE)).is_none());
    guest.domain.assists |= 1 << VmAssistType::WritablePagetables.number();
    guest.context.rip = RIP;
    assert!(shadow(guest.fault(table, STORE)).is_some());
    // User mode may see the page table, and that is all.
    guest.context.user_root = Some(guest.context.kernel_root);
    guest.context.mode = GuestMode::User;
    guest.domain.vcpus[0].kernel_sp = GuestVirt(guest.context.gpr(Gpr::Rsp));
    guest.context.rip = RIP;
    assert!(shadow(guest.fault(table, STORE)).is_none());
    assert_eq!(guest.context.mode, GuestMode::Kernel);
}

#[test]
fn a_store_across_two_page_tables_faults() {
    let mut guest = guest();
    let (first, second) = (OTHER, OTHER + 1);
    for pfn in [first, second] {
        guest.protect(pfn);
        let mfn = guest.mfn(pfn);
        guest.domain.frames().pin(mfn, crate::frames::Level::L1).unwrap();
    }
    let (end, start) = (guest.va(first) + 4092, guest.va(second));
    assert!(shadow(guest.fault(end, STORE)).is_some());
    // The engine ran it on the first page, and it faulted on the second.
    assert!(shadow(guest.fault(start, STORE)).is_none());
    assert_eq!(guest.context.rip, 0x40_0000);
    guest.context.rip = RIP;
    assert!(shadow(guest.fault(end, STORE)).is_some());
}

#[test]
fn a_single_stepped_store_traps_afterwards() {
    let mut guest = guest();
    guest.domain.vcpus[0].traps[usize::from(vector::DEBUG)].handler.address = GuestVirt(0x50_0000);
    guest.context.rflags |= rflags::TF;
    assert!(matches!(store(&mut guest, DATA, 0), Verdict::Run));
    assert_eq!(guest.context.rip, 0x50_0000);
    assert_ne!(guest.context.debug[6] & 1 << 14, 0);
}

#[test]
fn a_fault_whose_access_is_allowed_by_now_is_absorbed_for_a_while() {
    let mut guest = guest();
    let address = guest.va(DATA) + 5;
    guest.domain.take_flushes();
    for _ in 0..8 {
        assert!(shadow(guest.fault(address, STORE)).is_none());
        assert_eq!(guest.context.rip, RIP);
        let page = TlbFlush::Page(GuestVirt(guest.va(DATA)));
        assert_eq!(guest.domain.take_flushes(), [Flush { vcpu: VcpuId(0), what: page }]);
    }
    assert!(shadow(guest.fault(address, STORE)).is_none());
    assert_eq!(guest.context.rip, 0x40_0000);
    // Reads and fetches too, if the page allows them.
    for code in [FaultCode::USER, FaultCode::USER | FaultCode::FETCH] {
        guest.context.rip = RIP;
        assert!(shadow(guest.fault(address, code)).is_none());
        assert_eq!(guest.context.rip, RIP);
    }
    let entry = guest.entry(DATA, LEAF | 1 << 63);
    assert_eq!(guest.map(DATA, entry), 0);
    guest.context.rip = RIP;
    assert!(shadow(guest.fault(address, FaultCode::USER | FaultCode::FETCH | FaultCode::PRESENT)).is_none());
    assert_eq!(guest.context.rip, 0x40_0000);
}

/// Sets an LDT of `entries` at a page's address.
fn set_ldt(guest: &mut TestGuest, pfn: u64, entries: u64) {
    let request = guest.argument(&[13, guest.va(pfn), entries]);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, u64::from(DomId::SELF.0)]), 0);
    guest.context.rip = RIP;
}

fn need_ldt(guest: &mut TestGuest, index: u8) -> Verdict {
    let verdict = guest.domain.handle(VcpuId(0), Exit::LdtPage { index }, &mut guest.context, Tsc(0));
    guest.check();
    verdict
}

#[test]
fn pages_of_the_ldt_come_in_when_used_and_go_with_the_root() {
    let mut guest = guest();
    guest.poke(DATA, 0, 0x00af_9b00_0000_ffff);
    guest.protect(DATA);
    set_ldt(&mut guest, DATA, 1024);
    assert!(matches!(need_ldt(&mut guest, 0), Verdict::Run));
    assert_eq!(guest.context.rip, RIP);
    assert_eq!(guest.context.descriptors.ldt[0], Some(guest.mfn(DATA)));
    assert_eq!(guest.peek(DATA, 0), 0x00af_fb00_0000_ffff);
    assert!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().is_used_as(Use::SegmentDescriptors));
    // A new root drops it.
    let root = OTHER + 5;
    for slot in (0..256).chain(272..512) {
        guest.poke(root, slot, guest.peek(0, slot));
    }
    guest.protect(root);
    let request = guest.argument(&[5, guest.mfn(root).0, 0]);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, u64::from(DomId::SELF.0)]), 0);
    assert_eq!(guest.context.descriptors.ldt[0], None);
    assert_eq!(guest.domain.frame_table.record(guest.mfn(DATA)).unwrap().uses, 0);
}

#[test]
fn a_page_of_the_ldt_that_cannot_be_used_is_a_page_fault() {
    let mut guest = guest();
    // The second page is writable, the third holds a bad descriptor, the fourth is not mapped, the fifth is beyond
    // the end.
    guest.protect(DATA + 2);
    guest.poke(DATA + 2, 7, 0x0000_8900_0000_0067);
    assert_eq!(guest.map(DATA + 3, 0), 0);
    set_ldt(&mut guest, DATA, 4 * 512);
    for index in [1, 2, 3, 4] {
        guest.context.rip = RIP;
        assert!(matches!(need_ldt(&mut guest, index), Verdict::Run));
        assert_eq!(guest.context.rip, 0x40_0000, "{index}");
        assert_eq!(cr2(&guest), guest.va(DATA) + u64::from(index) * 4096);
        assert_eq!(guest.context.descriptors.ldt[usize::from(index)], None);
    }
}

#[test]
fn a_table_that_reaches_beyond_the_lower_half_is_a_protection_fault_there() {
    let mut guest = guest();
    let handler = 0x40_1000;
    guest.domain.vcpus[0].traps[usize::from(vector::GENERAL_PROTECTION)].handler.address = GuestVirt(handler);
    let request = guest.argument(&[13_u64, 0x7fff_ffff_f000, 1024]);
    assert_eq!(guest.hypercall(Hypercall::MmuextOp, &[request, 1, 0, 0x7ff0]), 0);
    assert!(matches!(need_ldt(&mut guest, 1), Verdict::Run));
    assert_eq!(guest.context.rip, handler);
    let rsp = guest.context.gpr(Gpr::Rsp);
    let code =
        guest.domain.memory.load_u64(guest.word(STACK_PFN, (rsp - guest.va(STACK_PFN)) / 8 + 2)).unwrap();
    assert_eq!(code, 0x1004);
}
