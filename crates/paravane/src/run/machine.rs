//! What the threads of a running guest share: the domain, its backends, and who waits for what.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use paravane_abi::units::{Mfn, Port, VcpuId};
use paravane_devices::{
    byte_ring::RingError,
    console::Console,
    xenstore::{Store, StoreConnection},
};
use paravane_engine::{Exit, Kick, TlbFlush};
use paravane_hypervisor::{Domain, PortError};
use paravane_memory::Memory;
use paravane_translate::Stats;

use super::{Ending, clock, log::Sink, symbols::Symbols};
use crate::failure::Failure;

/// A running guest.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) memory: Arc<Memory>,
    state: Mutex<State>,
    /// Something happened that a sleeping vCPU or the supervisor may wait for.
    changed: Condvar,
    /// Where the trace goes.
    sink: Arc<Sink>,
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
    stats: Stats,
    exits: ExitCounts,
}

/// How often the guest stopped for what.
#[derive(Clone, Copy, Debug, Default)]
struct ExitCounts {
    hypercalls: u64,
    system_calls: u64,
    page_faults: u64,
    exceptions: u64,
    privileged: u64,
    interruptions: u64,
    /// INT n, and look-ups in the LDT.
    others: u64,
}

impl ExitCounts {
    fn count(&mut self, exit: &Exit) {
        *match exit {
            Exit::Hypercall => &mut self.hypercalls,
            Exit::GuestSyscall(_) => &mut self.system_calls,
            Exit::PageFault(_) => &mut self.page_faults,
            Exit::Exception(_) => &mut self.exceptions,
            Exit::Privileged(_) => &mut self.privileged,
            Exit::Interrupted => &mut self.interruptions,
            Exit::SoftwareInterrupt(_) | Exit::LdtPage { .. } => &mut self.others,
        } += 1;
    }

    fn total(&self) -> u64 {
        let Self { hypercalls, system_calls, page_faults, exceptions, privileged, interruptions, others } =
            *self;
        hypercalls + system_calls + page_faults + exceptions + privileged + interruptions + others
    }
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
    /// Which backends the guest has used, for the log.
    pub(super) used: Used,
}

/// Which backends the guest has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    console: bool,
    store: bool,
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
    pub(super) fn new(memory: Arc<Memory>, domain: Domain, backends: Backends, sink: Arc<Sink>) -> Self {
        let state = State {
            domain,
            backends,
            kick: None,
            ending: None,
            stats: Stats::default(),
            exits: ExitCounts::default(),
        };
        Self { memory, state: Mutex::new(state), changed: Condvar::new(), sink, symbols: Symbols::default() }
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
            self.sink.write(&chores.trace)?;
            chores.trace.clear();
        }
        Ok(())
    }

    /// Says in the log how the guest ended, and what it took.
    pub(super) fn log_end(&self, ending: &Ending) {
        let text = ending.describe();
        let first = text.lines().next().unwrap_or_default();
        if ending.exit_code() == 0 {
            ::log::info!("{first}");
        } else {
            ::log::error!("{first}");
        }
        if ::log::log_enabled!(::log::Level::Debug) {
            for line in self.statistics().lines() {
                ::log::debug!("{}", line.strip_prefix("paravane: ").unwrap_or(line));
            }
        }
    }

    /// What the guest and its engine did, as text.
    pub(super) fn statistics(&self) -> String {
        let state = self.lock();
        let (stats, exits) = (&state.stats, &state.exits);
        let mut out = format!(
            "paravane: the guest's clock shows {:.3} s; {:.3} s of CPU time were used; {} exits\n",
            state.seconds(),
            clock::cpu_seconds(),
            exits.total()
        );
        for (name, value) in [
            ("  hypercalls", exits.hypercalls),
            ("  system calls", exits.system_calls),
            ("  page faults", exits.page_faults),
            ("  other exceptions", exits.exceptions),
            ("  privileged instructions", exits.privileged),
            ("  interruptions by timers", exits.interruptions),
            ("  others", exits.others),
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
            ("TLB entries filled in place", stats.tlb_refills),
            ("page crossings in place", stats.crossings),
            ("long string moves in place", stats.string_runs),
            ("pages of code found in place", stats.page_refills),
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

    /// Counts an exit.
    pub(super) fn count_exit(&mut self, exit: &Exit) {
        self.exits.count(exit);
    }

    /// Remembers the engine's statistics.
    pub(super) fn remember(&mut self, stats: Stats) {
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
        let Backends { store, connection, store_port, used, .. } = &mut self.backends;
        if !std::mem::replace(&mut used.store, true) {
            ::log::info!("the guest uses xenstore");
        }
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
                if !std::mem::replace(&mut self.backends.used.console, true) {
                    ::log::info!("the guest uses its console");
                }
                self.domain.notify_from_backend(self.backends.console_port).unwrap_or_else(closed);
            }
            Err(error) => self.backends.give_console_up(&error),
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
            Err(error) => {
                backends.give_console_up(&error);
                false
            }
        }
    }
}

impl Backends {
    /// The guest put nonsense into its console ring.
    fn give_console_up(&mut self, error: &RingError) {
        ::log::warn!("the guest broke its console ring, which is not served any more: {error}");
        self.console_broken = true;
    }
}

/// A guest that closed its port does not want to know.
fn closed(_: PortError) {}
