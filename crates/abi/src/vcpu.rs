//! Operations of `vcpu_op`.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// An operation of `vcpu_op`. A vCPU that the domain lacks yields `ENOENT`.
    pub enum VcpuOp(u32), "xen/include/public/vcpu.h": SubOpFacts;
    0 Initialise "initialise" "Gives a vCPU its first state; it stays down. EEXIST the second time." {
        arg: "vcpu_guest_context", domu: DomU::Available
    }
    1 Up "up" "Lets an initialised vCPU run." { arg: "", domu: DomU::Available }
    2 Down "down" "Stops a vCPU; when the last one goes down the domain powers off." {
        arg: "", domu: DomU::Available
    }
    3 IsUp "is_up" "Returns whether a vCPU is up." { arg: "", domu: DomU::Available }
    4 GetRunstateInfo "get_runstate_info" "Copies out how long a vCPU has spent in each state." {
        arg: "vcpu_runstate_info", domu: DomU::Available
    }
    5 RegisterRunstateMemoryArea "register_runstate_memory_area"
    "Names a virtual address that Xen fills with the run state now and at every change." {
        arg: "vcpu_register_runstate_memory_area", domu: DomU::Available
    }
    6 SetPeriodicTimer "set_periodic_timer" "Sets the vCPU's periodic timer, at least 1 ms." {
        arg: "vcpu_set_periodic_timer", domu: DomU::Available
    }
    7 StopPeriodicTimer "stop_periodic_timer" "Stops the periodic timer, which runs at 10 ms by default." {
        arg: "", domu: DomU::Available
    }
    8 SetSingleshotTimer "set_singleshot_timer"
    "Raises VIRQ_TIMER at an absolute system time, at once if it has passed; only on the calling vCPU." {
        arg: "vcpu_set_singleshot_timer", domu: DomU::Available
    }
    9 StopSingleshotTimer "stop_singleshot_timer" "Stops the one-shot timer; only on the calling vCPU." {
        arg: "", domu: DomU::Available
    }
    10 RegisterVcpuInfo "register_vcpu_info"
    "Moves the vCPU's vcpu_info into a page of the guest and makes an event pending; EBUSY the second time." {
        arg: "vcpu_register_vcpu_info", domu: DomU::Available
    }
    11 SendNmi "send_nmi" "Sends the vCPU an NMI." { arg: "", domu: DomU::Available }
    12 GetPhysid "get_physid" "Returns the physical CPU's ids; EINVAL unless the vCPU is pinned." {
        arg: "vcpu_get_physid", domu: DomU::Refused(Errno::Einval)
    }
    13 RegisterVcpuTimeMemoryArea "register_vcpu_time_memory_area"
    "Names a virtual address that Xen keeps a copy of the vCPU's time information at." {
        arg: "vcpu_register_time_memory_area", domu: DomU::Available
    }
    14 RegisterRunstatePhysArea "register_runstate_phys_area"
    "As register_runstate_memory_area by guest frame address; offered with feature bit 18." {
        arg: "vcpu_register_runstate_memory_area", domu: DomU::Optional(Errno::Enosys)
    }
    15 RegisterVcpuTimePhysArea "register_vcpu_time_phys_area"
    "As register_vcpu_time_memory_area by guest frame address; offered with feature bit 19." {
        arg: "vcpu_register_time_memory_area", domu: DomU::Optional(Errno::Enosys)
    }
}

numbered! {
    /// The state a vCPU is in, as the run state accounts it.
    pub enum RunState(u32), "xen/include/public/vcpu.h";
    0 Running "running" "The vCPU runs on a physical CPU.";
    1 Runnable "runnable" "The vCPU waits for a physical CPU.";
    2 Blocked "blocked" "The vCPU sleeps, waiting for an event.";
    3 Offline "offline" "The vCPU is down or paused.";
}

/// `RunstateInfo::state_entry_time`: an update is under way, when `vm_assist` asked for the mark.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// The shortest period of the periodic timer, in nanoseconds.
pub const PERIODIC_TIMER_MIN_NS: u64 = 1_000_000;

/// The period that every vCPU's periodic timer starts with, in nanoseconds.
pub const PERIODIC_TIMER_DEFAULT_NS: u64 = 10_000_000;

/// `SetSingleshotTimer::flags`: fail with `ETIME` if the time has passed. Current Xen ignores it.
pub const SINGLESHOT_FUTURE: u32 = 1;

abi_struct! {
    /// How long a vCPU has spent in each state.
    pub struct RunstateInfo = "vcpu_runstate_info", "xen/include/public/vcpu.h", 48 / 44;
    [0 / 0] state: i32 = Ty::I32, "The current state.";
    pad _pad0: [u8; 4];
    [8 / 4] state_entry_time: u64 = Ty::U64, "System time in nanoseconds at which it began.";
    [16 / 12] time: [u64; 4] = Ty::Array(&Ty::U64, 4, 4), "Nanoseconds spent in each state.";
}

abi_struct! {
    /// Where to keep a copy of the run state.
    ///
    /// A union of pointer and `uint64_t` in C, hence 8 bytes.
    pub struct RegisterRunstateMemoryArea = "vcpu_register_runstate_memory_area", "xen/include/public/vcpu.h", 8 / 8;
    [0 / 0] addr: u64 = Ty::U64, "Virtual address in kernel mode, or guest physical address for the phys form.";
}

abi_struct! {
    /// Where to keep a copy of the time information.
    ///
    /// A union of pointer and `uint64_t` in C, hence 8 bytes.
    pub struct RegisterTimeMemoryArea = "vcpu_register_time_memory_area", "xen/include/public/vcpu.h", 8 / 8;
    [0 / 0] addr: u64 = Ty::U64, "Virtual address in kernel mode, or guest physical address for the phys form.";
}

abi_struct! {
    /// The periodic timer's period.
    pub struct SetPeriodicTimer = "vcpu_set_periodic_timer", "xen/include/public/vcpu.h", 8 / 8;
    [0 / 0] period_ns: u64 = Ty::U64, "Nanoseconds between ticks.";
}

abi_struct! {
    /// The one-shot timer's time.
    pub struct SetSingleshotTimer = "vcpu_set_singleshot_timer", "xen/include/public/vcpu.h", 16 / 12;
    [0 / 0] timeout_abs_ns: u64 = Ty::U64, "System time in nanoseconds at which to fire.";
    [8 / 8] flags: u32 = Ty::U32, "Bit 0: fail if the time has passed; a hint.";
    pad _pad0: [u8; 4];
}

abi_struct! {
    /// Where a vCPU's `vcpu_info` is to live.
    pub struct RegisterVcpuInfo = "vcpu_register_vcpu_info", "xen/include/public/vcpu.h", 16 / 16;
    [0 / 0] mfn: u64 = Ty::U64, "Machine frame of a page of the guest.";
    [8 / 8] offset: u32 = Ty::U32, "Bytes from the page's beginning; the area must not cross its end.";
    [12 / 12] rsvd: u32 = Ty::U32, "Unused.";
}

abi_struct! {
    /// The ids of a physical CPU.
    pub struct GetPhysid = "vcpu_get_physid", "xen/include/public/vcpu.h", 8 / 8;
    [0 / 0] phys_id: u64 = Ty::U64, "APIC id in the low half, ACPI id in the high half.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_and_states_read_back() {
        assert_well_formed::<VcpuOp>();
        assert_well_formed::<RunState>();
        assert_eq!(VcpuOp::from_number(16), None);
    }
}
