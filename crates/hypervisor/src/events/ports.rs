//! The table of a domain's ports.

use paravane_abi::{
    errno::Errno,
    event_channel::{PortStatus, Virq, fifo},
    units::{DomId, Port, VcpuId},
};

use super::fifo::QueueId;

/// How many ports the table grows by. A guest can tell a port that is free from one beyond the table.
///
/// Source: `EVTCHNS_PER_BUCKET` in `xen/include/xen/sched.h`.
const PORTS_PER_BUCKET: usize = 64;

/// The other end of a connected port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A port of the same domain.
    Own(Port),
    /// A port of a backend's domain.
    Backend {
        /// That domain.
        domain: DomId,
        /// Its port.
        port: Port,
    },
}

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not in use.
    Free,
    /// Port 0: never valid.
    Reserved,
    /// Waits for `remote` to connect.
    Unbound { remote: DomId },
    /// Connected.
    Interdomain(Peer),
    /// A virtual interrupt.
    Virq(Virq),
    /// Interrupts between vCPUs.
    Ipi,
}

impl State {
    /// As `EVTCHNOP_status` reports it.
    pub(crate) fn status(self) -> PortStatus {
        match self {
            Self::Free | Self::Reserved => PortStatus::Closed,
            Self::Unbound { .. } => PortStatus::Unbound,
            Self::Interdomain(_) => PortStatus::Interdomain,
            Self::Virq(_) => PortStatus::Virq,
            Self::Ipi => PortStatus::Ipi,
        }
    }
}

/// A port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    /// What it is.
    pub(crate) state: State,
    /// The vCPU that it notifies.
    pub(crate) notifies: VcpuId,
    /// Its FIFO priority, 0 highest to 15.
    pub(crate) priority: u32,
    /// Raised before the FIFO array had a word for it.
    pub(crate) pending: bool,
    /// The FIFO queue that it was last put on.
    pub(super) last_queue: QueueId,
}

impl Channel {
    const FREE: Self = Self {
        state: State::Free,
        notifies: VcpuId(0),
        priority: fifo::PRIORITY_DEFAULT,
        pending: false,
        last_queue: QueueId::FIRST,
    };

    /// Whether it can be raised and masked.
    pub(crate) fn is_usable(&self) -> bool {
        match self.state {
            State::Free | State::Reserved => false,
            State::Unbound { .. } | State::Interdomain(_) | State::Virq(_) | State::Ipi => true,
        }
    }
}

/// The ports, by number, as far as the table has grown.
#[derive(Debug)]
pub(crate) struct Ports {
    channels: Vec<Channel>,
    max_port: Port,
}

impl Ports {
    /// A table that holds port 0 and grows up to `max_port`.
    pub(super) fn new(max_port: Port) -> Self {
        let mut channels = vec![Channel::FREE; PORTS_PER_BUCKET];
        channels[0].state = State::Reserved;
        Self { channels, max_port: Port(max_port.0.min(fifo::PORTS - 1)) }
    }

    /// The port of that number, if the table reaches so far.
    pub(crate) fn get(&self, port: Port) -> Option<&Channel> {
        self.channels.get(port.0 as usize)
    }

    /// The port of that number, to change.
    pub(crate) fn get_mut(&mut self, port: Port) -> Option<&mut Channel> {
        self.channels.get_mut(port.0 as usize)
    }

    /// The highest port that may be allocated.
    pub(super) fn max_port(&self) -> Port {
        self.max_port
    }

    /// How many ports the table holds now, port 0 included.
    pub(crate) fn len(&self) -> u32 {
        // It never grows beyond the FIFO ABI's number of ports.
        u32::try_from(self.channels.len()).unwrap_or(u32::MAX)
    }

    /// The lowest port that is free, not `busy` and below `limit`, which becomes `state`.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is none.
    pub(super) fn allocate(
        &mut self,
        state: State,
        notifies: VcpuId,
        limit: u32,
        busy: impl Fn(Port) -> bool,
    ) -> Result<Port, Errno> {
        let end = limit.min(self.max_port.0 + 1);
        let free = |port: &u32| {
            let channel = self.channels.get(*port as usize);
            channel.is_none_or(|channel| channel.state == State::Free && !busy(Port(*port)))
        };
        let port = (1..end).find(free).ok_or(Errno::Enospc)?;
        while self.channels.len() <= port as usize {
            self.channels.extend([Channel::FREE; PORTS_PER_BUCKET]);
        }
        let channel = &mut self.channels[port as usize];
        channel.state = state;
        channel.notifies = notifies;
        channel.priority = fifo::PRIORITY_DEFAULT;
        Ok(Port(port))
    }

    /// Frees a port. It keeps its place in the FIFO queues until the guest takes it off.
    pub(super) fn free(&mut self, port: Port) {
        if let Some(channel) = self.get_mut(port) {
            channel.state = State::Free;
            channel.notifies = VcpuId(0);
            channel.pending = false;
        }
    }
}
