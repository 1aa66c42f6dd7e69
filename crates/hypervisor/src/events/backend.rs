//! The other domain's end of a guest's ports.
//!
//! Backends live in this process, but a guest must see them as ports of another domain. It offers a port that
//! waits for that domain, and tells its number through xenstore (or, for the console and xenstore itself, finds it
//! in `start_info`); the backend binds to it, and from then on each side raises the other's port.
//!
//! A backend's port has the number of the guest's: that is what the guest sees in `EVTCHNOP_status`.

use paravane_abi::units::{DomId, Port, VcpuId};
use thiserror::Error;

use super::{Peer, State};
use crate::domain::Domain;

/// A backend cannot do that with a guest's port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PortError {
    /// The guest has no free port.
    #[error("the guest has no free port; allow it more than {limit}")]
    NoFreePort {
        /// The highest port that it may allocate.
        limit: Port,
    },
    /// The port does not wait for that backend.
    #[error("port {port} is {found}; a backend in domain {backend} can only bind a port that waits for it")]
    NotOffered {
        /// The port.
        port: Port,
        /// The backend's domain.
        backend: DomId,
        /// What the port is instead.
        found: &'static str,
    },
    /// The port is not connected to a backend.
    #[error(
        "port {port} is {found}; only a port that is connected to a backend can be raised or left by one"
    )]
    NotConnected {
        /// The port.
        port: Port,
        /// What the port is instead.
        found: &'static str,
    },
}

impl Domain {
    /// Allocates a port of the guest's that waits for a domain, as the builder does for the console and xenstore
    /// before the guest runs.
    ///
    /// # Errors
    ///
    /// [`PortError::NoFreePort`].
    pub fn offer_port(&mut self, backend: DomId) -> Result<Port, PortError> {
        self.allocate_port(State::Unbound { remote: backend }, VcpuId(0))
            .map_err(|_| PortError::NoFreePort { limit: self.events.ports.max_port() })
    }

    /// Connects a backend in `backend`'s domain to a guest's port that waits for that domain. The backend is told
    /// of an event at once, because the guest may have sent one before.
    ///
    /// # Errors
    ///
    /// [`PortError::NotOffered`].
    pub fn bind_backend(&mut self, port: Port, backend: DomId) -> Result<(), PortError> {
        let found = self.port_state(port);
        let waits = State::Unbound { remote: backend };
        let Some(channel) = self.events.ports.get_mut(port).filter(|channel| channel.state == waits) else {
            return Err(PortError::NotOffered { port, backend, found });
        };
        channel.state = State::Interdomain(Peer::Backend { domain: backend, port });
        self.notify_backend(port);
        Ok(())
    }

    /// Raises a guest's port, as its backend.
    ///
    /// # Errors
    ///
    /// [`PortError::NotConnected`]: the guest may have closed it.
    pub fn notify_from_backend(&mut self, port: Port) -> Result<(), PortError> {
        self.backend_of(port)?;
        self.raise(port);
        Ok(())
    }

    /// Disconnects a backend. The guest's port waits for the backend's domain again.
    ///
    /// # Errors
    ///
    /// [`PortError::NotConnected`].
    pub fn unbind_backend(&mut self, port: Port) -> Result<(), PortError> {
        let remote = self.backend_of(port)?;
        if let Some(channel) = self.events.ports.get_mut(port) {
            channel.state = State::Unbound { remote };
        }
        self.forget_backend_event(port);
        Ok(())
    }

    /// The ports on which the guest notified its backends since the last call, each once.
    pub fn take_backend_events(&mut self) -> Vec<Port> {
        std::mem::take(&mut self.backend_events)
    }

    /// The domain of the backend that the port is connected to.
    fn backend_of(&self, port: Port) -> Result<DomId, PortError> {
        match self.events.ports.get(port).map(|channel| channel.state) {
            Some(State::Interdomain(Peer::Backend { domain, .. })) => Ok(domain),
            Some(_) | None => Err(PortError::NotConnected { port, found: self.port_state(port) }),
        }
    }

    pub(super) fn notify_backend(&mut self, port: Port) {
        if !self.backend_events.contains(&port) {
            self.backend_events.push(port);
        }
    }

    pub(super) fn forget_backend_event(&mut self, port: Port) {
        self.backend_events.retain(|event| *event != port);
    }

    fn port_state(&self, port: Port) -> &'static str {
        self.events
            .ports
            .get(port)
            .map_or("beyond the guest's ports", |channel| channel.state.status().name())
    }
}
