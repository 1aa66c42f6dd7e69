//! The two-level ABI, and how events reach vCPUs and backends.

use paravane_abi::{
    event_channel::{BindVcpu, EventChannelOp, Virq},
    shared_info::VcpuInfo,
    units::{Port, VcpuId},
};
use paravane_engine::{Exit, Gpr};

use crate::{
    CONTROL_DOMAIN, PortError,
    testing::{EVENT_HANDLER, Guest},
    time::Tsc,
};

const BOOT: VcpuId = VcpuId(0);

fn upcall(info: &VcpuInfo) -> (u8, u64) {
    (info.evtchn_upcall_pending, info.evtchn_pending_sel)
}

#[test]
fn an_event_sets_pending_selector_and_upcall() {
    let mut guest = Guest::new(1);
    for _ in 0..130 {
        guest.bind_ipi(0).unwrap();
    }
    guest.send_event(Port(130)).unwrap();
    assert!(guest.is_pending(Port(130)));
    assert_eq!(upcall(&guest.info(BOOT)), (1, 1 << 2));
    guest.send_event(Port(5)).unwrap();
    assert_eq!(upcall(&guest.info(BOOT)), (1, 1 << 2 | 1));
}

#[test]
fn a_masked_event_is_pending_and_silent_until_it_is_unmasked() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.mask_port(port);
    guest.send_event(port).unwrap();
    assert!(guest.is_pending(port));
    assert_eq!(upcall(&guest.info(BOOT)), (0, 0));
    guest.unmask_port(port).unwrap();
    assert!(!guest.is_masked(port));
    assert_eq!(upcall(&guest.info(BOOT)), (1, 1));
}

#[test]
fn unmasking_what_was_not_masked_raises_nothing() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    guest.take_upcall(BOOT);
    guest.unmask_port(port).unwrap();
    assert_eq!(upcall(&guest.info(BOOT)), (0, 0));
}

#[test]
fn an_event_that_is_pending_already_raises_no_second_upcall() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    assert_eq!(guest.take_upcall(BOOT), 1);
    guest.send_event(port).unwrap();
    assert_eq!(upcall(&guest.info(BOOT)), (0, 0));
    guest.clear_pending(port);
    guest.send_event(port).unwrap();
    assert_eq!(upcall(&guest.info(BOOT)), (1, 1));
}

#[test]
fn the_vcpu_that_a_port_notifies_is_woken() {
    let mut guest = Guest::new(2).all_up();
    let port = guest.domain.offer_port(CONTROL_DOMAIN).unwrap();
    guest.domain.bind_backend(port, CONTROL_DOMAIN).unwrap();
    guest.event(EventChannelOp::BindVcpu, &mut BindVcpu { port: port.0, vcpu: 1 }).unwrap();
    assert_eq!(guest.domain.take_wakeups(), []);
    guest.domain.notify_from_backend(port).unwrap();
    assert_eq!(guest.domain.take_wakeups(), [VcpuId(1)]);
    assert_eq!(upcall(&guest.info(VcpuId(1))), (1, 1));
    assert_eq!(upcall(&guest.info(BOOT)), (0, 0));
    guest.domain.notify_from_backend(port).unwrap();
    assert_eq!(guest.domain.take_wakeups(), [], "it knows already");
}

#[test]
fn a_vcpu_that_makes_itself_an_event_needs_no_kick() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    assert_eq!(guest.domain.take_wakeups(), []);
}

#[test]
fn a_pending_event_is_delivered_when_events_are_not_masked() {
    let mut guest = Guest::new(1).take_events();
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    let rip = guest.contexts[0].rip;
    guest.mask_events(BOOT, false);
    let context = &mut guest.contexts[0];
    assert!(matches!(guest.domain.handle(BOOT, Exit::Interrupted, context, Tsc(0)), crate::Verdict::Run));
    assert_eq!(guest.contexts[0].rip, EVENT_HANDLER.0);
    let frame: [u64; 7] = {
        let at = paravane_abi::units::GuestVirt(guest.contexts[0].gpr(Gpr::Rsp));
        guest.domain.space(guest.contexts[0].kernel_root).read_value(at).unwrap()
    };
    assert_eq!(frame[2], rip, "the frame returns to where it was");
    assert_eq!(guest.info(BOOT).evtchn_upcall_mask, 1);
}

#[test]
fn backends_hear_of_each_port_once() {
    let mut guest = Guest::new(1);
    let console = guest.domain.offer_port(CONTROL_DOMAIN).unwrap();
    let store = guest.domain.offer_port(CONTROL_DOMAIN).unwrap();
    assert_eq!((console, store), (Port(1), Port(2)));
    guest.send_event(console).unwrap();
    assert_eq!(guest.domain.take_backend_events(), [], "nobody has bound it");
    guest.domain.bind_backend(store, CONTROL_DOMAIN).unwrap();
    assert_eq!(guest.domain.take_backend_events(), [store], "what was sent before is made good");
    guest.domain.bind_backend(console, CONTROL_DOMAIN).unwrap();
    for _ in 0..3 {
        guest.send_event(console).unwrap();
        guest.send_event(store).unwrap();
    }
    assert_eq!(guest.domain.take_backend_events(), [console, store]);
    guest.send_event(store).unwrap();
    guest.close_port(store).unwrap();
    assert_eq!(guest.domain.take_backend_events(), [], "the guest closed it");
}

#[test]
fn a_backend_binds_only_what_waits_for_it_and_can_leave() {
    let mut guest = Guest::new(1);
    let ipi = guest.bind_ipi(0).unwrap();
    let port = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    for (port, found) in [(ipi, "ipi"), (Port(0), "closed"), (Port(9999), "beyond the guest's ports")] {
        let error = PortError::NotOffered { port, backend: CONTROL_DOMAIN, found };
        assert_eq!(guest.domain.bind_backend(port, CONTROL_DOMAIN), Err(error));
        assert_eq!(guest.domain.notify_from_backend(port), Err(PortError::NotConnected { port, found }));
    }
    assert!(guest.domain.bind_backend(port, paravane_abi::units::DomId(3)).is_err());
    guest.domain.bind_backend(port, CONTROL_DOMAIN).unwrap();
    assert!(guest.domain.bind_backend(port, CONTROL_DOMAIN).is_err());
    guest.domain.unbind_backend(port).unwrap();
    assert!(guest.domain.notify_from_backend(port).is_err());
    guest.domain.bind_backend(port, CONTROL_DOMAIN).unwrap();
}

#[test]
fn a_virtual_interrupt_without_a_port_is_lost() {
    let mut guest = Guest::new(1);
    guest.domain.raise_virq(BOOT, Virq::Debug);
    assert_eq!(upcall(&guest.info(BOOT)), (0, 0));
    let port = guest.bind_virq(Virq::Debug.number(), 0).unwrap();
    guest.domain.raise_virq(BOOT, Virq::Debug);
    assert!(guest.is_pending(port));
}
