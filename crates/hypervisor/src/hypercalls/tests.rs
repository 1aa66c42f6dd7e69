//! Hypercalls that concern vCPUs, time and the hypervisor itself, as a guest makes them.

mod advisories;
mod iret;
mod multicall;
mod sched;
mod segments;
mod small;
mod time;
mod traps;
mod vcpu;
mod vcpu_context;

use paravane_abi::{
    errno::Errno,
    event_channel::{BindIpi, BindVirq, EventChannelOp, SendEvent, Virq},
    hypercall::Hypercall,
    units::{Port, VcpuId},
    vcpu::VcpuOp,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::testing::{BUFFER, Guest, machine_address, virt};

impl Guest {
    fn vcpu_op<T>(&mut self, op: VcpuOp, vcpu: u32, argument: &mut T) -> Result<i64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.put(machine_address(BUFFER), argument);
        let args = [u64::from(op.number()), vcpu.into(), virt(BUFFER).0];
        let result = self.call(Hypercall::VcpuOp, &args);
        *argument = self.get(machine_address(BUFFER));
        result
    }

    /// A `vcpu_op` without an argument.
    fn vcpu_command(&mut self, op: VcpuOp, vcpu: u32) -> Result<i64, Errno> {
        self.call(Hypercall::VcpuOp, &[op.number().into(), vcpu.into(), 0])
    }

    fn bind_timer_on(&mut self, vcpu: u32) -> Port {
        let mut request = BindVirq { virq: Virq::Timer.number(), vcpu, port: 0 };
        self.op(Hypercall::EventChannelOp, EventChannelOp::BindVirq.number(), &mut request).unwrap();
        Port(request.port)
    }

    fn bind_ipi_on(&mut self, vcpu: u32) -> Port {
        let mut request = BindIpi { vcpu, port: 0 };
        self.op(Hypercall::EventChannelOp, EventChannelOp::BindIpi.number(), &mut request).unwrap();
        Port(request.port)
    }

    fn send_on(&mut self, port: Port) {
        let mut request = SendEvent { port: port.0 };
        self.op(Hypercall::EventChannelOp, EventChannelOp::Send.number(), &mut request).unwrap();
    }

    /// Takes a port's pending state.
    fn took(&mut self, port: Port) -> bool {
        let pending = self.domain.poll(port).unwrap();
        let word =
            self.domain.shared(core::mem::offset_of!(paravane_abi::shared_info::SharedInfo, evtchn_pending));
        self.domain.memory.fetch_and_u64(word, !(1 << port.0)).unwrap();
        for vcpu in 0..self.contexts.len() {
            let info = self.domain.vcpus[vcpu].vcpu_info;
            self.put(info, &0_u8);
            self.put(paravane_abi::units::MachAddr(info.0 + 8), &0_u64);
        }
        pending
    }
}

const BOOT: VcpuId = VcpuId(0);
