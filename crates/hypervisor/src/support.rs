//! What this hypervisor does of each hypercall and sub-operation: the table that dispatch answers from.
//!
//! The enums say what exists; here stands beside each member whether it is done. Handlers take the error numbers of
//! what is absent from this table, and a test makes every call of it, so that it says what a guest meets.
//! `docs/abi-coverage.md` prints it.

use core::fmt;

use paravane_abi::{
    errno::Errno,
    event_channel::EventChannelOp,
    grant_table::GrantTableOp,
    hypercall::{Family, Hypercall},
    memory::MemoryOp,
    mmu::{MmuExtOp, MmuUpdateCommand},
    physdev::PhysdevOp,
    sched::{SchedOp, SchedOpCompat},
    table::Numbered,
    vcpu::VcpuOp,
    version::XenVersionOp,
    vm::{CallbackOp, CallbackType, ConsoleIoOp, NmiOp, SegmentBase, VmAssistCommand, VmAssistType},
};

/// Whether something of the interface is done, for a 64-bit guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As stock Xen does it for an unprivileged domain, errors included.
    Whole,
    /// Not in all: the sentence says what is missing.
    Partly(&'static str),
    /// Not at all: a guest gets the error.
    Absent(Errno),
}

use Support::{Absent, Partly, Whole};

impl Support {
    /// Of a hypercall. One that has sub-operations is whole if it finds its way to them.
    pub fn of_hypercall(hypercall: Hypercall) -> Self {
        hypercall.support()
    }

    /// Of a sub-operation; `None` if the family has none of that number.
    pub fn of_operation(family: Family, number: i64) -> Option<Self> {
        fn of<T: Supported>(number: i64) -> Option<Support> {
            T::from_i64(number).map(T::support)
        }
        match family {
            Family::MmuUpdate => of::<MmuUpdateCommand>(number),
            Family::MmuExt => of::<MmuExtOp>(number),
            Family::SchedCompat => of::<SchedOpCompat>(number),
            Family::Memory => of::<MemoryOp>(number),
            Family::Version => of::<XenVersionOp>(number),
            Family::ConsoleIo => of::<ConsoleIoOp>(number),
            Family::GrantTable => of::<GrantTableOp>(number),
            Family::VmAssist => of::<VmAssistCommand>(number),
            Family::VmAssistType => of::<VmAssistType>(number),
            Family::Vcpu => of::<VcpuOp>(number),
            Family::SegmentBase => of::<SegmentBase>(number),
            Family::Nmi => of::<NmiOp>(number),
            Family::Sched => of::<SchedOp>(number),
            Family::Callback => of::<CallbackOp>(number),
            Family::CallbackType => of::<CallbackType>(number),
            Family::EventChannel => of::<EventChannelOp>(number),
            Family::Physdev => of::<PhysdevOp>(number),
        }
    }

    /// The error of what is absent. What is not absent is never asked for it by a guest; it would look as if it did not
    /// exist.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Absent(errno) => errno,
            Whole | Partly(_) => Errno::Enosys,
        }
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whole => f.write_str("supported"),
            Partly(missing) => write!(f, "partly: {missing}"),
            Absent(errno) => write!(f, "absent: {errno}"),
        }
    }
}

/// A closed set of the interface whose members are done or not.
pub(crate) trait Supported: Numbered {
    /// Whether this one is.
    fn support(self) -> Support;

    /// The error of one that is absent.
    fn refusal(self) -> Errno {
        self.support().errno()
    }
}

impl Supported for Hypercall {
    fn support(self) -> Support {
        match self {
            Self::SetTrapTable
            | Self::MmuUpdate
            | Self::SetGdt
            | Self::StackSwitch
            | Self::FpuTaskswitch
            | Self::SchedOpCompat
            | Self::UpdateDescriptor
            | Self::MemoryOp
            | Self::Multicall
            | Self::UpdateVaMapping
            | Self::SetTimerOp
            | Self::EventChannelOpCompat
            | Self::XenVersion
            | Self::PhysdevOpCompat
            | Self::GrantTableOp
            | Self::VmAssist
            | Self::UpdateVaMappingOtherdomain
            | Self::Iret
            | Self::VcpuOp
            | Self::SetSegmentBase
            | Self::MmuextOp
            | Self::NmiOp
            | Self::SchedOp
            | Self::CallbackOp
            | Self::EventChannelOp
            | Self::PhysdevOp => Whole,
            Self::SetCallbacks => Partly(FAILSAFE),
            Self::SetDebugreg => Partly("breakpoints on memory are kept and never hit."),
            Self::GetDebugreg => Whole,
            Self::ConsoleIo => Partly("any guest may write, which stock Xen leaves to a chosen one."),
            Self::HvmOp => Partly("the time, trace records and requests to a monitor, as for any PV domain."),
            Self::PlatformOp
            | Self::Sysctl
            | Self::Domctl
            | Self::KexecOp
            | Self::DmOp
            | Self::HypfsOp
            | Self::Mca
            | Self::PagingDomctlCont => Absent(Errno::Eperm),
            Self::XsmOp | Self::XenoprofOp | Self::TmemOp | Self::ArgoOp => Absent(Errno::Enosys),
            Self::XenpmuOp => Absent(Errno::Eopnotsupp),
        }
    }
}

/// What is missing of the failsafe callback.
const FAILSAFE: &str =
    "the failsafe callback is kept and never entered: no selector is reloaded behind the guest's back.";

impl Supported for MmuUpdateCommand {
    fn support(self) -> Support {
        match self {
            Self::NormalPtUpdate
            | Self::MachphysUpdate
            | Self::PtUpdatePreserveAd
            | Self::PtUpdateNoTranslate => Whole,
        }
    }
}

impl Supported for MmuExtOp {
    fn support(self) -> Support {
        match self {
            Self::PinL1Table
            | Self::PinL2Table
            | Self::PinL3Table
            | Self::PinL4Table
            | Self::UnpinTable
            | Self::NewBaseptr
            | Self::TlbFlushLocal
            | Self::InvlpgLocal
            | Self::TlbFlushMulti
            | Self::InvlpgMulti
            | Self::TlbFlushAll
            | Self::InvlpgAll
            | Self::SetLdt
            | Self::NewUserBaseptr
            | Self::ClearPage
            | Self::CopyPage => Whole,
            // Only who may map devices can make memory incoherent.
            Self::FlushCache | Self::FlushCacheGlobal => Absent(Errno::Eacces),
            Self::MarkSuper | Self::UnmarkSuper => Absent(Errno::Eopnotsupp),
        }
    }
}

impl Supported for SchedOpCompat {
    fn support(self) -> Support {
        match self {
            Self::Yield | Self::Block | Self::Shutdown => Whole,
        }
    }
}

impl Supported for MemoryOp {
    fn support(self) -> Support {
        match self {
            Self::IncreaseReservation
            | Self::DecreaseReservation
            | Self::MaximumRamPage
            | Self::CurrentReservation
            | Self::MaximumReservation
            | Self::MachphysMfnList
            | Self::PopulatePhysmap
            | Self::MemoryMap
            | Self::Exchange
            | Self::MachphysMapping
            | Self::SetMemoryMap
            | Self::MaximumGpfn
            | Self::GetSharingFreedPages
            | Self::GetSharingSharedPages
            | Self::ReservedDeviceMemoryMap => Whole,
            Self::AddToPhysmap | Self::AddToPhysmapBatch | Self::RemoveFromPhysmap => Absent(Errno::Eacces),
            Self::SetPodTarget | Self::GetPodTarget => Absent(Errno::Einval),
            Self::MachineMemoryMap | Self::AccessOp | Self::ClaimPages | Self::AcquireResource => {
                Absent(Errno::Eperm)
            }
            Self::PagingOp | Self::SharingOp => Absent(Errno::Enosys),
            Self::MachphysCompatMfnList | Self::GetVnumainfo => Absent(Errno::Eopnotsupp),
        }
    }
}

impl Supported for XenVersionOp {
    fn support(self) -> Support {
        match self {
            Self::Version
            | Self::Extraversion
            | Self::CompileInfo
            | Self::Capabilities
            | Self::Changeset
            | Self::PlatformParameters
            | Self::GetFeatures
            | Self::Pagesize
            | Self::GuestHandle
            | Self::Commandline
            | Self::Extraversion2
            | Self::Capabilities2
            | Self::Changeset2 => Whole,
            Self::BuildId | Self::Commandline2 => Absent(Errno::Eperm),
        }
    }
}

impl Supported for ConsoleIoOp {
    fn support(self) -> Support {
        match self {
            Self::Write => Whole,
            Self::Read => Partly("there is never anything to read."),
        }
    }
}

impl Supported for GrantTableOp {
    fn support(self) -> Support {
        match self {
            Self::MapGrantRef
            | Self::UnmapGrantRef
            | Self::SetupTable
            | Self::Copy
            | Self::QuerySize
            | Self::UnmapAndReplace
            | Self::SetVersion
            | Self::GetStatusFrames
            | Self::GetVersion
            | Self::SwapGrantRef => Whole,
            // As where Xen was started with gnttab=no-transfer.
            Self::Transfer => Absent(Errno::Eopnotsupp),
            // The one is gone, the other exists on machines whose caches need it.
            Self::DumpTable | Self::CacheFlush => Absent(Errno::Enosys),
        }
    }
}

impl Supported for VmAssistCommand {
    fn support(self) -> Support {
        match self {
            Self::Enable | Self::Disable => Whole,
        }
    }
}

impl Supported for VmAssistType {
    fn support(self) -> Support {
        match self {
            Self::FourGbSegments
            | Self::FourGbSegmentsNotify
            | Self::WritablePagetables
            | Self::PaeExtendedCr3
            | Self::ArchitecturalIopl
            | Self::RunstateUpdateFlag
            | Self::M2pStrict => Whole,
        }
    }
}

impl Supported for VcpuOp {
    fn support(self) -> Support {
        match self {
            Self::Initialise
            | Self::Up
            | Self::Down
            | Self::IsUp
            | Self::GetRunstateInfo
            | Self::RegisterRunstateMemoryArea
            | Self::SetPeriodicTimer
            | Self::StopPeriodicTimer
            | Self::SetSingleshotTimer
            | Self::StopSingleshotTimer
            | Self::RegisterVcpuInfo
            | Self::SendNmi
            | Self::RegisterVcpuTimeMemoryArea
            | Self::RegisterRunstatePhysArea
            | Self::RegisterVcpuTimePhysArea => Whole,
            // Only vCPUs that are pinned to a CPU of the host have one.
            Self::GetPhysid => Absent(Errno::Einval),
        }
    }
}

impl Supported for SegmentBase {
    fn support(self) -> Support {
        match self {
            Self::Fs | Self::GsUser | Self::GsKernel | Self::GsUserSel => Whole,
        }
    }
}

impl Supported for NmiOp {
    fn support(self) -> Support {
        match self {
            Self::RegisterCallback | Self::UnregisterCallback => Whole,
        }
    }
}

impl Supported for SchedOp {
    fn support(self) -> Support {
        match self {
            Self::Yield | Self::Block | Self::Shutdown | Self::Poll | Self::ShutdownCode | Self::Watchdog => {
                Whole
            }
            Self::RemoteShutdown | Self::PinOverride => Absent(Errno::Eperm),
        }
    }
}

impl Supported for CallbackOp {
    fn support(self) -> Support {
        match self {
            Self::Register | Self::Unregister => Whole,
        }
    }
}

impl Supported for CallbackType {
    fn support(self) -> Support {
        match self {
            Self::Event | Self::Syscall | Self::Nmi | Self::Sysenter | Self::Syscall32 => Whole,
            Self::Failsafe => Partly(FAILSAFE),
            Self::SysenterDeprecated => Absent(Errno::Enosys),
        }
    }
}

impl Supported for EventChannelOp {
    fn support(self) -> Support {
        match self {
            Self::BindInterdomain
            | Self::BindVirq
            | Self::Close
            | Self::Send
            | Self::Status
            | Self::AllocUnbound
            | Self::BindIpi
            | Self::BindVcpu
            | Self::Unmask
            | Self::Reset
            | Self::InitControl
            | Self::ExpandArray
            | Self::SetPriority => Whole,
            // No physical interrupt is the guest's.
            Self::BindPirq => Absent(Errno::Eperm),
            // Resets are never interrupted, so there is none to continue.
            Self::ResetCont => Absent(Errno::Ebusy),
        }
    }
}

impl Supported for PhysdevOp {
    fn support(self) -> Support {
        const NO_INTERRUPTS: &str =
            "the page is claimed and never marked: the domain has no physical interrupts.";
        match self {
            Self::IrqUnmaskNotify | Self::IrqStatusQuery | Self::SetIopl | Self::SetIobitmap => Whole,
            Self::PirqEoiGmfnV1 | Self::PirqEoiGmfnV2 => Partly(NO_INTERRUPTS),
            Self::Eoi => Absent(Errno::Einval),
            Self::GetFreePirq => Absent(Errno::Enospc),
            Self::FreeIrqVector => Absent(Errno::Enosys),
            Self::RestoreMsi | Self::RestoreMsiExt => Absent(Errno::Enodev),
            Self::ApicRead
            | Self::ApicWrite
            | Self::AllocIrqVector
            | Self::MapPirq
            | Self::UnmapPirq
            | Self::ManagePciAdd
            | Self::ManagePciRemove
            | Self::ManagePciAddExt
            | Self::SetupGsi
            | Self::PciMmcfgReserved
            | Self::PciDeviceAdd
            | Self::PciDeviceRemove
            | Self::DbgpOp
            | Self::PrepareMsix
            | Self::ReleaseMsix
            | Self::PciDeviceReset => Absent(Errno::Eperm),
        }
    }
}

#[cfg(test)]
mod tests;
