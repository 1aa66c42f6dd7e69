//! `iret`: the way back, to user mode and within the kernel.

use paravane_abi::vcpu_context::IretContext;
use paravane_engine::{Exit, Gpr, GuestMode, SegmentRegister, rflags, vector};
use zerocopy::FromZeros;

use super::*;
use crate::{
    CrashCause,
    testing::{BASE, FREE},
};

const TARGET: u64 = BASE + 0x8000;
const IN_SYSCALL: u64 = 1 << 8;

/// A frame to user mode with events on.
fn frame() -> IretContext {
    let mut frame = IretContext::new_zeroed();
    (frame.rax, frame.rcx, frame.r11) = (0xa, 0xc, 0xb);
    (frame.rip, frame.cs, frame.rflags) = (TARGET, 0xe033, 0x202);
    (frame.rsp, frame.ss) = (0x7000, 0xe02b);
    frame
}

impl Guest {
    /// A guest that makes the hypercall with `frame` on its stack.
    fn returning(frame: &IretContext) -> Self {
        let mut guest = Self::new(1);
        guest.put(machine_address(BUFFER), frame);
        let context = &mut guest.contexts[0];
        context.user_root = Some(context.kernel_root);
        context.set_gpr(Gpr::Rsp, virt(BUFFER).0);
        context.set_gpr(Gpr::Rax, Hypercall::Iret.number().into());
        guest
    }

    fn gpr(&self, register: Gpr) -> u64 {
        self.contexts[0].gpr(register)
    }

    fn selectors(&self) -> (u16, u16) {
        let context = &self.contexts[0];
        (context.segment(SegmentRegister::Cs).selector, context.segment(SegmentRegister::Ss).selector)
    }
}

#[test]
fn a_frame_with_rpl_3_returns_to_user_mode_and_restores_all() {
    let mut guest = Guest::returning(&frame());
    guest.contexts[0].segment_mut(SegmentRegister::Gs).base = 1;
    guest.exit_and_run(Exit::Hypercall);
    let context = &guest.contexts[0];
    assert_eq!((context.mode, context.rip, context.rflags), (GuestMode::User, TARGET, 0x202));
    assert_eq!(context.inactive_gs_base, 1, "the bases of GS change places");
    let registers = [Gpr::Rax, Gpr::Rcx, Gpr::R11, Gpr::Rsp].map(|register| guest.gpr(register));
    assert_eq!(registers, [0xa, 0xc, 0xb, 0x7000]);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 0);
}

#[test]
fn a_frame_with_another_rpl_stays_in_the_kernel() {
    for cs in [0xe030, 0xe031, 0xe032] {
        let mut guest = Guest::returning(&IretContext { cs, ..frame() });
        guest.exit_and_run(Exit::Hypercall);
        assert_eq!(guest.contexts[0].mode, GuestMode::Kernel);
        assert_eq!(guest.selectors(), (0xe033, 0xe02b), "the privilege is the guest's all the same");
    }
}

#[test]
fn the_upper_half_of_cs_is_the_saved_mask_and_means_nothing() {
    let mut guest = Guest::returning(&IretContext { cs: 0xe030 | 0xff << 32, ..frame() });
    guest.exit_and_run(Exit::Hypercall);
    assert_eq!(guest.selectors(), (0xe033, 0xe02b));
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 0);
}

#[test]
fn the_flags_that_matter_to_the_hypervisor_are_not_the_guests() {
    let mut guest = Guest::returning(&IretContext { rflags: u64::MAX, ..frame() });
    guest.exit_and_run(Exit::Hypercall);
    let flags = guest.contexts[0].rflags;
    assert_eq!(flags & (rflags::IOPL | rflags::VM), 0);
    assert_eq!(flags & (rflags::IF | rflags::FIXED), rflags::IF | rflags::FIXED);
    assert_eq!(flags >> 22, 0, "no flag beyond ID exists");
    let mut guest = Guest::returning(&IretContext { rflags: 0, ..frame() });
    guest.exit_and_run(Exit::Hypercall);
    assert_eq!(guest.contexts[0].rflags, rflags::IF | rflags::FIXED);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 1, "IF clear masks events");
}

#[test]
fn the_iopl_is_kept_only_under_its_assist() {
    for (assists, iopl) in [(0, 1), (crate::bounce::ARCHITECTURAL_IOPL, 3)] {
        let mut guest = Guest::returning(&IretContext { rflags: 0x3202, ..frame() });
        guest.domain.assists = assists;
        guest.domain.vcpus[0].iopl = 1;
        guest.exit_and_run(Exit::Hypercall);
        assert_eq!(guest.domain.vcpus[0].iopl, iopl);
        assert_eq!(guest.contexts[0].rflags & rflags::IOPL, 0, "the CPU's own stays 0");
    }
}

#[test]
fn a_return_as_from_a_system_call_uses_sysret() {
    for (cs, returned) in [(0xe033, 0xe033), (0xe023, 0xe023), (0xe020, 0xe023), (0x13, 0xe033), (3, 0xe033)]
    {
        let mut guest = Guest::returning(&IretContext { flags: IN_SYSCALL, cs, ss: 0x1b, ..frame() });
        guest.exit_and_run(Exit::Hypercall);
        assert_eq!(guest.selectors(), (returned, 0xe02b), "{cs:#x}");
        assert_eq!((guest.gpr(Gpr::Rcx), guest.gpr(Gpr::R11)), (TARGET, 0x202));
        assert_eq!(guest.gpr(Gpr::Rax), 0xa);
    }
}

#[test]
fn a_selector_that_cannot_be_loaded_is_the_guests_fault() {
    // Beyond the guest's table, null, data as code, code as stack.
    for (cs, ss, code) in
        [(0x13, 0xe02b, 0x10), (3, 0xe02b, 0), (0xe02b, 0xe02b, 0xe028), (0xe033, 0xe033, 0xe030)]
    {
        let mut guest = Guest::returning(&IretContext { cs, ss, ..frame() });
        guest.domain.vcpus[0].kernel_sp = paravane_abi::units::GuestVirt(virt(FREE).0 + 4096);
        let handler = guest.handle_vector(vector::GENERAL_PROTECTION, 0, false);
        guest.exit_and_run(Exit::Hypercall);
        assert_eq!(guest.contexts[0].rip, handler, "{cs:#x} {ss:#x}");
        let [_, _, told, rip, ..]: [u64; 8] = guest.stack();
        assert_eq!((told, rip), (code, TARGET), "{cs:#x} {ss:#x}");
        assert_eq!(guest.contexts[0].mode, GuestMode::Kernel);
    }
}

#[test]
fn without_a_frame_or_a_user_root_the_domain_crashes() {
    let mut guest = Guest::returning(&frame());
    guest.contexts[0].user_root = None;
    assert_eq!(guest.exit_and_crash(Exit::Hypercall), CrashCause::NoUserRoot);
    for at in [0x1000, 0xffff_8000_0000_0000, virt(FREE).0 - 8 - 4096 * 8, u64::MAX - 8] {
        let mut guest = Guest::returning(&frame());
        guest.contexts[0].set_gpr(Gpr::Rsp, at);
        let crashes = matches!(guest.exit(Exit::Hypercall), crate::Verdict::Crash(_));
        assert!(crashes, "{at:#x}");
    }
}

#[test]
fn events_that_waited_are_delivered_before_anything_runs() {
    let mut guest = Guest::returning(&frame()).take_events();
    guest.domain.vcpus[0].kernel_sp = paravane_abi::units::GuestVirt(virt(FREE).0 + 4096);
    guest.put(guest.domain.vcpus[0].vcpu_info, &1_u8);
    guest.exit_and_run(Exit::Hypercall);
    assert_eq!(guest.contexts[0].rip, crate::testing::EVENT_HANDLER.0);
    assert_eq!(guest.stack::<7>()[2], TARGET);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 1);
}
