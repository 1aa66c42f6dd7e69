//! A tiny guest for tests: a few pages of memory, its page tables, and hypercalls made through the front door.

use std::sync::Arc;

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    units::{DomId, GuestVirt, MachAddr, Mfn, PAGE_SIZE, Pfn, Port, VcpuId},
};
use paravane_engine::{Exit, Gpr, PageFault, VcpuContext};
use paravane_memory::paging::FaultCode;
use paravane_x86::pte::PteFlags;
use zerocopy::{Immutable, IntoBytes};

use super::{
    Machine,
    entry::{ACCESSED, DIRTY, PRESENT, USER, WRITABLE},
    level::{Level, slot_of},
};
use crate::{
    ClockSource, CpuidPolicy, DomainConfig, Tsc,
    domain::{Call, Domain, Verdict},
};

/// Where pfn 0 appears.
pub(crate) const BASE: u64 = 0xffff_ffff_8000_0000;
/// Pages populated at the start.
pub(crate) const PAGES: u64 = 64;
/// Pages that the guest may have.
pub(crate) const MAX_PAGES: u64 = 96;

/// Bits that validation sets.
pub(crate) const GLOBAL: u64 = PteFlags::GLOBAL.bits();
pub(crate) const GUEST_KERNEL: u64 = PteFlags::GUEST_KERNEL.bits();

/// What the builder's page tables have in their entries.
pub(crate) const LEAF: u64 = PRESENT | WRITABLE | ACCESSED;
pub(crate) const READ_ONLY: u64 = PRESENT | ACCESSED;
pub(crate) const TABLE: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | USER;

/// The pages of the page tables, by level.
pub(crate) const L4_PFN: u64 = 0;
pub(crate) const L3_PFN: u64 = 1;
pub(crate) const L2_PFN: u64 = 2;
pub(crate) const L1_PFN: u64 = 3;
/// A page for the arguments of hypercalls.
pub(crate) const BUFFER_PFN: u64 = 4;
/// A page for the counters that hypercalls write.
pub(crate) const COUNTER_PFN: u64 = 5;
/// The stack.
pub(crate) const STACK_PFN: u64 = 6;
/// The first page that has no purpose.
pub(crate) const SPARE_PFN: u64 = 8;

/// A guest in the middle of its kernel.
pub(crate) struct TestGuest {
    pub(crate) machine: Machine,
    pub(crate) domain: Domain,
    pub(crate) context: VcpuContext,
}

impl TestGuest {
    /// A guest as the builder leaves it, not adopted.
    pub(crate) fn built(vcpus: u32) -> Self {
        let machine = Machine::plan(MAX_PAGES).unwrap();
        let memory = Arc::new(machine.allocate().unwrap());
        let config = DomainConfig {
            id: DomId(1),
            max_vcpus: vcpus,
            shared_info: machine.shared_info,
            clock: ClockSource { start: Tsc(0), tsc_hz: 1_000_000_000, wall_at_start_ns: 0 },
            handle: [0; 16],
            max_port: Port(1023),
            cpuid: CpuidPolicy::new(|_, _| [0; 4], 1_000_000_000),
        };
        let domain = Domain::new(memory, &config);
        let mut guest = Self { machine, domain, context: VcpuContext::new() };
        let slot = |level: Level| slot_of(level, BASE) as u64;
        guest.poke(L4_PFN, slot(Level::L4), guest.entry(L3_PFN, TABLE));
        guest.poke(L3_PFN, slot(Level::L3), guest.entry(L2_PFN, TABLE));
        guest.poke(L2_PFN, slot(Level::L2), guest.entry(L1_PFN, TABLE));
        for pfn in 0..PAGES {
            let flags = if pfn <= L1_PFN { READ_ONLY } else { LEAF };
            guest.poke(L1_PFN, pfn, guest.entry(pfn, flags));
        }
        guest.context.kernel_root = guest.mfn(L4_PFN);
        guest.context.set_gpr(Gpr::Rsp, BASE + (STACK_PFN + 1) * PAGE_SIZE);
        guest
    }

    /// A running guest.
    pub(crate) fn new() -> Self {
        Self::with_vcpus(1)
    }

    /// A running guest with several vCPUs, the first of which acts.
    pub(crate) fn with_vcpus(vcpus: u32) -> Self {
        let mut guest = Self::built(vcpus);
        let machine = guest.machine.clone();
        guest.domain.adopt(&machine, PAGES, &mut guest.context).unwrap();
        guest.check();
        guest
    }

    /// The machine frame of a page.
    pub(crate) fn mfn(&self, pfn: u64) -> Mfn {
        self.machine.frame_of(Pfn(pfn)).unwrap()
    }

    /// An entry that names a page.
    pub(crate) fn entry(&self, pfn: u64, flags: u64) -> u64 {
        (self.mfn(pfn).0 * PAGE_SIZE) | flags
    }

    /// Where a page is mapped.
    pub(crate) fn va(&self, pfn: u64) -> u64 {
        BASE + pfn * PAGE_SIZE
    }

    /// The machine address of a word in a page.
    pub(crate) fn word(&self, pfn: u64, index: u64) -> MachAddr {
        MachAddr(self.mfn(pfn).0 * PAGE_SIZE + index * 8)
    }

    /// Writes a word behind everybody's back.
    pub(crate) fn poke(&self, pfn: u64, index: u64, value: u64) {
        self.domain.memory.store_u64(self.word(pfn, index), value).unwrap();
    }

    /// Reads a word.
    pub(crate) fn peek(&self, pfn: u64, index: u64) -> u64 {
        self.domain.memory.load_u64(self.word(pfn, index)).unwrap()
    }

    /// Puts an argument into the buffer and returns its address.
    pub(crate) fn argument(&self, value: &(impl IntoBytes + Immutable + ?Sized)) -> u64 {
        self.domain.memory.write(self.word(BUFFER_PFN, 0), value.as_bytes()).unwrap();
        self.va(BUFFER_PFN)
    }

    /// The M2P entry of a frame.
    pub(crate) fn m2p(&self, frame: Mfn) -> u64 {
        self.domain.memory.load_u64(self.machine.m2p_entry(frame).unwrap()).unwrap()
    }

    /// All counts must be right.
    #[track_caller]
    pub(crate) fn check(&self) {
        if let Err(wrong) = self.domain.recount() {
            panic!("{wrong}");
        }
    }

    /// Makes a hypercall, to its end, and checks all counts.
    #[track_caller]
    pub(crate) fn hypercall(&mut self, hypercall: Hypercall, args: &[u64]) -> i64 {
        let result = self.hypercall_unchecked(hypercall, args);
        self.check();
        result
    }

    /// Makes a hypercall, to its end.
    #[track_caller]
    pub(crate) fn hypercall_unchecked(&mut self, hypercall: Hypercall, args: &[u64]) -> i64 {
        const AFTER: u64 = 0x1002;
        let registers = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8];
        for (index, register) in registers.into_iter().enumerate() {
            self.context.set_gpr(register, args.get(index).copied().unwrap_or(0));
        }
        self.context.set_gpr(Gpr::Rax, u64::from(hypercall.number()));
        loop {
            self.context.rip = AFTER;
            let verdict = self.domain.handle(VcpuId(0), Exit::Hypercall, &mut self.context, Tsc(0));
            assert!(matches!(verdict, Verdict::Run), "{verdict:?}");
            if self.context.rip == AFTER {
                return self.context.gpr(Gpr::Rax).cast_signed();
            }
            // Cut: the guest executes the instruction again.
            assert_eq!(self.context.rip, AFTER - 2);
        }
    }

    /// `update_va_mapping` of a page's usual address.
    #[track_caller]
    pub(crate) fn map(&mut self, pfn: u64, entry: u64) -> i64 {
        let va = self.va(pfn);
        self.hypercall(Hypercall::UpdateVaMapping, &[va, entry, 0])
    }

    /// Makes a page read-only at its usual address.
    #[track_caller]
    pub(crate) fn protect(&mut self, pfn: u64) {
        let entry = self.entry(pfn, READ_ONLY);
        assert_eq!(self.map(pfn, entry), 0, "protecting page {pfn}");
    }

    /// A page fault of the kernel's.
    pub(crate) fn fault(&mut self, address: u64, code: u32) -> Verdict {
        let fault = PageFault { address, code: FaultCode(code) };
        self.domain.handle(VcpuId(0), Exit::PageFault(fault), &mut self.context, Tsc(0))
    }

    /// Acts as the hypervisor does for the guest.
    pub(crate) fn call(&mut self) -> Call<'_> {
        Call { domain: &mut self.domain, vcpu: VcpuId(0), context: &mut self.context, now: Tsc(0) }
    }

    /// Registers a page-fault handler, and returns its address.
    pub(crate) fn handle_page_faults(&mut self) -> u64 {
        const HANDLER: u64 = 0x40_0000;
        let entry = &mut self.domain.vcpus[0].traps[usize::from(paravane_engine::vector::PAGE_FAULT)];
        entry.handler.address = GuestVirt(HANDLER);
        HANDLER
    }
}

/// The result of a hypercall that fails.
pub(crate) fn failed(errno: Errno) -> i64 {
    -i64::from(errno.number())
}
