//! What is left of a kernel that has ended.

use std::{fmt, sync::Arc};

use paravane_abi::{
    sched::ShutdownReason,
    units::{GuestVirt, MachAddr, PAGE_SIZE},
};
use paravane_builder::domain::BuiltDomain;
use paravane_engine::VcpuContext;
use paravane_hypervisor::{CrashCause, CrashReport, Machine, Miscount};
use paravane_memory::{Memory, paging};

use crate::{
    runtime::Variables,
    trap::{RECORD_BYTES, RECORDS, Trap},
};

/// How a kernel ended.
#[derive(Debug)]
pub enum End {
    /// It shut down.
    Shutdown(ShutdownReason),
    /// Its hypervisor gave it up.
    Crash(Box<CrashReport>),
    /// It waits for what cannot happen.
    BlockedForever,
    /// Its vCPU is down.
    Down,
    /// Its time was over.
    TimedOut,
}

/// What is left of a kernel that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What it printed through `console_io`.
    pub console: String,
    /// What it printed through the console ring.
    pub ring: String,
    /// Whether the counts of its frames are what its page tables and registrations make them.
    pub recount: Result<(), Miscount>,
    /// The registers of its vCPU.
    pub context: VcpuContext,
    /// Its memory.
    pub memory: Arc<Memory>,
    /// Its machine frames.
    pub frames: Machine,
    /// What the builder made.
    pub built: BuiltDomain,
    /// Its last hypercalls, each as a line.
    pub hypercalls: Vec<String>,
}

impl Outcome {
    /// Whether it powered off, which a kernel with a failed check does not, and its frames are counted rightly.
    pub fn passed(&self) -> bool {
        matches!(self.end, End::Shutdown(ShutdownReason::Poweroff)) && self.recount.is_ok()
    }

    /// Why its hypervisor gave it up, if that did.
    pub fn crash(&self) -> Option<&CrashCause> {
        match &self.end {
            End::Crash(report) => Some(&report.cause),
            End::Shutdown(_) | End::BlockedForever | End::Down | End::TimedOut => None,
        }
    }

    /// Bytes at an address of the initial mapping, whatever is mapped there now.
    ///
    /// # Panics
    ///
    /// If the address is not in the guest's memory.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let offset = at.wrapping_sub(self.built.plan.virt_base.0);
        let mut bytes = vec![0; len];
        // Pseudo-physical frames follow each other in machine memory.
        let from = MachAddr(self.frames.memory.start.0 * PAGE_SIZE + offset);
        self.memory.read(from, &mut bytes).expect("an address in the guest's memory");
        bytes
    }

    /// A word at an address of the initial mapping, whatever is mapped there now.
    ///
    /// # Panics
    ///
    /// If the address is not in the guest's memory.
    pub fn word(&self, at: u64) -> u64 {
        let bytes = self.bytes(at, 8);
        bytes.try_into().map_or(0, u64::from_le_bytes)
    }

    /// What the kernel's page tables make of an address.
    pub fn walk(&self, at: u64) -> Option<paging::Translation> {
        paging::inspect(&self.memory, self.context.kernel_root, GuestVirt(at)).1
    }

    /// What the runtime noted of the entries into the kernel, oldest first.
    pub fn traps(&self) -> Vec<Trap> {
        let base = self.built.plan.virt_base.0;
        let layout_of = |page: u64| base.wrapping_add(page * PAGE_SIZE);
        let count = self.word(Variables::at(layout_of(3)).count());
        let first = count.saturating_sub(RECORDS);
        (first..count)
            .filter_map(|index| {
                let at = layout_of(4) + index % RECORDS * RECORD_BYTES;
                Trap::parse(&self.bytes(at, usize::try_from(RECORD_BYTES).unwrap_or(0)))
            })
            .collect()
    }

    /// The only trap.
    ///
    /// # Panics
    ///
    /// If there are none or more.
    pub fn trap(&self) -> Trap {
        let traps = self.traps();
        assert!(traps.len() == 1, "one trap is expected: {self}");
        traps[0]
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Crash(report) => {
                let crash = &report.context;
                writeln!(f, "crash: {}; {:?} at {:#x}", report.cause, report.exit, crash.rip)?;
            }
            End::Shutdown(_) | End::BlockedForever | End::Down | End::TimedOut => {
                writeln!(f, "{:?} at {:#x}", self.end, self.context.rip)?;
            }
        }
        if let Err(miscount) = &self.recount {
            writeln!(f, "frames are counted wrongly: {miscount:?}")?;
        }
        writeln!(f, "console: {}", self.console)?;
        for trap in self.traps() {
            writeln!(f, "trap: {trap:?}")?;
        }
        for line in &self.hypercalls {
            writeln!(f, "hypercall: {line}")?;
        }
        Ok(())
    }
}
