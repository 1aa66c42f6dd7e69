//! Random sequences of operations, with what must hold after each of them.

use proptest::prelude::*;

use paravane_abi::{
    event_channel::{
        BindVcpu, EventChannelOp,
        fifo::{LINKED, MASKED, PENDING},
    },
    units::{DomId, Port, VcpuId},
};

use super::*;
use crate::{CONTROL_DOMAIN, events::State};

const VCPUS: u32 = 2;

/// A step of the guest or of a backend. Ports are picked among a few, so that steps meet.
#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { own: bool },
    Connect(Port),
    BindIpi(u32),
    BindTimer(u32),
    Close(Port),
    Send(Port),
    Mask(Port),
    Unmask(Port),
    Move(Port, u32),
    Priority(Port, u32),
    Backend(Port),
    Notify(Port),
    Tick(u32),
    Drain(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = || (0_u32..12).prop_map(Port);
    let vcpu = || 0..VCPUS;
    prop::collection::vec(
        prop_oneof![
            any::<bool>().prop_map(|own| Step::Alloc { own }),
            port().prop_map(Step::Connect),
            vcpu().prop_map(Step::BindIpi),
            vcpu().prop_map(Step::BindTimer),
            port().prop_map(Step::Close),
            port().prop_map(Step::Send),
            port().prop_map(Step::Send),
            port().prop_map(Step::Mask),
            port().prop_map(Step::Unmask),
            (port(), vcpu()).prop_map(|(port, vcpu)| Step::Move(port, vcpu)),
            (port(), 0_u32..17).prop_map(|(port, priority)| Step::Priority(port, priority)),
            port().prop_map(Step::Backend),
            port().prop_map(Step::Notify),
            vcpu().prop_map(Step::Tick),
            vcpu().prop_map(Step::Drain),
        ],
        1..60,
    )
}

impl Guest {
    /// Does a step. Most steps are refused at times; that is part of the sequence.
    fn step(&mut self, step: Step, fifo: bool) {
        let vcpu_op = |port: Port, vcpu| BindVcpu { port: port.0, vcpu };
        let _result = match step {
            Step::Alloc { own } => self.alloc_unbound(if own { DomId::SELF } else { CONTROL_DOMAIN }).is_ok(),
            Step::Connect(port) => self.bind_interdomain(DomId::SELF, port).is_ok(),
            Step::BindIpi(vcpu) => self.bind_ipi(vcpu).is_ok(),
            Step::BindTimer(vcpu) => self.bind_virq(Virq::Timer.number(), vcpu).is_ok(),
            Step::Close(port) => self.close_port(port).is_ok(),
            Step::Send(port) => self.send_event(port).is_ok(),
            Step::Mask(port) if fifo => {
                self.domain.memory.fetch_or_u32(self.word_at(port), MASKED).unwrap();
                true
            }
            Step::Mask(port) => {
                self.mask_port(port);
                true
            }
            Step::Unmask(port) => self.unmask_port(port).is_ok(),
            Step::Move(port, vcpu) => self.event(EventChannelOp::BindVcpu, &mut vcpu_op(port, vcpu)).is_ok(),
            Step::Priority(port, priority) => {
                let mut request = paravane_abi::event_channel::SetPriority { port: port.0, priority };
                self.event(EventChannelOp::SetPriority, &mut request).is_ok()
            }
            Step::Backend(port) => self.domain.bind_backend(port, CONTROL_DOMAIN).is_ok(),
            Step::Notify(port) => self.domain.notify_from_backend(port).is_ok(),
            Step::Tick(vcpu) => {
                self.domain.raise_virq(VcpuId(vcpu), Virq::Timer);
                true
            }
            Step::Drain(vcpu) if fifo => !self.drain(VcpuId(vcpu)).is_empty(),
            Step::Drain(vcpu) => {
                self.drain_two_level(VcpuId(vcpu));
                true
            }
        };
    }

    /// Handles the ports that notify a vCPU, as an upcall handler does.
    fn drain_two_level(&self, vcpu: VcpuId) {
        let selector = self.take_upcall(vcpu);
        for port in (0..self.domain.events.ports.len()).map(Port) {
            let channel = self.domain.events.ports.get(port).unwrap();
            if selector >> (port.0 / 64) & 1 != 0 && channel.notifies == vcpu && !self.is_masked(port) {
                self.clear_pending(port);
            }
        }
    }

    /// Every port that is in use, pending and not masked will be found by somebody: no event is lost.
    fn assert_nothing_lost(&self, moved: &[Port], fifo: bool) {
        for port in (1..self.domain.events.ports.len()).map(Port) {
            let channel = self.domain.events.ports.get(port).unwrap();
            if !channel.is_usable() {
                assert_eq!(self.domain.poll(port), Err(Errno::Einval));
                continue;
            }
            if fifo {
                let word = self.word(port);
                let due = word & PENDING != 0 && word & MASKED == 0;
                assert!(!due || word & LINKED != 0, "{port} {channel:?} {word:#x}");
            } else if self.is_pending(port) && !self.is_masked(port) && !moved.contains(&port) {
                let info = self.info(channel.notifies);
                assert_eq!(info.evtchn_upcall_pending, 1, "{port} {channel:?}");
                assert_ne!(info.evtchn_pending_sel & 1, 0, "{port} {channel:?}");
            }
        }
    }

    /// Own connections are connections both ways, and virtual interrupts lead to their ports.
    fn assert_connected(&self) {
        for port in (1..self.domain.events.ports.len()).map(Port) {
            let state = |port| self.domain.events.ports.get(port).unwrap().state;
            match state(port) {
                State::Interdomain(crate::events::Peer::Own(peer)) => {
                    assert_eq!(state(peer), State::Interdomain(crate::events::Peer::Own(port)));
                }
                State::Virq(virq) => {
                    let vcpu = self.domain.events.ports.get(port).unwrap().notifies;
                    assert_eq!(self.domain.events.virq_port(vcpu, virq), Some(port));
                }
                State::Free
                | State::Reserved
                | State::Unbound { .. }
                | State::Interdomain(crate::events::Peer::Backend { .. })
                | State::Ipi => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_event_is_lost_in_the_two_level_abi(steps in steps()) {
        let mut guest = Guest::new(VCPUS).all_up();
        // A port that moves leaves its selector bit with the old vCPU: guests move ports only when they are masked.
        let mut moved = Vec::new();
        for step in steps {
            guest.step(step, false);
            if let Step::Move(port, _) = step {
                moved.push(port);
            }
            guest.assert_nothing_lost(&moved, false);
            guest.assert_connected();
        }
    }

    #[test]
    fn no_event_is_lost_in_the_fifo_abi(steps in steps()) {
        let mut guest = Guest::with_fifo(VCPUS);
        for step in steps {
            guest.step(step, true);
            guest.assert_nothing_lost(&[], true);
            guest.assert_connected();
        }
        // What is linked is found: after both vCPUs have looked, nothing is due.
        for vcpu in 0..VCPUS {
            guest.drain(VcpuId(vcpu));
        }
        for port in (1..64).map(Port) {
            let word = guest.word(port);
            prop_assert_eq!(word & LINKED, 0, "{} {:#x}", port, word);
        }
        guest.domain.recount().unwrap();
    }
}
