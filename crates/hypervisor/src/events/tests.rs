//! Event channels as a guest sees them: through hypercalls and the memory that it shares.

mod advisories;
mod delivery;
mod fifo;
mod ops;
mod random;

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    event_channel::{
        AllocUnbound, BindInterdomain, BindIpi, BindVirq, ClosePort, EventChannelOp, QueryStatus, SendEvent,
        UnmaskPort, Virq,
    },
    hypercall::Hypercall,
    shared_info::SharedInfo,
    units::{DomId, MachAddr, Port, VcpuId},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::testing::Guest;

impl Guest {
    fn event<T>(&mut self, op: EventChannelOp, argument: &mut T) -> Result<i64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.op(Hypercall::EventChannelOp, op.number(), argument)
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Errno> {
        let mut request = AllocUnbound { dom: DomId::SELF.0, remote_dom: remote.0, port: 0 };
        self.event(EventChannelOp::AllocUnbound, &mut request)?;
        Ok(Port(request.port))
    }

    fn bind_interdomain(&mut self, remote: DomId, port: Port) -> Result<Port, Errno> {
        let mut request = BindInterdomain::new_zeroed();
        (request.remote_dom, request.remote_port) = (remote.0, port.0);
        self.event(EventChannelOp::BindInterdomain, &mut request)?;
        Ok(Port(request.local_port))
    }

    fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        let mut request = BindVirq { virq, vcpu, port: 0 };
        self.event(EventChannelOp::BindVirq, &mut request)?;
        Ok(Port(request.port))
    }

    fn bind_timer(&mut self, vcpu: VcpuId) -> Port {
        self.bind_virq(Virq::Timer.number(), vcpu.0).unwrap()
    }

    fn bind_ipi(&mut self, vcpu: u32) -> Result<Port, Errno> {
        let mut request = BindIpi { vcpu, port: 0 };
        self.event(EventChannelOp::BindIpi, &mut request)?;
        Ok(Port(request.port))
    }

    fn close_port(&mut self, port: Port) -> Result<i64, Errno> {
        self.event(EventChannelOp::Close, &mut ClosePort { port: port.0 })
    }

    fn send_event(&mut self, port: Port) -> Result<i64, Errno> {
        self.event(EventChannelOp::Send, &mut SendEvent { port: port.0 })
    }

    fn unmask_port(&mut self, port: Port) -> Result<i64, Errno> {
        self.event(EventChannelOp::Unmask, &mut UnmaskPort { port: port.0 })
    }

    fn port_status(&mut self, port: Port) -> Result<QueryStatus, Errno> {
        let mut request = QueryStatus::new_zeroed();
        (request.dom, request.port) = (DomId::SELF.0, port.0);
        self.event(EventChannelOp::Status, &mut request)?;
        Ok(request)
    }

    fn shared_word(&self, array: usize, port: Port) -> MachAddr {
        self.domain.shared(array + port.0 as usize / 64 * 8)
    }

    /// The port's bit of `evtchn_pending`.
    fn is_pending(&self, port: Port) -> bool {
        let word = self.shared_word(offset_of!(SharedInfo, evtchn_pending), port);
        self.get::<u64>(word) >> (port.0 % 64) & 1 != 0
    }

    fn clear_pending(&self, port: Port) {
        let word = self.shared_word(offset_of!(SharedInfo, evtchn_pending), port);
        self.domain.memory.fetch_and_u64(word, !(1 << (port.0 % 64))).unwrap();
    }

    fn is_masked(&self, port: Port) -> bool {
        let word = self.shared_word(offset_of!(SharedInfo, evtchn_mask), port);
        self.get::<u64>(word) >> (port.0 % 64) & 1 != 0
    }

    fn mask_port(&self, port: Port) {
        let word = self.shared_word(offset_of!(SharedInfo, evtchn_mask), port);
        self.domain.memory.fetch_or_u64(word, 1 << (port.0 % 64)).unwrap();
    }

    /// Does what a guest's upcall handler does first: clears the flag, takes the selector.
    fn take_upcall(&self, vcpu: VcpuId) -> u64 {
        let info = self.domain.vcpus[vcpu.0 as usize].vcpu_info;
        self.put(info, &0_u8);
        self.domain.memory.swap_u64(MachAddr(info.0 + 8), 0).unwrap()
    }
}
