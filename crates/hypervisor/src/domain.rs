//! A domain: everything the hypervisor keeps about one guest.

use std::sync::Arc;

use paravane_abi::{
    memory::E820Entry,
    sched::ShutdownReason,
    shared_info::LEGACY_MAX_VCPUS,
    units::{DomId, MachAddr, Mfn, Port, VcpuId},
};
use paravane_engine::{Exit, TlbFlush, VcpuContext};
use paravane_memory::Memory;

use crate::{
    console::{ConsoleOutput, ConsoleText},
    crash::{CrashCause, CrashReport},
    emulate::CpuidPolicy,
    events::Events,
    exits,
    frames::{FrameTable, Machine, RecentFaults, ShadowWrite},
    grants::{GrantFrames, GrantTable},
    guest::AddressSpace,
    history::{History, PastHypercall},
    schedule::{Shutdown, StartedVcpu},
    time::{Clock, ClockSource, Tsc},
    vcpu::{NO_VCPU_INFO, Vcpu},
    watchdog::Watchdogs,
};

/// The domain in which backends live, as the guest sees it. It always exists.
pub const CONTROL_DOMAIN: DomId = DomId(0);

/// What a domain is made of, before it runs.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Its number, as the guest sees it in xenstore.
    pub id: DomId,
    /// How many vCPUs it may bring up.
    pub max_vcpus: u32,
    /// The frame of its `shared_info`.
    pub shared_info: Mfn,
    /// The host's clocks.
    pub clock: ClockSource,
    /// Its UUID, as `XENVER_guest_handle` reports it.
    pub handle: [u8; 16],
    /// The highest port it may allocate.
    pub max_port: Port,
    /// What CPUID answers.
    pub cpuid: CpuidPolicy,
}

/// How to go on after an exit.
#[derive(Debug)]
pub enum Verdict {
    /// Run the vCPU.
    Run,
    /// The vCPU waits until an event is pending for it ([`Domain::is_runnable`]) or until this system time in
    /// nanoseconds.
    Block {
        /// When to wake it at the latest.
        until_ns: Option<u64>,
    },
    /// The vCPU stores to a page table of its own: execute one instruction on a copy of that, with
    /// `step_with_shadow_page`, and call [`Domain::shadow_written`].
    ShadowWrite(Box<ShadowWrite>),
    /// The vCPU wants others to run; run it again soon.
    Yield,
    /// The vCPU is down until another one brings it up.
    Down,
    /// The guest shut down.
    Shutdown(ShutdownReason),
    /// The guest did what cannot be answered.
    Crash(Box<CrashReport>),
}

/// Translations that an engine must forget before it runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Whose engine.
    pub vcpu: VcpuId,
    /// Which ones.
    pub what: TlbFlush,
}

/// A guest, as its hypervisor sees it.
#[derive(Debug)]
pub struct Domain {
    pub(crate) memory: Arc<Memory>,
    pub(crate) id: DomId,
    pub(crate) shared_info: Mfn,
    pub(crate) clock: Clock,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) cpuid: CpuidPolicy,
    /// What was last written to port 0xCF8.
    pub(crate) pci_address: u32,
    /// What was last written to I/O port 0x70.
    pub(crate) cmos_index: u8,
    /// `vm_assist` bits, by number.
    pub(crate) assists: u64,
    /// What is known of every machine frame.
    pub(crate) frame_table: FrameTable,
    /// The last page faults of each vCPU.
    pub(crate) recent_faults: Vec<RecentFaults>,
    /// The memory map that the guest may ask for.
    pub(crate) memory_map: Vec<E820Entry>,
    /// Flushes to carry out.
    pub(crate) flushes: Vec<Flush>,
    /// The last hypercalls, for the crash report.
    pub(crate) history: History,
    /// Lines of the hypercall trace that nobody took yet; `None` while it is off.
    pub(crate) trace: Option<Vec<String>>,
    /// Local ports whose backend has been notified.
    pub(crate) backend_events: Vec<Port>,
    /// Its UUID.
    pub(crate) handle: [u8; 16],
    /// Event channels.
    pub(crate) events: Events,
    /// The grant table and the mappings of others' grants.
    pub(crate) grants: GrantTable,
    /// vCPUs that became runnable or must notice something.
    pub(crate) wakeups: Vec<VcpuId>,
    /// vCPUs that were brought up.
    pub(crate) started: Vec<StartedVcpu>,
    /// Whether and why it shut down.
    pub(crate) shutdown: Shutdown,
    /// The watchdogs of `sched_op`.
    pub(crate) watchdogs: Watchdogs,
    /// What it wrote to Xen's console.
    pub(crate) console: ConsoleOutput,
    /// The page that `physdev_op` registered for the ends of physical interrupts.
    pub(crate) pirq_eoi: Option<Mfn>,
}

/// A request of one vCPU's, with everything it may touch.
pub(crate) struct Call<'a> {
    /// The domain.
    pub(crate) domain: &'a mut Domain,
    /// The vCPU that asks.
    pub(crate) vcpu: VcpuId,
    /// Its registers.
    pub(crate) context: &'a mut VcpuContext,
    /// When it asks.
    pub(crate) now: Tsc,
}

impl Domain {
    /// A domain whose memory the builder has filled.
    pub fn new(memory: Arc<Memory>, config: &DomainConfig) -> Self {
        let shared_info = config.shared_info.base().unwrap_or_default();
        let legacy = u32::try_from(LEGACY_MAX_VCPUS).unwrap_or(u32::MAX);
        let vcpus: Vec<Vcpu> = (0..config.max_vcpus)
            .map(|id| {
                let info = if id < legacy {
                    MachAddr(shared_info.0 + u64::from(id) * crate::vcpu::vcpu_info::SIZE)
                } else {
                    NO_VCPU_INFO
                };
                Vcpu::new(VcpuId(id), info)
            })
            .collect();
        // Until the domain is adopted, all memory counts as its own.
        let machine = Machine::bare(&memory, config.shared_info);
        let pages = machine.max_pages;
        let domain = Self {
            frame_table: FrameTable::new(machine, pages, vcpus.len()),
            recent_faults: vec![RecentFaults::default(); config.max_vcpus as usize],
            memory_map: Vec::new(),
            memory,
            id: config.id,
            shared_info: config.shared_info,
            clock: Clock::new(config.clock),
            events: Events::new(config.max_port, vcpus.len()),
            vcpus,
            cpuid: config.cpuid.clone(),
            pci_address: 0,
            cmos_index: 0,
            assists: 0,
            flushes: Vec::new(),
            history: History::default(),
            trace: None,
            backend_events: Vec::new(),
            handle: config.handle,
            grants: GrantTable::new(&GrantFrames::default()),
            wakeups: Vec::new(),
            started: Vec::new(),
            shutdown: Shutdown::default(),
            watchdogs: Watchdogs::default(),
            console: ConsoleOutput::default(),
            pirq_eoi: None,
        };
        domain.publish_wall_clock();
        domain.publish_all_times();
        domain
    }

    /// Answers what `vcpu` did: changes state and registers and says how to go on.
    ///
    /// `context` is that vCPU's registers as the engine left them at `exit`.
    pub fn handle(&mut self, vcpu: VcpuId, exit: Exit, context: &mut VcpuContext, now: Tsc) -> Verdict {
        self.expire_vcpu_timers(vcpu, now);
        self.answer(vcpu, exit, context, now, |call| exits::handle(call, exit))
    }

    /// Answers a request of `vcpu`'s that `exit` began, with a crash report if it cannot be answered.
    pub(crate) fn answer(
        &mut self,
        vcpu: VcpuId,
        exit: Exit,
        context: &mut VcpuContext,
        now: Tsc,
        answer: impl FnOnce(&mut Call<'_>) -> Result<Verdict, CrashCause>,
    ) -> Verdict {
        let mut call = Call { domain: self, vcpu, context, now };
        match answer(&mut call).and_then(|verdict| call.domain.check_frames().map(|()| verdict)) {
            Ok(verdict) => self.after_exit(vcpu, verdict, context, now),
            Err(cause) => Verdict::Crash(Box::new(CrashReport {
                vcpu,
                cause,
                exit,
                context: Box::new(context.clone()),
            })),
        }
    }

    /// Turns the hypercall trace on.
    pub fn trace_hypercalls(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// The lines of the hypercall trace since the last call.
    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn trace_line(&mut self, line: String) {
        // Whoever turned the trace on takes its lines after every exit; one exit makes few.
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    /// The last hypercalls, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &PastHypercall> {
        self.history.iter()
    }

    /// What the guest wrote to Xen's console since the last call.
    pub fn take_console_output(&mut self) -> ConsoleText {
        self.console.take()
    }

    /// Sets the memory map that the guest may ask for. Without one it is told that there is none.
    pub fn set_memory_map(&mut self, map: Vec<E820Entry>) {
        self.memory_map = map;
    }

    /// Whether all that is taken after an exit is empty: flushes, trace, console output, notified backends, wakeups.
    /// So it is after most.
    pub fn is_quiet(&self) -> bool {
        self.flushes.is_empty()
            && self.backend_events.is_empty()
            && self.wakeups.is_empty()
            && self.console.is_empty()
            && self.trace.as_ref().is_none_or(Vec::is_empty)
    }

    /// The flushes since the last call.
    pub fn take_flushes(&mut self) -> Vec<Flush> {
        std::mem::take(&mut self.flushes)
    }
}

impl Call<'_> {
    /// The vCPU that asks.
    pub(crate) fn vcpu(&self) -> &Vcpu {
        &self.domain.vcpus[self.vcpu.0 as usize]
    }

    /// The vCPU that asks, to change.
    pub(crate) fn vcpu_mut(&mut self) -> &mut Vcpu {
        &mut self.domain.vcpus[self.vcpu.0 as usize]
    }

    /// The guest kernel's address space.
    pub(crate) fn space(&self) -> AddressSpace<'_> {
        AddressSpace { memory: &self.domain.memory, root: self.context.kernel_root }
    }

    /// Has this vCPU's engine forget translations.
    pub(crate) fn flush_local(&mut self, what: TlbFlush) {
        self.flush_one(self.vcpu, what);
    }

    /// Has one vCPU's engine forget translations.
    pub(crate) fn flush_one(&mut self, vcpu: VcpuId, what: TlbFlush) {
        if what == TlbFlush::All {
            self.domain.frame_table.flushed(vcpu);
        }
        self.domain.flushes.push(Flush { vcpu, what });
    }

    /// Has all engines forget translations.
    pub(crate) fn flush_all(&mut self, what: TlbFlush) {
        for index in 0..self.domain.vcpus.len() {
            self.flush_one(self.domain.vcpus[index].id, what);
        }
    }
}
