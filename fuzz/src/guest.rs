//! A small guest without a CPU: a real domain, built from a made kernel, whose vCPU does what a fuzzer says.
//!
//! Stores go where the guest's own page tables let them, as the CPU would do it; where they do not, the
//! domain gets the page fault. So a fuzzer can reach any state that a guest can, and no other.

use std::ops::Range;
use std::sync::Arc;

use paravane_abi::elfnote::ElfNote;
use paravane_abi::units::{DomId, GuestVirt, MachAddr, Mfn, PAGE_SIZE, Pfn, Port, VcpuId};
use paravane_builder::domain::{BuildRequest, build};
use paravane_builder::image::Image;
use paravane_builder::testing::elf::{ElfFile, number_note, text_note};
use paravane_engine::{Exit, Gpr, GuestMode, PageFault, SyscallKind, VcpuContext};
use paravane_hypervisor::{
    CONTROL_DOMAIN, ClockSource, CpuidPolicy, Domain, DomainConfig, Machine, Tsc, Verdict,
};
use paravane_memory::Memory;
use paravane_memory::paging::{Access, Privilege, WalkFault, walk};
use paravane_x86::mode::Guest as Width;

/// Pages of the guest's memory: the least that the builder makes.
pub(crate) const PAGES: u64 = 1024;
/// Where page 0 is mapped.
pub(crate) const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the kernel is loaded.
const LOADED_AT: u64 = 0x1000;
/// Nanoseconds and ticks that pass with each step.
const STEP: u64 = 10_000;

/// The one vCPU that runs.
const VCPU: VcpuId = VcpuId(0);

/// Whether the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    Ended,
}

/// A domain and the registers of its vCPU.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) domain: Domain,
    machine: Machine,
    memory: Arc<Memory>,
    context: VcpuContext,
    tables: Range<Pfn>,
    now: Tsc,
}

impl Guest {
    /// A guest at its entry point.
    pub(crate) fn new() -> Self {
        let machine = Machine::plan(PAGES).expect("a small machine can be planned");
        let memory = Arc::new(machine.allocate().expect("a small machine can be had"));
        let config = DomainConfig {
            id: DomId(1),
            max_vcpus: 2,
            shared_info: machine.shared_info,
            // One tick a nanosecond, from nothing: the same each time.
            clock: ClockSource { start: Tsc(0), tsc_hz: 1_000_000_000, wall_at_start_ns: 0 },
            handle: [0; 16],
            max_port: Port(1023),
            cpuid: CpuidPolicy::new(|_, _| [0; 4], 1_000_000_000),
        };
        let mut domain = Domain::new(Arc::clone(&memory), &config);
        let mut port = || domain.offer_port(CONTROL_DOMAIN).expect("a new domain has free ports");
        let (console_port, store_port) = (port(), port());
        let file = kernel();
        let image = Image::open(&file).expect("the made kernel is one");
        let built = build(&BuildRequest {
            kernel: image.pv_kernel().expect("the made kernel boots"),
            initrd: None,
            command_line: "",
            pages: PAGES,
            memory: &memory,
            mfn_of: &|pfn| frame_of(&machine, pfn),
            shared_info: machine.shared_info.base().expect("a planned frame has an address"),
            console_port,
            store_port,
        });
        let built = built.expect("the made kernel can be built");
        let mut context = built.context;
        domain.adopt(&machine, PAGES, &mut context).expect("what the builder made is sound");
        let mut guest = Self { domain, machine, memory, context, tables: built.plan.tables, now: Tsc(0) };
        assert_eq!(guest.enter(), State::Runs, "a new guest runs");
        guest
    }

    /// The machine frame that the builder gave a page.
    pub(crate) fn frame(&self, page: Pfn) -> Mfn {
        frame_of(&self.machine, page)
    }

    /// The machine address of an entry of the page tables that the builder made.
    pub(crate) fn table_entry(&self, table: u64, slot: u64) -> u64 {
        let tables = &self.tables;
        let page = Pfn(tables.start.0 + table % (tables.end.0 - tables.start.0));
        self.frame(page).0 * PAGE_SIZE + slot % 512 * 8
    }

    /// Executes SYSCALL with these registers: a hypercall from kernel mode, a system call from user mode.
    pub(crate) fn syscall(&mut self, number: u64, args: [u64; 5]) -> State {
        const SYSCALL_BYTES: u64 = 2;
        let registers = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8];
        for (register, value) in registers.into_iter().zip(args) {
            self.context.set_gpr(register, value);
        }
        self.context.set_gpr(Gpr::Rax, number);
        self.context.set_gpr(Gpr::Rcx, self.context.rip);
        self.context.set_gpr(Gpr::R11, self.context.rflags);
        if self.context.mode == GuestMode::User {
            return self.exit(Exit::GuestSyscall(SyscallKind::Syscall));
        }
        // A call that was done in part is made again from its instruction. A guest that keeps doing so gets
        // on, but a fuzzer need not wait for it.
        let rip = self.context.rip;
        for _ in 0..64 {
            let state = self.exit(Exit::Hypercall);
            if state == State::Ended || self.context.rip != rip.wrapping_sub(SYSCALL_BYTES) {
                return state;
            }
            self.context.rip = rip;
        }
        State::Runs
    }

    /// Stores an aligned word from ring 3.
    pub(crate) fn store(&mut self, at: GuestVirt, value: u64) -> State {
        let at = GuestVirt(at.0 & !7);
        let Some(root) = self.context.root() else { return State::Ended };
        match walk(&self.memory, root, at, Access::Write, Privilege::User) {
            Ok(found) => {
                let address = MachAddr(found.frame.0 * PAGE_SIZE + at.0 % PAGE_SIZE);
                self.memory.store_u64(address, value).expect("a walk leads to guest memory");
                State::Runs
            }
            Err(WalkFault::NotCanonical(_)) => State::Runs,
            Err(WalkFault::Page { address, code }) => {
                let exit = Exit::PageFault(PageFault { address: address.0, code });
                let verdict = self.domain.handle(VCPU, exit, &mut self.context, self.now);
                self.settle_store(verdict, at, value)
            }
        }
    }

    /// Reports an exit of the vCPU, and goes on as the domain says.
    pub(crate) fn exit(&mut self, exit: Exit) -> State {
        self.now.0 += STEP;
        let verdict = self.domain.handle(VCPU, exit, &mut self.context, self.now);
        self.settle(verdict)
    }

    fn enter(&mut self) -> State {
        let verdict = self.domain.before_entry(VCPU, &mut self.context, self.now);
        self.settle(verdict)
    }

    /// A store that met a page table: the domain may want it done on a copy.
    fn settle_store(&mut self, verdict: Verdict, at: GuestVirt, value: u64) -> State {
        let Verdict::ShadowWrite(write) = verdict else { return self.settle(verdict) };
        let old = write.copy(&self.memory);
        let mut new = old.clone();
        let (words, _) = new.as_chunks_mut::<8>();
        words[usize::try_from(at.0 % PAGE_SIZE).expect("an offset") / 8] = value.to_le_bytes();
        let verdict = self.domain.shadow_written(VCPU, &write, (&old, &new), &mut self.context, self.now);
        self.settle(verdict)
    }

    fn settle(&mut self, verdict: Verdict) -> State {
        // What others would do something about.
        drop((self.domain.take_flushes(), self.domain.take_wakeups(), self.domain.take_started_vcpus()));
        match verdict {
            Verdict::Run | Verdict::Yield => State::Runs,
            Verdict::Block { until_ns: Some(at) } => {
                // Nothing else happens until then.
                self.now.0 = self.now.0.max(at);
                self.domain.expire_timers(self.now);
                self.enter_if_runnable()
            }
            Verdict::Block { until_ns: None } => self.enter_if_runnable(),
            Verdict::Down | Verdict::Shutdown(_) => State::Ended,
            Verdict::Crash(report) => {
                assert!(!report.cause.to_string().is_empty(), "a crash has a reason");
                State::Ended
            }
            Verdict::ShadowWrite(_) => panic!("only a store is done on a copy"),
        }
    }

    fn enter_if_runnable(&mut self) -> State {
        if !self.domain.is_runnable(VCPU) {
            return State::Ended;
        }
        let verdict = self.domain.before_entry(VCPU, &mut self.context, self.now);
        match verdict {
            Verdict::Run => State::Runs,
            // Blocked again at once: nothing is left to wake it.
            Verdict::Block { .. } | Verdict::Yield | Verdict::Down | Verdict::Shutdown(_) => State::Ended,
            Verdict::Crash(_) | Verdict::ShadowWrite(_) => State::Ended,
        }
    }
}

/// The frame of one of the guest's pages, which the machine has all of.
fn frame_of(machine: &Machine, page: Pfn) -> Mfn {
    machine.frame_of(page).expect("a page of the guest's memory")
}

/// The smallest kernel that boots.
fn kernel() -> Vec<u8> {
    let notes = [
        text_note(ElfNote::GuestOs, "fuzz"),
        text_note(ElfNote::XenVersion, "xen-3.0"),
        text_note(ElfNote::Loader, "generic"),
        number_note(ElfNote::VirtBase, VIRT_BASE),
        number_note(ElfNote::PaddrOffset, 0),
        number_note(ElfNote::Entry, VIRT_BASE + LOADED_AT),
    ];
    ElfFile::new(Width::Bits64).entry(LOADED_AT).load(LOADED_AT, &[0x90; 16], PAGE_SIZE).notes(&notes).build()
}
