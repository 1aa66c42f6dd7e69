//! Event channels: what a PV guest has instead of interrupts.
//!
//! A domain owns numbered ports. A port is free, or waits for another domain to connect, or is connected to a port
//! of a domain, or stands for a virtual interrupt or for interrupts that vCPUs send one another. Raising a port
//! marks it pending in memory shared with the guest and makes the vCPU that it notifies take an upcall, unless the
//! guest has masked the port or all of them.
//!
//! Where the marks live is one of two ABIs, which the guest chooses ([`two_level`], [`fifo`]). Everything else is
//! the same for both and lives here: [`ports`] has the table, [`delivery`] raises and unmasks, [`backend`] is the
//! other domain's end.
//!
//! | state | raised by | leads to |
//! | --- | --- | --- |
//! | unbound | nobody | connected, when the other domain binds |
//! | interdomain | the peer's `send` | unbound, when the peer closes |
//! | virtual interrupt | the hypervisor | – |
//! | IPI | the domain's own `send` | – |
//!
//! Source: `xen/common/event_channel.c`, `xen/include/public/event_channel.h`.

mod backend;
mod delivery;
mod fifo;
mod ports;
#[cfg(test)]
mod tests;
mod two_level;

use paravane_abi::{
    event_channel::{VIRQS, Virq},
    units::{Port, VcpuId},
};

pub use backend::PortError;
pub(crate) use fifo::Fifo;
use ports::Ports;
pub(crate) use ports::{Peer, State};

/// The event channels of a domain.
#[derive(Debug)]
pub(crate) struct Events {
    /// The table of ports.
    pub(crate) ports: Ports,
    /// The FIFO ABI, if the guest turned it on; without it the two-level one holds.
    pub(crate) fifo: Option<Fifo>,
    /// Which port each virtual interrupt of each vCPU is bound to.
    virqs: Vec<[Option<Port>; VIRQS as usize]>,
}

impl Events {
    /// No port but the reserved port 0, and the two-level ABI.
    pub(crate) fn new(max_port: Port, vcpus: usize) -> Self {
        Self { ports: Ports::new(max_port), fifo: None, virqs: vec![[None; VIRQS as usize]; vcpus] }
    }

    /// The port of a vCPU's virtual interrupt.
    pub(crate) fn virq_port(&self, vcpu: VcpuId, virq: Virq) -> Option<Port> {
        self.virqs.get(vcpu.0 as usize)?[virq as usize]
    }

    /// Binds or, with `None`, unbinds a vCPU's virtual interrupt.
    pub(crate) fn set_virq_port(&mut self, vcpu: VcpuId, virq: Virq, port: Option<Port>) {
        if let Some(virqs) = self.virqs.get_mut(vcpu.0 as usize) {
            virqs[virq as usize] = port;
        }
    }
}
