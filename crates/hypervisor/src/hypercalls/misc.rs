//! Small hypercalls: `console_io`, `vm_assist`, `hvm_op`.
//!
//! Source: `xen/drivers/char/console.c` (`do_console_io`), `xen/common/domain.c` (`do_vm_assist`),
//! `xen/arch/x86/hvm/hvm.c` (`do_hvm_op`).

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, PAGE_SIZE},
    vm::{ConsoleIoOp, VmAssistCommand, VmAssistType},
};

use crate::{
    dispatch::{Outcome, narrow},
    domain::{Call, Verdict},
    refusal::Refusal,
};

/// `console_io(cmd, count, buffer)`: what is written is kept for
/// [`Domain::take_console_output`](crate::Domain::take_console_output); there is nothing to read.
///
/// Stock Xen lets a domU write only in debugging builds. Here it may: early boot has no other voice.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EFAULT` for a buffer that cannot be read, `E2BIG` for a read of more than an
/// `int` can count.
pub(crate) fn console_io(
    call: &mut Call<'_>,
    command: u64,
    count: u64,
    buffer: u64,
) -> Result<Outcome, Refusal> {
    let count = narrow(count);
    match ConsoleIoOp::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        ConsoleIoOp::Write => write(call, command, count, buffer),
        ConsoleIoOp::Read if i32::try_from(count).is_err() => Err(Errno::E2big.into()),
        ConsoleIoOp::Read => Ok(Outcome::Return(0)),
    }
}

/// Takes a page at a time, so that a huge count does not keep the vCPU from its events.
fn write(call: &mut Call<'_>, command: u64, count: u32, buffer: u64) -> Result<Outcome, Refusal> {
    // Fits: a page at most.
    let length = u64::from(count).min(PAGE_SIZE) as usize;
    let mut bytes = vec![0; length];
    call.space().read(GuestVirt(buffer), &mut bytes)?;
    call.domain.console.push(&bytes);
    match u64::from(count) - length as u64 {
        0 => Ok(Outcome::Return(0)),
        rest => Ok(Outcome::Again([command, rest, buffer.wrapping_add(PAGE_SIZE), 0, 0], Verdict::Run)),
    }
}

/// `vm_assist(cmd, type)`: turns an assist on or off.
///
/// # Errors
///
/// `EINVAL` for an unknown type, `ENOSYS` for an unknown command.
pub(crate) fn vm_assist(call: &mut Call<'_>, command: u64, kind: u64) -> Result<Outcome, Refusal> {
    let kind = VmAssistType::from_number(narrow(kind)).ok_or(Errno::Einval)?;
    let bit = 1 << kind.number();
    match VmAssistCommand::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        VmAssistCommand::Enable => call.domain.assists |= bit,
        VmAssistCommand::Disable => call.domain.assists &= !bit,
    }
    Ok(Outcome::Return(0))
}

/// A record for Xen's trace buffer. Nobody reads it, so it goes nowhere, as on a Xen that is not traced.
fn trace_record(call: &Call<'_>, argument: u64) -> Result<Outcome, Refusal> {
    /// `struct xen_hvm_xentrace`.
    #[derive(zerocopy::FromBytes, zerocopy::IntoBytes)]
    #[repr(C)]
    struct Record {
        event: u16,
        extra_bytes: u16,
        extra: [u8; 28],
    }
    const EVENT_BITS: u32 = 12;
    let record: Record = call.space().read_value(GuestVirt(argument))?;
    let fits = record.extra_bytes.is_multiple_of(4) && usize::from(record.extra_bytes) <= record.extra.len();
    if fits && record.event >> EVENT_BITS == 0 { Ok(Outcome::Return(0)) } else { Err(Errno::Einval.into()) }
}

/// `hvm_op(cmd, arg)`: a PV domain gets the time by it, may write trace records, and may notify a monitor that it does
/// not have; everything else is for HVM domains.
///
/// # Errors
///
/// `EINVAL` for what is for HVM domains, `EOPNOTSUPP` for alternate views of memory, `ENOSYS` for an unknown
/// command, `EFAULT` for an answer that cannot be written.
pub(crate) fn hvm_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    // `xen/include/public/hvm/hvm_op.h`.
    const SET_PARAM: u64 = 0;
    const GET_PARAM: u64 = 1;
    const FLUSH_TLBS: u64 = 5;
    const PAGETABLE_DYING: u64 = 9;
    const GET_TIME: u64 = 10;
    const XENTRACE: u64 = 11;
    const GET_MEM_TYPE: u64 = 15;
    const SET_EVTCHN_UPCALL_VECTOR: u64 = 23;
    const GUEST_REQUEST_VM_EVENT: u64 = 24;
    const ALTP2M: u64 = 25;
    match command {
        GET_TIME => {
            let now_ns = call.domain.clock.system_ns(call.now);
            call.space().write_value(GuestVirt(argument), &now_ns)?;
            Ok(Outcome::Return(0))
        }
        XENTRACE => trace_record(call, argument),
        GUEST_REQUEST_VM_EVENT if argument == 0 => Ok(Outcome::Return(0)),
        SET_PARAM
        | GET_PARAM
        | FLUSH_TLBS
        | PAGETABLE_DYING
        | GET_MEM_TYPE
        | SET_EVTCHN_UPCALL_VECTOR
        | GUEST_REQUEST_VM_EVENT => Err(Errno::Einval.into()),
        ALTP2M => Err(Errno::Eopnotsupp.into()),
        _ => Err(Errno::Enosys.into()),
    }
}
