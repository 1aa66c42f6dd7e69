//! Guest memory shared with other engines, each on a thread of its own.
//!
//! Alone, an engine knows of every write to code: it makes them all, or is told before it runs on. Among several, the
//! rules at [`Runner`](paravane_memory::code::Runner) hold, and this is how they are kept:
//!
//! * Translated code is entered only when the whole log of events was read. If there was more, what is under way in the
//!   middle of a block is looked up again from its RIP, because host addresses for writing that a block holds may be of
//!   frames that have become code. Wherever Rust comes in, the guest's state is that before an instruction or behind it,
//!   so nothing is lost. Only behind a call whose return address is pushed there is no such place, and no such address
//!   either.
//! * A block that is entered at its start is entered even if it was overwritten since it was looked up, or an engine
//!   that is slower than the one that overwrites would never get on. Its code was there when it was read. But it
//!   may be linked to more that is gone: a kick sees to it that it does not stay there.
//! * Bytes are decoded after their frame was marked and everybody knows. What else of the page turns out to matter is
//!   marked and then compared with what was decoded.
//! * A write beside or over code is announced, and then done in place, by the instruction itself, so that it stays atomic.
//!
//! A kick for an event ends the run as any other kick does: to the core it is one that has nothing to say.

use std::sync::Arc;

use paravane_abi::units::{MachAddr, Mfn, PAGE_SIZE};
use paravane_memory::Memory;
use paravane_memory::code::Runner;

use crate::bits::index as index_of;
use crate::engine::{Entry, Go, Translator};
use crate::sites::{Access, PageId};

/// An engine's place among those of its memory.
#[derive(Debug)]
pub(crate) struct Seat {
    memory: Arc<Memory>,
    runner: Arc<Runner>,
    /// Whether there are others, as of the run's beginning.
    is_shared: bool,
}

impl Seat {
    /// Takes one. Waits until other engines' runs have ended.
    pub(crate) fn take(memory: &Arc<Memory>, interrupt: Box<dyn Fn() + Send + Sync>) -> Self {
        let runner = memory.code().join(interrupt);
        Self { memory: Arc::clone(memory), runner, is_shared: false }
    }

    /// A run begins.
    pub(crate) fn begin_run(&mut self) {
        self.is_shared = self.memory.code().begin_run(&self.runner);
    }

    /// A run has ended.
    pub(crate) fn end_run(&self) {
        self.runner.end_run();
    }

    /// Whether there are other engines.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Translated code has left.
    pub(crate) fn leave_guest(&self) {
        if self.is_shared {
            self.runner.leave_guest();
        }
    }

    /// Waits until everybody knows what was marked, and nobody writes to a frame.
    fn settle(&self, frame: Mfn) {
        if self.is_shared {
            self.memory.code().settle(&self.runner, frame);
        }
    }

    /// What was announced was written, or will not be.
    pub(crate) fn end_write(&self) {
        if self.is_shared {
            self.runner.end_write();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.memory.code().leave(&self.runner);
    }
}

impl Translator {
    /// Prepares for entering translated code. `false`: what is under way must be looked up again.
    pub(crate) fn enter_guest(&mut self, entry: Entry) -> bool {
        while self.seat.is_shared() && !self.memory.code().enter_guest(&self.seat.runner, self.cursor) {
            if entry == Entry::Middle {
                return false;
            }
            let generation = self.generation;
            self.catch_up();
            if entry == Entry::Start {
                self.cpu.kick();
                if generation != self.generation {
                    return false;
                }
            }
        }
        true
    }

    /// As [`Translator::catch_up`], if others can have done anything.
    pub(crate) fn catch_up_with_others(&mut self) {
        if self.seat.is_shared() {
            self.catch_up();
        }
    }

    /// Lets the instruction write in place, and comes back behind it.
    pub(crate) fn write_beside_code(&mut self, access: Access, frame: Mfn, offset: usize, host: u64) -> Go {
        self.memory.code().begin_write(&self.seat.runner, frame, offset, access.size as usize);
        // What that put into the log must not stop the write that it is about.
        self.catch_up();
        let state = self.cpu.state_mut();
        state.scratch = host - u64::from(access.bias);
        state.resume = u64::from(access.aside);
        Go::Resume(Entry::Start)
    }

    /// Waits until bytes of a page that were marked can be read.
    pub(crate) fn settle(&self, page: PageId) {
        if let Some(page) = self.pages.get(page) {
            self.seat.settle(page.frame);
        }
    }

    /// Compares marked bytes with those that were decoded; drops what the frame's code became if they differ.
    pub(crate) fn confirm(&self, page: PageId, source: &[u8], address: u64, len: usize) {
        let Some(frame) = self.pages.get(page).map(|page| page.frame).filter(|_| self.seat.is_shared())
        else {
            return;
        };
        let offset = address & (PAGE_SIZE - 1);
        let len = len.min(index_of(PAGE_SIZE - offset)).min(source.len());
        self.seat.settle(frame);
        let mut now = vec![0; len];
        self.read_machine(MachAddr(frame.0 * PAGE_SIZE + offset), &mut now);
        if now != source[..len] {
            self.memory.code().overwritten(frame);
        }
    }
}
