//! The rows of the hypercall table.

use serde::Serialize;

use super::args::{Arg, ArgKind, Direction, Length, Wide};
use super::domu::DomU;
use super::family::Family;
use crate::errno::Errno;
use crate::numbered;

/// Which guests have a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guests {
    /// 64-bit and 32-bit ones.
    Both,
    /// 64-bit ones only; a 32-bit guest gets `ENOSYS`.
    Bits64,
}

/// The columns of the hypercall table beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HypercallFacts {
    /// The arguments of a 64-bit guest, and of a 32-bit guest where `args32` is `None`.
    pub args: &'static [Arg],
    /// The arguments of a 32-bit guest where they differ.
    pub args32: Option<&'static [Arg]>,
    /// Which guests have it.
    pub guests: Guests,
    /// What an unprivileged domain gets.
    pub domu: DomU,
}

impl Hypercall {
    /// The arguments of a 64-bit guest, in the order RDI, RSI, RDX, R10, R8.
    pub fn args64(self) -> &'static [Arg] {
        self.facts().args
    }

    /// The arguments of a 32-bit guest, in the order EBX, ECX, EDX, ESI, EDI.
    pub fn args32(self) -> &'static [Arg] {
        self.facts().args32.unwrap_or(self.facts().args)
    }

    /// The family of the first argument, if that names a sub-operation.
    pub fn family(self) -> Option<Family> {
        let ArgKind::Command(family) = self.facts().args.first()?.kind else { return None };
        Some(family)
    }
}

use Direction::{In, InOut, Out};
use DomU::{Available, Internal, Optional, Refused, Removed};
use Errno::{Enosys, Eopnotsupp, Eperm};
use Guests::{Bits64, Both};
use Length::One;

/// `cmd` and a structure that the command decides.
macro_rules! command_and_structure {
    ($Family:ident) => {
        &[Arg::command(Family::$Family), Arg::by_command("arg")]
    };
}

/// An operation that has no table here, and a structure.
const UNTABLED_OP: &[Arg] = &[Arg::new("op", ArgKind::Number), Arg::by_command("arg")];

numbered! {
    /// A hypercall.
    pub enum Hypercall(u32), "xen/include/public/xen.h": HypercallFacts;
    0 SetTrapTable "set_trap_table"
    "Sets the calling vCPU's exception and software-interrupt entries; a null list clears them all." {
        args: &[Arg::pointer("traps", "trap_info", Length::UntilNullAddress, In)],
        args32: None, guests: Both, domu: Available,
    }
    1 MmuUpdate "mmu_update"
    "Stores into page tables or plain pages at machine addresses, each store checked by the page's type." {
        args: &[
            Arg::array("reqs", "mmu_update", 1),
            Arg::new("count", ArgKind::Count),
            Arg::pointer("done", "unsigned int", One, InOut),
            Arg::new("foreigndom", ArgKind::ForeignDomain),
        ],
        args32: None, guests: Both, domu: Available,
    }
    2 SetGdt "set_gdt"
    "Makes the listed frames the guest part of the GDT after checking every descriptor in them." {
        args: &[
            Arg::pointer("frames", "xen_pfn_t", Length::DescriptorFrames(1), In),
            Arg::new("entries", ArgKind::Count),
        ],
        args32: None, guests: Both, domu: Available,
    }
    3 StackSwitch "stack_switch" "Sets the stack on which events and exceptions from user mode arrive." {
        args: &[Arg::new("ss", ArgKind::Selector), Arg::new("sp", ArgKind::Virtual)],
        args32: None, guests: Both, domu: Available,
    }
    4 SetCallbacks "set_callbacks" "Sets the entry points for events, failed segment loads and SYSCALL." {
        args: &[
            Arg::new("event_address", ArgKind::Code),
            Arg::new("failsafe_address", ArgKind::Code),
            Arg::new("syscall_address", ArgKind::Code),
        ],
        args32: Some(&[
            Arg::new("event_selector", ArgKind::Selector),
            Arg::new("event_address", ArgKind::Code),
            Arg::new("failsafe_selector", ArgKind::Selector),
            Arg::new("failsafe_address", ArgKind::Code),
        ]),
        guests: Both, domu: Available,
    }
    5 FpuTaskswitch "fpu_taskswitch" "Sets or clears the guest's CR0.TS." {
        args: &[Arg::new("set", ArgKind::Bool)],
        args32: None, guests: Both, domu: Available,
    }
    6 SchedOpCompat "sched_op_compat" "The old sched_op: yield, block, or shutdown with the reason as is." {
        args: &[Arg::command(Family::SchedCompat), Arg::new("arg", ArgKind::Word)],
        args32: None, guests: Both, domu: Available,
    }
    7 PlatformOp "platform_op" "Controls the host; for the control domain." {
        args: &[Arg::pointer("op", "xen_platform_op", One, InOut)],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    8 SetDebugreg "set_debugreg" "Sets a debug register; breakpoints must be at guest addresses." {
        args: &[Arg::new("reg", ArgKind::DebugRegister), Arg::new("value", ArgKind::Word)],
        args32: None, guests: Both, domu: Available,
    }
    9 GetDebugreg "get_debugreg" "Returns a debug register, or ENODEV." {
        args: &[Arg::new("reg", ArgKind::DebugRegister)],
        args32: None, guests: Both, domu: Available,
    }
    10 UpdateDescriptor "update_descriptor" "Stores one segment descriptor at a machine address, checked." {
        args: &[
            Arg::new("maddr", ArgKind::Wide(Wide::MachineAddress)),
            Arg::new("desc", ArgKind::Wide(Wide::Descriptor)),
        ],
        args32: Some(&[
            Arg::new("maddr_lo", ArgKind::Low(Wide::MachineAddress)),
            Arg::new("maddr_hi", ArgKind::High(Wide::MachineAddress)),
            Arg::new("desc_lo", ArgKind::Low(Wide::Descriptor)),
            Arg::new("desc_hi", ArgKind::High(Wide::Descriptor)),
        ]),
        guests: Both, domu: Available,
    }
    12 MemoryOp "memory_op" "Changes or asks about the domain's memory." {
        args: command_and_structure!(Memory),
        args32: None, guests: Both, domu: Available,
    }
    13 Multicall "multicall" "Makes a list of hypercalls in order and stores each result." {
        args: &[
            Arg::pointer("calls", "multicall_entry", Length::Arg(1), InOut),
            Arg::new("count", ArgKind::Count),
        ],
        args32: None, guests: Both, domu: Available,
    }
    14 UpdateVaMapping "update_va_mapping" "Stores the L1 entry that maps a virtual address, and flushes." {
        args: &[
            Arg::new("va", ArgKind::Virtual),
            Arg::new("pte", ArgKind::Wide(Wide::PageTableEntry)),
            Arg::new("flags", ArgKind::FlushFlags),
        ],
        args32: Some(&[
            Arg::new("va", ArgKind::Virtual),
            Arg::new("pte_lo", ArgKind::Low(Wide::PageTableEntry)),
            Arg::new("pte_hi", ArgKind::High(Wide::PageTableEntry)),
            Arg::new("flags", ArgKind::FlushFlags),
        ]),
        guests: Both, domu: Available,
    }
    15 SetTimerOp "set_timer_op" "Raises VIRQ_TIMER on this vCPU at an absolute system time; 0 stops it." {
        args: &[Arg::new("timeout", ArgKind::Wide(Wide::TimeNs))],
        args32: Some(&[
            Arg::new("timeout_lo", ArgKind::Low(Wide::TimeNs)),
            Arg::new("timeout_hi", ArgKind::High(Wide::TimeNs)),
        ]),
        guests: Both, domu: Available,
    }
    16 EventChannelOpCompat "event_channel_op_compat"
    "The old event_channel_op, with the command inside the structure." {
        args: &[Arg::pointer("op", "evtchn_op", One, InOut)],
        args32: None, guests: Both, domu: Available,
    }
    17 XenVersion "xen_version" "Tells about the hypervisor; with command 0 also the cheapest way to enter it." {
        args: command_and_structure!(Version),
        args32: None, guests: Both, domu: Available,
    }
    18 ConsoleIo "console_io" "Writes to or reads from Xen's own console." {
        args: &[
            Arg::command(Family::ConsoleIo),
            Arg::new("count", ArgKind::Count),
            Arg::pointer("buffer", "char", Length::Arg(1), InOut),
        ],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    19 PhysdevOpCompat "physdev_op_compat" "The old physdev_op, with the command inside the structure." {
        args: &[Arg::pointer("op", "physdev_op", One, InOut)],
        args32: None, guests: Both, domu: Available,
    }
    20 GrantTableOp "grant_table_op" "Shares pages with other domains, or maps and copies what they share." {
        args: &[
            Arg::command(Family::GrantTable),
            Arg::pointer("ops", "*", Length::Arg(2), InOut),
            Arg::new("count", ArgKind::Count),
        ],
        args32: None, guests: Both, domu: Available,
    }
    21 VmAssist "vm_assist" "Turns an assist of the hypervisor on or off for the domain." {
        args: &[
            Arg::command(Family::VmAssist),
            Arg::new("type", ArgKind::Command(Family::VmAssistType)),
        ],
        args32: None, guests: Both, domu: Available,
    }
    22 UpdateVaMappingOtherdomain "update_va_mapping_otherdomain"
    "As update_va_mapping, with the owner of the mapped frame; a domU can name DOMID_SELF at most." {
        args: &[
            Arg::new("va", ArgKind::Virtual),
            Arg::new("pte", ArgKind::Wide(Wide::PageTableEntry)),
            Arg::new("flags", ArgKind::FlushFlags),
            Arg::new("domid", ArgKind::Domain),
        ],
        args32: Some(&[
            Arg::new("va", ArgKind::Virtual),
            Arg::new("pte_lo", ArgKind::Low(Wide::PageTableEntry)),
            Arg::new("pte_hi", ArgKind::High(Wide::PageTableEntry)),
            Arg::new("flags", ArgKind::FlushFlags),
            Arg::new("domid", ArgKind::Domain),
        ]),
        guests: Both, domu: Available,
    }
    23 Iret "iret" "Returns to the frame on the kernel stack, in user or kernel mode; never returns a result." {
        args: &[],
        args32: None, guests: Both, domu: Available,
    }
    24 VcpuOp "vcpu_op" "Starts, stops and times vCPUs and registers their shared areas." {
        args: &[
            Arg::command(Family::Vcpu),
            Arg::new("vcpuid", ArgKind::Vcpu),
            Arg::by_command("arg"),
        ],
        args32: None, guests: Both, domu: Available,
    }
    25 SetSegmentBase "set_segment_base" "Sets the FS or GS base, or user mode's GS selector." {
        args: &[Arg::new("which", ArgKind::Command(Family::SegmentBase)), Arg::new("base", ArgKind::Word)],
        args32: None, guests: Bits64, domu: Available,
    }
    26 MmuextOp "mmuext_op" "Pins page tables, loads page-table roots, flushes TLBs, sets the LDT." {
        args: &[
            Arg::array("ops", "mmuext_op", 1),
            Arg::new("count", ArgKind::Count),
            Arg::pointer("done", "unsigned int", One, InOut),
            Arg::new("foreigndom", ArgKind::ForeignDomain),
        ],
        args32: None, guests: Both, domu: Available,
    }
    27 XsmOp "xsm_op" "Reaches the security module, where Xen has one." {
        args: &[Arg::pointer("op", "xen_flask_op", One, InOut)],
        args32: None, guests: Both, domu: Optional(Enosys),
    }
    28 NmiOp "nmi_op" "Sets or clears the calling vCPU's NMI handler." {
        args: command_and_structure!(Nmi),
        args32: None, guests: Both, domu: Available,
    }
    29 SchedOp "sched_op" "Yields, blocks, polls event channels, or shuts the domain down." {
        args: command_and_structure!(Sched),
        args32: None, guests: Both, domu: Available,
    }
    30 CallbackOp "callback_op" "Sets or clears one entry point of the calling vCPU." {
        args: command_and_structure!(Callback),
        args32: None, guests: Both, domu: Available,
    }
    31 XenoprofOp "xenoprof_op" "Once controlled profiling of the host." {
        args: UNTABLED_OP,
        args32: None, guests: Both, domu: Removed(Enosys),
    }
    32 EventChannelOp "event_channel_op" "Binds, raises and closes event channels." {
        args: command_and_structure!(EventChannel),
        args32: None, guests: Both, domu: Available,
    }
    33 PhysdevOp "physdev_op" "Sets I/O privilege; all else is for domains that drive real devices." {
        args: command_and_structure!(Physdev),
        args32: None, guests: Both, domu: Available,
    }
    34 HvmOp "hvm_op" "Serves HVM domains; what a PV domain can ask is refused with EINVAL." {
        args: UNTABLED_OP,
        args32: None, guests: Both, domu: Optional(Enosys),
    }
    35 Sysctl "sysctl" "Controls the host; for the control domain." {
        args: &[Arg::pointer("op", "xen_sysctl", One, InOut)],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    36 Domctl "domctl" "Controls other domains; for the control domain." {
        args: &[Arg::pointer("op", "xen_domctl", One, InOut)],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    37 KexecOp "kexec_op" "Loads or starts another kernel on the host; for the control domain." {
        args: UNTABLED_OP,
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    38 TmemOp "tmem_op" "Once kept pages outside the domain." {
        args: &[Arg::pointer("op", "tmem_op", One, InOut)],
        args32: None, guests: Both, domu: Removed(Enosys),
    }
    39 ArgoOp "argo_op" "Sends messages between domains, where Xen is built with it." {
        args: &[
            Arg::new("cmd", ArgKind::Number),
            Arg::by_command("arg1"),
            Arg::by_command("arg2"),
            Arg::new("arg3", ArgKind::Word),
            Arg::new("arg4", ArgKind::Word),
        ],
        args32: None, guests: Both, domu: Optional(Enosys),
    }
    40 XenpmuOp "xenpmu_op" "Controls virtual performance counters, where the host enables them." {
        args: &[Arg::new("op", ArgKind::Number), Arg::pointer("arg", "xen_pmu_params", One, InOut)],
        args32: None, guests: Both, domu: Optional(Eopnotsupp),
    }
    41 DmOp "dm_op" "Serves device models of HVM domains." {
        args: &[
            Arg::new("domid", ArgKind::Domain),
            Arg::new("nr_bufs", ArgKind::Count),
            Arg::pointer("bufs", "xen_dm_op_buf", Length::Arg(1), InOut),
        ],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    42 HypfsOp "hypfs_op" "Reads and sets the hypervisor's parameters; for the control domain." {
        args: &[
            Arg::new("cmd", ArgKind::Number),
            Arg::pointer("path", "char", Length::Arg(2), In),
            Arg::new("path_len", ArgKind::Count),
            Arg::pointer("data", "char", Length::Arg(4), Out),
            Arg::new("data_len", ArgKind::Count),
        ],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    48 Mca "mca" "arch_0: controls machine-check reporting; for the control domain." {
        args: &[Arg::pointer("op", "xen_mc", One, InOut)],
        args32: None, guests: Both, domu: Refused(Eperm),
    }
    49 PagingDomctlCont "paging_domctl_cont" "arch_1: the continuation of a long domctl." {
        args: &[Arg::pointer("op", "xen_domctl", One, InOut)],
        args32: None, guests: Both, domu: Internal(Eperm),
    }
}
