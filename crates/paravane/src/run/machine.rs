//! What the threads of a running guest share: the domain, its backends, and who waits for what.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use paravane_abi::units::{Mfn, Port, VcpuId};
use paravane_devices::{
    console::Console,
    xenstore::{Store, StoreConnection},
};
use paravane_engine::{Kick, TlbFlush};
use paravane_hypervisor::{Domain, PortError};
use paravane_memory::Memory;
use paravane_translate::Stats;

use super::{Ending, TraceTo, clock, symbols::Symbols};
use crate::failure::Failure;

/// A running guest.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) memory: Arc<Memory>,
    state: Mutex<State>,
    /// Something happened that a sleeping vCPU or the supervisor may wait for.
    changed: Condvar,
    pub(super) symbols: Symbols,
}

/// All that is behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) domain: Domain,
    backends: Backends,
    /// Makes the engine of vCPU 0 stop.
    pub(super) kick: Option<Kick>,
    ending: Option<Ending>,
    trace: Option<TraceSink>,
    stats: Stats,
    exits: u64,
}

/// The console and xenstore.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) console: Mfn,
    pub(super) console_port: Port,
    pub(super) store: Store,
    pub(super) connection: StoreConnection,
    pub(super) store_port: Port,
    /// What was typed and not yet taken by the guest.
    pub(super) typed: VecDeque<u8>,
    /// The guest broke its console ring: nothing more is read from it.
    pub(super) console_broken: bool,
}

/// Where trace lines go.
#[derive(Debug)]
enum TraceSink {
    StandardError,
    File(File),
}

/// What is to be done after the lock is released.
#[derive(Debug, Default)]
pub(super) struct Chores {
    /// What the guest printed.
    output: Vec<u8>,
    /// Lines of the trace.
    trace: String,
    /// The guest took some of what was typed.
    typed_taken: bool,
}

/// The most that is kept of what was typed.
const MAX_TYPED: usize = 64 << 10;

impl Machine {
    pub(super) fn new(
        memory: Arc<Memory>,
        domain: Domain,
        backends: Backends,
        trace: Option<&TraceTo>,
    ) -> Result<Self, Failure> {
        let trace = match trace {
            None => None,
            Some(TraceTo::StandardError) => Some(TraceSink::StandardError),
            Some(TraceTo::File(path)) => {
                let file =
                    File::create(path).map_err(|error| Failure::Input { path: path.clone(), error })?;
                Some(TraceSink::File(file))
            }
        };
        let state =
            State { domain, backends, kick: None, ending: None, trace, stats: Stats::default(), exits: 0 };
        Ok(Self { memory, state: Mutex::new(state), changed: Condvar::new(), symbols: Symbols::default() })
    }

    pub(super) fn with_symbols(mut self, symbols: Symbols) -> Self {
        self.symbols = symbols;
        self
    }

    /// The state. A thread that panicked with the lock held ends the guest; what it left is only read then.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changes, at most until `timeout` is over.
    pub(super) fn sleep<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match timeout {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Ends the guest, unless it has ended already.
    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.lock();
        state.ending.get_or_insert(ending);
        state.wake();
        drop(state);
        self.changed.notify_all();
    }

    /// How it ended, if it did.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    /// Waits for the end; false if `deadline` came first.
    pub(super) fn wait_for_end(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while state.ending.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            state = self.sleep(state, left);
        }
        true
    }

    /// Waits until the guest has taken what was typed, so that there is room for more, or is over; at most for `patience`.
    pub(super) fn wait_for_room(&self, patience: Option<Duration>) {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        while state.backends.typed.len() > MAX_TYPED / 2 && !state.is_over() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return;
            }
            state = self.sleep(state, left);
        }
    }

    /// Passes what was typed to the guest. What is more than is kept is lost.
    pub(super) fn type_bytes(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = MAX_TYPED - state.backends.typed.len().min(MAX_TYPED);
        state.backends.typed.extend(&bytes[..bytes.len().min(room)]);
        state.offer_typed(&self.memory);
        if !state.domain.take_wakeups().is_empty() {
            state.wake();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Does what was put off until the lock was released.
    pub(super) fn carry_out(&self, chores: &mut Chores) -> Result<(), Failure> {
        if !chores.output.is_empty() {
            crate::output::write_raw(&chores.output)?;
            chores.output.clear();
        }
        if std::mem::take(&mut chores.typed_taken) {
            self.changed.notify_all();
        }
        if !chores.trace.is_empty() {
            let written = match &mut self.lock().trace {
                Some(TraceSink::File(file)) => file.write_all(chores.trace.as_bytes()),
                Some(TraceSink::StandardError) | None => {
                    io::stderr().lock().write_all(chores.trace.as_bytes())
                }
            };
            written.map_err(Failure::Output)?;
            chores.trace.clear();
        }
        Ok(())
    }

    /// What the guest and its engine did, as text.
    pub(super) fn statistics(&self) -> String {
        let state = self.lock();
        let mut out = format!("paravane: {:.3} s of guest time, {} exits\n", state.seconds(), state.exits);
        let stats = &state.stats;
        for (name, value) in [
            ("blocks translated", stats.blocks),
            ("guest instructions in them", stats.instructions),
            ("bytes of host code", stats.code_bytes),
            ("code cache emptied", stats.cache_flushes),
            ("returns to Rust", stats.leaves),
            ("  for TLB misses", stats.access_misses),
            ("  for jumps to link", stats.links),
            ("  for computed jumps", stats.jump_misses),
            ("  for pages of code", stats.page_checks),
            ("  for helpers", stats.helpers),
            ("frames of overwritten code", stats.overwritten_frames),
            ("TLBs emptied", stats.tlb_flushes),
        ] {
            let _ = writeln!(out, "  {name:<28} {value:>14}");
        }
        if let Ok(bytes) = self.memory.resident_bytes() {
            let _ = writeln!(out, "  {:<28} {:>10} KiB", "guest memory in use", bytes >> 10);
        }
        out
    }
}

impl State {
    /// Whether the guest is over.
    pub(super) fn is_over(&self) -> bool {
        self.ending.is_some()
    }

    /// Gets the vCPU out of the guest.
    fn wake(&self) {
        if let Some(kick) = &self.kick {
            kick.kick();
        }
    }

    /// Counts an exit and remembers the engine's statistics.
    pub(super) fn count_exit(&mut self, stats: Stats) {
        self.exits += 1;
        self.stats = stats;
    }

    fn seconds(&self) -> f64 {
        Duration::from_nanos(self.domain.system_ns(clock::now())).as_secs_f64()
    }

    /// The translations that the engine of `vcpu` must forget.
    pub(super) fn take_flushes(&mut self, vcpu: VcpuId) -> impl Iterator<Item = TlbFlush> + use<> {
        self.domain.take_flushes().into_iter().filter(move |flush| flush.vcpu == vcpu).map(|flush| flush.what)
    }

    /// Serves the backends that the guest notified.
    pub(super) fn serve(&mut self, memory: &Memory, chores: &mut Chores) -> Result<(), Failure> {
        for line in self.domain.take_trace() {
            chores.trace.push_str(&line);
            chores.trace.push('\n');
        }
        let text = self.domain.take_console_output();
        chores.output.extend_from_slice(&text.bytes);
        for port in self.domain.take_backend_events() {
            if port == self.backends.store_port {
                self.serve_store(memory)?;
            } else if port == self.backends.console_port {
                self.serve_console(memory, chores);
            }
        }
        Ok(())
    }

    fn serve_store(&mut self, memory: &Memory) -> Result<(), Failure> {
        let Backends { store, connection, store_port, .. } = &mut self.backends;
        let served = connection.serve(store, memory);
        if served.map_err(|error| Failure::Internal(error.to_string()))? {
            self.domain.notify_from_backend(*store_port).unwrap_or_else(closed);
        }
        Ok(())
    }

    fn serve_console(&mut self, memory: &Memory, chores: &mut Chores) {
        if self.backends.console_broken {
            return;
        }
        match Console::new(memory, self.backends.console).take_output(&mut chores.output) {
            Ok(0) => {}
            Ok(_) => {
                self.domain.notify_from_backend(self.backends.console_port).unwrap_or_else(closed);
            }
            Err(_) => self.backends.console_broken = true,
        }
        chores.typed_taken |= self.offer_typed(memory);
    }

    /// Gives the guest as much of what was typed as its ring has room for; says whether there was some.
    fn offer_typed(&mut self, memory: &Memory) -> bool {
        let backends = &mut self.backends;
        if backends.typed.is_empty() || backends.console_broken {
            return false;
        }
        let console = Console::new(memory, backends.console);
        match console.give_input(backends.typed.make_contiguous()) {
            Ok(0) => false,
            Ok(count) => {
                backends.typed.drain(..count);
                self.domain.notify_from_backend(backends.console_port).unwrap_or_else(closed);
                true
            }
            Err(_) => {
                backends.console_broken = true;
                false
            }
        }
    }
}

/// A guest that closed its port does not want to know.
fn closed(_: PortError) {}
