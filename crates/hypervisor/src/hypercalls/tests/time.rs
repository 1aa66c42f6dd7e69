//! Timers, clocks and run states.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    sched::SchedOp,
    shared_info::{SharedInfo, TIME_TSC_STABLE, VcpuTimeInfo},
    units::{MachAddr, VcpuId},
    vcpu::{
        RUNSTATE_UPDATE, RegisterRunstateMemoryArea, RegisterTimeMemoryArea, RunstateInfo, SetPeriodicTimer,
        SetSingleshotTimer, VcpuOp,
    },
    vm::{VmAssistCommand, VmAssistType},
};
use paravane_engine::Exit;
use zerocopy::FromZeros;

use super::BOOT;
use crate::{
    Verdict,
    testing::{FREE, Guest, machine_address, virt},
    time::Tsc,
};

const MS: u64 = 1_000_000;

impl Guest {
    /// Lets time pass, and the vCPU leave and enter the guest.
    fn at(&mut self, now: u64) -> &mut Self {
        self.now = now;
        let context = &mut self.contexts[0];
        let verdict = self.domain.handle(BOOT, Exit::Interrupted, context, Tsc(now));
        assert!(matches!(verdict, Verdict::Run));
        self
    }

    fn set_periodic(&mut self, period_ns: u64) -> Result<i64, Errno> {
        self.vcpu_op(VcpuOp::SetPeriodicTimer, 0, &mut SetPeriodicTimer { period_ns })
    }

    fn set_one_shot(&mut self, vcpu: u32, timeout_abs_ns: u64, flags: u32) -> Result<i64, Errno> {
        let mut request = SetSingleshotTimer::new_zeroed();
        (request.timeout_abs_ns, request.flags) = (timeout_abs_ns, flags);
        self.vcpu_op(VcpuOp::SetSingleshotTimer, vcpu, &mut request)
    }

    fn set_timer(&mut self, timeout: u64) {
        assert_eq!(self.call(Hypercall::SetTimerOp, &[timeout]), Ok(0));
    }
}

#[test]
fn every_vcpu_starts_with_a_tick_of_ten_milliseconds() {
    let mut guest = Guest::new(1);
    let port = guest.bind_timer_on(0);
    assert_eq!(guest.domain.next_deadline_ns(BOOT), Some(10 * MS));
    assert!(!guest.at(10 * MS - 1).took(port));
    assert!(guest.at(10 * MS).took(port));
    assert!(!guest.at(15 * MS).took(port));
    assert!(guest.at(34 * MS).took(port), "a late tick comes once");
    assert_eq!(guest.domain.next_deadline_ns(BOOT), Some(44 * MS));
}

#[test]
fn the_periodic_timer_has_bounds_and_stops() {
    let mut guest = Guest::new(1);
    let port = guest.bind_timer_on(0);
    for (period, result) in [
        (MS - 1, Err(Errno::Einval)),
        (0, Err(Errno::Einval)),
        (u64::MAX, Err(Errno::Einval)),
        (1 << 62, Err(Errno::Einval)),
        ((1 << 62) - 1, Ok(0)),
        (MS, Ok(0)),
    ] {
        assert_eq!(guest.set_periodic(period), result, "{period}");
    }
    assert!(guest.at(MS).took(port));
    assert_eq!(guest.vcpu_command(VcpuOp::StopPeriodicTimer, 0), Ok(0));
    assert_eq!(guest.domain.next_deadline_ns(BOOT), None);
    assert!(!guest.at(100 * MS).took(port));
    // The last tick is longer ago than the new period.
    guest.set_periodic(10 * MS).unwrap();
    assert!(guest.took(port));
    let bad = guest.call(Hypercall::VcpuOp, &[VcpuOp::SetPeriodicTimer.number().into(), 0, 0]);
    assert_eq!(bad, Err(Errno::Efault));
}

#[test]
fn the_tick_stands_still_while_the_vcpu_sleeps() {
    let mut guest = Guest::new(1).take_events();
    let port = guest.bind_timer_on(0);
    let (verdict, _) = guest.invoke(BOOT, Hypercall::SchedOp, &[SchedOp::Block.number().into()]);
    assert!(matches!(verdict, Verdict::Block { until_ns: None }));
    guest.domain.expire_timers(Tsc(50 * MS));
    assert!(!guest.domain.is_runnable(BOOT));
    guest.domain.wake(BOOT);
    guest.now = 50 * MS;
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    assert!(guest.took(port), "it is made good on the way back");
}

#[test]
fn the_one_shot_timer_fires_once_and_wakes() {
    let mut guest = Guest::new(2).all_up().take_events();
    guest.vcpu_command(VcpuOp::StopPeriodicTimer, 0).unwrap();
    let port = guest.bind_timer_on(0);
    assert_eq!(guest.set_one_shot(1, 5 * MS, 0), Err(Errno::Einval), "another vCPU's");
    guest.set_one_shot(0, 5 * MS, 0).unwrap();
    let (verdict, _) = guest.invoke(BOOT, Hypercall::SchedOp, &[SchedOp::Block.number().into()]);
    assert!(matches!(verdict, Verdict::Block { until_ns: Some(ns) } if ns == 5 * MS));
    guest.domain.expire_timers(Tsc(5 * MS));
    assert_eq!(guest.domain.take_wakeups(), [BOOT]);
    assert!(guest.took(port));
    assert_eq!(guest.domain.next_deadline_ns(BOOT), None);
}

#[test]
fn a_one_shot_time_that_has_passed_fires_at_once() {
    let mut guest = Guest::new(1);
    let port = guest.bind_timer_on(0);
    guest.now = 3 * MS;
    for flags in [0, paravane_abi::vcpu::SINGLESHOT_FUTURE] {
        assert_eq!(guest.set_one_shot(0, MS, flags), Ok(0));
        assert!(guest.took(port));
    }
    guest.set_one_shot(0, 9 * MS, 0).unwrap();
    assert_eq!(guest.vcpu_command(VcpuOp::StopSingleshotTimer, 0), Ok(0));
    assert!(!guest.at(9 * MS).took(port));
    let mut two = Guest::new(2);
    assert_eq!(two.vcpu_command(VcpuOp::StopSingleshotTimer, 1), Err(Errno::Einval));
}

#[test]
fn set_timer_op_sets_the_same_timer_and_mends_absurd_times() {
    let mut guest = Guest::new(1);
    guest.vcpu_command(VcpuOp::StopPeriodicTimer, 0).unwrap();
    let port = guest.bind_timer_on(0);
    guest.now = MS;
    for (timeout, fires) in [
        (2 * MS, Some(2 * MS)),
        (0, None),
        (u64::MAX, Some(101 * MS)),
        (1 << 63, Some(101 * MS)),
        (MS + (1 << 50), Some(101 * MS)),
        (MS + (1 << 50) - 1, Some(MS + (1 << 50) - 1)),
    ] {
        guest.set_timer(timeout);
        assert_eq!(guest.domain.next_deadline_ns(BOOT), fires, "{timeout:#x}");
    }
    assert!(!guest.took(port));
    guest.set_timer(1);
    assert!(guest.took(port));
}

#[test]
fn the_clock_is_published_under_an_even_version() {
    let guest = Guest::new(2);
    for vcpu in [BOOT, VcpuId(1)] {
        let time = guest.info(vcpu).time;
        assert_eq!((time.version % 2, time.flags), (0, TIME_TSC_STABLE));
        assert_ne!(time.version, 0);
        assert_eq!((time.tsc_timestamp, time.system_time), (0, 0));
        // One tick a nanosecond, scaled as Xen scales it.
        assert_eq!((time.tsc_to_system_mul, time.tsc_shift), (0x8000_0000, 1));
    }
    let word = |offset| guest.get::<u32>(guest.domain.shared(offset));
    assert_eq!(word(offset_of!(SharedInfo, wc_sec)), 0x2345_6789);
    assert_eq!(word(offset_of!(SharedInfo, wc_sec_hi)), 1);
    assert_eq!(word(offset_of!(SharedInfo, wc_nsec)), 42);
    assert_eq!(word(offset_of!(SharedInfo, wc_version)), 2);
}

#[test]
fn a_second_copy_of_the_time_appears_where_it_is_asked_for() {
    let mut guest = Guest::new(1);
    let mut area = RegisterTimeMemoryArea { addr: virt(FREE).0 + 64 };
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterVcpuTimeMemoryArea, 0, &mut area), Ok(0));
    let copy: VcpuTimeInfo = guest.get(MachAddr(machine_address(FREE).0 + 64));
    assert_eq!((copy.flags, copy.tsc_shift, copy.version % 2), (TIME_TSC_STABLE, 1, 0));
    area.addr = machine_address(FREE).0 + 128;
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterVcpuTimePhysArea, 0, &mut area), Ok(0));
    let copy: VcpuTimeInfo = guest.get(MachAddr(machine_address(FREE).0 + 128));
    assert_eq!(copy.tsc_to_system_mul, 0x8000_0000);
    // An address that nothing is mapped at is accepted, and missed.
    area.addr = 0x1000;
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterVcpuTimeMemoryArea, 0, &mut area), Ok(0));
    area.addr = 0xffff_8000_0000_0000;
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterVcpuTimeMemoryArea, 0, &mut area), Err(Errno::Efault));
}

#[test]
fn areas_by_machine_address_are_claimed_and_given_back() {
    let mut guest = Guest::new(1);
    let page = machine_address(FREE).0;
    for (addr, errno) in [
        (page + 4, Errno::Enxio),
        (page + 4096 - 40, Errno::Enxio),
        (0x1000, Errno::Einval),
        (u64::MAX - 7, Errno::Enxio),
        (machine_address(paravane_abi::units::Pfn(3)).0, Errno::Eacces),
    ] {
        let mut area = RegisterRunstateMemoryArea { addr };
        let result = guest.vcpu_op(VcpuOp::RegisterRunstatePhysArea, 0, &mut area);
        assert_eq!(result, Err(errno), "{addr:#x}");
    }
    for addr in [page, page + 512, u64::MAX] {
        let mut area = RegisterRunstateMemoryArea { addr };
        assert_eq!(guest.vcpu_op(VcpuOp::RegisterRunstatePhysArea, 0, &mut area), Ok(0));
        guest.domain.recount().unwrap();
    }
    assert_eq!(guest.domain.vcpus[0].runstate_area.place(), None);
}

#[test]
fn the_run_state_is_told_when_asked_and_kept_up_to_date_where_registered() {
    let mut guest = Guest::new(1);
    guest.now = 700;
    let mut info = RunstateInfo::new_zeroed();
    assert_eq!(guest.vcpu_op(VcpuOp::GetRunstateInfo, 0, &mut info), Ok(0));
    assert_eq!((info.state, info.state_entry_time, info.time), (0, 0, [700, 0, 0, 0]));
    let mut area = RegisterRunstateMemoryArea { addr: virt(FREE).0 };
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterRunstateMemoryArea, 0, &mut area), Ok(0));
    let at = machine_address(FREE);
    assert_eq!(guest.get::<RunstateInfo>(at).state, 0);
    guest.now = 1000;
    guest.invoke(BOOT, Hypercall::SchedOp, &[SchedOp::Block.number().into()]);
    let blocked: RunstateInfo = guest.get(at);
    assert_eq!((blocked.state, blocked.state_entry_time, blocked.time), (2, 1000, [1000, 0, 0, 0]));
    let enable = [VmAssistCommand::Enable.number(), VmAssistType::RunstateUpdateFlag.number()];
    guest.call(Hypercall::VmAssist, &enable.map(u64::from)).unwrap();
    guest.domain.wake(BOOT);
    guest.now = 1400;
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    let running: RunstateInfo = guest.get(at);
    assert_eq!((running.state, running.state_entry_time & RUNSTATE_UPDATE), (0, 0));
    assert_eq!(running.time[2], 400);
    area.addr = 0xffff_8000_0000_1000;
    assert_eq!(guest.vcpu_op(VcpuOp::RegisterRunstateMemoryArea, 0, &mut area), Err(Errno::Efault));
}
