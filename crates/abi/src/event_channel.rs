//! Operations of `event_channel_op`, the kinds of a port, and virtual interrupts.

use serde::Serialize;

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
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
        arg: "evtchn_bind_pirq", domu: DomU::Refused(Errno::Eperm)
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
        arg: "evtchn_reset", domu: DomU::Internal(Errno::Ebusy)
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

/// Ports of the two-level ABI for 64-bit guests, port 0 included, which is never valid.
pub const TWO_LEVEL_PORTS_64: u32 = 4096;
/// Ports of the two-level ABI for 32-bit guests, port 0 included, which is never valid.
pub const TWO_LEVEL_PORTS_32: u32 = 1024;

/// `BindPirq::flags`: the interrupt may be shared.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

abi_struct! {
    /// What `event_channel_op_compat` takes: an operation of the new form, up to `unmask`, and its structure.
    pub struct CompatOp = "evtchn_op", "xen/include/public/event_channel.h", 28 / 28;
    [0 / 0] cmd: u32 = Ty::U32, "The operation.";
    [4 / 4] body: [u32; 6] = Ty::Array(&Ty::U32, 6, 6), "The operation's structure (a union in C).";
}

abi_struct! {
    /// A port that waits for a domain.
    pub struct AllocUnbound = "evtchn_alloc_unbound", "xen/include/public/event_channel.h", 8 / 8;
    [0 / 0] dom: u16 = Ty::DomId, "Whose port; DOMID_SELF for an unprivileged domain.";
    [2 / 2] remote_dom: u16 = Ty::DomId, "Who may connect.";
    [4 / 4] port: u32 = Ty::Port, "Answer: the port.";
}

abi_struct! {
    /// A connection.
    pub struct BindInterdomain = "evtchn_bind_interdomain", "xen/include/public/event_channel.h", 12 / 12;
    [0 / 0] remote_dom: u16 = Ty::DomId, "The other domain.";
    pad _pad0: [u8; 2];
    [4 / 4] remote_port: u32 = Ty::Port, "Its port, which waits for this domain.";
    [8 / 8] local_port: u32 = Ty::Port, "Answer: the port on this side.";
}

abi_struct! {
    /// A virtual interrupt of a vCPU.
    pub struct BindVirq = "evtchn_bind_virq", "xen/include/public/event_channel.h", 12 / 12;
    [0 / 0] virq: u32 = Ty::U32, "Which interrupt.";
    [4 / 4] vcpu: u32 = Ty::U32, "Which vCPU; 0 unless the interrupt belongs to a vCPU.";
    [8 / 8] port: u32 = Ty::Port, "Answer: the port.";
}

abi_struct! {
    /// A physical interrupt.
    pub struct BindPirq = "evtchn_bind_pirq", "xen/include/public/event_channel.h", 12 / 12;
    [0 / 0] pirq: u32 = Ty::U32, "Which interrupt.";
    [4 / 4] flags: u32 = Ty::U32, "Bit 0: it may be shared.";
    [8 / 8] port: u32 = Ty::Port, "Answer: the port.";
}

abi_struct! {
    /// Inter-processor interrupts of a vCPU.
    pub struct BindIpi = "evtchn_bind_ipi", "xen/include/public/event_channel.h", 8 / 8;
    [0 / 0] vcpu: u32 = Ty::U32, "Which vCPU.";
    [4 / 4] port: u32 = Ty::Port, "Answer: the port.";
}

abi_struct! {
    /// A port to close.
    pub struct ClosePort = "evtchn_close", "xen/include/public/event_channel.h", 4 / 4;
    [0 / 0] port: u32 = Ty::Port, "The port.";
}

abi_struct! {
    /// A port to raise.
    pub struct SendEvent = "evtchn_send", "xen/include/public/event_channel.h", 4 / 4;
    [0 / 0] port: u32 = Ty::Port, "The port.";
}

abi_struct! {
    /// What a port is bound to. The tail is a union in C.
    pub struct QueryStatus = "evtchn_status", "xen/include/public/event_channel.h", 24 / 24;
    [0 / 0] dom: u16 = Ty::DomId, "Whose port; DOMID_SELF for an unprivileged domain.";
    pad _pad0: [u8; 2];
    [4 / 4] port: u32 = Ty::Port, "The port.";
    [8 / 8] status: u32 = Ty::U32, "Answer: the kind.";
    [12 / 12] vcpu: u32 = Ty::U32, "Answer: the vCPU it notifies.";
    [16 / 16] u0: u32 = Ty::U32,
        "Answer: the remote domain in bits 15..0 (unbound, interdomain), or the pirq or virq.";
    [20 / 20] u1: u32 = Ty::U32, "Answer: the remote port (interdomain).";
}

abi_struct! {
    /// The vCPU that a port notifies.
    pub struct BindVcpu = "evtchn_bind_vcpu", "xen/include/public/event_channel.h", 8 / 8;
    [0 / 0] port: u32 = Ty::Port, "The port.";
    [4 / 4] vcpu: u32 = Ty::U32, "The vCPU.";
}

abi_struct! {
    /// A port to unmask.
    pub struct UnmaskPort = "evtchn_unmask", "xen/include/public/event_channel.h", 4 / 4;
    [0 / 0] port: u32 = Ty::Port, "The port.";
}

abi_struct! {
    /// A domain whose ports to close.
    pub struct ResetPorts = "evtchn_reset", "xen/include/public/event_channel.h", 2 / 2;
    [0 / 0] dom: u16 = Ty::DomId, "The domain; DOMID_SELF for an unprivileged one.";
}

abi_struct! {
    /// A vCPU's FIFO control block.
    pub struct InitControl = "evtchn_init_control", "xen/include/public/event_channel.h", 24 / 24;
    [0 / 0] control_gfn: u64 = Ty::U64, "Frame of the page that holds it.";
    [8 / 8] offset: u32 = Ty::U32, "Bytes from the page's beginning, a multiple of 8.";
    [12 / 12] vcpu: u32 = Ty::U32, "The vCPU.";
    [16 / 16] link_bits: u8 = Ty::U8, "Answer: bits of a link, which bounds the ports.";
    [17 / 17] pad: [u8; 7] = Ty::Array(&Ty::U8, 7, 7), "Unused.";
}

abi_struct! {
    /// One more page of FIFO event words.
    pub struct ExpandArray = "evtchn_expand_array", "xen/include/public/event_channel.h", 8 / 8;
    [0 / 0] array_gfn: u64 = Ty::U64, "Its frame.";
}

abi_struct! {
    /// The FIFO priority of a port.
    pub struct SetPriority = "evtchn_set_priority", "xen/include/public/event_channel.h", 8 / 8;
    [0 / 0] port: u32 = Ty::Port, "The port.";
    [4 / 4] priority: u32 = Ty::U32, "0 highest to 15 lowest.";
}

/// The FIFO ABI's event words and priorities.
pub mod fifo {
    /// Event word: an event is pending.
    pub const PENDING: u32 = 1 << 31;
    /// Event word: the port is masked.
    pub const MASKED: u32 = 1 << 30;
    /// Event word: the port is on a queue.
    pub const LINKED: u32 = 1 << 29;
    /// Event word: the hypervisor is changing the link.
    pub const BUSY: u32 = 1 << 28;
    /// Bits of the link, the number of the next port on the queue.
    pub const LINK_BITS: u32 = 17;
    /// Event word: the link.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// The most ports.
    pub const PORTS: u32 = 1 << LINK_BITS;
    /// Event words in a page of the array.
    pub const WORDS_PER_PAGE: u32 = 1024;
    /// Queues per vCPU, one for each priority.
    pub const QUEUES: u32 = 16;
    /// The highest priority.
    pub const PRIORITY_MAX: u32 = 0;
    /// A port's priority at first.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// The lowest priority.
    pub const PRIORITY_MIN: u32 = 15;
}

abi_struct! {
    /// A vCPU's FIFO queues.
    pub struct FifoControlBlock = "evtchn_fifo_control_block", "xen/include/public/event_channel.h", 72 / 72;
    [0 / 0] ready: u32 = Ty::U32, "One bit for each priority whose queue is not empty.";
    [4 / 4] rsvd: u32 = Ty::U32, "Unused.";
    [8 / 8] head: [u32; 16] = Ty::Array(&Ty::U32, 16, 16), "The first port of each queue.";
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
