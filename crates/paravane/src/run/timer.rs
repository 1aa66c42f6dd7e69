//! Interrupts an engine when its vCPU has something to do at a certain time.
//!
//! A vCPU that sleeps waits by itself. One that runs must be kicked when its next timer is due. Arming is on the path of every
//! timer hypercall, so the thread is only woken when the deadline moves forward; one that moved back costs a
//! kick in vain.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use paravane_engine::Kick;

/// A deadline that a thread waits for.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When to kick.
    deadline: Option<Instant>,
    /// Whom to kick.
    kick: Option<Kick>,
    /// No more deadlines.
    over: bool,
}

impl Timer {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let timer = Self { shared: Arc::clone(&shared) };
        // Without the thread a running guest would miss its timers until it blocks; there is no such host.
        drop(thread::Builder::new().name("timer".to_owned()).spawn(move || shared.wait()));
        timer
    }

    /// Has `kick` sent after `delay`; `None` for not at all.
    pub(super) fn arm(&self, delay: Option<Duration>, kick: &Kick) {
        let deadline = delay.and_then(|delay| Instant::now().checked_add(delay));
        let mut state = self.shared.lock();
        let sooner = match (deadline, state.deadline) {
            (Some(new), Some(old)) => new < old,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if sooner || deadline.is_none() {
            state.deadline = deadline;
        }
        if state.kick.is_none() {
            state.kick = Some(kick.clone());
        }
        drop(state);
        if sooner {
            self.shared.changed.notify_one();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut state = self.lock();
        while !state.over {
            let now = Instant::now();
            match state.deadline {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) if deadline <= now => {
                    state.deadline = None;
                    if let Some(kick) = &state.kick {
                        kick.kick();
                    }
                }
                Some(deadline) => {
                    let waited = self.changed.wait_timeout(state, deadline - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}
