//! [`Translator`]: the engine, and its run loop.
//!
//! ```text
//! run ──► block_at(RIP) ──► enter ──► translated code … ──► leave(site) ──► what the site says ──┐
//!            ▲                ▲                                                                    │
//!            │                └── resume: access translated, helper done ◄─────────────────────────┤
//!            └── another RIP: jump to link, computed jump, mode changed ◄──────────────────────────┤
//! Exit ◄── fault, system call, privileged instruction, kick ◄──────────────────────────────────────┘
//! ```

use std::sync::Arc;

use paravane_abi::units::{GuestVirt, Mfn, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Engine, Exit, GuestMode, Kick, ShadowStep, TlbFlush, VcpuContext, rflags};
use paravane_memory::Memory;
use paravane_memory::code::{CodeEvent, Cursor, Missed};
use thiserror::Error;

use crate::arena::Cpu;
use crate::asm::Buffer;
use crate::block::Need;
use crate::breakpoints::{self, Watch};
use crate::emit::{Bits, Emitter};
use crate::environment::Settled;
use crate::features::Host;
use crate::limits::Strict;
use crate::pages::{Env, Pages};
use crate::perf_map::PerfMap;
use crate::sharing::Seat;
use crate::sites::Site;
use crate::state::{HOT_BYTES, Path, noted};
use crate::stats::Stats;
use crate::stubs::Stubs;
use crate::{asm, signal};

/// The translator could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TranslatorError {
    /// The host CPU lacks something that the engine itself needs.
    #[error("the host CPU has no {0}, which the translator needs")]
    Cpu(&'static str),
    /// No memory that is writable and executable below 2 GiB.
    #[error(
        "the host gave no writable and executable memory below 2 GiB ({0}); a policy that forbids it must be lifted"
    )]
    Arena(rustix::io::Errno),
    /// Fault handlers could not be installed.
    #[error("the fault signals' handlers could not be installed: {0}")]
    Signals(std::io::Error),
    /// The map for `perf` could not be created.
    #[error("the map for perf could not be created in /tmp: {0}")]
    PerfMap(std::io::Error),
}

/// Choices about translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Put every instruction into a block of its own: slow, and makes a wrong translation easy to find.
    pub one_instruction_blocks: bool,
    /// Write `/tmp/perf-PID.map`, where `perf report` finds the names of translated code.
    pub perf_map: bool,
}

/// The default engine: one virtual CPU, run by binary translation.
#[derive(Debug)]
pub struct Translator {
    pub(crate) cpu: Cpu,
    pub(crate) memory: Arc<Memory>,
    pub(crate) emitter: Emitter,
    pub(crate) pages: Pages,
    pub(crate) env: Env,
    pub(crate) options: Options,
    pub(crate) stats: Stats,
    pub(crate) rorx: bool,
    pub(crate) hot_next: u32,
    pub(crate) cold_next: u32,
    /// Where a failed comparison in a pad goes.
    pub(crate) indirect_miss: u32,
    /// Counts whole-cache flushes.
    pub(crate) generation: u64,
    /// The page that a step redirects to `State::shadow`.
    pub(crate) shadow: Option<u64>,
    /// A write that waits on the bounce pages.
    pub(crate) bounced: Option<crate::access::Bounced>,
    /// The place among the engines of the memory.
    pub(crate) seat: Seat,
    /// Room for a page of code, kept between translations.
    pub(crate) source_bytes: Vec<u8>,
    pub(crate) cursor: Cursor,
    roots: [Option<Mfn>; 2],
    /// What code was translated for; a place in the list is a number that translated code knows.
    pub(crate) envs: Vec<Env>,
    /// What the code pages that are current in a mode take for granted, and its place in the list.
    pub(crate) current: [Option<(Env, u32)>; 2],
    /// What `env` was last derived from.
    pub(crate) settled: Option<Settled>,
    /// The same of each mode's `current`.
    pub(crate) settled_in: [Option<Settled>; 2],
    rules: Option<(u64, u64)>,
    pub(crate) perf_map: Option<PerfMap>,
    host: Host,
}

/// How the run loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    /// Translated code continues where `State::resume` says.
    Resume(Entry),
    /// The guest continues at this RIP.
    At(u64),
}

/// Where translated code is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A block's start, or one instruction by itself: no address is held from before.
    Start,
    /// The middle of a block. The guest could as well continue at the context's RIP.
    Middle,
    /// The end of a block, within an instruction that writes nothing more.
    End,
}

impl Translator {
    /// An engine over `memory`, with a reset CPU.
    ///
    /// # Errors
    ///
    /// What the host lacks or refuses.
    pub fn new(memory: Arc<Memory>, options: Options) -> Result<Self, TranslatorError> {
        let host = Host::detect().map_err(TranslatorError::Cpu)?;
        signal::install().map_err(TranslatorError::Signals)?;
        let perf_map = match options.perf_map {
            true => Some(PerfMap::create().map_err(TranslatorError::PerfMap)?),
            false => None,
        };
        let cpu = Cpu::new(host.state_components()).map_err(TranslatorError::Arena)?;
        let emitter = Emitter::new(cpu.layout());
        let kick = cpu.kick_handle();
        let seat = Seat::take(&memory, Box::new(move || kick.kick()));
        let mut translator = Self {
            cpu,
            memory,
            emitter,
            pages: Pages::default(),
            env: Env {
                mode: GuestMode::Kernel,
                bits: Bits::B64,
                flat: true,
                strict: Strict::default(),
                code_limit: u64::MAX,
                task_switched: false,
                aligned: false,
                single: false,
            },
            options,
            stats: Stats::default(),
            rorx: host.has_bmi2(),
            hot_next: 0,
            cold_next: 0,
            indirect_miss: 0,
            generation: 0,
            shadow: None,
            bounced: None,
            seat,
            envs: Vec::new(),
            source_bytes: Vec::new(),
            cursor: Cursor::default(),
            roots: [None; 2],
            current: [None; 2],
            settled: None,
            settled_in: [None; 2],
            rules: None,
            perf_map,
            host,
        };
        translator.introduce_memory();
        translator.empty_cache();
        for mode in [GuestMode::Kernel, GuestMode::User] {
            translator.reset_tlb(mode);
        }
        Ok(translator)
    }

    /// What the engine did so far.
    pub fn stats(&self) -> Stats {
        let state = self.cpu.state();
        let (walk, runs) = (&state.walk, &state.runs);
        Stats {
            tlb_refills: walk.refills,
            page_refills: walk.page_checks,
            string_runs: runs.completed,
            crossings: walk.crossings,
            ..self.stats
        }
    }

    /// Tells the walk of translated code where guest memory is.
    fn introduce_memory(&mut self) {
        let first = self.memory.first_frame();
        let base = self.memory.frame_pointer(first).map_or(0, |base| base.as_ptr() as usize as u64);
        let words = self.memory.code().words() as usize as u64;
        let alive = u64::from(self.cpu.layout().alive());
        let frames = self.memory.frame_count();
        let walk = &mut self.cpu.state_mut().walk;
        (walk.first, walk.count, walk.base) = (first.0, frames, base);
        (walk.lines, walk.alive) = (words, alive);
    }

    /// What the guest may be told about the CPU.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Forgets all translations and starts with an empty cache.
    pub(crate) fn empty_cache(&mut self) {
        self.generation += 1;
        self.stats.cache_flushes += u64::from(self.generation > 1);
        self.pages.clear();
        self.emitter.reset();
        let code = self.cpu.layout().code();
        let mut stubs = Buffer::default();
        stubs.restart(code + HOT_BYTES);
        self.emitter.stubs = Stubs::emit(&mut stubs, self.cpu.layout());
        self.indirect_miss = stubs.here();
        let site = self.emitter.site(Site::Indirect);
        stubs.constant(asm::reg::R15, u64::from(site));
        stubs.jmp(self.emitter.stubs.leave);
        self.cpu.write_code(stubs.base, &stubs.bytes);
        self.hot_next = code;
        self.cold_next = stubs.here();
        self.cpu.alive().fill(0);
        for mode in [GuestMode::Kernel, GuestMode::User] {
            self.empty_code_pages(mode);
            let miss = self.indirect_miss;
            self.cpu.jumps(mode).fill(miss);
        }
    }

    /// Runs from the context's RIP until something must be reported; with `single`, one instruction.
    fn drive(&mut self, single: bool) -> Option<Exit> {
        self.prepare();
        self.seat.begin_run();
        let exit = self.go(single).err();
        self.seat.end_run();
        self.flags_to_context();
        self.stats.exits += 1;
        exit
    }

    fn go(&mut self, single: bool) -> Result<(), Exit> {
        let mut rip = self.cpu.state().context.rip;
        let (mut first, mut watch) = (true, Watch::default());
        loop {
            self.cpu.state_mut().context.rip = rip;
            self.catch_up();
            let trap = self.cpu.state().context.rflags & rflags::TF != 0;
            self.set_env(single || trap || breakpoints::watched(&self.cpu.state().context));
            if self.cpu.is_kicked() && !single {
                self.cpu.take_kick();
                return Err(Exit::Interrupted);
            }
            let now = self.watch(rip, trap, watch)?;
            self.go_to(rip, first && !self.env.single)?;
            first = false;
            let Some(next) = self.run_until_lookup()? else {
                rip = self.cpu.state().context.rip;
                continue;
            };
            (rip, watch) = (next, now);
            self.cpu.state_mut().context.rip = rip;
            self.completed(watch, trap)?;
            if single {
                return Ok(());
            }
        }
    }

    /// Has translated code continue at a guest address. A `guess` goes through the jump cache, like a computed jump: the
    /// block's own pad finds out whether it is the right one. Whoever comes back because a check failed needs a lookup.
    fn go_to(&mut self, rip: u64, guess: bool) -> Result<(), Exit> {
        let target = match guess {
            true => self.cpu.jumps(self.env.mode)[(rip & 0xffff) as usize],
            false => self.block_at(rip, Need::Body)?.body,
        };
        let state = self.cpu.state_mut();
        state.scratch = rip;
        state.resume = u64::from(target);
        Ok(())
    }

    /// Runs translated code, and what it asks of Rust, until the next instruction must be looked up by address. `None`
    /// if it must be because of what other engines did, at the context's RIP: nothing has completed.
    fn run_until_lookup(&mut self) -> Result<Option<u64>, Exit> {
        let mut entry = Entry::Start;
        loop {
            if !self.enter_guest(entry) {
                self.bounced = None;
                self.seat.end_write();
                return Ok(None);
            }
            self.cpu.state_mut().walk.sites = self.emitter.sites.as_ptr() as usize as u64;
            self.cpu.enter();
            self.seat.leave_guest();
            self.stats.leaves += 1;
            entry = match self.left()? {
                Go::Resume(entry) => entry,
                Go::At(rip) => return Ok(Some(rip)),
            };
        }
    }

    /// Translated code left: does what it wants.
    fn left(&mut self) -> Result<Go, Exit> {
        self.settle_pointers();
        if self.cpu.state().fault.pending != 0 {
            return self.host_fault();
        }
        self.settle_flags();
        let site = self.emitter.sites.get(self.cpu.state().reason as usize).copied();
        match site {
            Some(Site::Access(access)) => self.slow_access(access),
            Some(Site::Commit(commit)) => self.commit(commit),
            Some(Site::Chain(chain)) => {
                self.stats.links += 1;
                self.cpu.state_mut().context.rip = chain.target;
                // If the flags are not to be seen here, the next poll will do.
                if chain.flags_exact && self.cpu.is_kicked() {
                    return Ok(Go::At(chain.target));
                }
                self.catch_up_with_others();
                let body = self.link(chain)?.body;
                self.cpu.state_mut().resume = u64::from(body);
                Ok(Go::Resume(Entry::Start))
            }
            Some(Site::Indirect) => self.indirect(),
            Some(Site::Refused { rip, popped }) => Err(self.refuse(rip, popped)),
            Some(Site::Moved { rip, far, page }) => {
                self.stats.page_checks += 1;
                self.cpu.state_mut().context.rip = rip;
                if self.cpu.is_kicked() {
                    return Ok(Go::At(rip));
                }
                self.catch_up_with_others();
                let body = self.moved(rip, far, page)?.body;
                self.cpu.state_mut().resume = u64::from(body);
                Ok(Go::Resume(Entry::Start))
            }
            Some(Site::Enter { rip }) => Ok(Go::At(rip)),
            Some(Site::Pointers { rip, resume }) => {
                self.cpu.state_mut().context.rip = rip;
                self.cpu.state_mut().resume = u64::from(resume);
                Ok(Go::Resume(Entry::Middle))
            }
            Some(Site::Helper(helper)) => {
                self.stats.helpers += 1;
                self.cpu.state_mut().context.rip = helper.rip;
                self.help(helper)
            }
            // Reasons are only ever made by `Emitter::site`.
            None => Ok(Go::At(self.cpu.state().context.rip)),
        }
    }

    /// A computed jump whose target the cache does not know.
    fn indirect(&mut self) -> Result<Go, Exit> {
        let target = self.cpu.state().scratch;
        if !GuestVirt(target).is_canonical()
            && let Some(Site::Refused { rip, popped }) =
                self.emitter.sites.get(self.cpu.state().branch as usize).copied()
        {
            return Err(self.refuse(rip, popped));
        }
        if self.env.single {
            return Ok(Go::At(target));
        }
        self.stats.jump_misses += 1;
        self.cpu.state_mut().context.rip = target;
        if self.cpu.is_kicked() {
            return Ok(Go::At(target));
        }
        self.catch_up_with_others();
        let block = self.block_at(target, Need::Pad)?;
        if let Some(pad) = block.pad {
            self.remember_jump(target, pad);
        }
        self.cpu.state_mut().resume = u64::from(block.body);
        Ok(Go::Resume(Entry::Start))
    }

    /// Takes notice of what the core changed in the context.
    fn prepare(&mut self) {
        signal::prepare_thread(&mut self.cpu);
        let allowed = self.host.state_components();
        let context = &mut self.cpu.state_mut().context;
        context.rflags = (context.rflags
            & (rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID | rflags::RF))
            | rflags::FIXED
            | rflags::IF;
        // It outlives no instruction; who needs that exactly is watched instruction by instruction.
        if !breakpoints::watched(context) {
            context.rflags &= !rflags::RF;
        }
        crate::fpu::sanitise(&mut context.fpu, allowed);
        let now = (context.cr4.0, context.xcr0);
        let roots = [Some(context.kernel_root), context.user_root];
        if self.rules != Some(now) {
            if self.rules.is_some() {
                self.empty_cache();
            }
            self.rules = Some(now);
        }
        for (index, mode) in [GuestMode::Kernel, GuestMode::User].into_iter().enumerate() {
            if self.roots[index] != roots[index] {
                self.roots[index] = roots[index];
                self.flush_mode(mode);
            }
        }
        self.flags_from_context();
    }

    /// Notices overwritten code and frames that newly hold code.
    pub(crate) fn catch_up(&mut self) {
        if self.memory.code().is_current(self.cursor) {
            return;
        }
        let mut cursor = self.cursor;
        let missed = self.memory.code().missed(&mut cursor);
        self.cursor = cursor;
        match missed {
            Missed::Everything => {
                self.empty_cache();
                self.flush_all();
            }
            Missed::Events(events) => {
                for event in events {
                    match event {
                        CodeEvent::Marked(frame) => self.drop_write_entries(frame),
                        CodeEvent::Overwritten(frame) => {
                            let dead = self.pages.drop_frame(frame);
                            for id in &dead {
                                if let Some(alive) = self.cpu.alive().get_mut(id.0 as usize) {
                                    *alive = 0;
                                }
                            }
                            self.stats.overwritten_frames += u64::from(!dead.is_empty());
                        }
                    }
                }
                self.forget_dead_code_pages();
            }
        }
    }

    /// Code pages that died must not be current any more.
    fn forget_dead_code_pages(&mut self) {
        for mode in [GuestMode::Kernel, GuestMode::User] {
            let filled = self.cpu.state().code_filled[mode as usize];
            for index in noted(filled) {
                let id = &mut self.cpu.code_pages(mode)[index];
                if *id != 0 && !self.pages.is_alive(crate::sites::PageId(*id)) {
                    *id = 0;
                }
            }
        }
    }

    /// Makes the flags if translated code has only said how.
    pub(crate) fn settle_flags(&mut self) {
        let state = self.cpu.state_mut();
        state.status = self.emitter.recipes.settle(state.status, &state.context.gprs);
    }

    fn flags_from_context(&mut self) {
        let state = self.cpu.state_mut();
        let flags = state.context.rflags;
        state.status = crate::flags::pack(flags);
        state.direction = u32::from(flags & rflags::DF != 0);
    }

    /// Puts the guest's flags together in the context.
    pub(crate) fn flags_to_context(&mut self) {
        let state = self.cpu.state_mut();
        let direction = if state.direction == 0 { 0 } else { rflags::DF };
        let rest = state.context.rflags & !(rflags::STATUS | rflags::DF);
        state.context.rflags = rest | crate::flags::unpack(state.status) | direction;
    }

    /// Takes the guest's flags apart again after Rust changed them.
    pub(crate) fn flags_changed(&mut self) {
        self.flags_from_context();
    }
}

impl Engine for Translator {
    fn context(&self) -> &VcpuContext {
        &self.cpu.state().context
    }

    fn context_mut(&mut self) -> &mut VcpuContext {
        &mut self.cpu.state_mut().context
    }

    fn run(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.drive(false) {
                return exit;
            }
        }
    }

    fn step(&mut self) -> Option<Exit> {
        self.drive(true)
    }

    fn step_with_shadow_page(&mut self, page: GuestVirt, copy: &mut [u8; PAGE_BYTES]) -> ShadowStep {
        let linear = page.0 & !(PAGE_SIZE - 1);
        self.cpu.state_mut().shadow.0.copy_from_slice(copy);
        self.shadow = Some(linear);
        self.flush_page(linear);
        let outcome = self.drive(true);
        self.shadow = None;
        self.flush_page(linear);
        match outcome {
            None => {
                copy.copy_from_slice(&self.cpu.state().shadow.0);
                ShadowStep::Completed
            }
            Some(exit) => ShadowStep::Exit(exit),
        }
    }

    fn flush_tlb(&mut self, what: TlbFlush) {
        match what {
            TlbFlush::All => self.flush_all(),
            TlbFlush::Page(page) => self.flush_page(page.0 & !(PAGE_SIZE - 1)),
        }
    }

    fn kick_handle(&self) -> Kick {
        self.cpu.kick_handle()
    }
}

impl Translator {
    fn flush_all(&mut self) {
        self.flush_mode(GuestMode::Kernel);
        self.flush_mode(GuestMode::User);
    }

    fn flush_mode(&mut self, mode: GuestMode) {
        self.stats.tlb_flushes += 1;
        self.empty_tlb(mode, Path::Read);
        self.empty_tlb(mode, Path::Write);
        self.empty_code_pages(mode);
    }
}
