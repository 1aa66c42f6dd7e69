//! `iret`: the only way back to user mode, and the only hypercall that takes its arguments on the stack.
//!
//! The frame is described, field by field, in [`paravane_x86::iret_frame`].
//!
//! Source: `do_iret` in `xen/arch/x86/pv/iret.c`, `struct iret_context` in
//! `xen/include/public/arch-x86/xen-x86_64.h`.

use paravane_abi::{units::GuestVirt, vcpu_context::IretContext};
use paravane_engine::{Gpr, rflags};
use paravane_x86::{
    segments::{FLAT_RING3_CS32, FLAT_RING3_CS64},
    selector::Selector,
};

use crate::{
    bounce, crash::CrashCause, dispatch::Outcome, domain::Call, exits, refusal::Refusal, selectors,
    vcpu::vcpu_info,
};

/// `VGCF_in_syscall`: return with SYSRET.
const IN_SYSCALL: u64 = 1 << 8;
/// Every flag that exists (`X86_EFLAGS_ALL`).
pub(super) const ALL_FLAGS: u64 = rflags::STATUS
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::VM
    | rflags::AC
    | 1 << 19
    | 1 << 20
    | rflags::ID;

/// Returns to where the frame at RSP says.
///
/// # Errors
///
/// The crash of a guest whose frame cannot be read, or that returns to user mode without a user page table.
pub(crate) fn iret(call: &mut Call<'_>) -> Result<Outcome, Refusal> {
    let at = GuestVirt(call.context.gpr(Gpr::Rsp));
    let frame: IretContext = call.space().read_value(at).map_err(|_| CrashCause::BadIretFrame { at })?;
    if frame.cs & 3 == 3 {
        if call.context.user_root.is_none() {
            return Err(CrashCause::NoUserRoot.into());
        }
        call.context.toggle_mode();
    }
    if call.domain.assists & bounce::ARCHITECTURAL_IOPL != 0 {
        // Two bits.
        call.vcpu_mut().iopl = (frame.rflags >> 12 & 3) as u8;
    }
    let mut return_fault = None;
    let context = &mut *call.context;
    context.rip = frame.rip;
    context.rflags = frame.rflags & ALL_FLAGS & !(rflags::IOPL | rflags::VM) | rflags::IF | rflags::FIXED;
    context.set_gpr(Gpr::Rsp, frame.rsp);
    context.set_gpr(Gpr::Rax, frame.rax);
    if frame.flags & IN_SYSCALL != 0 && GuestVirt(frame.rip).is_canonical() {
        let cs = if selector(frame.cs) == FLAT_RING3_CS32 { FLAT_RING3_CS32 } else { FLAT_RING3_CS64 };
        bounce::sysret(context, cs);
    } else {
        if frame.flags & IN_SYSCALL == 0 {
            context.set_gpr(Gpr::R11, frame.r11);
            context.set_gpr(Gpr::Rcx, frame.rcx);
        }
        if let Err(bad) = selectors::load_code_and_stack(call, selector(frame.cs), selector(frame.ss)) {
            return_fault = Some(bad);
        }
    }
    let mask = u8::from(frame.rflags & rflags::IF == 0);
    let stored = call.domain.memory.store_u8(call.vcpu().info(vcpu_info::UPCALL_MASK), mask);
    debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
    call.vcpu_mut().nmi_masked = false;
    if let Some(bad) = return_fault {
        // Xen's own IRET faulted: the guest sees the fault where it would have gone on.
        exits::inject(call, bad.vector(), Some(bad.error_code))?;
    }
    Ok(Outcome::Resume)
}

/// A selector image, with the guest's privilege forced.
#[expect(clippy::cast_possible_truncation, reason = "the frame's upper bits carry the saved upcall mask")]
fn selector(image: u64) -> Selector {
    Selector(image as u16 | 3)
}
