//! What the hypervisor knows of one virtual CPU beside its registers.

use paravane_abi::units::{GuestVirt, MachAddr, VcpuId};
use paravane_engine::VcpuContext;

use crate::{areas::Area, runstate::Runstate, schedule::Wait, timers::Timers};

/// A handler that the guest registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handler {
    /// Where to go; 0 means that there is none.
    pub(crate) address: GuestVirt,
    /// Whether events are masked on entry.
    pub(crate) masks_events: bool,
}

/// One row of the trap table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrapEntry {
    /// The handler.
    pub(crate) handler: Handler,
    /// The code segment; ignored for 64-bit guests, which always enter at the flat one.
    pub(crate) cs: u16,
    /// The least privileged virtual ring that may raise the vector with INT n.
    pub(crate) dpl: u8,
}

/// The callbacks of a 64-bit guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Callbacks {
    pub(crate) event: Handler,
    pub(crate) failsafe: Handler,
    pub(crate) syscall: Handler,
    pub(crate) syscall32: Handler,
    pub(crate) sysenter: Handler,
}

/// Whether a vCPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// Never given a context.
    Uninitialised,
    /// Has a context and is down.
    Down,
    /// Runs, or waits for an event.
    Up,
}

/// A virtual CPU: its trap table, callbacks and the places it shares with the guest.
#[derive(Debug)]
pub struct Vcpu {
    /// Its number.
    pub(crate) id: VcpuId,
    /// Whether it can run.
    pub(crate) availability: Availability,
    /// The handlers of exceptions and software interrupts, by vector.
    pub(crate) traps: Box<[TrapEntry; 256]>,
    /// The other handlers.
    pub(crate) callbacks: Callbacks,
    /// The stack of the guest kernel, for entries from user mode.
    pub(crate) kernel_sp: GuestVirt,
    /// Its selector.
    pub(crate) kernel_ss: u16,
    /// The virtual I/O privilege level, 0 to 3.
    pub(crate) iopl: u8,
    /// Where the guest reads the vCPU's `vcpu_info`: in shared_info, or where it registered it.
    pub(crate) vcpu_info: MachAddr,
    /// Whether the guest registered its own `vcpu_info`.
    pub(crate) vcpu_info_registered: bool,
    /// An NMI waits to be delivered.
    pub(crate) nmi_pending: bool,
    /// NMIs wait until the next iret hypercall.
    pub(crate) nmi_masked: bool,
    /// What it waits for, if it sleeps.
    pub(crate) wait: Option<Wait>,
    /// Its timers.
    pub(crate) timers: Timers,
    /// How long it has been in which state.
    pub(crate) runstate: Runstate,
    /// Where the guest wants to see the run state.
    pub(crate) runstate_area: Area,
    /// Where the guest wants a second copy of the time.
    pub(crate) time_area: Area,
    /// The registers it will start with, from `VCPUOP_initialise` until the first `VCPUOP_up`.
    pub(crate) first_context: Option<Box<VcpuContext>>,
    /// Whether a multicall is under way; another inside it is refused.
    pub(crate) in_multicall: bool,
    /// `SPEC_CTRL` as the guest wrote it.
    pub(crate) spec_ctrl: u64,
    /// CPUID in user mode raises #GP (MSR 0x140).
    pub(crate) cpuid_faulting: bool,
    /// The enable bits of DR7 whose breakpoints are on I/O ports, which DR7 itself does not have.
    pub(crate) io_breakpoints: u64,
    /// The ports that the guest opened by `PHYSDEVOP_set_iobitmap`.
    pub(crate) io_bitmap: Option<IoBitmap>,
}

/// A guest's I/O permission bitmap: a clear bit opens a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoBitmap {
    /// Where its first byte is.
    pub(crate) at: GuestVirt,
    /// How many ports it covers, from port 0.
    pub(crate) ports: u32,
}

/// Where a vCPU beyond the 32 of `shared_info` has its `vcpu_info` before it registers one: no memory at all.
pub(crate) const NO_VCPU_INFO: MachAddr = MachAddr(u64::MAX - 0xfff);

/// Offsets in `struct vcpu_info` (`xen/include/public/xen.h`), the same in both ABIs for the two flags.
pub(crate) mod vcpu_info {
    /// `evtchn_upcall_pending`.
    pub(crate) const UPCALL_PENDING: u64 = 0;
    /// `evtchn_upcall_mask`.
    pub(crate) const UPCALL_MASK: u64 = 1;
    /// `evtchn_pending_sel`, 64-bit ABI.
    pub(crate) const PENDING_SEL: u64 = 8;
    /// `arch.cr2`, 64-bit ABI.
    pub(crate) const CR2: u64 = 16;
    /// `time`.
    pub(crate) const TIME: u64 = 32;
    /// Size of the structure.
    pub(crate) const SIZE: u64 = 64;
}

impl Vcpu {
    /// A vCPU that was never given a context.
    pub(crate) fn new(id: VcpuId, vcpu_info: MachAddr) -> Self {
        Self {
            id,
            availability: Availability::Uninitialised,
            traps: Box::new([TrapEntry::default(); 256]),
            callbacks: Callbacks::default(),
            kernel_sp: GuestVirt(0),
            kernel_ss: 0,
            iopl: 0,
            vcpu_info,
            vcpu_info_registered: false,
            nmi_pending: false,
            nmi_masked: false,
            wait: None,
            timers: Timers::default(),
            runstate: Runstate::default(),
            runstate_area: Area::default(),
            time_area: Area::default(),
            first_context: None,
            in_multicall: false,
            spec_ctrl: 0,
            cpuid_faulting: false,
            io_breakpoints: 0,
            io_bitmap: None,
        }
    }

    /// Whether it has a `vcpu_info`.
    pub(crate) fn has_info(&self) -> bool {
        self.vcpu_info != NO_VCPU_INFO
    }

    /// A field of its `vcpu_info`.
    pub(crate) fn info(&self, offset: u64) -> MachAddr {
        MachAddr(self.vcpu_info.0 + offset)
    }
}
