//! Operations of `sched_op`, old and new, and the reasons of a shutdown.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// An operation of `sched_op_compat`, the form with one plain argument.
    pub enum SchedOpCompat(u32), "xen/include/public/sched.h": SubOpFacts;
    0 Yield "yield" "Lets other vCPUs run." { arg: "", domu: DomU::Available }
    1 Block "block" "Clears the event mask and sleeps until an event is pending." {
        arg: "", domu: DomU::Available
    }
    2 Shutdown "shutdown" "Ends the domain; the argument is the reason itself, not a pointer to it." {
        arg: "reason", domu: DomU::Available
    }
}

numbered! {
    /// An operation of `sched_op`.
    pub enum SchedOp(u32), "xen/include/public/sched.h": SubOpFacts;
    0 Yield "yield" "Lets other vCPUs run." { arg: "", domu: DomU::Available }
    1 Block "block" "Clears the event mask and sleeps until an event is pending." {
        arg: "", domu: DomU::Available
    }
    2 Shutdown "shutdown"
    "Ends or suspends the domain for a reason; a suspend returns 0 when resumed and 1 when cancelled." {
        arg: "sched_shutdown", domu: DomU::Available
    }
    3 Poll "poll"
    "Sleeps until one of at most 128 ports is pending, an event is deliverable or the time has come." {
        arg: "sched_poll", domu: DomU::Available
    }
    4 RemoteShutdown "remote_shutdown" "Shuts another domain down." {
        arg: "sched_remote_shutdown", domu: DomU::Refused(Errno::Eperm)
    }
    5 ShutdownCode "shutdown_code" "Records the reason of a shutdown that is to follow." {
        arg: "sched_shutdown", domu: DomU::Available
    }
    6 Watchdog "watchdog"
    "Sets (id 0), pokes or ends (timeout 0) one of two watchdogs in seconds; returns the id of a new one." {
        arg: "sched_watchdog", domu: DomU::Available
    }
    7 PinOverride "pin_override" "Pins the vCPU to a physical CPU for a while." {
        arg: "sched_pin_override", domu: DomU::Refused(Errno::Eperm)
    }
}

numbered! {
    /// Why a domain shuts down.
    pub enum ShutdownReason(u32), "xen/include/public/sched.h";
    0 Poweroff "poweroff" "The guest has finished.";
    1 Reboot "reboot" "Destroy the domain and start it again.";
    2 Suspend "suspend" "Save the domain's state; the hypercall returns later.";
    3 Crash "crash" "The guest kernel found itself broken.";
    4 Watchdog "watchdog" "A watchdog ran out.";
    5 SoftReset "soft_reset" "Destroy the domain's resources and start it again with its memory kept.";
}

/// The most ports that `SCHEDOP_poll` takes.
pub const POLL_PORTS_MAX: u32 = 128;

/// Watchdogs per domain, with the ids 1 and 2.
pub const WATCHDOGS: u32 = 2;

abi_struct! {
    /// The reason of a shutdown.
    pub struct SchedShutdown = "sched_shutdown", "xen/include/public/sched.h", 4 / 4;
    [0 / 0] reason: u32 = Ty::U32, "Why.";
}

abi_struct! {
    /// What to wait for.
    pub struct SchedPoll = "sched_poll", "xen/include/public/sched.h", 24 / 16;
    [0 / 0] ports: u64 = Ty::Pointer, "A list of ports, 4 bytes each.";
    [8 / 4] nr_ports: u32 = Ty::U32, "How many.";
    pad _pad0: [u8; 4];
    [16 / 8] timeout: u64 = Ty::U64, "System time in nanoseconds at which to give up; 0 is never.";
}

abi_struct! {
    /// Another domain's shutdown.
    pub struct SchedRemoteShutdown = "sched_remote_shutdown", "xen/include/public/sched.h", 8 / 8;
    [0 / 0] domain_id: u16 = Ty::DomId, "Which domain.";
    pad _pad0: [u8; 2];
    [4 / 4] reason: u32 = Ty::U32, "Why.";
}

abi_struct! {
    /// A watchdog.
    pub struct SchedWatchdog = "sched_watchdog", "xen/include/public/sched.h", 8 / 8;
    [0 / 0] id: u32 = Ty::U32, "Which one; 0 asks for a new one.";
    [4 / 4] timeout: u32 = Ty::U32, "Seconds until it fires; 0 ends it.";
}

abi_struct! {
    /// A temporary pinning.
    pub struct SchedPinOverride = "sched_pin_override", "xen/include/public/sched.h", 4 / 4;
    [0 / 0] pcpu: i32 = Ty::I32, "The physical CPU; negative ends the pinning.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_and_reasons_read_back() {
        assert_well_formed::<SchedOp>();
        assert_well_formed::<SchedOpCompat>();
        assert_well_formed::<ShutdownReason>();
    }

    #[test]
    fn the_old_form_is_the_beginning_of_the_new_one() {
        for &old in SchedOpCompat::ALL {
            assert_eq!(SchedOp::from_number(old.number()).map(SchedOp::name), Some(old.name()));
        }
    }
}
