//! `sched_op`, its older form, and `set_timer_op`.
//!
//! Source: `do_sched_op`, `do_poll`, `do_set_timer_op` in `xen/common/sched/core.c`, `do_sched_op_compat` in
//! `xen/arch/x86/compat.c`.

use paravane_abi::{
    errno::Errno,
    sched::{
        POLL_PORTS_MAX, SchedOp, SchedOpCompat, SchedPoll, SchedRemoteShutdown, SchedShutdown, SchedWatchdog,
    },
    units::{DomId, GuestVirt, Port},
};

use crate::{
    dispatch::{Outcome, narrow},
    domain::{CONTROL_DOMAIN, Call, Verdict},
    guest::is_guest_address,
    refusal::Refusal,
    schedule::{Wait, shutdown_code, shutdown_verdict},
    support::Supported as _,
    vcpu::vcpu_info,
};

/// `sched_op(cmd, arg)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EFAULT` for an unreadable argument, and those of each operation.
pub(crate) fn sched_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    let at = GuestVirt(argument);
    match SchedOp::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        SchedOp::Yield => Ok(Outcome::Then(0, Verdict::Yield)),
        SchedOp::Block => Ok(block(call)),
        SchedOp::Shutdown => {
            let SchedShutdown { reason } = call.space().read_value(at)?;
            shutdown(call, reason)
        }
        SchedOp::Poll => poll(call, at),
        SchedOp::RemoteShutdown => {
            let request: SchedRemoteShutdown = call.space().read_value(at)?;
            // DOMID_SELF is not a domain here, and the own one is not another's to shut down by this way.
            let known = [call.domain.id, CONTROL_DOMAIN].contains(&DomId(request.domain_id));
            Err(if known { SchedOp::RemoteShutdown.refusal() } else { Errno::Esrch }.into())
        }
        SchedOp::ShutdownCode => {
            let SchedShutdown { reason } = call.space().read_value(at)?;
            call.domain.shutdown.code.get_or_insert(shutdown_code(reason));
            Ok(Outcome::Return(0))
        }
        SchedOp::Watchdog => {
            let SchedWatchdog { id, timeout } = call.space().read_value(at)?;
            let now_ns = call.domain.clock.system_ns(call.now);
            let id = call.domain.watchdogs.set(id, timeout, now_ns)?;
            Ok(Outcome::Return(i64::from(id)))
        }
        SchedOp::PinOverride => Err(SchedOp::PinOverride.refusal().into()),
    }
}

/// `sched_op_compat(cmd, arg)`: the argument is the shutdown's reason itself.
///
/// # Errors
///
/// `ENOSYS` for an unknown command.
pub(crate) fn sched_op_compat(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    match SchedOpCompat::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        SchedOpCompat::Yield => Ok(Outcome::Then(0, Verdict::Yield)),
        SchedOpCompat::Block => Ok(block(call)),
        SchedOpCompat::Shutdown => shutdown(call, narrow(argument)),
    }
}

/// `set_timer_op(timeout)`: sets the one-shot timer to an absolute system time; 0 stops it.
///
/// A time that is negative, or more than 2^50 ns (13 days) ahead, fires after 100 ms: some guests compute such
/// times by mistake when they want to be called at once, and others when they have no timer at all.
pub(crate) fn set_timer_op(call: &mut Call<'_>, timeout: u64) -> Outcome {
    const FAR_NS: u64 = 1 << 50;
    const SOON_NS: u64 = 100_000_000;
    let now_ns = call.domain.clock.system_ns(call.now);
    let negative = timeout.cast_signed() < 0;
    call.vcpu_mut().timers.one_shot_ns = match timeout {
        0 => None,
        _ if negative || timeout.saturating_sub(now_ns) >= FAR_NS => Some(now_ns.saturating_add(SOON_NS)),
        _ => Some(timeout),
    };
    fire_if_due(call);
    Outcome::Return(0)
}

/// Lets a timer that was set to a time in the past fire before the guest goes on.
fn fire_if_due(call: &mut Call<'_>) {
    let now_ns = call.domain.clock.system_ns(call.now);
    call.domain.expire_own_timers(call.vcpu, now_ns);
}

/// `SCHEDOP_block`: unmasks events, and sleeps unless one is pending.
fn block(call: &mut Call<'_>) -> Outcome {
    let stored = call.domain.memory.store_u8(call.vcpu().info(vcpu_info::UPCALL_MASK), 0);
    debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
    if event_deliverable(call) {
        return Outcome::Return(0);
    }
    sleep(call, Wait::Event)
}

/// Puts the vCPU to sleep.
fn sleep(call: &mut Call<'_>, wait: Wait) -> Outcome {
    call.vcpu_mut().wait = Some(wait);
    let until_ns = call.domain.next_deadline_ns(call.vcpu);
    Outcome::Then(0, Verdict::Block { until_ns })
}

/// Whether an event is pending for the vCPU and not masked.
fn event_deliverable(call: &Call<'_>) -> bool {
    let flag = |offset| call.domain.memory.load_u8(call.vcpu().info(offset)).unwrap_or(0);
    flag(vcpu_info::UPCALL_PENDING) != 0 && flag(vcpu_info::UPCALL_MASK) == 0
}

/// `SCHEDOP_poll`: sleeps until one of the ports is pending, masked or not, an event can be delivered, or the time
/// has come.
///
/// # Errors
///
/// `EINVAL` for more than 128 ports or one that is not in use, `EFAULT` for a list that cannot be read.
fn poll(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let request: SchedPoll = call.space().read_value(at)?;
    let list = GuestVirt(request.ports);
    if request.nr_ports > POLL_PORTS_MAX {
        return Err(Errno::Einval.into());
    }
    if !is_guest_address(list) {
        return Err(Errno::Efault.into());
    }
    if event_deliverable(call) {
        return Ok(Outcome::Return(0));
    }
    let mut port = Port(0);
    for index in 0..u64::from(request.nr_ports) {
        port = Port(call.space().read_element(list, index)?);
        if call.domain.poll(port)? {
            return Ok(Outcome::Return(0));
        }
    }
    let until_ns = (request.timeout != 0).then_some(request.timeout);
    let now_ns = call.domain.clock.system_ns(call.now);
    if until_ns.is_some_and(|until_ns| until_ns <= now_ns) {
        return Ok(Outcome::Return(0));
    }
    let port = (request.nr_ports == 1).then_some(port);
    Ok(sleep(call, Wait::Poll { port, until_ns }))
}

/// Shuts the domain down. The result, 0, is seen by a guest that was suspended.
fn shutdown(call: &mut Call<'_>, reason: u32) -> Result<Outcome, Refusal> {
    let verdict = shutdown_verdict(call.domain.shut_down(shutdown_code(reason)))?;
    Ok(Outcome::Then(0, verdict))
}
