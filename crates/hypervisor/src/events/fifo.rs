//! The FIFO ABI: a word for each port, linked into queues by priority.
//!
//! ```text
//!   control block of a vCPU         event array, pages of 1024 words, by port
//!   ready: a bit per priority       word: PENDING MASKED LINKED BUSY … link
//!   head[priority] ──► port ──link──► port ──link──► port (tail)
//! ```
//!
//! A raised port that is not masked is put at the tail of its queue, once: LINKED says that it is there. The guest
//! takes ports off the head. Both sides work without a lock, so the hypervisor must put a port behind a tail that
//! the guest may be taking off at that moment: it changes the tail's link only if the tail is still LINKED, and
//! otherwise makes the port the head of an empty queue.
//!
//! A port can move to another vCPU or priority while it is queued. It then finishes its stay on the old queue;
//! the channel remembers which that was, so that a queue whose tail leaves is known to be empty.
//!
//! Everything in the words can be wrong, since the guest writes them: a link is never followed by the hypervisor,
//! and an update that the guest keeps disturbing is given up after four tries.
//!
//! Source: `xen/common/event_fifo.c`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    event_channel::{
        FifoControlBlock,
        fifo::{
            BUSY, LINK_MASK, LINKED, MASKED, PENDING, PORTS, PRIORITY_DEFAULT, PRIORITY_MIN, QUEUES,
            WORDS_PER_PAGE,
        },
    },
    units::{MachAddr, Mfn, PAGE_SIZE, Port, VcpuId},
};

use super::Ports;
use crate::domain::Domain;

/// Pages of event words at most.
const MAX_PAGES: usize = (PORTS / WORDS_PER_PAGE) as usize;

/// How often a link is tried to be set once BUSY keeps the guest from unmasking. A guest that keeps to the ABI can
/// disturb four times at most.
const LINK_TRIES: u32 = 4;

/// A queue of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueId {
    vcpu: VcpuId,
    priority: u32,
}

impl QueueId {
    /// The queue that a port counts as having been on before it was on any.
    pub(super) const FIRST: Self = Self { vcpu: VcpuId(0), priority: 0 };
}

/// The queues of a vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Queues {
    /// The control block, if the vCPU has one.
    control: Option<MachAddr>,
    /// The last port of each queue; 0 for none.
    tails: [u32; QUEUES as usize],
}

/// The FIFO ABI of a domain.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// The pages of event words.
    pages: Vec<Mfn>,
    /// The queues, by vCPU.
    vcpus: Vec<Queues>,
}

impl Fifo {
    /// The word of a port, if the array reaches so far.
    pub(crate) fn word(&self, port: Port) -> Option<MachAddr> {
        let page = *self.pages.get((port.0 / WORDS_PER_PAGE) as usize)?;
        let offset = u64::from(port.0 % WORDS_PER_PAGE) * size_of::<u32>() as u64;
        page.base().map(|base| MachAddr(base.0 + offset))
    }

    /// Every frame that the ABI keeps.
    fn frames(&self) -> impl Iterator<Item = Mfn> {
        let controls = self.vcpus.iter().filter_map(|queues| queues.control);
        self.pages.iter().copied().chain(controls.map(MachAddr::frame))
    }

    fn tail(&mut self, queue: QueueId) -> Option<&mut u32> {
        self.vcpus.get_mut(queue.vcpu.0 as usize)?.tails.get_mut(queue.priority as usize)
    }
}

impl Domain {
    /// Raises a port.
    pub(super) fn fifo_raise(&mut self, port: Port, vcpu: VcpuId) {
        let Some((word, control)) = self.fifo_place(port, vcpu) else { return };
        let was_pending = self.fetch_or(word, PENDING) & PENDING != 0;
        let unmasked = self.load(word) & MASKED == 0;
        if unmasked && self.fetch_or(word, LINKED) & LINKED == 0 {
            self.fifo_link(port, vcpu, control);
        }
        if !was_pending {
            self.wake_pollers(port);
        }
    }

    /// Where a port's word and its vCPU's control block are. Without a word the event is kept for later; without a
    /// control block it is lost, which the ABI tells guests to expect.
    fn fifo_place(&mut self, port: Port, vcpu: VcpuId) -> Option<(MachAddr, MachAddr)> {
        let fifo = self.events.fifo.as_ref()?;
        let Some(word) = fifo.word(port) else {
            self.events.ports.get_mut(port)?.pending = true;
            return None;
        };
        let control = fifo.vcpus.get(vcpu.0 as usize)?.control?;
        Some((word, control))
    }

    /// Puts a port that has just become LINKED at the end of its queue.
    fn fifo_link(&mut self, port: Port, vcpu: VcpuId, control: MachAddr) {
        let Some(channel) = self.events.ports.get_mut(port) else { return };
        let queue = QueueId { vcpu, priority: channel.priority };
        let old = core::mem::replace(&mut channel.last_queue, queue);
        let Some(fifo) = self.events.fifo.as_mut() else { return };
        // If the port was the old queue's tail, that queue is empty now.
        if let Some(tail) = fifo.tail(old).filter(|tail| **tail == port.0) {
            *tail = 0;
        }
        let Some(tail) = fifo.tail(queue) else { return };
        let before = core::mem::replace(tail, port.0);
        let tail_word = (before != 0).then(|| fifo.word(Port(before))).flatten();
        if tail_word.is_some_and(|word| self.set_link(word, port.0)) {
            return;
        }
        let head = offset_of!(FifoControlBlock, head) as u64 + u64::from(queue.priority) * 4;
        self.store(MachAddr(control.0 + head), port.0);
        let ready = 1 << queue.priority;
        if self.fetch_or(control, ready) & ready == 0 {
            self.mark_events_pending(vcpu);
        }
    }

    /// Sets the link of a word that is LINKED, and returns whether it is.
    fn set_link(&self, word: MachAddr, link: u32) -> bool {
        let mut found = self.load(word);
        match self.try_set_link(word, &mut found, link) {
            LinkTry::Done => return true,
            LinkTry::NotLinked => return false,
            LinkTry::Disturbed => {}
        }
        // BUSY keeps the guest from unmasking meanwhile.
        self.fetch_or(word, BUSY);
        found = self.load(word);
        for _ in 0..LINK_TRIES {
            match self.try_set_link(word, &mut found, link) {
                LinkTry::Done => return true,
                LinkTry::NotLinked => {
                    self.fetch_and(word, !BUSY);
                    return false;
                }
                LinkTry::Disturbed => {}
            }
        }
        // The guest breaks the rules; what becomes of its queue is its own affair.
        self.fetch_and(word, !BUSY);
        true
    }

    fn try_set_link(&self, word: MachAddr, found: &mut u32, link: u32) -> LinkTry {
        if *found & LINKED == 0 {
            return LinkTry::NotLinked;
        }
        let new = *found & !(BUSY | LINK_MASK) | link;
        match self.memory.compare_exchange_u32(word, *found, new) {
            Ok(Ok(_)) => LinkTry::Done,
            Ok(Err(now)) => {
                *found = now;
                LinkTry::Disturbed
            }
            Err(_) => LinkTry::NotLinked,
        }
    }

    /// Unmasks a port, and raises it again if it is pending.
    pub(super) fn fifo_unmask(&mut self, port: Port, vcpu: VcpuId) {
        let Some(word) = self.fifo_word(port) else { return };
        self.fetch_and(word, !MASKED);
        if self.load(word) & PENDING != 0 {
            self.fifo_raise(port, vcpu);
        }
    }

    /// Clears a port's PENDING. It stays on its queue: the guest takes it off and ignores it.
    pub(super) fn fifo_clear(&self, port: Port) {
        if let Some(word) = self.fifo_word(port) {
            self.fetch_and(word, !PENDING);
        }
    }

    /// Whether a port's bit of its word is set.
    pub(super) fn fifo_has(&self, port: Port, bit: u32) -> bool {
        self.fifo_word(port).is_some_and(|word| self.load(word) & bit != 0)
    }

    fn fifo_word(&self, port: Port) -> Option<MachAddr> {
        self.events.fifo.as_ref()?.word(port)
    }

    /// `EVTCHNOP_init_control`: gives a vCPU its control block; the first one turns the ABI on.
    ///
    /// # Errors
    ///
    /// `ENOENT` for a vCPU that does not exist, `EINVAL` for an offset that is not a multiple of 8 or at which the
    /// block would cross the page, a frame that is not the guest's and writable, or a second block.
    pub(crate) fn fifo_init_control(&mut self, vcpu: VcpuId, frame: Mfn, offset: u32) -> Result<(), Errno> {
        if self.vcpus.get(vcpu.0 as usize).is_none() {
            return Err(Errno::Enoent);
        }
        let room = PAGE_SIZE - size_of::<FifoControlBlock>() as u64;
        if u64::from(offset) > room || !offset.is_multiple_of(8) {
            return Err(Errno::Einval);
        }
        let has_one =
            |fifo: &Fifo| fifo.vcpus.get(vcpu.0 as usize).is_none_or(|queues| queues.control.is_some());
        if self.events.fifo.as_ref().is_some_and(has_one) {
            return Err(Errno::Einval);
        }
        self.claim_writable(frame).map_err(|_| Errno::Einval)?;
        let control = frame.base().map(|base| MachAddr(base.0 + u64::from(offset)));
        let first = self.events.fifo.is_none();
        let count = self.vcpus.len();
        let fifo = self
            .events
            .fifo
            .get_or_insert_with(|| Fifo { pages: Vec::new(), vcpus: vec![Queues::default(); count] });
        fifo.vcpus[vcpu.0 as usize].control = control;
        if first {
            self.keep_pending_ports();
        }
        Ok(())
    }

    /// Remembers what is pending in the two-level ABI, to raise it again when the array has a word for it.
    fn keep_pending_ports(&mut self) {
        for port in (1..self.events.ports.len()).map(Port) {
            let pending = self.two_level_is_pending(port);
            if let Some(channel) = self.events.ports.get_mut(port) {
                channel.pending |= pending;
                channel.priority = PRIORITY_DEFAULT;
            }
        }
    }

    /// `EVTCHNOP_expand_array`: adds a page of event words.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` without the ABI, `ENOSPC` if the array is complete, `EINVAL` for a frame that is not the guest's
    /// and writable.
    pub(crate) fn fifo_expand_array(&mut self, frame: Mfn) -> Result<(), Errno> {
        let pages = self.events.fifo.as_ref().ok_or(Errno::Eopnotsupp)?.pages.len();
        if pages >= MAX_PAGES {
            return Err(Errno::Enospc);
        }
        self.claim_writable(frame).map_err(|_| Errno::Einval)?;
        if let Some(fifo) = self.events.fifo.as_mut() {
            fifo.pages.push(frame);
        }
        let Ok(page) = u32::try_from(pages) else { return Ok(()) };
        let first = page * WORDS_PER_PAGE;
        let end = self.events.ports.len().min(first + WORDS_PER_PAGE);
        for port in (first..end).map(Port) {
            let kept =
                self.events.ports.get_mut(port).is_some_and(|channel| core::mem::take(&mut channel.pending));
            if kept {
                self.raise(port);
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`, for events raised from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a port beyond the table or a priority beyond 15, `ENOSYS` without the ABI, `EACCES` for a port
    /// that is not in use.
    pub(crate) fn fifo_set_priority(&mut self, port: Port, priority: u32) -> Result<(), Errno> {
        let fifo = self.events.fifo.is_some();
        let channel = self.events.ports.get_mut(port).ok_or(Errno::Einval)?;
        if !fifo {
            return Err(Errno::Enosys);
        }
        if !channel.is_usable() {
            return Err(Errno::Eacces);
        }
        if priority > PRIORITY_MIN {
            return Err(Errno::Einval);
        }
        channel.priority = priority;
        Ok(())
    }

    /// Returns to the two-level ABI.
    pub(super) fn fifo_end(&mut self) {
        if let Some(fifo) = self.events.fifo.take() {
            for frame in fifo.frames() {
                self.release_writable(frame);
            }
        }
    }

    // The words lie in pages that were claimed, so these do not fail.

    fn load(&self, word: MachAddr) -> u32 {
        self.memory.load_u32(word).unwrap_or(0)
    }

    fn store(&self, word: MachAddr, value: u32) {
        let stored = self.memory.store_u32(word, value);
        debug_assert!(stored.is_ok(), "FIFO pages lie in guest memory");
    }

    fn fetch_or(&self, word: MachAddr, bits: u32) -> u32 {
        self.memory.fetch_or_u32(word, bits).unwrap_or(0)
    }

    fn fetch_and(&self, word: MachAddr, bits: u32) -> u32 {
        self.memory.fetch_and_u32(word, bits).unwrap_or(0)
    }
}

/// How one attempt to set a link ended.
enum LinkTry {
    Done,
    NotLinked,
    Disturbed,
}

impl Ports {
    /// Ports that the ABI in use can name.
    pub(super) fn limit(fifo: bool) -> u32 {
        if fifo { PORTS } else { paravane_abi::event_channel::TWO_LEVEL_PORTS_64 }
    }
}
