//! `vcpu_op`, apart from timers and contexts.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    sched::ShutdownReason,
    units::{Pfn, VcpuId},
    vcpu::{RegisterVcpuInfo, VcpuOp},
};
use paravane_engine::{Exit, vector};

use super::BOOT;
use crate::{
    Verdict,
    testing::{FREE, Guest, frame, machine_address, virt},
    time::Tsc,
    vcpu::{Availability, Handler},
};

impl Guest {
    fn register_info(&mut self, vcpu: u32, mfn: u64, offset: u32) -> Result<i64, Errno> {
        self.vcpu_op(VcpuOp::RegisterVcpuInfo, vcpu, &mut RegisterVcpuInfo { mfn, offset, rsvd: 0 })
    }
}

#[test]
fn vcpus_that_do_not_exist_are_refused_before_anything_else() {
    let mut guest = Guest::new(2);
    for vcpu in [2, 32, u32::MAX] {
        for &op in VcpuOp::ALL {
            assert_eq!(guest.vcpu_command(op, vcpu), Err(Errno::Enoent), "{op} {vcpu}");
        }
        assert_eq!(guest.call(Hypercall::VcpuOp, &[99, vcpu.into()]), Err(Errno::Enoent));
    }
    assert_eq!(guest.call(Hypercall::VcpuOp, &[16, 0]), Err(Errno::Enosys));
    assert_eq!(guest.vcpu_command(VcpuOp::GetPhysid, 0), Err(Errno::Einval));
}

#[test]
fn a_vcpu_is_up_from_up_to_down() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.vcpu_command(VcpuOp::IsUp, 0), Ok(1));
    assert_eq!(guest.vcpu_command(VcpuOp::IsUp, 1), Ok(0));
    assert_eq!(guest.vcpu_command(VcpuOp::Up, 1), Err(Errno::Einval), "never initialised");
    guest.domain.vcpus[1].availability = Availability::Down;
    assert_eq!(guest.vcpu_command(VcpuOp::Up, 1), Ok(0));
    assert_eq!(guest.vcpu_command(VcpuOp::Up, 1), Ok(0), "up already");
    assert_eq!(guest.vcpu_command(VcpuOp::IsUp, 1), Ok(1));
    let started = guest.domain.take_started_vcpus();
    assert_eq!(started.iter().map(|started| started.vcpu).collect::<Vec<_>>(), [VcpuId(1)]);
    assert!(started[0].context.is_none(), "it goes on with the registers it had");
    assert!(matches!(guest.enter(VcpuId(1)), Verdict::Run));
    assert_eq!(guest.vcpu_command(VcpuOp::Down, 1), Ok(0));
    assert_eq!(guest.domain.take_wakeups(), [VcpuId(1)], "its engine must stop");
    let context = &mut guest.contexts[1];
    let verdict = guest.domain.handle(VcpuId(1), Exit::Interrupted, context, Tsc(0));
    assert!(matches!(verdict, Verdict::Down));
    assert!(!guest.domain.is_runnable(VcpuId(1)));
    assert_eq!(guest.vcpu_command(VcpuOp::Down, 1), Ok(0), "down already");
}

#[test]
fn a_vcpu_can_go_down_by_itself() {
    let mut guest = Guest::new(2).all_up();
    let (verdict, result) = guest.invoke(VcpuId(1), Hypercall::VcpuOp, &[VcpuOp::Down.number().into(), 1]);
    assert!(matches!(verdict, Verdict::Down));
    assert_eq!(result, 0);
    assert_eq!(guest.vcpu_command(VcpuOp::Up, 1), Ok(0));
    assert!(matches!(guest.enter(VcpuId(1)), Verdict::Run));
}

#[test]
fn the_last_vcpu_that_goes_down_powers_off() {
    let mut guest = Guest::new(2);
    let (verdict, _) = guest.invoke(BOOT, Hypercall::VcpuOp, &[VcpuOp::Down.number().into(), 0]);
    assert!(matches!(verdict, Verdict::Shutdown(ShutdownReason::Poweroff)));
}

#[test]
fn a_registered_vcpu_info_has_the_old_content_and_a_spurious_event() {
    let mut guest = Guest::new(2);
    let before = guest.info(BOOT);
    assert_eq!(guest.register_info(0, frame(FREE).0, 64), Ok(0));
    let after = guest.info(BOOT);
    assert_eq!(guest.domain.vcpus[0].vcpu_info.0, machine_address(FREE).0 + 64);
    assert_eq!(after.evtchn_upcall_mask, before.evtchn_upcall_mask);
    assert_eq!((after.evtchn_upcall_pending, after.evtchn_pending_sel), (1, u64::MAX));
    assert_eq!(after.time.tsc_to_system_mul, before.time.tsc_to_system_mul);
    assert_eq!(after.time.version, before.time.version + 2);
    guest.domain.recount().unwrap();
    assert_eq!(guest.register_info(0, frame(FREE).0, 128), Err(Errno::Ebusy));
}

#[test]
fn a_vcpu_info_lies_aligned_in_one_writable_page_of_the_guest() {
    let mut guest = Guest::new(1);
    let page = frame(FREE).0;
    for (mfn, offset, errno) in [
        (page, 4096 - 56, Errno::Enxio),
        (page, 4, Errno::Enxio),
        (page, 4096, Errno::Einval),
        (page, u32::MAX, Errno::Einval),
        (u64::MAX, 0, Errno::Einval),
        (1 << 52, 0, Errno::Einval),
        (1, 0, Errno::Einval),
        (frame(Pfn(3)).0, 0, Errno::Eacces),
    ] {
        assert_eq!(guest.register_info(0, mfn, offset), Err(errno), "{mfn:#x} {offset}");
    }
    let args = [VcpuOp::RegisterVcpuInfo.number().into(), 0, 0];
    assert_eq!(guest.call(Hypercall::VcpuOp, &args), Err(Errno::Efault));
    assert_eq!(guest.register_info(0, page, 4096 - 64), Ok(0));
}

#[test]
fn vcpus_beyond_the_shared_page_start_masked_when_they_register() {
    let mut guest = Guest::new(34);
    let id = VcpuId(33);
    assert!(!guest.domain.vcpus[33].has_info());
    // Events for it touch nothing meanwhile.
    let port = guest.bind_ipi_on(33);
    guest.send_on(port);
    assert_eq!(guest.register_info(33, frame(FREE).0, 0), Ok(0));
    let info = guest.info(id);
    assert_eq!((info.evtchn_upcall_mask, info.evtchn_upcall_pending), (1, 1));
    assert_eq!(info.time.tsc_shift, 1);
}

#[test]
fn an_nmi_reaches_a_sleeping_vcpu() {
    let mut guest = Guest::new(2).all_up();
    let handler = Handler { address: virt(FREE), masks_events: true };
    guest.domain.vcpus[1].traps[usize::from(vector::NMI)].handler = handler;
    let (verdict, _) = guest.invoke(VcpuId(1), Hypercall::SchedOp, &[1, 0]);
    assert!(matches!(verdict, Verdict::Block { .. }));
    let args = [VcpuOp::SendNmi.number().into(), 1, 8];
    assert_eq!(guest.call(Hypercall::VcpuOp, &args), Err(Errno::Einval), "it takes no argument");
    assert_eq!(guest.vcpu_command(VcpuOp::SendNmi, 1), Ok(0));
    assert!(guest.domain.is_runnable(VcpuId(1)));
    assert!(matches!(guest.enter(VcpuId(1)), Verdict::Run));
    assert_eq!(guest.contexts[1].rip, virt(FREE).0);
}
