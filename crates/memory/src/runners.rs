//! Engines that run guest code from one memory at the same time, and how they agree on what is code.
//!
//! An engine writes guest memory in its own way, without asking anybody, as long as a frame holds no code. When
//! another engine reads a frame as code for the first time, the first one must have given up its way before a byte is
//! read, or a write of its would go unnoticed. So an engine says when it is *inside* guest code, and up to which event
//! it has read the log of [`CodeMarks`](crate::code::CodeMarks). Who marked a frame waits until every other engine is
//! outside, or inside with that event read ([`Runners::settle`]). Those inside are interrupted, so it is not for long.
//! An engine that waits is itself outside: no two wait for each other.
//!
//! Going inside is a store, then a load of the log; marking is an entry in the log, then a load of who is inside. Both
//! have a full barrier between, so one of the two sees the other.
//!
//! Once a frame holds code, who writes to it beside or over the code says so first: the frame, then what becomes of the
//! marks, then the write. Who reads code marks it, waits until nobody writes to the frame ([`Runners::settle`] again), and
//! reads. So either the writer finds the mark, and the log says so before a byte has changed, or the reader finds
//! the writer and reads what it wrote.
//!
//! An engine that is alone does none of this. Whether it is, it asks once for each run; so an engine that joins
//! interrupts those that run, and waits until their run has ended.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Where an engine is that runs no guest code.
const OUTSIDE: u64 = u64::MAX;
/// No frame.
const NOWHERE: u64 = u64::MAX;
/// How often one looks before an engine is interrupted once more.
const PATIENCE: u32 = 1024;

/// One engine.
pub struct Runner {
    /// Odd while a run is under way.
    runs: AtomicU64,
    /// [`OUTSIDE`], or how much of the log was read before it went inside.
    inside: AtomicU64,
    /// The frame that it writes to although there is code in it, or [`NOWHERE`].
    writes_to: AtomicU64,
    interrupt: Box<dyn Fn() + Send + Sync>,
}

impl Runner {
    /// Says that it will write to a frame that may hold code.
    pub(crate) fn begin_write(&self, frame: u64) {
        self.writes_to.swap(frame, Ordering::SeqCst);
    }

    /// It has written, or will not.
    pub fn end_write(&self) {
        self.writes_to.store(NOWHERE, Ordering::Release);
    }

    fn writes_to(&self, frame: u64) -> bool {
        self.writes_to.load(Ordering::SeqCst) == frame
    }

    fn is_behind(&self, event: u64) -> bool {
        let inside = self.inside.load(Ordering::SeqCst);
        inside != OUTSIDE && inside < event
    }

    fn is_running(&self) -> bool {
        self.runs.load(Ordering::SeqCst) % 2 == 1
    }

    /// Goes outside.
    pub fn leave_guest(&self) {
        self.inside.store(OUTSIDE, Ordering::Release);
    }

    /// Says up to where the log was read before going inside. The caller looks at the log again, and goes
    /// outside if there is more in it.
    pub(crate) fn enter_guest(&self, read: u64) {
        self.inside.swap(read, Ordering::SeqCst);
    }

    /// A run has ended.
    pub fn end_run(&self) {
        // Nobody else counts, and who waits for it only needs to see it some time: no barrier, which every exit would pay.
        self.runs.store(self.runs.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("inside", &self.inside).finish_non_exhaustive()
    }
}

/// The engines of a memory.
#[derive(Debug, Default)]
pub(crate) struct Runners {
    count: AtomicUsize,
    list: Mutex<Vec<Arc<Runner>>>,
}

impl Runners {
    /// Adds an engine.
    pub(crate) fn join(&self, interrupt: Box<dyn Fn() + Send + Sync>) -> Arc<Runner> {
        let runner = Arc::new(Runner {
            runs: AtomicU64::new(0),
            inside: AtomicU64::new(OUTSIDE),
            writes_to: AtomicU64::new(NOWHERE),
            interrupt,
        });
        let others = self.others(&runner);
        self.change(|list| list.push(Arc::clone(&runner)));
        for other in others {
            let run = other.runs.load(Ordering::SeqCst);
            wait(|| other.is_running() && other.runs.load(Ordering::SeqCst) == run, &*other.interrupt);
        }
        runner
    }

    /// Removes an engine.
    pub(crate) fn leave(&self, runner: &Arc<Runner>) {
        runner.leave_guest();
        runner.end_write();
        self.change(|list| list.retain(|other| !Arc::ptr_eq(other, runner)));
    }

    /// Begins a run of an engine; says whether it is one of several.
    pub(crate) fn begin_run(&self, runner: &Runner) -> bool {
        runner.runs.fetch_add(1, Ordering::SeqCst);
        self.are_several()
    }

    /// Whether there is more than one.
    pub(crate) fn are_several(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 1
    }

    /// Interrupts those that are inside and have not read this event.
    pub(crate) fn interrupt(&self, event: u64) {
        if self.are_several() {
            self.list()
                .iter()
                .filter(|runner| runner.is_behind(event))
                .for_each(|runner| (runner.interrupt)());
        }
    }

    /// Waits until every other engine is outside, or went inside with this event read, and does not write to a frame.
    pub(crate) fn settle(&self, runner: &Arc<Runner>, event: u64, frame: u64) {
        for other in self.others(runner) {
            wait(|| other.is_behind(event), &*other.interrupt);
            wait(|| other.writes_to(frame), &|| {});
        }
    }

    fn others(&self, runner: &Arc<Runner>) -> Vec<Arc<Runner>> {
        self.list().iter().filter(|other| !Arc::ptr_eq(other, runner)).cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Runner>>)) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut list);
        self.count.store(list.len(), Ordering::SeqCst);
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Runner>>> {
        // Nothing in a critical section can panic half-way, so a poisoned list is still whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits as long as something is so, and interrupts who makes it so.
fn wait(goes_on: impl Fn() -> bool, interrupt: &(dyn Fn() + Send + Sync)) {
    let mut looks = 0_u32;
    while goes_on() {
        if looks.is_multiple_of(PATIENCE) {
            interrupt();
        }
        looks = looks.wrapping_add(1);
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::units::Mfn;

    use crate::code::{CodeMarks, Cursor, Missed};

    use super::*;

    const FRAME: Mfn = Mfn(7);

    /// Two engines; and how often the second one was interrupted.
    fn two() -> (Arc<CodeMarks>, [Arc<Runner>; 2], Arc<AtomicUsize>) {
        let marks = Arc::new(CodeMarks::new(FRAME, 1));
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interrupts);
        let first = marks.join(Box::new(|| {}));
        let second = marks.join(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        (marks, [first, second], interrupts)
    }

    #[test]
    fn an_engine_goes_inside_only_with_the_whole_log_read() {
        let (marks, [first, second], _) = two();
        assert!(marks.begin_run(&first));
        let mut cursor = Cursor::default();
        assert!(marks.enter_guest(&second, cursor));
        second.leave_guest();
        marks.mark(FRAME, 0, 1);
        assert!(!marks.enter_guest(&second, cursor));
        assert!(!second.is_behind(1));
        assert!(matches!(marks.missed(&mut cursor), Missed::Events(events) if events.len() == 1));
        assert!(marks.enter_guest(&second, cursor));
        assert!(!second.is_behind(1));
    }

    #[test]
    fn who_marks_waits_for_those_inside_and_interrupts_them() {
        let (marks, [first, second], interrupts) = two();
        assert!(marks.enter_guest(&second, Cursor::default()));
        let theirs = Arc::clone(&marks);
        let marker = thread::spawn(move || {
            theirs.mark(FRAME, 0, 1);
            theirs.settle(&first, FRAME);
        });
        while interrupts.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        assert!(!marker.is_finished());
        second.leave_guest();
        marker.join().unwrap();
    }

    #[test]
    fn who_marks_waits_until_what_was_announced_is_written() {
        let (marks, [first, second], _) = two();
        marks.mark(FRAME, 0, 64);
        let mut cursor = Cursor::default();
        marks.missed(&mut cursor);
        // The announcement itself gives up what was derived.
        marks.begin_write(&second, FRAME, 8, 8);
        assert!(!marks.is_current(cursor));
        let theirs = Arc::clone(&marks);
        let marker = thread::spawn(move || {
            theirs.mark(FRAME, 0, 1);
            theirs.settle(&first, FRAME);
        });
        while !marks.holds_code(FRAME) {
            thread::yield_now();
        }
        assert!(!marker.is_finished());
        second.end_write();
        marker.join().unwrap();
    }

    #[test]
    fn who_joins_waits_for_the_runs_of_those_that_thought_they_were_alone() {
        let marks = Arc::new(CodeMarks::new(FRAME, 1));
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interrupts);
        let first = marks.join(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        assert!(!marks.begin_run(&first));
        let theirs = Arc::clone(&marks);
        let joiner = thread::spawn(move || theirs.join(Box::new(|| {})));
        while interrupts.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(!joiner.is_finished());
        first.end_run();
        let second = joiner.join().unwrap();
        assert!(marks.begin_run(&first));
        first.end_run();
        marks.leave(&second);
        assert!(!marks.begin_run(&first));
    }
}
