//! Each operation: what it does, and each way it fails.

use paravane_abi::{
    errno::Errno,
    event_channel::{
        BindPirq, BindVcpu, EventChannelOp, ExpandArray, PortStatus, ResetPorts, SetPriority, Virq,
    },
    hypercall::Hypercall,
    units::{DomId, Port, VcpuId},
};
use zerocopy::FromZeros;

use crate::{
    CONTROL_DOMAIN, PortError,
    testing::{BUFFER, FREE, Guest, OWN, machine_address, virt},
};

const STRANGER: DomId = DomId(99);

#[test]
fn ports_are_given_out_lowest_first_and_never_port_0() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.alloc_unbound(CONTROL_DOMAIN), Ok(Port(1)));
    assert_eq!(guest.alloc_unbound(STRANGER), Ok(Port(2)));
    assert_eq!(guest.bind_ipi(0), Ok(Port(3)));
    guest.close_port(Port(2)).unwrap();
    assert_eq!(guest.bind_virq(Virq::Debug.number(), 0), Ok(Port(2)));
}

#[test]
fn the_table_ends_at_the_highest_port_of_the_domain() {
    let mut guest = Guest::new(1);
    for port in 1..=1500 {
        assert_eq!(guest.alloc_unbound(CONTROL_DOMAIN), Ok(Port(port)));
    }
    assert_eq!(guest.alloc_unbound(CONTROL_DOMAIN), Err(Errno::Enospc));
    assert_eq!(guest.bind_ipi(0), Err(Errno::Enospc));
    assert_eq!(guest.domain.offer_port(CONTROL_DOMAIN), Err(PortError::NoFreePort { limit: Port(1500) }));
}

#[test]
fn only_the_own_domain_can_be_commanded() {
    let mut guest = Guest::new(1);
    let port = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    for (domain, result) in [
        (DomId::SELF, Ok(0)),
        (OWN, Ok(0)),
        (CONTROL_DOMAIN, Err(Errno::Eperm)),
        (STRANGER, Err(Errno::Esrch)),
    ] {
        let mut unbound = paravane_abi::event_channel::AllocUnbound { dom: domain.0, remote_dom: 0, port: 0 };
        assert_eq!(guest.event(EventChannelOp::AllocUnbound, &mut unbound), result, "{domain}");
        let mut status = paravane_abi::event_channel::QueryStatus::new_zeroed();
        (status.dom, status.port) = (domain.0, port.0);
        assert_eq!(guest.event(EventChannelOp::Status, &mut status), result, "{domain}");
        let mut reset = ResetPorts { dom: domain.0 };
        let continued = guest.event(EventChannelOp::ResetCont, &mut reset);
        assert_eq!(continued, result.and(Err(Errno::Ebusy)), "{domain}");
    }
}

#[test]
fn status_tells_what_each_port_is() {
    let mut guest = Guest::new(2);
    let unbound = guest.alloc_unbound(STRANGER).unwrap();
    let own = guest.alloc_unbound(DomId::SELF).unwrap();
    let peer = guest.bind_interdomain(OWN, own).unwrap();
    let backend = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    guest.domain.bind_backend(backend, CONTROL_DOMAIN).unwrap();
    let virq = guest.bind_virq(Virq::Xenpmu.number(), 1).unwrap();
    let ipi = guest.bind_ipi(1).unwrap();
    for (port, status, vcpu, u0, u1) in [
        (Port(0), PortStatus::Closed, 0, 0, 0),
        (unbound, PortStatus::Unbound, 0, STRANGER.0.into(), 0),
        (own, PortStatus::Interdomain, 0, OWN.0.into(), peer.0),
        (peer, PortStatus::Interdomain, 0, OWN.0.into(), own.0),
        (backend, PortStatus::Interdomain, 0, 0, backend.0),
        (virq, PortStatus::Virq, 1, Virq::Xenpmu.number(), 0),
        (ipi, PortStatus::Ipi, 1, 0, 0),
        (Port(63), PortStatus::Closed, 0, 0, 0),
    ] {
        let found = guest.port_status(port).unwrap();
        assert_eq!((found.status, found.vcpu), (status.number(), vcpu), "{port}");
        assert_eq!((found.u0, found.u1), (u0, u1), "{port}");
    }
    assert_eq!(guest.port_status(Port(64)).unwrap_err(), Errno::Einval);
}

#[test]
fn a_connection_needs_a_port_that_waits_for_this_domain() {
    let mut guest = Guest::new(1);
    let for_control = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    let for_self = guest.alloc_unbound(DomId::SELF).unwrap();
    for (domain, port, errno) in [
        (DomId::SELF, for_control, Errno::Einval),
        // The port that would be allocated for this side.
        (DomId::SELF, Port(3), Errno::Einval),
        (DomId::SELF, Port(0), Errno::Einval),
        (DomId::SELF, Port(u32::MAX), Errno::Einval),
        (CONTROL_DOMAIN, for_self, Errno::Einval),
        (STRANGER, for_self, Errno::Esrch),
    ] {
        assert_eq!(guest.bind_interdomain(domain, port), Err(errno), "{domain} {port}");
    }
    // Nothing was left behind by the refusals.
    let local = guest.bind_interdomain(DomId::SELF, for_self).unwrap();
    assert_eq!(local, Port(3));
    assert!(guest.is_pending(local) && !guest.is_pending(for_self));
    assert_eq!(guest.bind_interdomain(DomId::SELF, for_self), Err(Errno::Einval));
}

#[test]
fn each_end_of_an_own_connection_raises_the_other_and_waits_when_it_closes() {
    let mut guest = Guest::new(1);
    let a = guest.alloc_unbound(DomId::SELF).unwrap();
    let b = guest.bind_interdomain(DomId::SELF, a).unwrap();
    guest.clear_pending(b);
    guest.send_event(b).unwrap();
    assert!(guest.is_pending(a) && !guest.is_pending(b));
    guest.send_event(a).unwrap();
    assert!(guest.is_pending(b));
    guest.close_port(b).unwrap();
    assert!(!guest.is_pending(b), "a closed port is not pending");
    assert_eq!(guest.port_status(a).unwrap().status, PortStatus::Unbound.number());
    assert_eq!(guest.send_event(a), Ok(0), "nobody hears it");
    assert_eq!(guest.bind_interdomain(OWN, a), Ok(b));
}

#[test]
fn virtual_interrupts_are_bound_once_where_they_belong() {
    let mut guest = Guest::new(2);
    for (virq, vcpu, result) in [
        (Virq::Timer.number(), 0, Ok(Port(1))),
        (Virq::Timer.number(), 1, Ok(Port(2))),
        (Virq::Timer.number(), 1, Err(Errno::Eexist)),
        (Virq::Timer.number(), 2, Err(Errno::Enoent)),
        (Virq::Timer.number(), u32::MAX, Err(Errno::Enoent)),
        (Virq::Argo.number(), 1, Err(Errno::Einval)),
        (Virq::Argo.number(), 0, Ok(Port(3))),
        (Virq::Argo.number(), 0, Err(Errno::Eexist)),
        (Virq::Console.number(), 0, Err(Errno::Ebusy)),
        (Virq::Console.number(), 1, Err(Errno::Einval)),
        (Virq::Arch0.number(), 0, Err(Errno::Ebusy)),
        // No interrupt has that number.
        (5, 0, Err(Errno::Ebusy)),
        (24, 0, Err(Errno::Einval)),
        (u32::MAX, 0, Err(Errno::Einval)),
    ] {
        assert_eq!(guest.bind_virq(virq, vcpu), result, "{virq} on {vcpu}");
    }
    guest.close_port(Port(2)).unwrap();
    assert_eq!(guest.bind_virq(Virq::Timer.number(), 1), Ok(Port(2)));
    assert_eq!(guest.bind_ipi(2), Err(Errno::Enoent));
    for (pirq, errno) in
        [(0, Errno::Eperm), (15, Errno::Eperm), (16, Errno::Einval), (u32::MAX, Errno::Einval)]
    {
        let mut request = BindPirq { pirq, flags: 0, port: 0 };
        assert_eq!(guest.event(EventChannelOp::BindPirq, &mut request), Err(errno), "{pirq}");
    }
}

#[test]
fn a_full_table_is_noticed_before_a_bad_peer() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.bind_interdomain(CONTROL_DOMAIN, Port(1)), Err(Errno::Einval));
    assert_eq!(guest.bind_interdomain(DomId::SELF, Port(1)), Err(Errno::Einval));
    while guest.bind_ipi(0).is_ok() {}
    assert_eq!(guest.bind_interdomain(CONTROL_DOMAIN, Port(1)), Err(Errno::Enospc));
    assert_eq!(guest.bind_interdomain(DomId::SELF, Port(1)), Err(Errno::Enospc));
    assert_eq!(guest.bind_interdomain(DomId(9), Port(1)), Err(Errno::Esrch));
}

#[test]
fn ports_move_between_vcpus_unless_they_belong_to_one() {
    let mut guest = Guest::new(2);
    let unbound = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    let argo = guest.bind_virq(Virq::Argo.number(), 0).unwrap();
    let timer = guest.bind_virq(Virq::Timer.number(), 0).unwrap();
    let ipi = guest.bind_ipi(0).unwrap();
    for (port, vcpu, result) in [
        (unbound, 1, Ok(0)),
        (argo, 1, Ok(0)),
        (timer, 1, Err(Errno::Einval)),
        (ipi, 1, Err(Errno::Einval)),
        (Port(0), 1, Err(Errno::Einval)),
        (Port(5), 1, Err(Errno::Einval)),
        (Port(500), 1, Err(Errno::Einval)),
        (unbound, 2, Err(Errno::Enoent)),
        (Port(500), 2, Err(Errno::Enoent)),
    ] {
        let mut request = BindVcpu { port: port.0, vcpu };
        assert_eq!(guest.event(EventChannelOp::BindVcpu, &mut request), result, "{port} to {vcpu}");
    }
    assert_eq!(guest.port_status(unbound).unwrap().vcpu, 1);
    // The one of the domain is found although it moved.
    guest.domain.raise_virq(VcpuId(1), Virq::Argo);
    assert!(guest.is_pending(argo));
    guest.close_port(argo).unwrap();
    assert_eq!(guest.bind_virq(Virq::Argo.number(), 0), Ok(argo));
    assert_eq!(guest.port_status(argo).unwrap().vcpu, 0);
}

#[test]
fn what_is_not_in_use_cannot_be_closed_or_sent_on() {
    let mut guest = Guest::new(1);
    let timer = guest.bind_timer(VcpuId(0));
    for port in [Port(0), Port(2), Port(64), Port(u32::MAX)] {
        assert_eq!(guest.close_port(port), Err(Errno::Einval), "{port}");
        assert_eq!(guest.send_event(port), Err(Errno::Einval), "{port}");
    }
    assert_eq!(guest.send_event(timer), Err(Errno::Einval));
    assert_eq!(guest.unmask_port(Port(2)), Ok(0));
    assert_eq!(guest.unmask_port(Port(64)), Err(Errno::Einval));
}

#[test]
fn the_fifo_operations_need_the_fifo_abi() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0).unwrap();
    let mut expand = ExpandArray { array_gfn: crate::testing::frame(FREE).0 };
    assert_eq!(guest.event(EventChannelOp::ExpandArray, &mut expand), Err(Errno::Eopnotsupp));
    for (port, errno) in [(port, Errno::Enosys), (Port(64), Errno::Einval)] {
        let mut priority = SetPriority { port: port.0, priority: 1 };
        assert_eq!(guest.event(EventChannelOp::SetPriority, &mut priority), Err(errno));
    }
}

#[test]
fn unknown_commands_and_unreachable_arguments_are_refused() {
    let mut guest = Guest::new(1);
    for &op in EventChannelOp::ALL {
        let result = guest.call(Hypercall::EventChannelOp, &[op.number().into(), 0]);
        assert_eq!(result, Err(Errno::Efault), "{op}");
    }
    for command in [15, u64::from(u32::MAX)] {
        let result = guest.call(Hypercall::EventChannelOp, &[command, virt(BUFFER).0]);
        assert_eq!(result, Err(Errno::Enosys));
    }
}

#[test]
fn the_old_form_has_the_command_in_front_and_ten_operations() {
    let mut guest = Guest::new(1);
    let at = machine_address(BUFFER);
    guest.put(at, &[EventChannelOp::AllocUnbound.number(), u32::from(DomId::SELF.0), 0]);
    assert_eq!(guest.call(Hypercall::EventChannelOpCompat, &[virt(BUFFER).0]), Ok(0));
    assert_eq!(guest.get::<[u32; 3]>(at)[2], 1);
    for op in [EventChannelOp::Reset, EventChannelOp::InitControl, EventChannelOp::SetPriority] {
        guest.put(at, &op.number());
        assert_eq!(
            guest.call(Hypercall::EventChannelOpCompat, &[virt(BUFFER).0]),
            Err(Errno::Enosys),
            "{op}"
        );
    }
    assert_eq!(guest.call(Hypercall::EventChannelOpCompat, &[0]), Err(Errno::Efault));
}

#[test]
fn a_reset_closes_every_port() {
    let mut guest = Guest::new(1);
    let timer = guest.bind_timer(VcpuId(0));
    let console = guest.alloc_unbound(CONTROL_DOMAIN).unwrap();
    guest.domain.bind_backend(console, CONTROL_DOMAIN).unwrap();
    guest.domain.notify_from_backend(console).unwrap();
    assert_eq!(guest.event(EventChannelOp::Reset, &mut ResetPorts { dom: DomId::SELF.0 }), Ok(0));
    for port in [timer, console] {
        assert_eq!(guest.port_status(port).unwrap().status, PortStatus::Closed.number());
        assert!(!guest.is_pending(port));
    }
    assert!(guest.domain.take_backend_events().is_empty());
    assert_eq!(
        guest.domain.notify_from_backend(console),
        Err(PortError::NotConnected { port: console, found: "closed" })
    );
    assert_eq!(guest.bind_timer(VcpuId(0)), timer);
}
