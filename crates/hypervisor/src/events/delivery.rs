//! Raising, unmasking, allocating and closing ports, in whichever ABI the guest uses.

use paravane_abi::{
    errno::Errno,
    event_channel::{Virq, VirqScope, fifo},
    units::{DomId, Port, VcpuId},
};

use super::{Peer, Ports, State};
use crate::{domain::Domain, vcpu::vcpu_info};

impl Domain {
    /// Marks a port pending and makes the vCPU that it notifies notice, unless it is masked.
    pub(crate) fn raise(&mut self, port: Port) {
        let Some(channel) = self.events.ports.get(port).filter(|channel| channel.is_usable()) else { return };
        let vcpu = channel.notifies;
        match self.events.fifo {
            None => self.two_level_raise(port, vcpu),
            Some(_) => self.fifo_raise(port, vcpu),
        }
    }

    /// Clears a port's mask, and lets an event that it held back through.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a port beyond the table. A port that is not in use is left alone without an error.
    pub(crate) fn unmask(&mut self, port: Port) -> Result<(), Errno> {
        let channel = self.events.ports.get(port).ok_or(Errno::Einval)?;
        let vcpu = channel.notifies;
        if channel.is_usable() {
            match self.events.fifo {
                None => self.two_level_unmask(port, vcpu),
                Some(_) => self.fifo_unmask(port, vcpu),
            }
        }
        Ok(())
    }

    /// Whether a port is pending, masked or not.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a port that is not in use.
    pub(crate) fn poll(&self, port: Port) -> Result<bool, Errno> {
        match self.events.ports.get(port) {
            Some(channel) if channel.is_usable() => Ok(match self.events.fifo {
                None => self.two_level_is_pending(port),
                Some(_) => self.fifo_has(port, fifo::PENDING),
            }),
            Some(_) | None => Err(Errno::Einval),
        }
    }

    /// Raises a virtual interrupt on a vCPU. Without a port bound to it, it is lost.
    pub fn raise_virq(&mut self, vcpu: VcpuId, virq: Virq) {
        let bound_on = match virq.facts().scope {
            VirqScope::Vcpu => vcpu,
            VirqScope::Domain | VirqScope::Global => VcpuId(0),
        };
        if let Some(port) = self.events.virq_port(bound_on, virq) {
            self.raise(port);
        }
    }

    /// Tells a vCPU that an event is pending for it, and wakes it if it did not know.
    pub(crate) fn mark_events_pending(&mut self, vcpu: VcpuId) {
        let Some(target) = self.vcpus.get(vcpu.0 as usize) else { return };
        // The flag is the first byte of a word whose second byte, the mask, the guest may be writing.
        let word = target.info(vcpu_info::UPCALL_PENDING);
        let known = self.memory.fetch_or_u32(word, 1).is_ok_and(|old| old & 1 != 0);
        if !known {
            self.wake(vcpu);
        }
    }

    /// Allocates the lowest free port. A port that is still on a FIFO queue of its former life is not free.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is none.
    pub(crate) fn allocate_port(&mut self, state: State, notifies: VcpuId) -> Result<Port, Errno> {
        let limit = Ports::limit(self.events.fifo.is_some());
        let (memory, fifo) = (&self.memory, self.events.fifo.as_ref());
        let busy = |port| {
            let word = fifo.and_then(|fifo| fifo.word(port));
            word.is_some_and(|word| memory.load_u32(word).is_ok_and(|word| word & fifo::LINKED != 0))
        };
        self.events.ports.allocate(state, notifies, limit, busy)
    }

    /// Whether a port could be allocated.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is none.
    pub(crate) fn find_free_port(&mut self) -> Result<(), Errno> {
        let port = self.allocate_port(State::Ipi, VcpuId(0))?;
        self.events.ports.free(port);
        Ok(())
    }

    /// Connects a new port to an own one that waits for this domain. The new one starts pending, because the other
    /// may have been raised before.
    ///
    /// # Errors
    ///
    /// `ENOSPC` without a free port, `EINVAL` if the other does not wait for this domain.
    pub(crate) fn bind_own(&mut self, remote: Port) -> Result<Port, Errno> {
        let local = self.allocate_port(State::Interdomain(Peer::Own(remote)), VcpuId(0))?;
        let waits = State::Unbound { remote: self.id };
        match self.events.ports.get_mut(remote).filter(|channel| channel.state == waits) {
            Some(channel) => channel.state = State::Interdomain(Peer::Own(local)),
            None => {
                self.events.ports.free(local);
                return Err(Errno::Einval);
            }
        }
        self.raise(local);
        Ok(local)
    }

    /// Sends on a port, as its owner.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a port that cannot be sent on. Sending on a port that waits for its peer does nothing.
    pub(crate) fn send(&mut self, port: Port) -> Result<(), Errno> {
        match self.events.ports.get(port).map(|channel| channel.state) {
            Some(State::Interdomain(Peer::Own(peer))) => self.raise(peer),
            Some(State::Interdomain(Peer::Backend { .. })) => self.notify_backend(port),
            Some(State::Ipi) => self.raise(port),
            Some(State::Unbound { .. }) => {}
            Some(State::Virq(_) | State::Free | State::Reserved) | None => return Err(Errno::Einval),
        }
        Ok(())
    }

    /// Closes a port. An own peer waits for this domain again; a backend's end is closed.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a port that is not in use.
    pub(crate) fn close(&mut self, port: Port) -> Result<(), Errno> {
        let channel = *self.events.ports.get(port).ok_or(Errno::Einval)?;
        match channel.state {
            State::Free | State::Reserved => return Err(Errno::Einval),
            State::Unbound { .. } | State::Ipi => {}
            State::Virq(virq) => {
                let bound_on = match virq.facts().scope {
                    VirqScope::Vcpu => channel.notifies,
                    VirqScope::Domain | VirqScope::Global => VcpuId(0),
                };
                self.events.set_virq_port(bound_on, virq, None);
            }
            State::Interdomain(Peer::Own(peer)) => self.unbind_own(peer),
            State::Interdomain(Peer::Backend { .. }) => self.forget_backend_event(port),
        }
        // A new owner of the number must not find an old event.
        match self.events.fifo {
            None => self.two_level_clear(port),
            Some(_) => self.fifo_clear(port),
        }
        self.events.ports.free(port);
        Ok(())
    }

    fn unbind_own(&mut self, peer: Port) {
        let remote = self.id;
        if let Some(channel) = self.events.ports.get_mut(peer) {
            channel.state = State::Unbound { remote };
        }
    }

    /// Closes every port and returns to the two-level ABI.
    pub(crate) fn reset_events(&mut self) {
        for port in (1..self.events.ports.len()).map(Port) {
            // Ports that are not in use refuse, which is all right.
            let _not_in_use = self.close(port);
        }
        self.fifo_end();
    }

    /// What stands for a domain number that a guest wrote: its own for `DOMID_SELF`.
    pub(crate) fn named_domain(&self, domain: DomId) -> DomId {
        if domain == DomId::SELF { self.id } else { domain }
    }
}
