//! Registers that a guest sets through its hypervisor: the kernel stack, segment bases, CR0.TS, debug registers.
//!
//! Source: `xen/arch/x86/pv/misc-hypercalls.c`.

use paravane_abi::{errno::Errno, units::GuestVirt};
use paravane_engine::{Control4, Segment, SegmentRegister};
use paravane_x86::selector::Selector;

use crate::{dispatch::Outcome, domain::Call, guest::is_guest_address, refusal::Refusal, selectors};

/// `stack_switch(ss, sp)`: the stack for entries from user mode. The stack pointer is not checked until it is used.
#[expect(clippy::cast_possible_truncation, reason = "a selector has 16 bits")]
pub(crate) fn stack_switch(call: &mut Call<'_>, ss: u64, sp: u64) -> Result<Outcome, Refusal> {
    let vcpu = call.vcpu_mut();
    vcpu.kernel_ss = ss as u16 | 3;
    vcpu.kernel_sp = GuestVirt(sp);
    Ok(Outcome::Return(0))
}

/// `set_segment_base(which, base)`.
///
/// # Errors
///
/// `EINVAL` for an unknown `which` or a base that is not canonical.
#[expect(clippy::cast_possible_truncation, reason = "which is an unsigned int, a selector has 16 bits")]
pub(crate) fn set_segment_base(call: &mut Call<'_>, which: u64, base: u64) -> Result<Outcome, Refusal> {
    const FS: u32 = 0;
    const GS_USER: u32 = 1;
    const GS_KERNEL: u32 = 2;
    const GS_USER_SELECTOR: u32 = 3;
    let which = which as u32;
    match which {
        FS | GS_USER | GS_KERNEL if !GuestVirt(base).is_canonical() => return Err(Errno::Einval.into()),
        FS => call.context.segment_mut(SegmentRegister::Fs).base = base,
        GS_USER => call.context.inactive_gs_base = base,
        GS_KERNEL => call.context.segment_mut(SegmentRegister::Gs).base = base,
        GS_USER_SELECTOR => load_user_gs(call, Selector(base as u16)),
        _ => return Err(Errno::Einval.into()),
    }
    Ok(Outcome::Return(0))
}

/// Loads the selector of user mode's GS. The selector is visible at once; its base becomes user mode's. A selector that cannot
/// be loaded becomes null, and the hypercall succeeds all the same: Linux takes an error for a bug of its own.
fn load_user_gs(call: &mut Call<'_>, selector: Selector) {
    let selector = if selector.is_null() { selector } else { Selector(selector.0 | 3) };
    let loaded = selectors::load_data(call, selector).unwrap_or_else(|_| Segment::null(0));
    let kernel_base = call.context.segment(SegmentRegister::Gs).base;
    call.context.inactive_gs_base = loaded.base;
    *call.context.segment_mut(SegmentRegister::Gs) = Segment { base: kernel_base, ..loaded };
}

/// `fpu_taskswitch(set)`: sets or clears CR0.TS.
pub(crate) fn fpu_taskswitch(call: &mut Call<'_>, set: u64) -> Result<Outcome, Refusal> {
    call.context.task_switched = set & 0xffff_ffff != 0;
    Ok(Outcome::Return(0))
}

/// `set_debugreg(reg, value)`.
///
/// # Errors
///
/// See [`write_debug`].
pub(crate) fn set_debugreg(call: &mut Call<'_>, register: u64, value: u64) -> Result<Outcome, Refusal> {
    write_debug(call, register & 0xffff_ffff, value)?;
    Ok(Outcome::Return(0))
}

/// `get_debugreg(reg)`: its value.
///
/// # Errors
///
/// See [`read_debug`].
pub(crate) fn get_debugreg(call: &mut Call<'_>, register: u64) -> Result<Outcome, Refusal> {
    Ok(Outcome::from(read_debug(call, register & 0xffff_ffff)?))
}

/// The index of the control register.
pub(crate) const DR7: usize = 7;

/// The register that `number` names: 4 and 5 are 6 and 7 unless CR4.DE takes the aliases away.
fn debug_index(call: &Call<'_>, number: u64) -> Result<usize, Errno> {
    let aliases = !call.context.cr4.has(Control4::DE);
    match number {
        0 => Ok(0),
        1 => Ok(1),
        2 => Ok(2),
        3 => Ok(3),
        4 if aliases => Ok(6),
        5 if aliases => Ok(7),
        6 => Ok(6),
        7 => Ok(7),
        _ => Err(Errno::Enodev),
    }
}

/// Reads a debug register, for the hypercall and for MOV.
///
/// # Errors
///
/// `ENODEV` for a register that does not exist.
pub(crate) fn read_debug(call: &Call<'_>, number: u64) -> Result<u64, Errno> {
    let index = debug_index(call, number)?;
    let emulated = if index == DR7 { call.vcpu().io_breakpoints } else { 0 };
    Ok(call.context.debug[index] | emulated)
}

/// Writes a debug register, for the hypercall and for MOV.
///
/// # Errors
///
/// `ENODEV` for a register that does not exist (#UD for MOV), `EINVAL` for reserved bits, `EPERM` for a breakpoint that is
/// not at a guest's address, for general detect, and for I/O breakpoints without CR4.DE (#GP for MOV).
pub(crate) fn write_debug(call: &mut Call<'_>, number: u64, value: u64) -> Result<(), Errno> {
    const DR6_ONES: u64 = 0xffff_0ff0;
    const DR6_ZEROS: u64 = 1 << 12;
    const DR7_ONES: u64 = 1 << 10;
    const DR7_ZEROS: u64 = 0xd800;
    const GENERAL_DETECT: u64 = 1 << 13;
    let index = debug_index(call, number)?;
    let value = match index {
        0..=3 if !is_guest_address(GuestVirt(value)) => return Err(Errno::Eperm),
        0..=3 => value,
        _ if value >> 32 != 0 => return Err(Errno::Einval),
        6 => (value | DR6_ONES) & !DR6_ZEROS,
        _ => {
            let value = (value | DR7_ONES) & !DR7_ZEROS;
            if value & GENERAL_DETECT != 0 {
                return Err(Errno::Eperm);
            }
            let emulated = io_breakpoints(value, call.context.cr4.has(Control4::DE))?;
            call.vcpu_mut().io_breakpoints = emulated;
            value & !emulated
        }
    };
    call.context.debug[index] = value;
    Ok(())
}

/// The enable bits of I/O breakpoints in DR7. The CPU never sees them: port I/O is emulated, and so are they.
fn io_breakpoints(value: u64, debugging_extensions: bool) -> Result<u64, Errno> {
    const ACTIVE: u64 = 0xff;
    const IO: u64 = 2;
    let mut emulated = 0;
    if value & ACTIVE != 0 {
        for breakpoint in (0..4).filter(|breakpoint| value >> (16 + 4 * breakpoint) & 3 == IO) {
            if !debugging_extensions {
                return Err(Errno::Eperm);
            }
            emulated |= value & 3 << (2 * breakpoint);
        }
    }
    Ok(emulated)
}
