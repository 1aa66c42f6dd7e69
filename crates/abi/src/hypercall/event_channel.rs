//! Operations of `event_channel_op`, the kinds of a port, and virtual interrupts.

use serde::Serialize;

use super::domu::DomU;
use super::family::SubOpFacts;
use crate::errno::Errno;
use crate::numbered;

numbered! {
    /// An operation of `event_channel_op`. All return 0 on success.
    pub enum EventChannelOp(u32), "xen/include/public/event_channel.h": SubOpFacts;
    0 BindInterdomain "bind_interdomain"
    "Connects a new local port to a remote port that waits for this domain; the local port starts pending." {
        arg: "evtchn_bind_interdomain", domu: DomU::Available
    }
    1 BindVirq "bind_virq" "Binds a new port to a virtual interrupt of a vCPU; EEXIST if bound already." {
        arg: "evtchn_bind_virq", domu: DomU::Available
    }
    2 BindPirq "bind_pirq" "Binds a new port to a physical interrupt." {
        arg: "evtchn_bind_pirq", domu: DomU::Refused(Errno::Einval)
    }
    3 Close "close" "Frees a port; the peer of a connected port becomes unbound." {
        arg: "evtchn_close", domu: DomU::Available
    }
    4 Send "send" "Raises the other end of a connected port, or an IPI port itself." {
        arg: "evtchn_send", domu: DomU::Available
    }
    5 Status "status" "Tells what a port is bound to." { arg: "evtchn_status", domu: DomU::Available }
    6 AllocUnbound "alloc_unbound" "Allocates the lowest free port and lets one domain connect to it." {
        arg: "evtchn_alloc_unbound", domu: DomU::Available
    }
    7 BindIpi "bind_ipi" "Binds a new port to inter-processor interrupts of a vCPU." {
        arg: "evtchn_bind_ipi", domu: DomU::Available
    }
    8 BindVcpu "bind_vcpu"
    "Chooses the vCPU that a port notifies; EINVAL for IPIs and virtual interrupts that belong to a vCPU." {
        arg: "evtchn_bind_vcpu", domu: DomU::Available
    }
    9 Unmask "unmask" "Clears a port's mask bit and raises it again if it is pending." {
        arg: "evtchn_unmask", domu: DomU::Available
    }
    10 Reset "reset" "Closes every port of the domain and returns to the two-level ABI." {
        arg: "evtchn_reset", domu: DomU::Available
    }
    11 InitControl "init_control" "Turns on the FIFO ABI and sets a vCPU's control block." {
        arg: "evtchn_init_control", domu: DomU::Available
    }
    12 ExpandArray "expand_array" "Adds a page of event words; EOPNOTSUPP without the FIFO ABI." {
        arg: "evtchn_expand_array", domu: DomU::Available
    }
    13 SetPriority "set_priority" "Sets a port's FIFO priority, 0 highest to 15; ENOSYS without the FIFO ABI." {
        arg: "evtchn_set_priority", domu: DomU::Available
    }
    14 ResetCont "reset_cont" "The continuation of reset, which Xen issues to itself." {
        arg: "evtchn_reset", domu: DomU::Internal(Errno::Einval)
    }
}

numbered! {
    /// What a port is bound to, as `EVTCHNOP_status` reports it.
    pub enum PortStatus(u32), "xen/include/public/event_channel.h";
    0 Closed "closed" "The port is free.";
    1 Unbound "unbound" "The port waits for a domain to connect.";
    2 Interdomain "interdomain" "The port is connected to a port, maybe of the same domain.";
    3 Pirq "pirq" "The port is bound to a physical interrupt.";
    4 Virq "virq" "The port is bound to a virtual interrupt.";
    5 Ipi "ipi" "The port is bound to inter-processor interrupts of a vCPU.";
}

/// How many virtual interrupts there are, 16 to 23 being the architecture's.
pub const VIRQS: u32 = 24;

/// Who shares one virtual interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirqScope {
    /// Each vCPU binds its own; the port cannot move to another vCPU.
    Vcpu,
    /// Once per domain, bound on vCPU 0; the port can move afterwards.
    Domain,
    /// One domain of the host at a time.
    Global,
}

/// The columns of the table of virtual interrupts beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VirqFacts {
    /// Who shares the interrupt.
    pub scope: VirqScope,
}

numbered! {
    /// A virtual interrupt.
    pub enum Virq(u32), "xen/include/public/xen.h": VirqFacts;
    0 Timer "TIMER" "A timer of the vCPU fired." { scope: VirqScope::Vcpu }
    1 Debug "DEBUG" "The operator asks the guest to print its state." { scope: VirqScope::Vcpu }
    2 Console "CONSOLE" "Xen's emergency console received bytes." { scope: VirqScope::Global }
    3 DomExc "DOM_EXC" "Something happened to some domain." { scope: VirqScope::Global }
    4 Tbuf "TBUF" "The trace buffer has records." { scope: VirqScope::Global }
    6 Debugger "DEBUGGER" "A domain paused for its debugger." { scope: VirqScope::Global }
    7 Xenoprof "XENOPROF" "The profiler has a sample." { scope: VirqScope::Vcpu }
    8 ConRing "CON_RING" "Xen's console ring received bytes." { scope: VirqScope::Global }
    9 PcpuState "PCPU_STATE" "A physical CPU came or went." { scope: VirqScope::Global }
    10 MemEvent "MEM_EVENT" "A memory event occurred." { scope: VirqScope::Global }
    11 Argo "ARGO" "An Argo message arrived." { scope: VirqScope::Domain }
    12 Enomem "ENOMEM" "The host is low on memory." { scope: VirqScope::Global }
    13 Xenpmu "XENPMU" "A performance counter overflowed." { scope: VirqScope::Vcpu }
    16 Arch0 "ARCH_0" "On x86 the machine-check virtual interrupt of the control domain." {
        scope: VirqScope::Global
    }
    17 Arch1 "ARCH_1" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    18 Arch2 "ARCH_2" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    19 Arch3 "ARCH_3" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    20 Arch4 "ARCH_4" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    21 Arch5 "ARCH_5" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    22 Arch6 "ARCH_6" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
    23 Arch7 "ARCH_7" "Reserved for the architecture; x86 gives it no use." { scope: VirqScope::Global }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_states_and_interrupts_read_back() {
        assert_well_formed::<EventChannelOp>();
        assert_well_formed::<PortStatus>();
        assert_well_formed::<Virq>();
        assert!(Virq::ALL.iter().all(|virq| virq.number() < VIRQS));
        assert_eq!(Virq::from_number(5), None);
    }
}
