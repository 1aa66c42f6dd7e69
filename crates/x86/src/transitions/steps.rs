//! The steps that several transitions share.

use super::model::{Actor, Change, Register, Source, Start, Step, Value};
use super::star;
use crate::segments::{HYPERVISOR_CS, HYPERVISOR_DS};
use crate::selector::Selector;

pub(super) const AMD_SYSCALL: &str = "AMD APM vol. 2, \"SYSCALL and SYSRET\"";
pub(super) const INTEL_SYSCALL: &str = "Intel SDM vol. 3A, \"Fast System Calls in 64-Bit Mode\"";
pub(super) const AMD_SYSENTER: &str = "AMD APM vol. 2, \"SYSENTER and SYSEXIT (Legacy Mode Only)\"";
pub(super) const INTEL_SYSENTER: &str = "Intel SDM vol. 3A, \"Performing Fast Calls to System Procedures \
                                         with the SYSENTER and SYSEXIT Instructions\"";
pub(super) const AMD_INTERRUPT: &str = "AMD APM vol. 2, \"Long-Mode Interrupt Control Transfers\"";
pub(super) const INTEL_STACK: &str = "Intel SDM vol. 3A, \"Stack Switching in IA-32e Mode\"";
pub(super) const INTEL_GATE_DPL: &str =
    "Intel SDM vol. 3A, \"Protection of Exception- and Interrupt-Handler Procedures\"";
pub(super) const INTEL_IRET: &str = "Intel SDM vol. 3A, \"IRET in IA-32e Mode\"";
pub(super) const INTEL_IRET_INSTRUCTION: &str = "Intel SDM vol. 2A, \"IRET/IRETD/IRETQ—Interrupt Return\"";
pub(super) const XEN_TOGGLE: &str = "xen/arch/x86/pv/domain.c, toggle_guest_mode";
pub(super) const XEN_BOUNCE: &str = "xen/arch/x86/x86_64/entry.S, create_bounce_frame";
pub(super) const XEN_COMPAT_BOUNCE: &str = "xen/arch/x86/x86_64/compat/entry.S, compat_create_bounce_frame";
pub(super) const XEN_EXIT: &str = "xen/arch/x86/x86_64/entry.S, restore_all_guest";
pub(super) const XEN_COMPAT_EXIT: &str = "xen/arch/x86/x86_64/compat/entry.S, compat_restore_all_guest";
pub(super) const XEN_EVENTS: &str = "xen/arch/x86/x86_64/entry.S, test_all_events";
pub(super) const XEN_COMPAT_EVENTS: &str = "xen/arch/x86/x86_64/compat/entry.S, compat_test_all_events";
pub(super) const XEN_INJECT: &str = "xen/arch/x86/pv/traps.c, pv_inject_event";
pub(super) const XEN_IRET: &str = "xen/arch/x86/pv/iret.c, do_iret";
pub(super) const XEN_COMPAT_IRET: &str = "xen/arch/x86/pv/iret.c, compat_iret";
pub(super) const XEN_GENERAL_PROTECTION: &str = "xen/arch/x86/traps.c, do_general_protection";
pub(super) const XEN_INT80: &str = "xen/arch/x86/x86_64/entry.S, entry_int80";

/// The handler's address, as RCX and RIP show it.
pub(super) const HANDLER: &str = "the handler";
/// The flags with which a handler starts.
pub(super) const HANDLER_FLAGS: &str = "interrupted flags; TF, NT, RF, VM, AC clear, IF set";
/// The flags with which a handler of a 32-bit guest starts.
pub(super) const HANDLER_FLAGS_32: &str = "interrupted flags; TF, NT, RF, VM clear, IF set";

/// A 64-bit guest's kernel.
pub(super) const KERNEL_64: Start = Start {
    values: [
        Value::Text("kernel"),
        Value::Text("kernel's CS"),
        Value::Text("kernel's SS"),
        Value::Text("kernel code"),
        Value::Text("kernel stack"),
        Value::Text("kernel's flags, IF set"),
        Value::Text("kernel's RAX"),
        Value::Text("kernel's RCX"),
        Value::Text("kernel's R11"),
        Value::Text("kernel root"),
        Value::Text("kernel GS base"),
        Value::Text("kernel's choice"),
    ],
};

/// A 64-bit guest's kernel that lets events in.
pub(super) const KERNEL_64_OPEN: Start = KERNEL_64.with(Register::EventMask, Value::Number(0));

/// A 32-bit guest's kernel that lets events in.
pub(super) const KERNEL_32_OPEN: Start = KERNEL_32.with(Register::EventMask, Value::Number(0));

/// A 64-bit program of a 64-bit guest.
pub(super) const USER_64: Start = Start {
    values: [
        Value::Text("user"),
        Value::Text("program's CS, usually 0xe033"),
        Value::Text("program's SS, usually 0xe02b"),
        Value::Text("program code"),
        Value::Text("program stack"),
        Value::Text("program's flags, IF set"),
        Value::Text("program's RAX"),
        Value::Text("program's RCX"),
        Value::Text("program's R11"),
        Value::Text("user root"),
        Value::Text("user GS base"),
        Value::Number(0),
    ],
};

/// A 32-bit program of a 64-bit guest.
pub(super) const USER_COMPAT_64: Start = Start {
    values: [
        Value::Text("user"),
        Value::Text("program's CS, usually 0xe023"),
        Value::Text("program's SS, usually 0xe02b"),
        Value::Text("program code"),
        Value::Text("program stack"),
        Value::Text("program's flags, IF set"),
        Value::Text("program's EAX"),
        Value::Text("program's ECX"),
        Value::Text("not visible to the program"),
        Value::Text("user root"),
        Value::Text("user GS base"),
        Value::Number(0),
    ],
};

/// A 32-bit guest's kernel.
pub(super) const KERNEL_32: Start = Start {
    values: [
        Value::Text("kernel"),
        Value::Text("kernel's CS, usually 0xe019"),
        Value::Text("kernel's SS, usually 0xe021"),
        Value::Text("kernel code"),
        Value::Text("kernel stack"),
        Value::Text("kernel's flags, IF set"),
        Value::Text("kernel's EAX"),
        Value::Text("kernel's ECX"),
        Value::Text("not visible to the guest"),
        Value::Text("the guest's only root"),
        Value::Text("not visible to the guest"),
        Value::Text("kernel's choice"),
    ],
};

/// A program of a 32-bit guest.
pub(super) const USER_32: Start = Start {
    values: [
        Value::Text("user"),
        Value::Text("program's CS, usually 0xe02b"),
        Value::Text("program's SS, usually 0xe033"),
        Value::Text("program code"),
        Value::Text("program stack"),
        Value::Text("program's flags, IF set"),
        Value::Text("program's EAX"),
        Value::Text("program's ECX"),
        Value::Text("not visible to the guest"),
        Value::Text("the guest's only root"),
        Value::Text("not visible to the guest"),
        Value::Number(0),
    ],
};

/// The CPU executes SYSCALL in 64-bit code.
pub(super) const SYSCALL: Step = Step {
    actor: Actor::Cpu,
    text: "SYSCALL saves RIP and RFLAGS in registers and loads CS, SS and RIP from MSRs. The stack pointer \
           stays.",
    changes: &[
        Change::text(Register::Rcx, "address after the SYSCALL", Source::Rip),
        Change::text(Register::R11, "flags at the SYSCALL", Source::Rflags),
        Change::selector(Register::Cs, star::SYSCALL_CS, Source::Star47To32),
        Change::selector(Register::Ss, star::SYSCALL_SS, Source::Star47To32Plus8),
        Change::text(Register::Rip, "hypervisor's SYSCALL stub of this CPU", Source::Lstar),
        Change::text(Register::Rflags, "as before, but AC, VM, RF, NT, DF, IF, TF clear", Source::Sfmask),
    ],
    citations: &[AMD_SYSCALL, INTEL_SYSCALL],
};

/// The CPU executes SYSCALL in 32-bit code.
pub(super) const SYSCALL_COMPAT: Step = Step {
    actor: Actor::Cpu,
    text: "SYSCALL in 32-bit code goes to CSTAR instead of LSTAR. Only AMD CPUs have it; Intel's raise #UD.",
    changes: &[
        Change::text(Register::Rcx, "address after the SYSCALL", Source::Rip),
        Change::text(Register::R11, "flags at the SYSCALL", Source::Rflags),
        Change::selector(Register::Cs, star::SYSCALL_CS, Source::Star47To32),
        Change::selector(Register::Ss, star::SYSCALL_SS, Source::Star47To32Plus8),
        Change::text(Register::Rip, "hypervisor's 32-bit SYSCALL stub of this CPU", Source::Cstar),
        Change::text(Register::Rflags, "as before, but AC, VM, RF, NT, DF, IF, TF clear", Source::Sfmask),
    ],
    citations: &[AMD_SYSCALL],
};

/// The CPU executes SYSENTER.
pub(super) const SYSENTER: Step = Step {
    actor: Actor::Cpu,
    text: "SYSENTER loads CS, SS, RIP and RSP from MSRs and saves nothing: the way back is whatever the \
           program and its kernel agreed on. In long mode only Intel CPUs have it; AMD's raise #UD.",
    changes: &[
        Change::selector(Register::Cs, HYPERVISOR_CS, Source::SysenterCs),
        Change::selector(Register::Ss, HYPERVISOR_DS, Source::SysenterCsPlus8),
        Change::text(Register::Rip, "hypervisor's SYSENTER entry", Source::SysenterEip),
        Change::text(Register::Rsp, "hypervisor's stack", Source::SysenterEsp),
        Change::text(Register::Rflags, "as before, but VM and IF clear", Source::SysenterFlags),
    ],
    citations: &[INTEL_SYSENTER, AMD_SYSENTER],
};

/// Declares a step in which the CPU enters the hypervisor through its IDT.
macro_rules! through_idt {
    ($(#[$meta:meta])* $NAME:ident, $entry:literal, $text:literal, $citations:expr) => {
        $(#[$meta])*
        pub(super) const $NAME: Step = Step {
            actor: Actor::Cpu,
            text: $text,
            changes: &[
                Change::selector(Register::Cs, HYPERVISOR_CS, Source::IdtGate),
                Change::selector(Register::Ss, Selector::NULL, Source::LongModeNull),
                Change::text(Register::Rip, $entry, Source::IdtGate),
                Change::text(Register::Rsp, "hypervisor's stack", Source::TssRsp0),
                Change::text(Register::Rflags, "as before, but TF, NT, RF, VM, IF clear", Source::GateFlags),
            ],
            citations: $citations,
        };
    };
}

through_idt!(
    /// The CPU raises an exception.
    EXCEPTION,
    "hypervisor's entry of that exception",
    "The CPU finds the exception's gate in the hypervisor's IDT, changes to ring 0 and pushes SS, RSP, \
     RFLAGS, CS, RIP and, for some exceptions, an error code. #DB, NMI and #MC use a stack of the gate's \
     IST instead of RSP0.",
    &[AMD_INTERRUPT, INTEL_STACK]
);

through_idt!(
    /// The CPU takes an interrupt.
    INTERRUPT,
    "hypervisor's interrupt entry",
    "An interrupt takes the CPU into the hypervisor; the CPU pushes SS, RSP, RFLAGS, CS and RIP. An event \
     is also noticed at the end of any other stay in the hypervisor.",
    &[AMD_INTERRUPT, INTEL_STACK]
);

through_idt!(
    /// The CPU executes INT 0x80.
    INT80,
    "hypervisor's INT 0x80 entry",
    "INT 0x80 goes through a gate of DPL 3, so every ring may use it. The CPU changes to ring 0 and pushes \
     SS, RSP, RFLAGS, CS and the address after the INT.",
    &[AMD_INTERRUPT, INTEL_GATE_DPL]
);

through_idt!(
    /// The CPU executes INT 0x82 in ring 1.
    INT82,
    "hypervisor's INT 0x82 entry",
    "INT 0x82 goes through a gate of DPL 1, which ring 1 may use. The CPU changes to ring 0 and pushes SS, \
     RSP, RFLAGS, CS and the address after the INT.",
    &[AMD_INTERRUPT, INTEL_GATE_DPL]
);

through_idt!(
    /// The CPU refuses an INT.
    REFUSED_INT,
    "hypervisor's #GP entry",
    "The vector's gate in the hypervisor's IDT has a DPL that this ring may not use, so the CPU raises #GP \
     with the error code vector * 8 + 2 and pushes the address of the INT itself.",
    &[AMD_INTERRUPT, INTEL_GATE_DPL]
);

/// The hypervisor's stub of SYSCALL.
pub(super) const ENTER_FROM_SYSCALL: Step = Step {
    actor: Actor::Hypervisor,
    text: "The stub knows this CPU's stack by its own address, switches to it and saves every register. It \
           cannot know the caller's CS and SS: it notes 0xe033 and 0xe02b.",
    changes: &[Change::text(Register::Rsp, "hypervisor's stack", Source::HypervisorCode)],
    citations: &[
        "xen/arch/x86/x86_64/entry.S, lstar_enter",
        "xen/arch/x86/x86_64/traps.c, subarch_percpu_traps_init",
    ],
};

/// The hypervisor notes a guest that did SYSENTER.
pub(super) const ENTER_FROM_SYSENTER_64: Step = Step {
    actor: Actor::Hypervisor,
    text: "Saves every register. Of the caller's frame nothing is known, so it notes CS 3, RIP 0, RSP 0, \
           SS 0xe02b and the flags with IF set. Without a callback the guest gets #GP(0) instead.",
    changes: &[],
    citations: &["xen/arch/x86/x86_64/entry.S, sysenter_entry"],
};

/// From user to kernel mode of a 64-bit guest.
pub(super) const TO_KERNEL: Step = Step {
    actor: Actor::Hypervisor,
    text: "The guest was in user mode: the hypervisor marks it as in kernel mode, exchanges the two GS \
           bases and loads the kernel's page-table root.",
    changes: &[
        Change::text(Register::Mode, "kernel", Source::HypervisorCode),
        Change::text(Register::GsBase, "kernel GS base", Source::Swapgs),
        Change::text(Register::Cr3, "kernel root", Source::KernelRoot),
    ],
    citations: &[XEN_TOGGLE],
};

/// From kernel to user mode of a 64-bit guest.
pub(super) const TO_USER: Step = Step {
    actor: Actor::Hypervisor,
    text: "The hypervisor marks the guest as in user mode, exchanges the two GS bases and loads the user \
           root. A guest that never set a user root is crashed.",
    changes: &[
        Change::text(Register::Mode, "user", Source::HypervisorCode),
        Change::text(Register::GsBase, "user GS base", Source::Swapgs),
        Change::text(Register::Cr3, "user root", Source::UserRoot),
    ],
    citations: &[XEN_IRET, XEN_TOGGLE],
};

/// Declares the step that pushes a frame of a 64-bit guest.
macro_rules! push_frame_64 {
    ($(#[$meta:meta])* $NAME:ident, $text:literal, $mask:expr) => {
        $(#[$meta])*
        pub(super) const $NAME: Step =
            Step { actor: Actor::Hypervisor, text: $text, changes: &[$mask], citations: &[XEN_BOUNCE] };
    };
}

/// The event mask of an entry that may ask for it.
const MASK_IF_ASKED: Change =
    Change::text(Register::EventMask, "1 if the entry asks for it, else as before", Source::EntryFlags);
/// The event mask of the event callback.
const MASK_ALWAYS: Change = Change::number(Register::EventMask, 1, Source::EventRule);

push_frame_64!(
    /// A frame on the kernel's own stack, for an exception or callback.
    PUSH_FROM_USER,
    "Pushes SS, RSP, RFLAGS, CS, RIP, the error code if there is one, R11 and RCX on the stack of \
     stack_switch, aligned down to 16. CS keeps its RPL of 3 and carries the old event mask in bits \
     39..32; IF of the pushed flags is the old mask inverted. A fault while pushing crashes the domain.",
    MASK_IF_ASKED
);

push_frame_64!(
    /// A frame on the stack in use, for an exception.
    PUSH_FROM_KERNEL,
    "Pushes SS, RSP, RFLAGS, CS, RIP, the error code if there is one, R11 and RCX on the stack in use, \
     aligned down to 16. The pushed CS has RPL 0, which says that the kernel was interrupted, and carries \
     the old event mask in bits 39..32; IF of the pushed flags is the old mask inverted. A fault while \
     pushing crashes the domain.",
    MASK_IF_ASKED
);

push_frame_64!(
    /// A frame on the kernel's own stack, for an event.
    PUSH_EVENT_FROM_USER,
    "Pushes SS, RSP, RFLAGS, CS, RIP, R11 and RCX on the stack of stack_switch, aligned down to 16. CS \
     keeps its RPL of 3; the old event mask in its bits 39..32 is 0 and IF of the pushed flags is 1, or \
     there were no event.",
    MASK_ALWAYS
);

push_frame_64!(
    /// A frame on the stack in use, for an event.
    PUSH_EVENT_FROM_KERNEL,
    "Pushes SS, RSP, RFLAGS, CS, RIP, R11 and RCX on the stack in use, aligned down to 16. The pushed CS \
     has RPL 0; the old event mask in its bits 39..32 is 0 and IF of the pushed flags is 1, or there were \
     no event.",
    MASK_ALWAYS
);

/// Declares the step that prepares SYSRET to a handler whose address comes from `$source`.
macro_rules! prepare_handler_64 {
    ($(#[$meta:meta])* $NAME:ident, $source:expr, $flags:expr, $text:literal) => {
        $(#[$meta])*
        pub(super) const $NAME: Step = Step {
            actor: Actor::Hypervisor,
            text: $text,
            changes: &[
                Change::text(Register::Rcx, HANDLER, $source),
                Change::text(Register::R11, $flags, Source::SavedState),
                Change::text(Register::Rsp, "the frame", Source::BounceFrame),
            ],
            citations: &[XEN_BOUNCE, XEN_EXIT],
        };
    };
}
pub(super) use prepare_handler_64;

prepare_handler_64!(
    /// The exit to an exception's handler.
    PREPARE_TRAP,
    Source::TrapTable,
    HANDLER_FLAGS,
    "Restores the other registers and loads what SYSRET needs. Of the trap table's entry only the address \
     counts: its CS is ignored."
);

/// The CPU enters a handler.
pub(super) const SYSRET_TO_HANDLER: Step = Step {
    actor: Actor::Cpu,
    text: "SYSRETQ takes RIP from RCX and the flags from R11, and CS and SS from STAR. RCX and R11 keep \
           the handler's address and the flags: the guest's own values are in the frame.",
    changes: &[
        Change::text(Register::Rip, HANDLER, Source::Rcx),
        Change::text(Register::Rflags, HANDLER_FLAGS, Source::R11),
        Change::selector(Register::Cs, star::SYSRETQ_CS, Source::Star63To48Plus16),
        Change::selector(Register::Ss, star::SYSRET_SS, Source::Star63To48Plus8),
    ],
    citations: &[AMD_SYSCALL, INTEL_SYSCALL],
};

/// What the hypervisor does with an exception before it goes to the guest.
pub(super) const JUDGE_EXCEPTION: Step = Step {
    actor: Actor::Hypervisor,
    text: "The hypervisor deals with what is its own: instructions that it emulates, stores to page \
           tables, LDT pages mapped at first use. The rest goes to the guest's trap table; an entry \
           without an address crashes the domain. For #PF it writes CR2 to vcpu_info and sets the error \
           code's U bit by the guest's mode; for #NM it clears TS.",
    changes: &[],
    citations: &[XEN_INJECT, "xen/arch/x86/traps.c"],
};

/// What the hypervisor does with an INT that the CPU refused.
pub(super) const JUDGE_INT: Step = Step {
    actor: Actor::Hypervisor,
    text: "The error code names the vector. If the guest's trap table permits that vector to the guest's \
           virtual ring (bits 1..0 of the entry's flags), that entry is the handler and RIP moves past the \
           INT; else the guest gets the #GP.",
    changes: &[],
    citations: &[XEN_GENERAL_PROTECTION],
};

/// The entry of INT 0x80.
pub(super) const LOOK_UP_INT80: Step = Step {
    actor: Actor::Hypervisor,
    text: "Takes entry 0x80 of the guest's trap table without asking for its DPL. If it has no address the \
           guest gets #GP with error code 0x402, and RIP points at the INT again.",
    changes: &[],
    citations: &[XEN_INT80],
};

/// The hypervisor notices an event.
pub(super) const NOTICE_EVENT: Step = Step {
    actor: Actor::Hypervisor,
    text: "On the way back to the guest evtchn_upcall_pending is not 0 and evtchn_upcall_mask is 0, so the \
           event callback is entered first.",
    changes: &[],
    citations: &[XEN_EVENTS, XEN_COMPAT_EVENTS],
};
