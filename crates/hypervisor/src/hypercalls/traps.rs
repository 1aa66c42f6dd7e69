//! Where the guest wants to be entered: `set_trap_table`, `set_callbacks`, `callback_op`, `nmi_op`.
//!
//! Source: `xen/arch/x86/pv/callback.c`, `xen/include/public/callback.h`, `xen/include/public/nmi.h`.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, VcpuId},
    vcpu_context::{TrapInfo, trap_flags},
    vm::{
        CALLBACKF_MASK_EVENTS, CallbackOp, CallbackRegister, CallbackType, CallbackUnregister, NmiCallback,
        NmiOp,
    },
};
use paravane_engine::vector;

use crate::{
    dispatch::Outcome,
    domain::{Call, Verdict},
    refusal::Refusal,
    support::Supported as _,
    vcpu::{Handler, TrapEntry},
};

/// Entries that are set before the guest gets a chance to take an event. The vector is a byte, so a longer list only
/// repeats itself.
const BATCH: u64 = 256;

/// `set_trap_table(traps)`: sets the listed vectors; a null pointer clears all.
///
/// # Errors
///
/// `EFAULT` if the list cannot be read, `EINVAL` for an address that is not canonical. Entries before the bad
/// one stay set.
pub(crate) fn set_trap_table(call: &mut Call<'_>, traps: u64) -> Result<Outcome, Refusal> {
    if traps == 0 {
        *call.vcpu_mut().traps = [TrapEntry::default(); 256];
        return Ok(Outcome::Return(0));
    }
    for index in 0..BATCH {
        let info: TrapInfo = call.space().read_element(GuestVirt(traps), index)?;
        if info.address == 0 {
            return Ok(Outcome::Return(0));
        }
        let address = canonical(info.address)?;
        call.vcpu_mut().traps[usize::from(info.vector)] = TrapEntry {
            handler: Handler { address, masks_events: info.flags & trap_flags::MASK_EVENTS != 0 },
            cs: info.cs | 3,
            dpl: info.flags & trap_flags::DPL_MASK,
        };
    }
    let rest = traps.wrapping_add(BATCH * size_of::<TrapInfo>() as u64);
    Ok(Outcome::Again([rest, 0, 0, 0, 0], Verdict::Run))
}

/// `set_callbacks(event, failsafe, syscall)`: three registrations at once, without masking events. A bad address
/// leaves its callback as it was, and the result is 0 all the same.
pub(crate) fn set_callbacks(
    call: &mut Call<'_>,
    event: u64,
    failsafe: u64,
    syscall: u64,
) -> Result<Outcome, Refusal> {
    for (kind, address) in
        [(CallbackType::Event, event), (CallbackType::Failsafe, failsafe), (CallbackType::Syscall, syscall)]
    {
        if let Ok(address) = canonical(address) {
            register(call, kind, Handler { address, masks_events: false });
        }
    }
    Ok(Outcome::Return(0))
}

/// `callback_op(cmd, arg)`: registers or unregisters one callback.
///
/// # Errors
///
/// `ENOSYS` for an unknown command or callback, `EFAULT` for an unreadable argument, `EINVAL` for an address that is
/// not canonical or a callback that cannot be unregistered.
pub(crate) fn callback_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    match narrow(command).and_then(CallbackOp::from_number) {
        Some(CallbackOp::Register) => {
            let request: CallbackRegister = call.space().read_value(GuestVirt(argument))?;
            // The address is checked before the type, as on real Xen.
            let address = canonical(request.address)?;
            let kind = callback(request.kind)?;
            register(
                call,
                kind,
                Handler { address, masks_events: request.flags & CALLBACKF_MASK_EVENTS != 0 },
            );
            Ok(Outcome::Return(0))
        }
        Some(CallbackOp::Unregister) => {
            let request: CallbackUnregister = call.space().read_value(GuestVirt(argument))?;
            match callback(request.kind)? {
                CallbackType::Nmi => {
                    unregister_nmi(call);
                    Ok(Outcome::Return(0))
                }
                CallbackType::Event
                | CallbackType::Failsafe
                | CallbackType::Syscall
                | CallbackType::Sysenter
                | CallbackType::Syscall32 => Err(Errno::Einval.into()),
                kind @ CallbackType::SysenterDeprecated => Err(kind.refusal().into()),
            }
        }
        None => Err(Errno::Enosys.into()),
    }
}

/// `nmi_op(cmd, arg)`: the older way to register the NMI callback, for vCPU 0 only.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EINVAL` from another vCPU or for a bad address, `EFAULT` for an unreadable
/// argument.
pub(crate) fn nmi_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    match narrow(command).and_then(NmiOp::from_number) {
        Some(NmiOp::RegisterCallback) => {
            let request: NmiCallback = call.space().read_value(GuestVirt(argument))?;
            if call.vcpu != VcpuId(0) {
                return Err(Errno::Einval.into());
            }
            let address = canonical(request.handler_address)?;
            register(call, CallbackType::Nmi, Handler { address, masks_events: false });
            Ok(Outcome::Return(0))
        }
        Some(NmiOp::UnregisterCallback) => {
            unregister_nmi(call);
            Ok(Outcome::Return(0))
        }
        None => Err(Errno::Enosys.into()),
    }
}

fn register(call: &mut Call<'_>, kind: CallbackType, handler: Handler) {
    let vcpu = call.vcpu_mut();
    match kind {
        // The event callback always masks events; the flag means nothing to it.
        CallbackType::Event => vcpu.callbacks.event = handler,
        CallbackType::Failsafe => vcpu.callbacks.failsafe = handler,
        CallbackType::Syscall => vcpu.callbacks.syscall = handler,
        CallbackType::Syscall32 => vcpu.callbacks.syscall32 = handler,
        CallbackType::Sysenter => vcpu.callbacks.sysenter = handler,
        CallbackType::Nmi => {
            vcpu.traps[usize::from(vector::NMI)] =
                TrapEntry { handler: Handler { masks_events: true, ..handler }, cs: 0, dpl: 0 };
        }
        CallbackType::SysenterDeprecated => {}
    }
}

fn unregister_nmi(call: &mut Call<'_>) {
    call.vcpu_mut().traps[usize::from(vector::NMI)] = TrapEntry::default();
}

/// A callback type that current Xen knows.
fn callback(number: u16) -> Result<CallbackType, Refusal> {
    match CallbackType::from_number(u32::from(number)) {
        None => Err(Errno::Enosys.into()),
        Some(kind @ CallbackType::SysenterDeprecated) => Err(kind.refusal().into()),
        Some(kind) => Ok(kind),
    }
}

fn canonical(address: u64) -> Result<GuestVirt, Refusal> {
    let address = GuestVirt(address);
    if address.is_canonical() { Ok(address) } else { Err(Errno::Einval.into()) }
}

/// A command word. The C prototypes take an int, so the upper half of the register is ignored.
#[expect(clippy::cast_possible_truncation, reason = "as the C prototype narrows")]
#[expect(clippy::unnecessary_wraps, reason = "composes with from_number")]
fn narrow(word: u64) -> Option<u32> {
    Some(word as u32)
}
