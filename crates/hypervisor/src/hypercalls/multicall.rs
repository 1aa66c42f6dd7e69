//! `multicall`: a list of hypercalls, one after another.
//!
//! Each entry is carried out as if it had been made alone, and its result stored. Nothing is delivered in between,
//! except where a long list is interrupted: then the registers are set so that the guest makes the call again with
//! the rest of the list. The same happens when an entry puts the vCPU to sleep, or is itself only done in part.
//!
//! Source: `do_multicall` in `xen/common/multicall.c`, `pv_do_multicall_call` in `xen/arch/x86/pv/hypercall.c`.

use core::mem::offset_of;

use paravane_abi::{errno::Errno, mmu::MulticallEntry, units::GuestVirt};
use paravane_engine::{Gpr, GuestMode};

use crate::{
    dispatch::{self, Outcome},
    domain::{Call, Verdict},
    guest::is_guest_address,
    refusal::Refusal,
};

/// Entries that are carried out before the guest gets a chance to take an event. Linux sends 32 at most.
const BATCH: u64 = 256;

/// `multicall(list, count)`.
///
/// # Errors
///
/// `EINVAL` inside another multicall, `EFAULT` if the list cannot be read or a result not stored; the entries
/// before that one have been carried out.
pub(crate) fn multicall(call: &mut Call<'_>, list: u64, count: u64) -> Result<Outcome, Refusal> {
    if call.vcpu().in_multicall {
        return Err(Errno::Einval.into());
    }
    if !is_guest_address(GuestVirt(list)) {
        return Err(Errno::Efault.into());
    }
    call.vcpu_mut().in_multicall = true;
    let outcome = entries(call, list, count);
    call.vcpu_mut().in_multicall = false;
    outcome
}

fn entries(call: &mut Call<'_>, list: u64, count: u64) -> Result<Outcome, Refusal> {
    for index in 0..count.min(BATCH) {
        // The list was left behind if its end wraps: reading there fails.
        let at = GuestVirt(list.wrapping_add(index * size_of::<MulticallEntry>() as u64));
        let (next_list, next_count) =
            (at.0.wrapping_add(size_of::<MulticallEntry>() as u64), count - index - 1);
        match entry(call, at)? {
            Step::Next => {}
            Step::Left => return Ok(Outcome::Resume),
            Step::Stop(verdict) if next_count == 0 => return Ok(Outcome::Then(0, verdict)),
            Step::Stop(verdict) => return Ok(again(next_list, next_count, verdict)),
            Step::Unfinished(verdict) => return Ok(again(at.0, count - index, verdict)),
        }
    }
    match count.checked_sub(BATCH) {
        None | Some(0) => Ok(Outcome::Return(0)),
        Some(rest) => {
            let list = list.wrapping_add(BATCH * size_of::<MulticallEntry>() as u64);
            Ok(again(list, rest, Verdict::Run))
        }
    }
}

/// The rest of the list, as another multicall.
fn again(list: u64, count: u64, verdict: Verdict) -> Outcome {
    Outcome::Again([list, count, 0, 0, 0], verdict)
}

/// How an entry ended.
enum Step {
    /// Its result is stored.
    Next,
    /// The entry returned elsewhere: the list is abandoned.
    Left,
    /// Its result is stored; the vCPU does something else before the next.
    Stop(Verdict),
    /// It is done in part, and its arguments in the list are now those of the rest.
    Unfinished(Verdict),
}

fn entry(call: &mut Call<'_>, at: GuestVirt) -> Result<Step, Refusal> {
    let entry: MulticallEntry = call.space().read_value(at)?;
    let [a0, a1, a2, a3, a4, _] = entry.args;
    let (result, verdict) = match dispatch::invoke(call, entry.op, [a0, a1, a2, a3, a4]) {
        Ok(Outcome::Return(value)) => (value, None),
        Ok(Outcome::Then(value, verdict)) => (value, Some(verdict)),
        Ok(Outcome::Resume) => {
            // The return's own frame says what RAX is, and that is the entry's result. Storing it is a courtesy.
            let rax = call.context.gpr(Gpr::Rax);
            let _unstored = store_result(call, at, rax);
            return Ok(Step::Left);
        }
        Ok(Outcome::Again(args, verdict)) => {
            let mut rest = entry;
            rest.args[..args.len()].copy_from_slice(&args);
            call.space().write_value(at, &rest)?;
            return Ok(Step::Unfinished(verdict));
        }
        Err(Refusal::Errno(errno)) => {
            let result = dispatch::errno_value(errno);
            dispatch::log_refusal(call, entry.op, [a0, a1, a2, a3, a4], result);
            (result, None)
        }
        Err(refusal @ Refusal::Crash(_)) => return Err(refusal),
    };
    store_result(call, at, result.cast_unsigned())?;
    Ok(match verdict {
        // A fault that was raised in the guest on the way leaves kernel mode as it is.
        None if call.context.mode == GuestMode::Kernel => Step::Next,
        None => Step::Stop(Verdict::Run),
        Some(verdict) => Step::Stop(verdict),
    })
}

fn store_result(call: &Call<'_>, at: GuestVirt, result: u64) -> Result<(), Refusal> {
    let at = at.wrapping_add(offset_of!(MulticallEntry, result) as u64);
    Ok(call.space().write_value(at, &result)?)
}
