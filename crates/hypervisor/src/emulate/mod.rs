//! Privileged instructions: which a PV guest may use, and what they do.
//!
//! The engine reports an instruction that needs ring 0; here it is decided whether the guest's *virtual*
//! privilege suffices. The guest kernel counts as ring 1 (ring 0 under the `architectural_iopl` assist), user mode as ring 3.
//! Port I/O, CLI and STI need a virtual IOPL of at least that ring or, for ports, a clear bit in the I/O bitmap; everything
//! else needs kernel mode. What is not allowed, and what real Xen does not emulate, is #GP(0).
//!
//! Source: `xen/arch/x86/pv/emul-priv-op.c`.

mod cpuid;
mod io;
mod msr;

use paravane_abi::units::{Mfn, PAGE_SHIFT};
use paravane_engine::{Control4, ControlRegister, Gpr, GuestMode, Privileged, PrivilegedOp, rflags, vector};

pub use cpuid::CpuidPolicy;

use crate::{
    bounce,
    crash::CrashCause,
    domain::{Call, Verdict},
    exits, frames,
    hypercalls::segments::{read_debug, write_debug},
    vcpu::vcpu_info,
};

/// How an emulated instruction ends.
enum Emulated {
    /// RIP moves to the next instruction.
    Done,
    /// RIP stays: the instruction has more to do, and runs again.
    Again,
    /// #GP(0).
    Refused,
    /// #UD.
    Undefined,
    /// #PF while reading or writing the operand.
    Fault(paravane_engine::PageFault),
    /// #DB after the access, for these I/O breakpoints; RIP moves on if the instruction is finished.
    Trapped { breakpoints: u64, finished: bool },
}

/// DR6.BS: a single step.
const SINGLE_STEP: u64 = 1 << 14;

/// Emulates or refuses `privileged`.
///
/// # Errors
///
/// The crash of a guest without a handler for the fault.
pub(crate) fn privileged(call: &mut Call<'_>, privileged: Privileged) -> Result<Verdict, CrashCause> {
    // The instruction may be one that is being stepped over; it cannot change the flag itself.
    let stepped = if call.context.rflags & rflags::TF != 0 { SINGLE_STEP } else { 0 };
    match emulate(call, privileged.op) {
        Emulated::Done => finish(call, privileged.length, stepped),
        Emulated::Again => Ok(Verdict::Run),
        Emulated::Trapped { breakpoints, finished: true } => {
            finish(call, privileged.length, breakpoints | stepped)
        }
        Emulated::Trapped { breakpoints, finished: false } => debug_exception(call, breakpoints),
        Emulated::Refused if satisfy_early_rdmsr(call, privileged.op) => {
            finish(call, privileged.length, stepped)
        }
        Emulated::Refused => {
            let (vcpu, rip) = (call.vcpu, call.context.rip);
            log::debug!("vCPU {vcpu}: {:?} at {rip:#x} is refused with #GP", privileged.op);
            exits::general_protection(call, 0)
        }
        Emulated::Undefined => exits::inject(call, vector::INVALID_OPCODE, None),
        Emulated::Fault(fault) => exits::inject_page_fault(call, fault),
    }
}

/// Goes on behind the instruction, with the debug exception that it earned.
fn finish(call: &mut Call<'_>, length: u8, trapped: u64) -> Result<Verdict, CrashCause> {
    advance(call, length);
    if trapped == 0 { Ok(Verdict::Run) } else { debug_exception(call, trapped) }
}

/// Raises #DB for the reasons in `status`, bits of DR6.
fn debug_exception(call: &mut Call<'_>, status: u64) -> Result<Verdict, CrashCause> {
    call.context.debug[6] |= status;
    exits::inject(call, vector::DEBUG, None)
}

fn advance(call: &mut Call<'_>, length: u8) {
    let rip = call.context.rip.wrapping_add(u64::from(length));
    call.context.rip = if call.context.is_64_bit() { rip } else { rip & 0xffff_ffff };
    call.context.rflags &= !rflags::RF;
}

fn emulate(call: &mut Call<'_>, op: PrivilegedOp) -> Emulated {
    let kernel = call.context.mode == GuestMode::Kernel;
    match op {
        // These have rules of their own for user mode.
        PrivilegedOp::Cpuid { forced } => cpuid::cpuid(call, forced),
        PrivilegedOp::Cli | PrivilegedOp::Sti => {
            // No effect: events are masked in memory, and a POPF that undid a CLI could not be seen.
            if iopl_allows(call) { Emulated::Done } else { Emulated::Refused }
        }
        PrivilegedOp::In { port, width } => io::input(call, port, width),
        PrivilegedOp::Out { port, width, value } => io::output(call, port, width, value),
        PrivilegedOp::Ins(string) => io::input_string(call, string),
        PrivilegedOp::Outs(string) => io::output_string(call, string),
        _ if !kernel => Emulated::Refused,
        PrivilegedOp::Rdmsr => rdmsr(call),
        PrivilegedOp::Wrmsr => wrmsr(call),
        PrivilegedOp::ReadControl { from, to } => read_control(call, from, to),
        PrivilegedOp::WriteControl { to, value } => write_control(call, to, value),
        PrivilegedOp::ReadDebug { from, to } => match read_debug(call, u64::from(from)) {
            Ok(value) => {
                call.context.set_gpr(to, value);
                Emulated::Done
            }
            Err(_) => Emulated::Undefined,
        },
        PrivilegedOp::WriteDebug { to, value } => match write_debug(call, u64::from(to), value) {
            Ok(()) => Emulated::Done,
            Err(paravane_abi::errno::Errno::Enodev) => Emulated::Undefined,
            Err(_) => Emulated::Refused,
        },
        PrivilegedOp::Clts => {
            call.context.task_switched = false;
            Emulated::Done
        }
        // Linux executes it at start of day; a guest without device memory has nothing to write back.
        PrivilegedOp::Wbinvd => Emulated::Done,
        PrivilegedOp::Xsetbv => xsetbv(call),
        PrivilegedOp::Rdtsc => {
            set_edx_eax(call, call.now.0);
            Emulated::Done
        }
        PrivilegedOp::Rdtscp => {
            set_edx_eax(call, call.now.0);
            let aux = u64::from(call.context.tsc_aux);
            call.context.set_gpr(Gpr::Rcx, aux);
            Emulated::Done
        }
        PrivilegedOp::Hlt
        | PrivilegedOp::Lmsw(_)
        | PrivilegedOp::Invd
        | PrivilegedOp::Invlpg(_)
        | PrivilegedOp::Rdpmc
        | PrivilegedOp::Swapgs
        | PrivilegedOp::Sysret
        | PrivilegedOp::Sysexit
        | PrivilegedOp::LoadTable
        | PrivilegedOp::Other => Emulated::Refused,
    }
}

/// Whether the virtual IOPL gives the current mode CLI, STI and all ports.
fn iopl_allows(call: &Call<'_>) -> bool {
    let ring = match call.context.mode {
        GuestMode::Kernel if call.domain.assists & bounce::ARCHITECTURAL_IOPL != 0 => 0,
        GuestMode::Kernel => 1,
        GuestMode::User => 3,
    };
    ring <= call.vcpu().iopl
}

/// A refused RDMSR of a guest that has no #GP handler yet reads 0: otherwise kernels that probe registers before
/// they set up traps could not start. Xen's own range is not included.
fn satisfy_early_rdmsr(call: &mut Call<'_>, op: PrivilegedOp) -> bool {
    let unhandled = call.vcpu().traps[usize::from(vector::GENERAL_PROTECTION)].handler.address.0 == 0;
    let satisfied = op == PrivilegedOp::Rdmsr
        && unhandled
        && call.context.mode == GuestMode::Kernel
        && msr_number(call) >> 16 != 0x4000;
    if satisfied {
        set_edx_eax(call, 0);
    }
    satisfied
}

#[expect(clippy::cast_possible_truncation, reason = "ECX is the lower half of RCX")]
fn msr_number(call: &Call<'_>) -> u32 {
    call.context.gpr(Gpr::Rcx) as u32
}

fn set_edx_eax(call: &mut Call<'_>, value: u64) {
    call.context.set_gpr(Gpr::Rax, value & 0xffff_ffff);
    call.context.set_gpr(Gpr::Rdx, value >> 32);
}

fn edx_eax(call: &Call<'_>) -> u64 {
    call.context.gpr(Gpr::Rdx) << 32 | call.context.gpr(Gpr::Rax) & 0xffff_ffff
}

fn rdmsr(call: &mut Call<'_>) -> Emulated {
    match msr::read(call, msr_number(call)) {
        Some(value) => {
            set_edx_eax(call, value);
            Emulated::Done
        }
        None => Emulated::Refused,
    }
}

fn wrmsr(call: &mut Call<'_>) -> Emulated {
    let (number, value) = (msr_number(call), edx_eax(call));
    if msr::write(call, number, value) { Emulated::Done } else { Emulated::Refused }
}

/// CR0 as every PV guest sees it, TS aside: PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// CR0.TS.
const CR0_TS: u64 = 1 << 3;
/// CR4 bits that read as one: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4_FIXED: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;
/// CR4 bits that a guest may change.
const CR4_GUEST: u64 = Control4::TSD | Control4::DE | Control4::FSGSBASE | Control4::OSXSAVE;

fn read_control(call: &mut Call<'_>, from: ControlRegister, to: Gpr) -> Emulated {
    let value = match from {
        ControlRegister::Cr0 => CR0 | if call.context.task_switched { CR0_TS } else { 0 },
        ControlRegister::Cr2 => call.domain.memory.load_u64(call.vcpu().info(vcpu_info::CR2)).unwrap_or(0),
        ControlRegister::Cr3 => call.context.kernel_root.0 << PAGE_SHIFT,
        ControlRegister::Cr4 => call.context.cr4.0 | CR4_FIXED,
        ControlRegister::Cr8 => return Emulated::Refused,
    };
    call.context.set_gpr(to, value);
    Emulated::Done
}

fn write_control(call: &mut Call<'_>, to: ControlRegister, value: u64) -> Emulated {
    match to {
        ControlRegister::Cr0 if (value ^ CR0) & !CR0_TS == 0 => {
            call.context.task_switched = value & CR0_TS != 0;
            Emulated::Done
        }
        ControlRegister::Cr2 => {
            let stored = call.domain.memory.store_u64(call.vcpu().info(vcpu_info::CR2), value);
            debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
            Emulated::Done
        }
        ControlRegister::Cr3 => match frames::set_kernel_root(call, Mfn(value >> PAGE_SHIFT)) {
            Ok(()) => Emulated::Done,
            Err(_) => Emulated::Refused,
        },
        ControlRegister::Cr4 => {
            // Other changes are dropped, not refused.
            call.context.cr4 = Control4(value & CR4_GUEST & call.domain.cpuid.allowed_cr4());
            Emulated::Done
        }
        ControlRegister::Cr0 | ControlRegister::Cr8 => Emulated::Refused,
    }
}

fn xsetbv(call: &mut Call<'_>) -> Emulated {
    if !call.context.cr4.has(Control4::OSXSAVE) {
        return Emulated::Undefined;
    }
    let value = edx_eax(call);
    if msr_number(call) != 0 || !call.domain.cpuid.is_valid_xcr0(value) {
        return Emulated::Refused;
    }
    call.context.xcr0 = value;
    Emulated::Done
}

#[cfg(test)]
mod tests;
