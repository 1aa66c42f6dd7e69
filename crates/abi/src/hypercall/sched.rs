//! Operations of `sched_op`, old and new, and the reasons of a shutdown.

use super::domu::DomU;
use super::family::SubOpFacts;
use crate::errno::Errno;
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
