//! What published vulnerabilities of Xen's entries, returns, descriptors and emulation tried: see
//! `docs/past-vulnerabilities.md`.

use paravane_abi::units::{GuestVirt, MachAddr, PAGE_SIZE, Pfn};
use paravane_engine::{
    Control4, ControlRegister, Exception, Exit, Gpr, Privileged, PrivilegedOp, SegmentRegister, SyscallKind,
    vector,
};

use zerocopy::FromZeros;

use super::*;
use crate::{
    Verdict,
    guest::{XEN_END, XEN_START},
    testing::{FREE, frame},
};

const FRAME_BYTES: u64 = 7 * 8;

fn executes(guest: &mut Guest, op: PrivilegedOp) {
    guest.exit_and_run(Exit::Privileged(Privileged { length: 2, op }));
}

#[test]
fn no_part_of_a_frame_lies_in_the_range_of_xen() {
    let rips = (0..32).flat_map(|step| {
        let bytes = step * 8;
        [XEN_START.wrapping_sub(bytes), XEN_START + bytes, XEN_END - bytes, XEN_END + bytes]
    });
    for rsp in rips {
        let mut guest = Guest::new(1);
        guest.handle_vector(vector::DIVIDE, 0, false);
        guest.contexts[0].set_gpr(Gpr::Rsp, rsp);
        // Nothing of the guest's is mapped there, so whatever is written would be written to something else.
        let verdict = guest.exit(Exit::Exception(Exception { vector: vector::DIVIDE, error_code: None }));
        assert!(matches!(verdict, Verdict::Crash(_)), "{rsp:#x} {FRAME_BYTES}");
        guest.domain.recount().unwrap();
    }
}

#[test]
fn the_failsafe_callback_is_never_a_way_in() {
    let mut guest = Guest::new(1);
    let failsafe = virt(FREE).0 + 0x800;
    assert_eq!(guest.call(Hypercall::SetCallbacks, &[0, failsafe, 0]), Ok(0));
    let fault = guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
    let stack = virt(FREE).0 + PAGE_SIZE;
    // A return whose segments cannot be loaded, at the end of a stack.
    let mut frame = paravane_abi::vcpu_context::IretContext::new_zeroed();
    (frame.rip, frame.cs, frame.ss) = (virt(FREE).0, 0x10, 0x18);
    (frame.rflags, frame.rsp) = (0x202, stack);
    guest.put(machine_address(BUFFER), &frame);
    guest.contexts[0].set_gpr(Gpr::Rsp, virt(BUFFER).0);
    guest.contexts[0].set_gpr(Gpr::Rax, Hypercall::Iret.number().into());
    guest.exit_and_run(Exit::Hypercall);
    assert_eq!(guest.contexts[0].rip, fault);
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsp), stack - 8 * 8);
}

#[test]
fn base_addresses_through_the_alternative_instruction_need_its_permission() {
    let mut guest = Guest::new(1);
    assert!(!guest.contexts[0].cr4.has(Control4::FSGSBASE), "off at start");
    executes(&mut guest, PrivilegedOp::WriteControl { to: ControlRegister::Cr4, value: Control4::DE });
    assert!(!guest.contexts[0].cr4.has(Control4::FSGSBASE), "and after a write that leaves it out");
}

#[test]
fn a_selector_beyond_its_table_loads_nothing() {
    let mut guest = Guest::new(1);
    // One page of descriptors: a data segment in every slot.
    let table = Pfn(FREE.0 + 2);
    assert_eq!(guest.call(Hypercall::UpdateVaMapping, &[virt(table).0, 0, 0]), Ok(0));
    for slot in 0..512 {
        guest.put(MachAddr(machine_address(table).0 + slot * 8), &0x00cf_f300_0000_ffff_u64);
    }
    guest.put(machine_address(BUFFER), &frame(table).0);
    assert_eq!(guest.call(Hypercall::SetGdt, &[virt(BUFFER).0, 512]), Ok(0));
    for (selector, visible) in [
        (0x1b, 0x1b),
        (0xffb, 0xffb),
        // The next page, the last before Xen's, Xen's own, beyond the limit, the local table.
        (0x1003, 0),
        (0xdffb, 0),
        (0xe00b, 0),
        (0xf003, 0),
        (0xfffb, 0),
        (0x7, 0),
    ] {
        assert_eq!(guest.call(Hypercall::SetSegmentBase, &[3, selector]), Ok(0));
        let loaded = guest.contexts[0].segment(SegmentRegister::Gs).selector;
        assert_eq!(u64::from(loaded), visible, "{selector:#x}");
    }
}

#[test]
fn the_miscellaneous_register_takes_any_value_and_keeps_its_own() {
    let mut guest = Guest::new(1);
    let mut read = || {
        guest.contexts[0].set_gpr(Gpr::Rcx, 0x1a0);
        executes(&mut guest, PrivilegedOp::Rdmsr);
        let value = guest.contexts[0].gpr(Gpr::Rax);
        guest.contexts[0].set_gpr(Gpr::Rax, value ^ 0xffff_ffff);
        executes(&mut guest, PrivilegedOp::Wrmsr);
        value
    };
    assert_eq!(read(), read());
}

#[test]
fn a_sysenter_without_a_callback_is_one_fault() {
    let mut guest = Guest::new(1);
    guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
    guest.enter_user_mode();
    guest.contexts[0].rflags |= paravane_engine::rflags::NT;
    let top = guest.domain.vcpus[0].kernel_sp.0;
    guest.exit_and_run(Exit::GuestSyscall(SyscallKind::Sysenter));
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsp), top - FRAME_BYTES - 8, "one frame with an error code");
    assert_eq!(guest.contexts[0].rflags & paravane_engine::rflags::NT, 0);
    let rip = guest.contexts[0].rip;
    guest.exit_and_run(Exit::Interrupted);
    assert_eq!(guest.contexts[0].rip, rip, "and no second one follows");
}

#[test]
fn a_breakpoint_is_at_an_address_that_a_guest_can_have() {
    let mut guest = Guest::new(1);
    for register in 0..4 {
        for (address, result) in [
            (0, Ok(0)),
            (0x7fff_ffff_ffff, Ok(0)),
            (0x8000_0000_0000, Err(Errno::Eperm)),
            (XEN_START - 1, Err(Errno::Eperm)),
            (XEN_START, Err(Errno::Eperm)),
            (XEN_END - 1, Err(Errno::Eperm)),
            (XEN_END, Ok(0)),
            (u64::MAX, Ok(0)),
        ] {
            assert_eq!(guest.call(Hypercall::SetDebugreg, &[register, address]), result, "{address:#x}");
        }
    }
}

#[test]
fn a_multicall_stops_where_an_entry_left_the_kernel() {
    use paravane_abi::mmu::MulticallEntry;
    let mut guest = Guest::new(1);
    let stack = Pfn(FREE.0 + 3);
    let mut frame = paravane_abi::vcpu_context::IretContext::new_zeroed();
    (frame.rip, frame.cs, frame.ss) = (0x1234, 0xe033, 0xe02b);
    guest.put(machine_address(stack), &frame);
    let context = &mut guest.contexts[0];
    context.user_root = Some(context.kernel_root);
    context.set_gpr(Gpr::Rsp, virt(stack).0);
    let entry = |op: Hypercall, args: [u64; 6]| MulticallEntry { op: op.number().into(), result: 7, args };
    let list = [
        entry(Hypercall::Iret, [0; 6]),
        // What came after would be done with the user's page tables.
        entry(Hypercall::StackSwitch, [0, 0xbad, 0, 0, 0, 0]),
    ];
    guest.domain.memory.write(machine_address(FREE), list.as_bytes()).unwrap();
    let (verdict, _) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 2]);
    assert!(matches!(verdict, Verdict::Run), "{verdict:?}");
    assert_eq!(guest.contexts[0].rip, 0x1234);
    assert_ne!(guest.domain.vcpus[0].kernel_sp, GuestVirt(0xbad));
    assert!(!guest.domain.vcpus[0].in_multicall, "the next one is not taken for one inside");
    let second: MulticallEntry =
        guest.get(MachAddr(machine_address(FREE).0 + size_of::<MulticallEntry>() as u64));
    assert_eq!(second.result, 7);
}
