//! Requests of the event channel family.

use paravane_abi::{
    event_channel::Virq,
    units::{DomId, Pfn, VcpuId},
};

use super::*;
use crate::{
    events::State,
    testing::{FREE, OWN, frame},
};

const SELF: u32 = DomId::SELF.0 as u32;

impl Guest {
    fn own_port(&mut self, state: State) -> u32 {
        self.domain.allocate_port(state, VcpuId(0)).unwrap().0
    }

    /// Turns the FIFO ABI on.
    fn fifo(&mut self) {
        self.domain.fifo_init_control(VcpuId(0), frame(FREE), 0).unwrap();
    }
}

#[test]
fn event_channel_operations() {
    census(Hypercall::EventChannelOp, |guest, op: EventChannelOp| {
        let unbound = State::Unbound { remote: OWN };
        let words: [u32; 6] = match op {
            EventChannelOp::BindInterdomain => [u32::from(OWN.0), guest.own_port(unbound), 0, 0, 0, 0],
            EventChannelOp::BindVirq => [Virq::Timer.number(), 1, 0, 0, 0, 0],
            EventChannelOp::BindPirq => [3, 0, 0, 0, 0, 0],
            EventChannelOp::Close | EventChannelOp::Send | EventChannelOp::Unmask => {
                [guest.own_port(State::Ipi), 0, 0, 0, 0, 0]
            }
            EventChannelOp::Status => [SELF, guest.own_port(State::Ipi), 0, 0, 0, 0],
            EventChannelOp::AllocUnbound | EventChannelOp::Reset | EventChannelOp::ResetCont => {
                [SELF, 0, 0, 0, 0, 0]
            }
            EventChannelOp::BindIpi => [1, 0, 0, 0, 0, 0],
            EventChannelOp::BindVcpu => [guest.own_port(unbound), 1, 0, 0, 0, 0],
            EventChannelOp::InitControl => {
                let [low, high] = halves(frame(FREE).0);
                [low, high, 8, 1, 0, 0]
            }
            EventChannelOp::ExpandArray => {
                guest.fifo();
                let [low, high] = halves(frame(Pfn(FREE.0 + 1)).0);
                [low, high, 0, 0, 0, 0]
            }
            EventChannelOp::SetPriority => {
                guest.fifo();
                [guest.own_port(State::Ipi), 3, 0, 0, 0, 0]
            }
        };
        let argument = guest.place(&words);
        Request::new(&[op.number().into(), argument]).returns(0)
    });
}

/// A word of 64 bits in a list of halves.
fn halves(word: u64) -> [u32; 2] {
    zerocopy::transmute!(word)
}
