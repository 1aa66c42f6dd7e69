//! What each kind of exit leads to.
//!
//! After every exit the same last step follows, as on real Xen's way back to the guest: a pending NMI, then
//! pending events, are delivered if nothing masks them.

use paravane_abi::units::GuestVirt;
use paravane_engine::{
    Exception, Exit, Gpr, GuestMode, Interrupt, PageFault, SegmentRegister, SyscallKind, rflags, vector,
};
use paravane_memory::paging::FaultCode;
use paravane_x86::segments::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};

use crate::{
    bounce::{self, Bounce},
    crash::CrashCause,
    dispatch,
    domain::{Call, Verdict},
    emulate, frames,
    vcpu::{Handler, vcpu_info},
};

/// Answers `exit` and delivers what is pending.
pub(crate) fn handle(call: &mut Call<'_>, exit: Exit) -> Result<Verdict, CrashCause> {
    let verdict = match exit {
        Exit::Hypercall => {
            // SYSCALL forgets the selectors: a kernel on its own comes back on the flat ones.
            *call.context.segment_mut(SegmentRegister::Cs) = bounce::flat(FLAT_RING3_CS64);
            *call.context.segment_mut(SegmentRegister::Ss) = bounce::flat(FLAT_RING3_SS64);
            dispatch::hypercall(call)?
        }
        Exit::GuestSyscall(kind) => guest_syscall(call, kind)?,
        Exit::SoftwareInterrupt(interrupt) => software_interrupt(call, interrupt)?,
        Exit::Exception(exception) => self::exception(call, exception)?,
        Exit::PageFault(fault) => page_fault(call, fault)?,
        Exit::Privileged(privileged) => emulate::privileged(call, privileged)?,
        Exit::LdtPage { index } => frames::ldt_page(call, index)?,
        Exit::Interrupted => Verdict::Run,
    };
    match verdict {
        Verdict::Run => {
            deliver_pending(call)?;
            Ok(Verdict::Run)
        }
        Verdict::ShadowWrite(_)
        | Verdict::Block { .. }
        | Verdict::Yield
        | Verdict::Down
        | Verdict::Shutdown(_)
        | Verdict::Crash(_) => Ok(verdict),
    }
}

/// Delivers a pending NMI and pending events, if nothing masks them.
///
/// # Errors
///
/// The crash of a guest that has no event callback or no stack for the frame.
pub(crate) fn deliver_pending(call: &mut Call<'_>) -> Result<(), CrashCause> {
    let vcpu = call.vcpu();
    if vcpu.nmi_pending && !vcpu.nmi_masked {
        let handler = vcpu.traps[usize::from(vector::NMI)].handler;
        call.vcpu_mut().nmi_pending = false;
        // Without a handler the NMI is lost, as on real Xen.
        if handler.address.0 != 0 {
            call.vcpu_mut().nmi_masked = true;
            bounce::enter(call, Bounce { handler, error_code: None }, || "an NMI".to_owned())?;
        }
    }
    if events_deliverable(call) {
        let handler = Handler { masks_events: true, ..call.vcpu().callbacks.event };
        bounce::enter(call, Bounce { handler, error_code: None }, || {
            "a pending event (event callback)".to_owned()
        })?;
    }
    Ok(())
}

/// Whether an event is pending and not masked.
fn events_deliverable(call: &Call<'_>) -> bool {
    let flag = |offset| call.domain.memory.load_u8(call.vcpu().info(offset)).unwrap_or(0);
    flag(vcpu_info::UPCALL_PENDING) != 0 && flag(vcpu_info::UPCALL_MASK) == 0
}

/// Raises an exception in the guest.
///
/// # Errors
///
/// The crash of a guest without a handler.
pub(crate) fn inject(
    call: &mut Call<'_>,
    vector: u8,
    error_code: Option<u32>,
) -> Result<Verdict, CrashCause> {
    let handler = call.vcpu().traps[usize::from(vector)].handler;
    let rip = call.context.rip;
    log::trace!("vCPU {}: exception {vector} at {rip:#x} goes to {}", call.vcpu, handler.address);
    bounce::enter(call, Bounce { handler, error_code }, || match error_code {
        Some(code) => format!("exception {vector} with error code {code:#x}, raised at {rip:#x}"),
        None => format!("exception {vector}, raised at {rip:#x}"),
    })?;
    Ok(Verdict::Run)
}

/// Raises #GP with `error_code`.
///
/// # Errors
///
/// The crash of a guest without a handler.
pub(crate) fn general_protection(call: &mut Call<'_>, error_code: u32) -> Result<Verdict, CrashCause> {
    fault_frame(call);
    inject(call, vector::GENERAL_PROTECTION, Some(error_code))
}

/// Raises #PF: CR2 first, then the error code with the U bit of the guest's own mode.
///
/// # Errors
///
/// The crash of a guest without a handler.
pub(crate) fn inject_page_fault(call: &mut Call<'_>, fault: PageFault) -> Result<Verdict, CrashCause> {
    let stored = call.domain.memory.store_u64(call.vcpu().info(vcpu_info::CR2), fault.address);
    debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
    let code = match call.context.mode {
        GuestMode::Kernel => fault.code.0 & !FaultCode::USER,
        GuestMode::User => fault.code.0 | FaultCode::USER,
    };
    fault_frame(call);
    inject(call, vector::PAGE_FAULT, Some(code))
}

/// Sets RF, as the CPU does in the frame of every fault: the instruction that runs again must not hit its breakpoint again.
/// A debug exception has it right already, a trap has it clear.
fn fault_frame(call: &mut Call<'_>) {
    call.context.rflags |= rflags::RF;
}

fn exception(call: &mut Call<'_>, exception: Exception) -> Result<Verdict, CrashCause> {
    if exception.vector == vector::NO_DEVICE {
        // The guest need not clear TS itself.
        call.context.task_switched = false;
    }
    if exception.vector != vector::DEBUG {
        fault_frame(call);
    }
    inject(call, exception.vector, exception.error_code)
}

fn page_fault(call: &mut Call<'_>, fault: PageFault) -> Result<Verdict, CrashCause> {
    match frames::write_fault(call, fault)? {
        Some(verdict) => Ok(verdict),
        None => inject_page_fault(call, fault),
    }
}

/// INT n and its short forms.
///
/// The hardware's interrupt table gives vectors 3, 4 and 0x80 to ring 3, so that the DPL in the guest's own trap table
/// says nothing about them, except that INT 0x80 without a handler counts as a fault. INT of any other vector faults,
/// and Xen then looks whether the trap table opens it.
fn software_interrupt(call: &mut Call<'_>, interrupt: Interrupt) -> Result<Verdict, CrashCause> {
    const INT80: u8 = 0x80;
    let entry = call.vcpu().traps[usize::from(interrupt.vector)];
    let open = match interrupt.vector {
        vector::BREAKPOINT | vector::OVERFLOW | vector::DEBUG => true,
        INT80 if entry.handler.address.0 != 0 => true,
        _ => entry.dpl >= virtual_ring(call),
    };
    if open {
        call.context.rip = interrupt.next_rip;
        inject(call, interrupt.vector, None)
    } else {
        // Bit 1: the error code names an entry of the interrupt table.
        general_protection(call, u32::from(interrupt.vector) << 3 | 2)
    }
}

/// The lowest DPL with which a trap-table entry is open to INT n.
fn virtual_ring(call: &Call<'_>) -> u8 {
    match call.context.mode {
        GuestMode::Kernel => 1,
        GuestMode::User => 3,
    }
}

/// SYSCALL and SYSENTER from user mode.
fn guest_syscall(call: &mut Call<'_>, kind: SyscallKind) -> Result<Verdict, CrashCause> {
    let callbacks = call.vcpu().callbacks;
    let (handler, cs) = match kind {
        SyscallKind::Syscall => (callbacks.syscall, FLAT_RING3_CS64),
        SyscallKind::Syscall32 => (callbacks.syscall32, FLAT_RING3_CS32),
        SyscallKind::Sysenter => return sysenter(call, callbacks.sysenter),
    };
    *call.context.segment_mut(SegmentRegister::Cs) = bounce::flat(cs);
    *call.context.segment_mut(SegmentRegister::Ss) = bounce::flat(FLAT_RING3_SS64);
    if handler.address.0 == 0 {
        const SYSCALL_BYTES: u64 = 2;
        call.context.rip = call.context.rip.wrapping_sub(SYSCALL_BYTES);
        return inject(call, vector::INVALID_OPCODE, None);
    }
    let bounce = Bounce { handler, error_code: None };
    bounce::enter(call, bounce, || "SYSCALL from user mode".to_owned())?;
    // There is no virtual SFMASK; the ABI fixes that DF is clear.
    call.context.rflags &= !rflags::DF;
    call.context.set_gpr(Gpr::R11, call.context.rflags);
    Ok(Verdict::Run)
}

/// SYSENTER forgets where it came from: the frame has a null CS with RPL 3 and zero RIP and RSP.
fn sysenter(call: &mut Call<'_>, handler: Handler) -> Result<Verdict, CrashCause> {
    const NULL_RING_3: u16 = 3;
    call.context.segment_mut(SegmentRegister::Cs).selector = NULL_RING_3;
    *call.context.segment_mut(SegmentRegister::Ss) = bounce::flat(FLAT_RING3_SS64);
    call.context.rip = 0;
    call.context.set_gpr(Gpr::Rsp, GuestVirt(0).0);
    if handler.address.0 == 0 {
        // Raised by Xen, not by the CPU: RF stays clear.
        return inject(call, vector::GENERAL_PROTECTION, Some(0));
    }
    bounce::enter(call, Bounce { handler, error_code: None }, || "SYSENTER".to_owned())?;
    Ok(Verdict::Run)
}

#[cfg(test)]
mod tests;
