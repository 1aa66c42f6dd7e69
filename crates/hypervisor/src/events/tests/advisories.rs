//! What published vulnerabilities of Xen's event channels tried: see `docs/past-vulnerabilities.md`.

use paravane_abi::{
    event_channel::{BindVcpu, ExpandArray, PortStatus, ResetPorts, SetPriority, TWO_LEVEL_PORTS_64},
    sched::{SchedOp, SchedPoll},
    units::Pfn,
};

use super::*;
use crate::testing::{FREE, frame, machine_address, virt};

const TIMER: u32 = Virq::Timer.number();

#[test]
fn a_port_that_does_not_exist_can_be_named_without_harm() {
    let mut guest = Guest::new(1);
    for port in [0, 1, 63, 64, 1500, 1501, 4096, 1 << 17, 1 << 31, u32::MAX].map(Port) {
        for result in [guest.close_port(port), guest.send_event(port)] {
            assert_eq!(result, Err(Errno::Einval), "{port}");
        }
        let mut request = BindVcpu { port: port.0, vcpu: 0 };
        assert_eq!(guest.event(EventChannelOp::BindVcpu, &mut request), Err(Errno::Einval), "{port}");
        let beyond = port.0 >= guest.domain.events.ports.len();
        let known = if beyond { Err(Errno::Einval) } else { Ok(0) };
        assert_eq!(guest.unmask_port(port), known, "{port}");
        assert_eq!(guest.port_status(port).is_err(), beyond, "{port}");
        let mut request = SetPriority { port: port.0, priority: 0 };
        let refused = guest.event(EventChannelOp::SetPriority, &mut request);
        assert_eq!(refused, Err(if beyond { Errno::Einval } else { Errno::Enosys }), "{port}");
        let mut poll = SchedPoll::new_zeroed();
        (poll.ports, poll.nr_ports) = (virt(FREE).0, 1);
        guest.put(machine_address(FREE), &port.0);
        let polled = guest.op(Hypercall::SchedOp, SchedOp::Poll.number(), &mut poll);
        assert_eq!(polled, Err(Errno::Einval), "{port}");
    }
}

#[test]
fn a_port_that_cannot_be_had_leaves_nothing_behind() {
    let mut guest = Guest::new(2);
    while guest.bind_ipi(0).is_ok() {}
    assert_eq!(guest.bind_virq(TIMER, 0), Err(Errno::Enospc));
    assert_eq!(guest.bind_virq(TIMER, 1), Err(Errno::Enospc));
    assert_eq!(guest.alloc_unbound(DomId::SELF), Err(Errno::Enospc));
    guest.close_port(Port(9)).unwrap();
    assert_eq!(guest.bind_virq(TIMER, 1), Ok(Port(9)), "it is not bound already");
    assert_eq!(guest.bind_virq(TIMER, 0), Err(Errno::Enospc));
}

impl Guest {
    fn reset(&mut self) {
        assert_eq!(self.event(EventChannelOp::Reset, &mut ResetPorts { dom: DomId::SELF.0 }), Ok(0));
    }
}

#[test]
fn ports_stay_valid_across_a_reset() {
    let mut guest = Guest::with_fifo(1);
    let mut last = Port(0);
    while let Ok(port) = guest.bind_ipi(0) {
        last = port;
    }
    guest.reset();
    assert!(guest.domain.events.fifo.is_none());
    for port in [Port(1), Port(64), last] {
        assert_eq!(guest.port_status(port).unwrap().status, PortStatus::Closed.number(), "{port}");
        assert_eq!(guest.unmask_port(port), Ok(0), "{port}");
        assert_eq!(guest.send_event(port), Err(Errno::Einval), "{port}");
    }
    guest.domain.recount().unwrap();
    assert_eq!(guest.bind_ipi(0), Ok(Port(1)));
}

#[test]
fn ports_of_the_larger_abi_are_not_the_smaller_ones() {
    // More ports than the two-level ABI can name.
    let mut events = crate::events::Events::new(Port(TWO_LEVEL_PORTS_64 + 64), 1);
    let limit = crate::events::Ports::limit(false);
    let end = (0..=TWO_LEVEL_PORTS_64 + 64)
        .find_map(|_| events.ports.allocate(crate::events::State::Ipi, VcpuId(0), limit, |_| false).err());
    assert_eq!(end, Some(Errno::Enospc));
    assert_eq!(events.ports.len(), TWO_LEVEL_PORTS_64);
}

#[test]
fn pages_of_the_array_are_the_guests_again_after_a_reset() {
    let mut guest = Guest::with_fifo(1);
    let page = Pfn(FREE.0 + 9);
    let mut request = ExpandArray { array_gfn: frame(page).0 };
    assert_eq!(guest.event(EventChannelOp::ExpandArray, &mut request), Ok(0));
    let lent = guest.domain.frame_table.loans.len();
    guest.reset();
    assert_eq!((lent, guest.domain.frame_table.loans.len()), (3, 0));
    assert_eq!(guest.event(EventChannelOp::ExpandArray, &mut request), Err(Errno::Eopnotsupp));
    guest.domain.recount().unwrap();
}
