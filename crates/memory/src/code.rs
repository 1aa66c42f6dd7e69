//! Which parts of which frames an engine has read as instructions, and who overwrote them.
//!
//! A translating engine marks the 64-byte lines it decoded ([`CodeMarks::mark`]). Every write through
//! [`Memory`](crate::Memory), and every write the engine performs for the guest, asks [`CodeMarks::written`]:
//! if it touches a marked line, the frame's marks are cleared and an event is logged. Each engine keeps a
//! [`Cursor`] and reads the log before it runs guest code again. [`CodeMarks::mark`] logs too when a
//! frame turns from plain data into code, because other vCPUs' engines must then drop the fast write path
//! that they may hold to that frame.
//!
//! The log is bounded: an engine that slept too long is told to forget everything.
//!
//! Several engines may run from one memory, each on a thread of its own. They [join](CodeMarks::join); what they then
//! owe each other is at [`Runner`].

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use paravane_abi::units::{Mfn, PAGE_BYTES};
use zerocopy::FromZeros;

pub use crate::runners::Runner;
use crate::runners::Runners;

/// Bytes in a line of code marks.
const LINE_BYTES: usize = 64;
/// Events kept before the oldest are dropped.
const LOG_LIMIT: usize = 4096;

/// What happened to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeEvent {
    /// A frame without code now holds code: fast write paths to it must go.
    Marked(Mfn),
    /// Bytes that had been read as code were overwritten: what was derived from the frame must go.
    Overwritten(Mfn),
}

/// An engine's place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

/// What an engine missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// These events, in order.
    Events(Vec<CodeEvent>),
    /// More than the log holds: assume that everything changed.
    Everything,
}

/// The marks of all frames, and the log.
#[derive(Debug)]
pub struct CodeMarks {
    first: Mfn,
    /// Bit `n`: line `n` of the frame holds code.
    lines: Box<[AtomicU64]>,
    /// Events ever logged; read without the lock.
    logged: AtomicU64,
    log: Mutex<VecDeque<CodeEvent>>,
    runners: Runners,
}

impl CodeMarks {
    /// Marks of `frames` frames. They come zeroed from the allocator, so that those of frames that never hold code cost the
    /// host nothing.
    pub(crate) fn new(first: Mfn, frames: usize) -> Self {
        let lines = <[AtomicU64]>::new_box_zeroed_with_elems(frames)
            .unwrap_or_else(|_| (0..frames).map(|_| AtomicU64::new(0)).collect());
        Self {
            first,
            lines,
            logged: AtomicU64::new(0),
            log: Mutex::new(VecDeque::new()),
            runners: Runners::default(),
        }
    }

    /// Whether any line of `frame` holds code. Frames outside memory hold none.
    pub fn holds_code(&self, frame: Mfn) -> bool {
        self.lines(frame).is_some_and(|lines| lines.load(Ordering::Acquire) != 0)
    }

    /// The words that say which lines of each frame hold code, in frame order: for engines whose own code asks what
    /// [`CodeMarks::holds_code`] answers. Valid as long as `self`.
    pub fn words(&self) -> *const AtomicU64 {
        self.lines.as_ptr()
    }

    /// Records that `len` bytes from `offset` of `frame` were read as instructions. Must be called before they
    /// are read. Says whether the frame held no code before.
    pub fn mark(&self, frame: Mfn, offset: usize, len: usize) -> bool {
        let Some(lines) = self.lines(frame) else { return false };
        let fresh = lines.fetch_or(line_mask(offset, len), Ordering::AcqRel) == 0;
        if fresh {
            self.push(CodeEvent::Marked(frame));
        }
        fresh
    }

    /// Records that `len` bytes from `offset` of `frame` were written. Says whether they held code, in which
    /// case the frame's marks are gone and every engine will be told.
    ///
    /// With several engines the bytes must be there already, but for [`CodeMarks::begin_write`]: who reads code marks
    /// it first and reads it then, so one of the two notices the other.
    pub fn written(&self, frame: Mfn, offset: usize, len: usize) -> bool {
        let Some(lines) = self.lines(frame) else { return false };
        if self.runners.are_several() {
            // The bytes first, for everybody, then the marks.
            fence(Ordering::SeqCst);
        }
        if lines.load(Ordering::Acquire) & line_mask(offset, len) == 0 {
            return false;
        }
        self.overwritten(frame);
        true
    }

    /// Records that the whole of `frame` may have changed.
    pub fn overwritten(&self, frame: Mfn) {
        if let Some(lines) = self.lines(frame) {
            lines.store(0, Ordering::Release);
            self.push(CodeEvent::Overwritten(frame));
        }
    }

    /// Whether there is anything to read for `cursor`: one load, for the way into guest code.
    pub fn is_current(&self, cursor: Cursor) -> bool {
        self.logged.load(Ordering::Acquire) == cursor.0
    }

    /// Reads what happened since `cursor` and moves it to the end.
    pub fn missed(&self, cursor: &mut Cursor) -> Missed {
        let log = self.lock();
        let logged = self.logged.load(Ordering::Acquire);
        let behind = usize::try_from(logged - cursor.0).unwrap_or(usize::MAX);
        cursor.0 = logged;
        match log.len().checked_sub(behind) {
            Some(skip) => Missed::Events(log.iter().skip(skip).copied().collect()),
            None => Missed::Everything,
        }
    }

    /// Adds an engine that will run guest code, and what interrupts it (which must not block). Engines that run are
    /// interrupted, and their runs waited for.
    pub fn join(&self, interrupt: Box<dyn Fn() + Send + Sync>) -> Arc<Runner> {
        self.runners.join(interrupt)
    }

    /// Removes an engine.
    pub fn leave(&self, runner: &Arc<Runner>) {
        self.runners.leave(runner);
    }

    /// An engine begins a run. Says whether it is one of several, and therefore must [go inside](CodeMarks::enter_guest)
    /// and [settle](CodeMarks::settle).
    pub fn begin_run(&self, runner: &Runner) -> bool {
        self.runners.begin_run(runner)
    }

    /// An engine goes inside guest code. If it has not read the whole log, it stays outside and is told `false`.
    pub fn enter_guest(&self, runner: &Runner, cursor: Cursor) -> bool {
        runner.enter_guest(cursor.0);
        let current = self.logged.load(Ordering::SeqCst) == cursor.0;
        if !current {
            runner.leave_guest();
        }
        current
    }

    /// Waits until no other engine runs guest code that has not taken notice of all that is in the log, or writes to
    /// `frame`. Behind this, what was marked can be read: every later write to it is noticed.
    pub fn settle(&self, runner: &Arc<Runner>, frame: Mfn) {
        self.runners.settle(runner, self.logged.load(Ordering::SeqCst), frame.0);
    }

    /// An engine is about to write `len` bytes at `offset` of `frame`, which may hold code, and will tell its
    /// [`Runner`] when it has. What was derived from these bytes is given up now.
    pub fn begin_write(&self, runner: &Runner, frame: Mfn, offset: usize, len: usize) {
        runner.begin_write(frame.0);
        self.written(frame, offset, len);
    }

    fn push(&self, event: CodeEvent) {
        let mut log = self.lock();
        if log.len() == LOG_LIMIT {
            log.pop_front();
        }
        log.push_back(event);
        let logged = self.logged.fetch_add(1, Ordering::SeqCst) + 1;
        drop(log);
        self.runners.interrupt(logged);
    }

    fn lines(&self, frame: Mfn) -> Option<&AtomicU64> {
        self.lines.get(usize::try_from(frame.0.checked_sub(self.first.0)?).ok()?)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<CodeEvent>> {
        // Nothing in a critical section can panic half-way, so a poisoned log is still whole.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines that `len` bytes from `offset` touch; what lies beyond the frame is ignored.
fn line_mask(offset: usize, len: usize) -> u64 {
    if len == 0 || offset >= PAGE_BYTES {
        return 0;
    }
    let first = offset / LINE_BYTES;
    let last = (offset.saturating_add(len).min(PAGE_BYTES) - 1) / LINE_BYTES;
    (u64::MAX >> (63 - (last - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_beside_marked_lines_disturbs_nothing() {
        let marks = CodeMarks::new(Mfn(100), 4);
        let mut cursor = Cursor::default();
        assert!(marks.mark(Mfn(101), 64, 65));
        assert!(!marks.mark(Mfn(101), 64, 1));
        assert!(!marks.written(Mfn(101), 0, 64));
        assert!(!marks.written(Mfn(101), 192, 3904));
        assert!(marks.holds_code(Mfn(101)));
        assert!(marks.written(Mfn(101), 190, 1));
        assert!(!marks.holds_code(Mfn(101)));
        assert_eq!(
            marks.missed(&mut cursor),
            Missed::Events(vec![CodeEvent::Marked(Mfn(101)), CodeEvent::Overwritten(Mfn(101))])
        );
        assert!(marks.is_current(cursor));
    }

    #[test]
    fn an_engine_that_slept_too_long_forgets_everything() {
        let marks = CodeMarks::new(Mfn(0), 1);
        let mut cursor = Cursor::default();
        for _ in 0..=LOG_LIMIT {
            marks.overwritten(Mfn(0));
        }
        assert_eq!(marks.missed(&mut cursor), Missed::Everything);
        assert_eq!(marks.missed(&mut cursor), Missed::Events(vec![]));
    }

    #[test]
    fn line_masks_cover_exactly_the_touched_lines() {
        for (offset, len, mask) in [
            (0, 0, 0),
            (0, 1, 1),
            (63, 2, 3),
            (0, 4096, u64::MAX),
            (4095, 100, 1 << 63),
            (4096, 1, 0),
            (128, 128, 0b1100),
        ] {
            assert_eq!(line_mask(offset, len), mask, "{offset} {len}");
        }
    }
}
