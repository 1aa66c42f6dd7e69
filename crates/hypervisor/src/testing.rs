//! A tiny guest for tests: some pages, mapped at [`BASE`] in their order, and vCPUs that make hypercalls.
//!
//! The first four pages are its page tables, mapped read-only; all others are writable. Arguments of hypercalls are
//! put into [`BUFFER`], as a guest kernel would.

use std::sync::Arc;

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    shared_info::VcpuInfo,
    units::{DomId, GuestVirt, MachAddr, Mfn, PAGE_SIZE, Pfn, Port, VcpuId},
};
use paravane_engine::{Exit, Gpr, SegmentRegister, VcpuContext};
use paravane_x86::segments::{FLAT_RING3_CS64, FLAT_RING3_SS64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    CpuidPolicy, CrashCause, Domain, DomainConfig, Machine, Verdict, bounce,
    time::{ClockSource, Tsc},
    vcpu::{Handler, TrapEntry},
};

/// Pages of the guest.
pub(crate) const PAGES: u64 = 96;
/// Where its page 0 is mapped.
pub(crate) const BASE: u64 = 0x4000_0000;
/// The page that the stack ends at.
const STACK: Pfn = Pfn(5);
/// The page for arguments of hypercalls.
pub(crate) const BUFFER: Pfn = Pfn(6);
/// The first page that nothing here uses.
pub(crate) const FREE: Pfn = Pfn(8);
/// Its number.
pub(crate) const OWN: DomId = DomId(7);
/// The handler of events, once [`Guest::take_events`] has been called.
pub(crate) const EVENT_HANDLER: GuestVirt = GuestVirt(BASE + 0x123);

const TABLE: u64 = 7;
const WRITABLE: u64 = 7;
const READ_ONLY: u64 = 5;

/// A domain with the registers of its vCPUs.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) domain: Domain,
    pub(crate) contexts: Vec<VcpuContext>,
    /// The time at which its hypercalls are made, in nanoseconds and ticks alike.
    pub(crate) now: u64,
}

/// The machine frame of a page.
pub(crate) fn frame(page: Pfn) -> Mfn {
    machine().frame_of(page).unwrap()
}

/// The machine address of a page.
pub(crate) fn machine_address(page: Pfn) -> MachAddr {
    frame(page).base().unwrap()
}

/// Where a page is mapped.
pub(crate) fn virt(page: Pfn) -> GuestVirt {
    GuestVirt(BASE + page.0 * PAGE_SIZE)
}

fn machine() -> Machine {
    Machine::plan(PAGES).unwrap()
}

impl Guest {
    /// A guest with so many vCPUs, of which the first one runs.
    pub(crate) fn new(vcpus: u32) -> Self {
        let machine = machine();
        let memory = machine.allocate().unwrap();
        build_tables(&memory);
        for vcpu in 0..32 {
            let info = machine.shared_info.base().unwrap().0 + vcpu * size_of::<VcpuInfo>() as u64;
            memory.store_u8(MachAddr(info + 1), 1).unwrap();
        }
        let config = DomainConfig {
            id: OWN,
            max_vcpus: vcpus,
            shared_info: machine.shared_info,
            // One tick a nanosecond.
            clock: ClockSource {
                start: Tsc(0),
                tsc_hz: 1_000_000_000,
                wall_at_start_ns: 0x1_2345_6789 * 1_000_000_000 + 42,
            },
            handle: *b"0123456789abcdef",
            max_port: Port(1500),
            cpuid: CpuidPolicy::new(|_, _| [0; 4], 1_000_000_000),
        };
        let mut domain = Domain::new(Arc::new(memory), &config);
        let mut context = VcpuContext::new();
        context.kernel_root = frame(Pfn(0));
        context.rip = BASE + 0x1000;
        context.set_gpr(Gpr::Rsp, virt(STACK).0 + PAGE_SIZE);
        *context.segment_mut(SegmentRegister::Cs) = bounce::flat(FLAT_RING3_CS64);
        *context.segment_mut(SegmentRegister::Ss) = bounce::flat(FLAT_RING3_SS64);
        domain.adopt(&machine, PAGES, &mut context).unwrap();
        let contexts = vec![context; vcpus as usize];
        let mut guest = Self { domain, contexts, now: 0 };
        assert!(matches!(guest.enter(VcpuId(0)), Verdict::Run));
        guest
    }

    /// Brings the other vCPUs up without registers of their own, each on its own stack below the first one's.
    pub(crate) fn all_up(mut self) -> Self {
        for index in 1..self.contexts.len() {
            self.domain.vcpus[index].availability = crate::vcpu::Availability::Up;
            let id = VcpuId(u32::try_from(index).unwrap());
            assert!(matches!(self.enter(id), Verdict::Run));
        }
        self
    }

    /// Registers an event handler on every vCPU.
    pub(crate) fn take_events(mut self) -> Self {
        for vcpu in &mut self.domain.vcpus {
            vcpu.callbacks.event.address = EVENT_HANDLER;
        }
        self
    }

    /// The last step before a vCPU enters the guest.
    pub(crate) fn enter(&mut self, vcpu: VcpuId) -> Verdict {
        let context = &mut self.contexts[vcpu.0 as usize];
        self.domain.before_entry(vcpu, context, Tsc(self.now))
    }

    /// Reports another exit of vCPU 0's, and returns what it does next.
    pub(crate) fn exit(&mut self, exit: Exit) -> Verdict {
        let context = &mut self.contexts[0];
        self.domain.handle(VcpuId(0), exit, context, Tsc(self.now))
    }

    /// Reports an exit that vCPU 0 goes on after.
    #[track_caller]
    pub(crate) fn exit_and_run(&mut self, exit: Exit) {
        let verdict = self.exit(exit);
        assert!(matches!(verdict, Verdict::Run), "{verdict:?}");
    }

    /// Why an exit of vCPU 0's crashes the domain.
    #[track_caller]
    pub(crate) fn exit_and_crash(&mut self, exit: Exit) -> CrashCause {
        let verdict = self.exit(exit);
        let Verdict::Crash(report) = verdict else { panic!("{verdict:?}") };
        report.cause
    }

    /// Registers a handler for a vector, and returns its address.
    pub(crate) fn handle_vector(&mut self, vector: u8, dpl: u8, masks_events: bool) -> u64 {
        let address = GuestVirt(BASE + 0x2000 + 16 * u64::from(vector));
        let handler = Handler { address, masks_events };
        self.domain.vcpus[0].traps[usize::from(vector)] = TrapEntry { handler, cs: 0, dpl };
        address.0
    }

    /// Puts vCPU 0 into user mode, with the kernel's stack at the top of its page and the kernel's tables for its own.
    pub(crate) fn enter_user_mode(&mut self) {
        let context = &mut self.contexts[0];
        self.domain.vcpus[0].kernel_sp = GuestVirt(virt(STACK).0 + PAGE_SIZE);
        context.user_root = Some(context.kernel_root);
        context.toggle_mode();
        context.set_gpr(Gpr::Rsp, 0x7fff_0000);
    }

    /// The words at the stack pointer.
    pub(crate) fn stack<const WORDS: usize>(&self) -> [u64; WORDS] {
        let at = self.contexts[0].gpr(Gpr::Rsp) - BASE;
        self.get_words(MachAddr(machine_address(Pfn(0)).0 + at))
    }

    fn get_words<const WORDS: usize>(&self, at: MachAddr) -> [u64; WORDS] {
        core::array::from_fn(|index| self.get(MachAddr(at.0 + 8 * index as u64)))
    }

    /// Makes a hypercall, and returns what the vCPU does next and RAX.
    pub(crate) fn invoke(&mut self, vcpu: VcpuId, call: Hypercall, args: &[u64]) -> (Verdict, i64) {
        let context = &mut self.contexts[vcpu.0 as usize];
        context.set_gpr(Gpr::Rax, call.number().into());
        let registers = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8];
        for (index, register) in registers.into_iter().enumerate() {
            context.set_gpr(register, args.get(index).copied().unwrap_or(0));
        }
        let verdict = self.domain.handle(vcpu, Exit::Hypercall, context, Tsc(self.now));
        (verdict, context.gpr(Gpr::Rax).cast_signed())
    }

    /// Makes a hypercall on vCPU 0, again and again if it is only done in part, and returns its result.
    pub(crate) fn call(&mut self, call: Hypercall, args: &[u64]) -> Result<i64, Errno> {
        self.call_on(VcpuId(0), call, args)
    }

    /// As [`Guest::call`], on another vCPU.
    pub(crate) fn call_on(&mut self, vcpu: VcpuId, call: Hypercall, args: &[u64]) -> Result<i64, Errno> {
        let rip = self.contexts[vcpu.0 as usize].rip;
        let (mut verdict, mut result) = self.invoke(vcpu, call, args);
        while self.contexts[vcpu.0 as usize].rip == rip.wrapping_sub(2) {
            let context = &mut self.contexts[vcpu.0 as usize];
            context.rip = rip;
            verdict = self.domain.handle(vcpu, Exit::Hypercall, context, Tsc(self.now));
            result = context.gpr(Gpr::Rax).cast_signed();
        }
        assert!(!matches!(verdict, Verdict::Crash(_)), "{verdict:?}");
        match u16::try_from(-result).ok().and_then(Errno::from_number) {
            Some(errno) if result < 0 => Err(errno),
            _ => Ok(result),
        }
    }

    /// Makes a hypercall with a command and a structure, which may be changed by it.
    pub(crate) fn op<T>(&mut self, call: Hypercall, command: u32, argument: &mut T) -> Result<i64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.put(machine_address(BUFFER), argument);
        let result = self.call(call, &[command.into(), virt(BUFFER).0]);
        *argument = self.get(machine_address(BUFFER));
        result
    }

    /// Reads a value from machine memory.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, at: MachAddr) -> T {
        self.domain.memory.read_value(at).unwrap()
    }

    /// Writes a value to machine memory.
    pub(crate) fn put<T: IntoBytes + Immutable>(&self, at: MachAddr, value: &T) {
        self.domain.memory.write_value(at, value).unwrap();
    }

    /// A vCPU's `vcpu_info`.
    pub(crate) fn info(&self, vcpu: VcpuId) -> VcpuInfo {
        self.get(self.domain.vcpus[vcpu.0 as usize].vcpu_info)
    }

    /// Sets a vCPU's event mask.
    pub(crate) fn mask_events(&self, vcpu: VcpuId, mask: bool) {
        self.put(MachAddr(self.domain.vcpus[vcpu.0 as usize].vcpu_info.0 + 1), &u8::from(mask));
    }
}

/// Four tables in the guest's first four pages, and an entry for every page in the last one.
fn build_tables(memory: &paravane_memory::Memory) {
    let entry = |table: u64, slot: u64| MachAddr(machine_address(Pfn(table)).0 + slot * 8);
    for (table, slot) in [(0, 0), (1, BASE >> 30), (2, 0)] {
        memory.store_u64(entry(table, slot), machine_address(Pfn(table + 1)).0 | TABLE).unwrap();
    }
    for page in 0..PAGES {
        let rights = if page < 4 { READ_ONLY } else { WRITABLE };
        memory.store_u64(entry(3, page), machine_address(Pfn(page)).0 | rights).unwrap();
    }
}
