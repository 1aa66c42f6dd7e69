//! Entries into the guest kernel: what is pushed, where it goes on, and which of them are refused.

use paravane_abi::units::PAGE_SIZE;
use paravane_engine::Exception;

use super::*;
use crate::{
    guest::{XEN_END, XEN_START},
    testing::{BASE, BUFFER, EVENT_HANDLER, Guest, virt},
};

const RIP: u64 = BASE + 0x1000;
const KERNEL_CS: u64 = 0xe030;
const USER_CS: u64 = 0xe033;
const SS: u64 = 0xe02b;
/// IF, and the bit that is always set.
const FLAGS: u64 = 0x202;
const MASKED: u64 = 1 << 32;

/// A guest in its kernel with events masked, as at start.
fn guest() -> Guest {
    Guest::new(1)
}

fn exception(vector: u8, error_code: Option<u32>) -> Exit {
    Exit::Exception(Exception { vector, error_code })
}

fn interrupt(vector: u8) -> Exit {
    Exit::SoftwareInterrupt(Interrupt { vector, next_rip: RIP + 2 })
}

#[test]
fn a_frame_from_the_kernel_lies_below_its_stack_pointer_aligned() {
    let mut guest = guest();
    let handler = guest.handle_vector(vector::DIVIDE, 0, false);
    let old_rsp = guest.contexts[0].gpr(Gpr::Rsp) - 8;
    let context = &mut guest.contexts[0];
    context.set_gpr(Gpr::Rsp, old_rsp);
    context.set_gpr(Gpr::Rcx, 0xc0c0);
    context.set_gpr(Gpr::R11, 0x1111);
    context.rflags |= rflags::DF | rflags::NT | rflags::AC | rflags::CF;
    guest.exit_and_run(exception(vector::DIVIDE, None));
    let flags = (FLAGS | rflags::DF | rflags::NT | rflags::AC | rflags::CF | rflags::RF) & !rflags::IF;
    assert_eq!(guest.stack(), [0xc0c0, 0x1111, RIP, KERNEL_CS | MASKED, flags, old_rsp, SS]);
    let context = &guest.contexts[0];
    // 56 bytes below the next multiple of 16.
    assert_eq!(context.gpr(Gpr::Rsp), old_rsp - 8 - 56);
    assert_eq!(context.rip, handler);
    assert_eq!(context.rflags, FLAGS | rflags::DF | rflags::CF, "TF, NT, RF, VM and AC are cleared");
    assert_eq!(
        (context.gpr(Gpr::Rcx), context.gpr(Gpr::R11)),
        (handler, context.rflags),
        "as SYSRET leaves them"
    );
    assert_eq!(context.segment(SegmentRegister::Cs).selector, 0xe033);
    assert_eq!(context.segment(SegmentRegister::Ss).selector, 0xe02b);
}

#[test]
fn an_error_code_lies_below_the_return_address() {
    let mut guest = guest();
    guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
    guest.mask_events(BOOT, false);
    let rsp = guest.contexts[0].gpr(Gpr::Rsp);
    guest.exit_and_run(exception(vector::GENERAL_PROTECTION, Some(0x1238)));
    assert_eq!(guest.stack(), [0, 0, 0x1238, RIP, KERNEL_CS, FLAGS | rflags::RF, rsp, SS]);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 0, "the entry does not mask events");
}

#[test]
fn an_entry_masks_events_if_its_handler_asks() {
    let mut guest = guest();
    guest.handle_vector(vector::DIVIDE, 0, true);
    guest.mask_events(BOOT, false);
    guest.exit_and_run(exception(vector::DIVIDE, None));
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 1);
    let [.., cs, flags, _, _]: [u64; 7] = guest.stack();
    assert_eq!((cs, flags), (KERNEL_CS, FLAGS | rflags::RF), "the frame has the mask of before");
}

#[test]
fn a_frame_from_user_mode_lies_on_the_kernels_stack() {
    let mut guest = guest();
    guest.handle_vector(vector::DIVIDE, 0, false);
    guest.contexts[0].segment_mut(SegmentRegister::Gs).base = 1;
    guest.contexts[0].inactive_gs_base = 2;
    guest.enter_user_mode();
    let top = guest.domain.vcpus[0].kernel_sp.0;
    guest.exit_and_run(exception(vector::DIVIDE, None));
    assert_eq!(guest.stack(), [0, 0, RIP, USER_CS | MASKED, 2 | rflags::RF, 0x7fff_0000, SS]);
    let context = &guest.contexts[0];
    assert_eq!((context.mode, context.gpr(Gpr::Rsp)), (GuestMode::Kernel, top - 56));
    assert_eq!((context.segment(SegmentRegister::Gs).base, context.inactive_gs_base), (1, 2));
}

#[test]
fn the_iopl_is_in_the_frame_if_the_guest_handles_it_as_the_architecture_does() {
    for (assists, iopl) in [(0, 0), (bounce::ARCHITECTURAL_IOPL, 1 << 12)] {
        let mut guest = guest();
        guest.handle_vector(vector::DIVIDE, 0, false);
        guest.domain.assists = assists;
        guest.domain.vcpus[0].iopl = 1;
        guest.contexts[0].rflags |= rflags::IOPL;
        guest.exit_and_run(exception(vector::DIVIDE, None));
        assert_eq!(guest.stack::<7>()[4], 2 | iopl | rflags::RF);
    }
}

#[test]
fn without_a_handler_or_a_stack_the_domain_crashes() {
    let mut guest = guest();
    let cause = guest.exit_and_crash(exception(vector::DIVIDE, None));
    assert!(matches!(cause, CrashCause::NoHandler { .. }), "{cause:?}");
    guest.handle_vector(vector::DIVIDE, 0, false);
    for (rsp, crashes) in [
        (XEN_START + 16, true),
        (XEN_END, true),
        // The frame would end in the last bytes of the range.
        (XEN_END + 48, true),
        (virt(BUFFER).0 + PAGE_SIZE, false),
        // Not mapped, not canonical, read-only.
        (0x1000, true),
        (0x8000_0000_0000, true),
        (BASE + 0x1000, true),
    ] {
        let mut guest = Guest::new(1);
        guest.handle_vector(vector::DIVIDE, 0, false);
        guest.contexts[0].set_gpr(Gpr::Rsp, rsp);
        let verdict = guest.exit(exception(vector::DIVIDE, None));
        assert_eq!(matches!(verdict, Verdict::Crash(_)), crashes, "{rsp:#x}: {verdict:?}");
    }
}

#[test]
fn a_page_fault_tells_its_address_and_the_mode_it_came_from() {
    for (user, code, told) in [(false, 7, 3), (false, 3, 3), (true, 3, 7), (true, 0x14, 0x14)] {
        let mut guest = guest();
        guest.handle_vector(vector::PAGE_FAULT, 0, false);
        if user {
            guest.enter_user_mode();
        }
        guest.exit_and_run(Exit::PageFault(PageFault { address: 0x1234, code: FaultCode(code) }));
        assert_eq!(guest.stack::<8>()[2], told, "{user} {code}");
        assert_eq!(guest.info(BOOT).arch.cr2, 0x1234);
    }
}

#[test]
fn a_missing_fpu_clears_the_flag_that_took_it_away() {
    let mut guest = guest();
    guest.handle_vector(vector::NO_DEVICE, 0, false);
    guest.contexts[0].task_switched = true;
    guest.exit_and_run(exception(vector::NO_DEVICE, None));
    assert!(!guest.contexts[0].task_switched);
}

#[test]
fn an_interrupt_instruction_needs_the_dpl_of_its_entry() {
    for (user, dpl, allowed) in [
        (false, 0, false),
        (false, 1, true),
        (false, 3, true),
        (true, 1, false),
        (true, 2, false),
        (true, 3, true),
    ] {
        for number in [0x20, 0x82, vector::PAGE_FAULT] {
            let mut guest = guest();
            let handler = guest.handle_vector(number, dpl, false);
            let refused = guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
            if user {
                guest.enter_user_mode();
            }
            guest.exit_and_run(interrupt(number));
            if allowed {
                assert_eq!(guest.contexts[0].rip, handler, "{user} {dpl} {number}");
                assert_eq!(
                    guest.stack::<7>()[2],
                    RIP + 2,
                    "a trap: behind the instruction, without an error code"
                );
            } else {
                assert_eq!(guest.contexts[0].rip, refused, "{user} {dpl} {number}");
                let [_, _, code, rip, ..]: [u64; 8] = guest.stack();
                assert_eq!((code, rip), (u64::from(number) * 8 + 2, RIP));
            }
        }
    }
}

#[test]
fn breakpoints_overflows_and_int_0x80_look_at_no_dpl() {
    for number in [vector::BREAKPOINT, vector::OVERFLOW, 0x80] {
        let mut guest = guest();
        let handler = guest.handle_vector(number, 0, false);
        guest.enter_user_mode();
        guest.exit_and_run(interrupt(number));
        assert_eq!(guest.contexts[0].rip, handler, "{number}");
        assert_eq!(guest.stack::<7>()[2], RIP + 2);
    }
}

#[test]
fn int_0x80_without_a_handler_faults_at_the_instruction() {
    let mut guest = guest();
    guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
    guest.enter_user_mode();
    guest.exit_and_run(interrupt(0x80));
    let [_, _, code, rip, ..]: [u64; 8] = guest.stack();
    assert_eq!((code, rip), (0x402, RIP));
    // An open entry without an address is entered, and there is nothing to enter.
    guest.domain.vcpus[0].traps[0x80].dpl = 3;
    assert!(matches!(guest.exit_and_crash(interrupt(0x80)), CrashCause::NoHandler { .. }));
}

#[test]
fn syscall_from_user_mode_enters_its_callback_with_df_clear() {
    let mut guest = guest();
    guest.domain.vcpus[0].callbacks.syscall.address = EVENT_HANDLER;
    guest.domain.vcpus[0].callbacks.syscall.masks_events = true;
    guest.mask_events(BOOT, false);
    guest.enter_user_mode();
    guest.contexts[0].rflags |= rflags::DF;
    guest.exit_and_run(Exit::GuestSyscall(SyscallKind::Syscall));
    assert_eq!(guest.contexts[0].rip, EVENT_HANDLER.0);
    assert_eq!(guest.contexts[0].rflags & rflags::DF, 0);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 1);
    assert_eq!(guest.stack(), [0, 0, RIP, USER_CS, FLAGS | rflags::DF, 0x7fff_0000, SS]);
}

#[test]
fn syscall_without_a_callback_is_an_invalid_instruction() {
    for (kind, cs) in [(SyscallKind::Syscall, USER_CS), (SyscallKind::Syscall32, 0xe023)] {
        let mut guest = guest();
        let handler = guest.handle_vector(vector::INVALID_OPCODE, 0, false);
        guest.enter_user_mode();
        guest.contexts[0].rflags |= rflags::DF;
        guest.exit_and_run(Exit::GuestSyscall(kind));
        assert_eq!(guest.contexts[0].rip, handler);
        let [_, _, rip, frame_cs, ..]: [u64; 7] = guest.stack();
        assert_eq!((rip, frame_cs), (RIP - 2, cs | MASKED), "backed up by its two bytes");
        assert_ne!(guest.contexts[0].rflags & rflags::DF, 0, "only the callback clears it");
    }
}

#[test]
fn sysenter_forgets_where_it_came_from() {
    for registered in [true, false] {
        let mut guest = guest();
        let mut handler = guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
        if registered {
            guest.domain.vcpus[0].callbacks.sysenter.address = EVENT_HANDLER;
            handler = EVENT_HANDLER.0;
        }
        guest.enter_user_mode();
        guest.exit_and_run(Exit::GuestSyscall(SyscallKind::Sysenter));
        assert_eq!(guest.contexts[0].rip, handler);
        if registered {
            assert_eq!(guest.stack(), [0, 0, 0, 3 | MASKED, 2, 0, SS]);
        } else {
            assert_eq!(guest.stack(), [0, 0, 0, 0, 3 | MASKED, 2, 0, SS]);
        }
    }
}

#[test]
fn a_hypercall_forgets_the_selectors_of_its_caller() {
    let mut guest = guest();
    guest.contexts[0].segment_mut(SegmentRegister::Cs).selector = 0x13;
    guest.contexts[0].segment_mut(SegmentRegister::Ss).selector = 0x1b;
    guest.exit_and_run(Exit::Hypercall);
    let context = &guest.contexts[0];
    assert_eq!(context.segment(SegmentRegister::Cs).selector, 0xe033);
    assert_eq!(context.segment(SegmentRegister::Ss).selector, 0xe02b);
}

#[test]
fn an_nmi_comes_once_and_the_next_after_iret() {
    let mut guest = guest();
    let handler = guest.handle_vector(vector::NMI, 0, true);
    guest.domain.vcpus[0].nmi_pending = true;
    guest.exit_and_run(Exit::Interrupted);
    assert_eq!(guest.contexts[0].rip, handler);
    guest.domain.vcpus[0].nmi_pending = true;
    guest.contexts[0].rip = RIP;
    guest.exit_and_run(Exit::Interrupted);
    assert_eq!(guest.contexts[0].rip, RIP, "masked");
    // Without a handler the next one is lost.
    guest.domain.vcpus[0].nmi_masked = false;
    guest.domain.vcpus[0].traps[usize::from(vector::NMI)].handler.address = GuestVirt(0);
    guest.exit_and_run(Exit::Interrupted);
    assert_eq!((guest.contexts[0].rip, guest.domain.vcpus[0].nmi_pending), (RIP, false));
}

const BOOT: paravane_abi::units::VcpuId = paravane_abi::units::VcpuId(0);
