//! `sched_op`, `sched_op_compat`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    sched::{
        SchedOp, SchedOpCompat, SchedPoll, SchedRemoteShutdown, SchedShutdown, SchedWatchdog, ShutdownReason,
    },
    units::{DomId, VcpuId},
    vcpu::RunState,
};
use paravane_engine::Exit;
use zerocopy::FromZeros;

use super::BOOT;
use crate::{
    CONTROL_DOMAIN, CrashCause, Verdict,
    testing::{BUFFER, EVENT_HANDLER, FREE, Guest, OWN, machine_address, virt},
    time::Tsc,
};

const SECOND_NS: u64 = 1_000_000_000;

impl Guest {
    fn sched(&mut self, op: SchedOp) -> (Verdict, i64) {
        self.invoke(BOOT, Hypercall::SchedOp, &[op.number().into(), virt(BUFFER).0])
    }

    fn shut_down_for(&mut self, reason: u32) -> Verdict {
        self.put(machine_address(BUFFER), &SchedShutdown { reason });
        self.sched(SchedOp::Shutdown).0
    }

    fn poll_for(&mut self, ports: &[u32], timeout: u64) -> (Verdict, i64) {
        for (index, port) in ports.iter().enumerate() {
            self.put(paravane_abi::units::MachAddr(machine_address(FREE).0 + index as u64 * 4), port);
        }
        let mut request = SchedPoll::new_zeroed();
        request.ports = virt(FREE).0;
        request.nr_ports = u32::try_from(ports.len()).unwrap();
        request.timeout = timeout;
        self.put(machine_address(BUFFER), &request);
        self.sched(SchedOp::Poll)
    }

    fn watchdog(&mut self, id: u32, timeout: u32) -> Result<i64, Errno> {
        self.op(Hypercall::SchedOp, SchedOp::Watchdog.number(), &mut SchedWatchdog { id, timeout })
    }
}

fn errno(errno: Errno) -> i64 {
    -i64::from(errno.number())
}

#[test]
fn yield_lets_others_run() {
    let mut guest = Guest::new(1);
    let (verdict, result) = guest.sched(SchedOp::Yield);
    assert!(matches!(verdict, Verdict::Yield));
    assert_eq!(result, 0);
    assert_eq!(guest.domain.vcpus[0].runstate.state(), RunState::Runnable);
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
}

#[test]
fn block_unmasks_and_sleeps_until_an_event() {
    let mut guest = Guest::new(2).all_up().take_events();
    let port = guest.bind_ipi_on(0);
    let (verdict, result) = guest.sched(SchedOp::Block);
    assert!(matches!(verdict, Verdict::Block { until_ns: None }), "{verdict:?}");
    assert_eq!(result, 0);
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 0);
    assert!(!guest.domain.is_runnable(BOOT));
    assert!(matches!(guest.enter(BOOT), Verdict::Block { .. }), "nothing has come");
    guest.put(machine_address(BUFFER), &port.0);
    let op = paravane_abi::event_channel::EventChannelOp::Send.number();
    guest.call_on(VcpuId(1), Hypercall::EventChannelOp, &[op.into(), virt(BUFFER).0]).unwrap();
    assert_eq!(guest.domain.take_wakeups(), [BOOT]);
    assert!(guest.domain.is_runnable(BOOT));
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    assert_eq!(guest.contexts[0].rip, EVENT_HANDLER.0);
}

#[test]
fn block_returns_at_once_when_an_event_is_pending() {
    let mut guest = Guest::new(1).take_events();
    let port = guest.bind_ipi_on(0);
    guest.send_on(port);
    assert!(matches!(guest.sched(SchedOp::Block).0, Verdict::Run));
    assert_eq!(guest.contexts[0].rip, EVENT_HANDLER.0);
    assert!(guest.domain.is_runnable(BOOT));
}

#[test]
fn poll_looks_at_masked_ports_and_wakes_for_them() {
    let mut guest = Guest::new(2).all_up();
    let (port, other) = (guest.bind_ipi_on(0), guest.bind_ipi_on(0));
    assert!(matches!(guest.poll_for(&[port.0], 0).0, Verdict::Block { until_ns: None }));
    guest.domain.raise(other);
    assert!(guest.domain.is_runnable(BOOT), "the upcall flag is new: it looks again");
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    assert!(matches!(guest.poll_for(&[port.0], 0).0, Verdict::Block { .. }));
    guest.domain.raise(other);
    assert!(!guest.domain.is_runnable(BOOT), "another port, known already");
    guest.domain.raise(port);
    assert!(guest.domain.is_runnable(BOOT));
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    assert!(matches!(guest.poll_for(&[other.0, port.0], 0), (Verdict::Run, 0)), "pending already");
}

#[test]
fn poll_for_several_ports_wakes_for_any() {
    let mut guest = Guest::new(1);
    let ports = [guest.bind_ipi_on(0), guest.bind_ipi_on(0), guest.bind_ipi_on(0)];
    guest.domain.raise(ports[2]);
    assert!(matches!(guest.poll_for(&[ports[0].0, ports[1].0], 0).0, Verdict::Block { .. }));
    guest.domain.raise(ports[1]);
    assert!(guest.domain.is_runnable(BOOT));
}

#[test]
fn poll_gives_up_at_its_timeout() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi_on(0);
    guest.now = 500;
    for timeout in [1, 500] {
        assert!(matches!(guest.poll_for(&[port.0], timeout), (Verdict::Run, 0)));
    }
    let (verdict, result) = guest.poll_for(&[port.0], 900);
    assert!(matches!(verdict, Verdict::Block { until_ns: Some(900) }));
    assert_eq!((result, guest.domain.next_deadline_ns(BOOT)), (0, Some(900)));
    guest.domain.expire_timers(Tsc(899));
    assert!(!guest.domain.is_runnable(BOOT));
    guest.domain.expire_timers(Tsc(900));
    assert_eq!(guest.domain.take_wakeups(), [BOOT]);
    guest.now = 900;
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
}

#[test]
fn poll_refuses_bad_lists() {
    let mut guest = Guest::new(1);
    guest.bind_ipi_on(0);
    for (ports, result) in [
        (vec![1_u32; 129], errno(Errno::Einval)),
        (vec![2], errno(Errno::Einval)),
        (vec![0], errno(Errno::Einval)),
        (vec![u32::MAX], errno(Errno::Einval)),
    ] {
        assert_eq!(guest.poll_for(&ports, 1).1, result, "{ports:?}");
    }
    let mut request = SchedPoll::new_zeroed();
    (request.ports, request.nr_ports) = (8, 1);
    guest.put(machine_address(BUFFER), &request);
    assert_eq!(guest.sched(SchedOp::Poll).1, errno(Errno::Efault));
    request.ports = 0xffff_8000_0000_0000;
    guest.put(machine_address(BUFFER), &request);
    assert_eq!(guest.sched(SchedOp::Poll).1, errno(Errno::Efault));
    assert!(guest.domain.is_runnable(BOOT));
}

#[test]
fn a_shutdown_ends_every_vcpu_for_the_first_reason_given() {
    for &reason in ShutdownReason::ALL {
        let mut guest = Guest::new(2).all_up();
        let verdict = guest.shut_down_for(reason.number());
        assert!(matches!(verdict, Verdict::Shutdown(found) if found == reason), "{verdict:?}");
        assert_eq!(guest.domain.take_wakeups(), [BOOT, VcpuId(1)]);
        let context = &mut guest.contexts[1];
        let other = guest.domain.handle(VcpuId(1), Exit::Interrupted, context, Tsc(0));
        assert!(matches!(other, Verdict::Shutdown(found) if found == reason));
        assert!(!guest.domain.is_runnable(VcpuId(1)));
        assert_eq!(guest.domain.shutdown_reason(), Some(reason));
    }
    let mut guest = Guest::new(1);
    let mut code = SchedShutdown { reason: ShutdownReason::Crash.number() };
    assert_eq!(guest.op(Hypercall::SchedOp, SchedOp::ShutdownCode.number(), &mut code), Ok(0));
    assert_eq!(guest.domain.shutdown_reason(), None, "not yet");
    let verdict = guest.shut_down_for(ShutdownReason::Poweroff.number());
    assert!(matches!(verdict, Verdict::Shutdown(ShutdownReason::Crash)));
}

#[test]
fn a_reason_is_a_byte_and_an_unknown_one_is_a_crash() {
    let mut guest = Guest::new(1);
    assert!(matches!(guest.shut_down_for(0x101), Verdict::Shutdown(ShutdownReason::Reboot)));
    let mut guest = Guest::new(1);
    let Verdict::Crash(report) = guest.shut_down_for(77) else { panic!("no crash") };
    assert!(matches!(&report.cause, CrashCause::Fatal(what) if what.contains("77")));
}

#[test]
fn a_suspended_domain_goes_on() {
    let mut guest = Guest::new(1);
    let verdict = guest.shut_down_for(ShutdownReason::Suspend.number());
    assert!(matches!(verdict, Verdict::Shutdown(ShutdownReason::Suspend)));
    guest.domain.resume();
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    assert!(matches!(guest.shut_down_for(0), Verdict::Shutdown(ShutdownReason::Poweroff)));
}

#[test]
fn a_watchdog_that_is_not_set_anew_shuts_down() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.watchdog(0, 2), Ok(1));
    assert_eq!(guest.watchdog(0, 9), Ok(2));
    assert_eq!(guest.watchdog(0, 9), Err(Errno::Enospc));
    assert_eq!(guest.watchdog(3, 9), Err(Errno::Einval));
    assert_eq!(guest.watchdog(2, 0), Ok(0));
    guest.now = SECOND_NS;
    assert_eq!(guest.watchdog(1, 2), Ok(0));
    let verdict = guest.sched(SchedOp::Block).0;
    assert!(matches!(verdict, Verdict::Block { until_ns: Some(ns) } if ns == 3 * SECOND_NS));
    guest.now = 3 * SECOND_NS - 1;
    assert!(matches!(guest.enter(BOOT), Verdict::Block { .. }));
    guest.now += 1;
    assert!(matches!(guest.enter(BOOT), Verdict::Shutdown(ShutdownReason::Watchdog)));
}

#[test]
fn what_is_for_others_is_refused() {
    let mut guest = Guest::new(1);
    for (domain, errno) in [
        (OWN, Errno::Eperm),
        (CONTROL_DOMAIN, Errno::Eperm),
        (DomId::SELF, Errno::Esrch),
        (DomId(3), Errno::Esrch),
    ] {
        let mut request = SchedRemoteShutdown::new_zeroed();
        request.domain_id = domain.0;
        let op = SchedOp::RemoteShutdown.number();
        assert_eq!(guest.op(Hypercall::SchedOp, op, &mut request), Err(errno), "{domain}");
    }
    let pin = SchedOp::PinOverride.number().into();
    assert_eq!(guest.call(Hypercall::SchedOp, &[pin, 0]), Err(Errno::Eperm));
    assert_eq!(guest.call(Hypercall::SchedOp, &[8, 0]), Err(Errno::Enosys));
    for op in
        [SchedOp::Shutdown, SchedOp::Poll, SchedOp::RemoteShutdown, SchedOp::ShutdownCode, SchedOp::Watchdog]
    {
        let result = guest.call(Hypercall::SchedOp, &[op.number().into(), 0]);
        assert_eq!(result, Err(Errno::Efault), "{op}");
    }
}

#[test]
fn the_old_form_takes_the_reason_itself() {
    let mut guest = Guest::new(1);
    let op = |op: SchedOpCompat| u64::from(op.number());
    let mut invoke = |args: &[u64]| guest.invoke(BOOT, Hypercall::SchedOpCompat, args);
    assert!(matches!(invoke(&[op(SchedOpCompat::Yield), 0]).0, Verdict::Yield));
    assert_eq!(invoke(&[3, 0]).1, errno(Errno::Enosys));
    let shutdown = invoke(&[op(SchedOpCompat::Shutdown), 1]).0;
    assert!(matches!(shutdown, Verdict::Shutdown(ShutdownReason::Reboot)));
    let mut guest = Guest::new(1);
    let block = guest.invoke(BOOT, Hypercall::SchedOpCompat, &[op(SchedOpCompat::Block), 0]).0;
    assert!(matches!(block, Verdict::Block { .. }));
}
