//! The two-level ABI: a bit for each port, and a bit for each word of such bits.
//!
//! ```text
//!   vcpu_info                        shared_info
//!   upcall_pending ◄── selector ◄── pending[port] & !mask[port]
//!                      bit port/64   bit port
//! ```
//!
//! The bits are set from right to left and the guest clears them from left to right, so an event is never lost
//! between the two: whoever finds a bit set already knows that the other side has still to look at it.
//!
//! Source: `xen/common/event_2l.c`.

use core::mem::offset_of;

use paravane_abi::{
    shared_info::SharedInfo,
    units::{MachAddr, Port, VcpuId},
};

use crate::{domain::Domain, vcpu::vcpu_info};

const WORD_BITS: u32 = u64::BITS;

impl Domain {
    /// Raises a port.
    pub(super) fn two_level_raise(&mut self, port: Port, vcpu: VcpuId) {
        if self.set_bit(self.pending_word(port), port) {
            return;
        }
        if !self.bit(self.mask_word(port), port) && !self.select(port, vcpu) {
            self.mark_events_pending(vcpu);
        }
        self.wake_pollers(port);
    }

    /// Unmasks a port, and raises the upcall that the mask held back.
    pub(super) fn two_level_unmask(&mut self, port: Port, vcpu: VcpuId) {
        let bit = 1 << (port.0 % WORD_BITS);
        let was_masked =
            self.memory.fetch_and_u64(self.mask_word(port), !bit).is_ok_and(|old| old & bit != 0);
        if was_masked && self.two_level_is_pending(port) && !self.select(port, vcpu) {
            self.mark_events_pending(vcpu);
        }
    }

    /// Clears a port's pending bit.
    pub(super) fn two_level_clear(&self, port: Port) {
        let cleared = self.memory.fetch_and_u64(self.pending_word(port), !(1 << (port.0 % WORD_BITS)));
        debug_assert!(cleared.is_ok(), "shared_info lies in guest memory");
    }

    /// Whether a port's pending bit is set.
    pub(super) fn two_level_is_pending(&self, port: Port) -> bool {
        self.bit(self.pending_word(port), port)
    }

    /// Sets the selector bit of the port's word, and returns whether it was set.
    fn select(&self, port: Port, vcpu: VcpuId) -> bool {
        let Some(vcpu) = self.vcpus.get(vcpu.0 as usize) else { return true };
        self.set_bit(vcpu.info(vcpu_info::PENDING_SEL), Port(port.0 / WORD_BITS))
    }

    /// The word of `evtchn_pending` that holds the port's bit.
    fn pending_word(&self, port: Port) -> MachAddr {
        self.shared(offset_of!(SharedInfo, evtchn_pending) + word_offset(port))
    }

    /// The word of `evtchn_mask` that holds the port's bit.
    fn mask_word(&self, port: Port) -> MachAddr {
        self.shared(offset_of!(SharedInfo, evtchn_mask) + word_offset(port))
    }

    /// Sets the port's bit of a word, and returns whether it was set.
    fn set_bit(&self, word: MachAddr, port: Port) -> bool {
        let bit = 1 << (port.0 % WORD_BITS);
        self.memory.fetch_or_u64(word, bit).is_ok_and(|old| old & bit != 0)
    }

    /// The port's bit of a word.
    fn bit(&self, word: MachAddr, port: Port) -> bool {
        self.memory.load_u64(word).is_ok_and(|word| word & 1 << (port.0 % WORD_BITS) != 0)
    }
}

/// Where the port's word is in its array. Ports beyond the array cannot be allocated under this ABI.
fn word_offset(port: Port) -> usize {
    (port.0 / WORD_BITS) as usize % 64 * size_of::<u64>()
}
