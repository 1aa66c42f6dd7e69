//! The run loop of one vCPU: what `paravane run` does, on one thread and without anybody to wait for.
//!
//! A vCPU that blocks until a time gets there at once: the clock that the core sees is set forward. One that
//! blocks with nothing to wake it has ended. Somebody else's thread interrupts the engine every now and then,
//! so that timers expire, and a kernel that never ends is stopped.

use std::{
    panic,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use paravane_abi::{
    memory::E820Entry,
    units::{DomId, PAGE_SIZE, Pfn, Port, VcpuId},
};
use paravane_builder::{
    domain::{BuildRequest, BuiltDomain, build},
    image::Image,
};
use paravane_devices::console::Console;
use paravane_engine::{Engine, Exit, ShadowStep};
use paravane_hypervisor::{
    CONTROL_DOMAIN, ClockSource, CpuidPolicy, Domain, DomainConfig, Machine as Frames, ShadowWrite, Tsc,
    Verdict,
};
use paravane_memory::Memory;
use paravane_translate::{Options, Translator, read_tsc};

use crate::{
    outcome::{End, Outcome},
    program::Kernel,
};

/// The guest's own number.
pub const GUEST: DomId = DomId(1);
/// How fast the clock is said to count. Kernels here only compare times with each other.
const TSC_HZ: u64 = 2_000_000_000;
/// How often the engine is interrupted.
const TICK: Duration = Duration::from_millis(2);
/// An engine that does not answer an interruption for so long never will.
const HUNG: Duration = Duration::from_secs(120);

/// How long a kernel may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time on the host.
    pub time: Duration,
    /// Exits from the engine.
    pub exits: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), exits: 10_000_000 }
    }
}

/// Runs a kernel to its end. Panics, in the test, if the engine hangs or anything of Paravane's panics.
pub(crate) fn run(kernel: &Kernel, limits: &Limits) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    let thread = {
        let (kernel, limits) = (kernel.clone(), *limits);
        thread::spawn(move || {
            let outcome = Runner::new(&kernel).run(&limits);
            // Nobody listens when the test has given up.
            drop(sender.send(outcome));
        })
    };
    match receiver.recv_timeout(limits.time + HUNG) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the engine did not come back from the guest"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(payload) => panic::resume_unwind(payload),
            Ok(()) => unreachable!("a thread that ends well has sent its outcome"),
        },
    }
}

struct Runner {
    memory: Arc<Memory>,
    domain: Domain,
    engine: Translator,
    built: BuiltDomain,
    frames: Frames,
    console_port: Port,
    /// By how much the domain's clock is ahead of the host's, in ticks of the TSC.
    ahead: u64,
    ring_output: Vec<u8>,
    console_output: Vec<u8>,
}

const VCPU: VcpuId = VcpuId(0);

impl Runner {
    fn new(kernel: &Kernel) -> Self {
        let frames = kernel.layout.machine.clone();
        let memory = Arc::new(frames.allocate().expect("memory for the guest"));
        let options =
            Options { one_instruction_blocks: kernel.setup.one_instruction_blocks, ..Options::default() };
        let mut engine = Translator::new(Arc::clone(&memory), options).expect("a host that can translate");
        let mut domain = new_domain(&frames, &memory, &engine);
        let console_port = domain.offer_port(CONTROL_DOMAIN).expect("a free port");
        let store_port = domain.offer_port(CONTROL_DOMAIN).expect("a free port");
        let image = Image::open(&kernel.elf).expect("a sound image");
        let pages = kernel.setup.pages;
        let mfn_of = |pfn: Pfn| frames.frame_of(pfn).expect("a frame of the guest's");
        let built = build(&BuildRequest {
            kernel: image.pv_kernel().expect("a PV kernel"),
            initrd: None,
            command_line: "",
            pages,
            memory: &memory,
            mfn_of: &mfn_of,
            shared_info: frames.shared_info.base().unwrap_or_default(),
            console_port,
            store_port,
        })
        .expect("a kernel that can be built");
        const RAM: u32 = 1;
        let map = E820Entry { addr: 0.into(), size: (pages * PAGE_SIZE).into(), kind: RAM.into() };
        domain.set_memory_map(vec![map]);
        for port in [console_port, store_port] {
            domain.bind_backend(port, CONTROL_DOMAIN).expect("a port that was offered");
        }
        Console::new(&memory, built.console).connect().expect("a console ring");
        let mut context = built.context.clone();
        domain.adopt(&frames, pages, &mut context).expect("page tables that validate");
        *engine.context_mut() = context;
        Self {
            memory,
            domain,
            engine,
            built,
            frames,
            console_port,
            ahead: 0,
            ring_output: Vec::new(),
            console_output: Vec::new(),
        }
    }

    fn run(mut self, limits: &Limits) -> Outcome {
        let (stop, stopped) = mpsc::channel::<()>();
        let kick = self.engine.kick_handle();
        let ticker = thread::spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                kick.kick();
            }
        });
        let end = self.run_to_end(limits);
        drop(stop);
        drop(ticker.join());
        self.serve();
        Outcome {
            end,
            recount: self.domain.recount(),
            context: self.engine.context().clone(),
            console: String::from_utf8_lossy(&self.console_output).into_owned(),
            ring: String::from_utf8_lossy(&self.ring_output).into_owned(),
            memory: self.memory,
            frames: self.frames,
            built: self.built,
            hypercalls: self.domain.history().map(ToString::to_string).collect(),
        }
    }

    fn run_to_end(&mut self, limits: &Limits) -> End {
        let deadline = Instant::now() + limits.time;
        let mut exits = 0;
        let mut verdict = self.before_entry();
        loop {
            self.serve();
            if self.domain.take_wakeups().contains(&VCPU) && matches!(verdict, Verdict::Run) {
                verdict = self.before_entry();
                continue;
            }
            verdict = match verdict {
                Verdict::Run => {
                    exits += 1;
                    if exits > limits.exits || Instant::now() > deadline {
                        return End::TimedOut;
                    }
                    let exit = self.engine.run();
                    self.handle(exit)
                }
                Verdict::ShadowWrite(write) => self.shadow_write(&write),
                Verdict::Block { until_ns } => {
                    if !self.domain.is_runnable(VCPU) && !self.skip_to(until_ns) {
                        return End::BlockedForever;
                    }
                    self.before_entry()
                }
                Verdict::Yield => self.before_entry(),
                Verdict::Down => return End::Down,
                Verdict::Shutdown(reason) => return End::Shutdown(reason),
                Verdict::Crash(report) => return End::Crash(report),
            };
        }
    }

    fn before_entry(&mut self) -> Verdict {
        let now = self.now();
        self.domain.before_entry(VCPU, self.engine.context_mut(), now)
    }

    fn handle(&mut self, exit: Exit) -> Verdict {
        let now = self.now();
        self.domain.handle(VCPU, exit, self.engine.context_mut(), now)
    }

    fn shadow_write(&mut self, write: &ShadowWrite) -> Verdict {
        let old = write.copy(&self.memory);
        let mut new = old.clone();
        match self.engine.step_with_shadow_page(write.page, &mut new) {
            ShadowStep::Completed => {
                let now = self.now();
                self.domain.shadow_written(VCPU, write, (&old, &new), self.engine.context_mut(), now)
            }
            ShadowStep::Exit(exit) => self.handle(exit),
        }
    }

    /// Carries out flushes and takes what was printed.
    fn serve(&mut self) {
        for flush in self.domain.take_flushes() {
            self.engine.flush_tlb(flush.what);
        }
        self.console_output.extend(self.domain.take_console_output().bytes);
        for port in self.domain.take_backend_events() {
            let console = Console::new(&self.memory, self.built.console);
            // A ring that the guest broke has no output, and a port that it closed does not want to know.
            if port == self.console_port
                && console.take_output(&mut self.ring_output).is_ok_and(|count| count > 0)
            {
                drop(self.domain.notify_from_backend(port));
            }
        }
    }

    fn now(&self) -> Tsc {
        Tsc(read_tsc().wrapping_add(self.ahead))
    }

    /// Sets the clock forward to the earliest of `until_ns` and the vCPU's timers. False if there is none.
    fn skip_to(&mut self, until_ns: Option<u64>) -> bool {
        let deadline = self.domain.next_deadline_ns(VCPU).into_iter().chain(until_ns).min();
        let Some(deadline) = deadline else { return false };
        let ahead_ns = deadline.saturating_sub(self.domain.system_ns(self.now()));
        const TICKS_PER_NS: u64 = TSC_HZ / 1_000_000_000;
        self.ahead = self.ahead.saturating_add((ahead_ns + 1).saturating_mul(TICKS_PER_NS));
        true
    }
}

fn new_domain(frames: &Frames, memory: &Arc<Memory>, engine: &Translator) -> Domain {
    const MAX_PORT: Port = Port((1 << 17) - 1);
    let config = DomainConfig {
        id: GUEST,
        max_vcpus: 1,
        shared_info: frames.shared_info,
        clock: ClockSource { start: Tsc(read_tsc()), tsc_hz: TSC_HZ, wall_at_start_ns: 0 },
        handle: *b"minikernel guest",
        max_port: MAX_PORT,
        cpuid: CpuidPolicy::new(|leaf, subleaf| engine.host().cpuid(leaf, subleaf), TSC_HZ),
    };
    Domain::new(Arc::clone(memory), &config)
}
