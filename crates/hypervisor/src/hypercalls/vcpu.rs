//! `vcpu_op`: starting and stopping vCPUs, their timers, and the places they share with the hypervisor.
//!
//! Source: `do_vcpu_op` in `xen/arch/x86/domain.c`, `common_vcpu_op` in `xen/common/domain.c`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    sched::ShutdownReason,
    shared_info::{VcpuInfo, VcpuTimeInfo},
    units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE, VcpuId},
    vcpu::{
        PERIODIC_TIMER_MIN_NS, RegisterRunstateMemoryArea, RegisterTimeMemoryArea, RegisterVcpuInfo,
        RunState, RunstateInfo, SetPeriodicTimer, SetSingleshotTimer, VcpuOp,
    },
};

use super::vcpu_context;
use crate::{
    dispatch::{Outcome, narrow},
    domain::{Call, Verdict},
    guest::is_guest_address,
    refusal::Refusal,
    schedule::{StartedVcpu, code_of, shutdown_verdict},
    support::Supported as _,
    vcpu::{Availability, Vcpu, vcpu_info},
};

/// The longest period of the periodic timer, about 146 years.
///
/// Source: `STIME_DELTA_MAX` in `xen/include/xen/time.h`.
const PERIOD_MAX_NS: u64 = u64::MAX >> 2;

/// `vcpu_op(cmd, vcpu, arg)`.
///
/// # Errors
///
/// `ENOENT` for a vCPU that does not exist, `ENOSYS` for an unknown command, `EFAULT` for an unreadable argument,
/// and those of each operation.
pub(crate) fn vcpu_op(
    call: &mut Call<'_>,
    command: u64,
    vcpu: u64,
    argument: u64,
) -> Result<Outcome, Refusal> {
    let id = VcpuId(narrow(vcpu));
    if id.0 as usize >= call.domain.vcpus.len() {
        return Err(Errno::Enoent.into());
    }
    let at = GuestVirt(argument);
    match VcpuOp::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        VcpuOp::Initialise => vcpu_context::initialise(call, id, at)?,
        VcpuOp::Up => up(call, id)?,
        VcpuOp::Down => return down(call, id),
        VcpuOp::IsUp => {
            return Ok(Outcome::Return((target(call, id).availability == Availability::Up).into()));
        }
        VcpuOp::GetRunstateInfo => {
            let info = runstate_info(call, id);
            call.space().write_value(at, &info)?;
        }
        VcpuOp::RegisterRunstateMemoryArea => register_runstate(call, id, at)?,
        VcpuOp::RegisterRunstatePhysArea => register_runstate_by_machine(call, id, at)?,
        VcpuOp::RegisterVcpuTimeMemoryArea => register_time(call, id, at)?,
        VcpuOp::RegisterVcpuTimePhysArea => register_time_by_machine(call, id, at)?,
        VcpuOp::RegisterVcpuInfo => register_vcpu_info(call, id, at)?,
        VcpuOp::SetPeriodicTimer => {
            let SetPeriodicTimer { period_ns } = call.space().read_value(at)?;
            if !(PERIODIC_TIMER_MIN_NS..=PERIOD_MAX_NS).contains(&period_ns) {
                return Err(Errno::Einval.into());
            }
            let now_ns = now_ns(call);
            call.domain.set_periodic_timer(id, period_ns, now_ns);
        }
        VcpuOp::StopPeriodicTimer => {
            let now_ns = now_ns(call);
            call.domain.set_periodic_timer(id, 0, now_ns);
        }
        VcpuOp::SetSingleshotTimer => set_one_shot(call, id, at)?,
        VcpuOp::StopSingleshotTimer => {
            own(call, id)?;
            call.vcpu_mut().timers.one_shot_ns = None;
        }
        VcpuOp::SendNmi => {
            if argument != 0 {
                return Err(Errno::Einval.into());
            }
            target_mut(call, id).nmi_pending = true;
            call.domain.wake(id);
        }
        VcpuOp::GetPhysid => return Err(VcpuOp::GetPhysid.refusal().into()),
    }
    Ok(Outcome::Return(0))
}

fn target<'a>(call: &'a Call<'_>, vcpu: VcpuId) -> &'a Vcpu {
    &call.domain.vcpus[vcpu.0 as usize]
}

fn target_mut<'a>(call: &'a mut Call<'_>, vcpu: VcpuId) -> &'a mut Vcpu {
    &mut call.domain.vcpus[vcpu.0 as usize]
}

fn now_ns(call: &Call<'_>) -> u64 {
    call.domain.clock.system_ns(call.now)
}

/// Refuses another vCPU than the caller's own.
fn own(call: &Call<'_>, vcpu: VcpuId) -> Result<(), Errno> {
    if vcpu == call.vcpu { Ok(()) } else { Err(Errno::Einval) }
}

/// `VCPUOP_up`.
///
/// # Errors
///
/// `EINVAL` for a vCPU that was never initialised.
pub(super) fn up(call: &mut Call<'_>, id: VcpuId) -> Result<(), Errno> {
    let vcpu = target_mut(call, id);
    match vcpu.availability {
        Availability::Uninitialised => return Err(Errno::Einval),
        Availability::Up => return Ok(()),
        Availability::Down => {}
    }
    vcpu.availability = Availability::Up;
    let context = vcpu.first_context.take();
    let now_ns = now_ns(call);
    // The area of a vCPU that never ran is filled when it runs; its page table is not in use yet.
    call.domain.change_runstate(id, RunState::Runnable, now_ns, call.context.kernel_root);
    call.domain.started.push(StartedVcpu { vcpu: id, context });
    Ok(())
}

/// `VCPUOP_down`. When no other is up, the domain powers off instead.
fn down(call: &mut Call<'_>, id: VcpuId) -> Result<Outcome, Refusal> {
    let others_up =
        call.domain.vcpus.iter().any(|vcpu| vcpu.id != id && vcpu.availability == Availability::Up);
    if !others_up {
        let code = call.domain.shut_down(code_of(ShutdownReason::Poweroff));
        return Ok(Outcome::Then(0, shutdown_verdict(code)?));
    }
    let own = id == call.vcpu;
    let vcpu = target_mut(call, id);
    if vcpu.availability == Availability::Up {
        vcpu.availability = Availability::Down;
        if own {
            return Ok(Outcome::Then(0, Verdict::Down));
        }
        let waiting = vcpu.wait;
        let now_ns = now_ns(call);
        call.domain.change_runstate(id, RunState::Offline, now_ns, call.context.kernel_root);
        // Its engine must stop; what it waited for, it goes on waiting for when it is up again.
        call.domain.wake(id);
        target_mut(call, id).wait = waiting;
    }
    Ok(Outcome::Return(0))
}

fn runstate_info(call: &Call<'_>, id: VcpuId) -> RunstateInfo {
    target(call, id).runstate.info_at(now_ns(call))
}

fn register_runstate(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    let RegisterRunstateMemoryArea { addr } = call.space().read_value(at)?;
    let area = GuestVirt(addr);
    if !is_guest_address(area) {
        return Err(Errno::Efault.into());
    }
    // A null pointer takes the registration back.
    target_mut(call, id).runstate_area.virtual_address = (addr != 0).then_some(area);
    let info = runstate_info(call, id);
    // Real Xen does not look whether this first copy arrives either.
    let _unreachable = call.space().write_value(area, &info);
    Ok(())
}

fn register_runstate_by_machine(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    let RegisterRunstateMemoryArea { addr } = call.space().read_value(at)?;
    let area = call.domain.claim_area(addr, size_of::<RunstateInfo>() as u64)?;
    let old = core::mem::replace(&mut target_mut(call, id).runstate_area.machine_address, area);
    call.domain.release_area(old);
    if let Some(area) = area {
        let info = runstate_info(call, id);
        let stored = call.domain.memory.write_value(area, &info);
        debug_assert!(stored.is_ok(), "the area was claimed");
    }
    Ok(())
}

fn register_time(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    let RegisterTimeMemoryArea { addr } = call.space().read_value(at)?;
    let area = GuestVirt(addr);
    if !is_guest_address(area) {
        return Err(Errno::Efault.into());
    }
    target_mut(call, id).time_area.virtual_address = (addr != 0).then_some(area);
    call.domain.publish_time(id);
    call.domain.publish_time_copy(id, call.context.kernel_root);
    Ok(())
}

fn register_time_by_machine(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    let RegisterTimeMemoryArea { addr } = call.space().read_value(at)?;
    let area = call.domain.claim_area(addr, size_of::<VcpuTimeInfo>() as u64)?;
    let old = core::mem::replace(&mut target_mut(call, id).time_area.machine_address, area);
    call.domain.release_area(old);
    call.domain.publish_time_copy(id, call.context.kernel_root);
    Ok(())
}

/// `VCPUOP_set_singleshot_timer`. The flag that asked older versions to fail for a time in the past means nothing:
/// the event comes at once.
fn set_one_shot(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    own(call, id)?;
    let request: SetSingleshotTimer = call.space().read_value(at)?;
    call.vcpu_mut().timers.one_shot_ns = Some(request.timeout_abs_ns);
    let now_ns = now_ns(call);
    call.domain.expire_own_timers(id, now_ns);
    Ok(())
}

/// `VCPUOP_register_vcpu_info`: moves a vCPU's `vcpu_info` into a page of the guest's. What may have been raised
/// while it moved is made good by an upcall with every selector bit set.
///
/// # Errors
///
/// `EINVAL` for a frame that does not exist or is not the guest's, `EBUSY` the second time, `ENXIO` for an area that
/// crosses its page or is not aligned, `EACCES` for a page that must not be written.
fn register_vcpu_info(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    const SIZE: usize = size_of::<VcpuInfo>();
    let request: RegisterVcpuInfo = call.space().read_value(at)?;
    let address = Mfn(request.mfn)
        .base()
        .and_then(|base| base.0.checked_add(u64::from(request.offset)))
        .filter(|address| address / PAGE_SIZE == request.mfn && *address != u64::MAX)
        .ok_or(Errno::Einval)?;
    if target(call, id).vcpu_info_registered {
        return Err(Errno::Ebusy.into());
    }
    let Some(area) = call.domain.claim_area(address, SIZE as u64)? else { return Err(Errno::Einval.into()) };
    let mut content = [0_u8; SIZE];
    let vcpu = target(call, id);
    if vcpu.has_info() {
        let read = call.domain.memory.read(vcpu.info(0), &mut content);
        debug_assert!(read.is_ok(), "shared_info lies in guest memory");
    } else {
        content[offset_of!(VcpuInfo, evtchn_upcall_mask)] = 1;
    }
    let moved = [
        call.domain.memory.write(area, &content),
        call.domain.memory.store_u64(MachAddr(area.0 + vcpu_info::PENDING_SEL), u64::MAX),
    ];
    debug_assert!(moved.iter().all(Result::is_ok), "the area was claimed");
    let vcpu = target_mut(call, id);
    vcpu.vcpu_info = area;
    vcpu.vcpu_info_registered = true;
    call.domain.mark_events_pending(id);
    call.domain.publish_time(id);
    call.domain.publish_time_copy(id, call.context.kernel_root);
    Ok(())
}
