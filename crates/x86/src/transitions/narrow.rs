//! The transitions of 32-bit guests on a 64-bit hypervisor.
//!
//! The kernel is in ring 1 and programs in ring 3, so the CPU itself tells them apart: there is one page-table
//! root, and no GS base to exchange. The hypervisor always leaves by IRETQ to 32-bit code, so nothing is lost in
//! ECX, and the handler's CS is the trap table's.

use paravane_abi::vm::CallbackType;

use super::model::{Actor, Change, Place, Register, Source, Start, Step, Transition};
use super::steps::{
    AMD_INTERRUPT, EXCEPTION, HANDLER, HANDLER_FLAGS_32, INT80, INT82, INTEL_IRET, INTEL_IRET_INSTRUCTION,
    INTERRUPT, JUDGE_EXCEPTION, JUDGE_INT, KERNEL_32, KERNEL_32_OPEN, LOOK_UP_INT80, NOTICE_EVENT,
    REFUSED_INT, SYSCALL_COMPAT, SYSENTER, USER_32, XEN_COMPAT_BOUNCE, XEN_COMPAT_EVENTS, XEN_COMPAT_EXIT,
    XEN_COMPAT_IRET,
};
use crate::mode::Guest;

/// Every transition of 32-bit guests.
pub(super) const ALL: &[&Transition] = &[
    &HYPERCALL,
    &INT82_USER,
    &SYSCALL_USER,
    &SYSENTER_USER,
    &INT80_USER,
    &EXCEPTION_USER,
    &EXCEPTION_KERNEL,
    &EVENT_USER,
    &EVENT_KERNEL,
    &IRET_USER,
    &IRET_KERNEL,
    &IRET_NATIVE,
];

/// Declares the step that pushes a frame of a 32-bit guest.
macro_rules! push_frame_32 {
    ($NAME:ident, $text:literal, $($change:expr),+) => {
        const $NAME: Step = Step {
            actor: Actor::Hypervisor,
            text: $text,
            changes: &[$($change),+],
            citations: &[XEN_COMPAT_BOUNCE],
        };
    };
}

/// The vCPU is in the kernel again.
const MODE_KERNEL: Change = Change::text(Register::Mode, "kernel", Source::HypervisorCode);
/// The event mask of an entry that may ask for it.
const MASK_IF_ASKED: Change =
    Change::text(Register::EventMask, "1 if the entry asks for it, else as before", Source::EntryFlags);
/// The event mask of the event callback.
const MASK_ALWAYS: Change = Change::number(Register::EventMask, 1, Source::EventRule);

push_frame_32!(
    PUSH_FROM_USER,
    "Pushes SS, ESP, EFLAGS, CS, EIP and the error code if there is one on kernel_ss:kernel_sp, which is \
     not aligned. CS carries the old event mask in bits 23..16; IF of the pushed flags is the old mask \
     inverted. A fault while pushing crashes the domain.",
    MODE_KERNEL,
    MASK_IF_ASKED
);

push_frame_32!(
    PUSH_FROM_KERNEL,
    "Pushes EFLAGS, CS, EIP and the error code if there is one on the stack in use; SS and ESP are not \
     pushed. CS keeps its RPL of 1 and carries the old event mask in bits 23..16; IF of the pushed flags \
     is the old mask inverted.",
    MASK_IF_ASKED
);

push_frame_32!(
    PUSH_EVENT_FROM_USER,
    "Pushes SS, ESP, EFLAGS, CS and EIP on kernel_ss:kernel_sp, which is not aligned. The old event mask \
     in bits 23..16 of CS is 0 and IF of the pushed flags is 1, or there were no event.",
    MODE_KERNEL,
    MASK_ALWAYS
);

push_frame_32!(
    PUSH_EVENT_FROM_KERNEL,
    "Pushes EFLAGS, CS and EIP on the stack in use. The old event mask in bits 23..16 of CS is 0 and IF of \
     the pushed flags is 1, or there were no event.",
    MASK_ALWAYS
);

/// Declares the step in which IRETQ enters a handler.
macro_rules! enter_handler_32 {
    ($NAME:ident, $source:expr, $($ss:expr)?) => {
        const $NAME: Step = Step {
            actor: Actor::Cpu,
            text: "IRETQ to 32-bit code enters the handler on the code selector that the guest registered \
                   with it, RPL at least 1.",
            changes: &[
                Change::text(Register::Rip, HANDLER, $source),
                Change::text(Register::Cs, "the handler's selector", $source),
                Change::text(Register::Rflags, HANDLER_FLAGS_32, Source::HypervisorStack),
                Change::text(Register::Rsp, "the frame", Source::BounceFrame),
                $($ss,)?
            ],
            citations: &[XEN_COMPAT_EXIT, INTEL_IRET],
        };
    };
}

/// SS of a handler that was entered from user mode.
const SS_OF_KERNEL: Change = Change::text(Register::Ss, "kernel_ss", Source::StackSwitch);
/// SS of a handler that was entered from the kernel.
const SS_AS_BEFORE: Change = Change::text(Register::Ss, "kernel's SS, usually 0xe021", Source::SavedState);

enter_handler_32!(ENTER_TRAP_FROM_USER, Source::TrapTable, SS_OF_KERNEL);
enter_handler_32!(ENTER_TRAP_FROM_KERNEL, Source::TrapTable, SS_AS_BEFORE);
enter_handler_32!(ENTER_EVENT_FROM_USER, Source::Callback(CallbackType::Event), SS_OF_KERNEL);
enter_handler_32!(ENTER_EVENT_FROM_KERNEL, Source::Callback(CallbackType::Event), SS_AS_BEFORE);
enter_handler_32!(ENTER_SYSCALL, Source::Callback(CallbackType::Syscall32), SS_OF_KERNEL);
enter_handler_32!(ENTER_SYSENTER, Source::Callback(CallbackType::Sysenter), SS_OF_KERNEL);

/// A transition of a 32-bit guest into its kernel.
const fn into_kernel(
    name: &'static str,
    title: &'static str,
    start: &'static Start,
    from: Place,
    steps: &'static [Step],
    notes: &'static [&'static str],
) -> Transition {
    Transition { name, title, guest: Guest::Bits32, from, to: Place::Kernel, start, steps, notes }
}

/// IRETQ back to where an INT was.
const RETURN_FROM_INT82: Step = Step {
    actor: Actor::Cpu,
    text: "IRETQ takes back what INT 0x82 pushed: the guest goes on behind the INT on its own segments.",
    changes: &[
        Change::text(Register::Rip, "address after the INT", Source::HypervisorStack),
        Change::text(Register::Cs, "kernel's CS, usually 0xe019", Source::HypervisorStack),
        Change::text(Register::Rflags, "kernel's flags, IF set, IOPL 0", Source::HypervisorStack),
        Change::text(Register::Rsp, "kernel stack", Source::HypervisorStack),
        Change::text(Register::Ss, "kernel's SS, usually 0xe021", Source::HypervisorStack),
    ],
    citations: &[XEN_COMPAT_EXIT, INTEL_IRET],
};

const HYPERCALL: Transition = into_kernel(
    "hypercall-32",
    "INT 0x82 from ring 1: a hypercall, and its return",
    &KERNEL_32,
    Place::Kernel,
    &[
        INT82,
        Step {
            actor: Actor::Hypervisor,
            text: "EAX is looked up in the dispatch table of 32-bit guests; EBX, ECX, EDX, ESI and EDI are \
                   the arguments. A number without an entry is ENOSYS.",
            changes: &[Change::text(Register::Rax, "the result", Source::HypercallTable)],
            citations: &[
                "xen/arch/x86/x86_64/compat/entry.S, entry_int82",
                "xen/arch/x86/pv/hypercall.c, do_entry_int82",
            ],
        },
        Step {
            actor: Actor::Hypervisor,
            text: "If an event is pending and the event mask is clear, the event callback is entered \
                   first, as in event-kernel-32.",
            changes: &[],
            citations: &[XEN_COMPAT_EVENTS],
        },
        RETURN_FROM_INT82,
    ],
    &[
        "The argument registers may have changed.",
        "The hypervisor itself runs in 64-bit mode, on its CS 0xe008; SS is null while it does.",
    ],
);

const INT82_USER: Transition = into_kernel(
    "int82-user-32",
    "INT 0x82 from a program: not a hypercall",
    &USER_32,
    Place::User,
    &[REFUSED_INT, JUDGE_INT, PUSH_FROM_USER, ENTER_TRAP_FROM_USER],
    &[
        "The error code is 0x412. It is the same for any other INT n whose gate the ring may not use.",
        "Unless the guest opened entry 0x82 to ring 3 the handler is that of #GP.",
    ],
);

const SYSCALL_USER: Transition = into_kernel(
    "syscall-32",
    "SYSCALL from a program of a 32-bit guest: the syscall32 callback (AMD)",
    &USER_32,
    Place::User,
    &[
        SYSCALL_COMPAT,
        Step {
            actor: Actor::Hypervisor,
            text: "The stub switches to this CPU's stack, saves every register and notes CS 0xe02b and SS \
                   0xe033, the flat user segments of the 32-bit ABI. Without a callback the guest gets \
                   #GP(0), with EIP back at the SYSCALL.",
            changes: &[Change::text(Register::Rsp, "hypervisor's stack", Source::HypervisorCode)],
            citations: &[
                "xen/arch/x86/x86_64/entry.S, cstar_enter",
                "xen/arch/x86/x86_64/compat/entry.S, compat_syscall",
            ],
        },
        PUSH_FROM_USER,
        ENTER_SYSCALL,
    ],
    &["ECX holds the address after the SYSCALL; what the program had in it is lost."],
);

const SYSENTER_USER: Transition = into_kernel(
    "sysenter-32",
    "SYSENTER from a program of a 32-bit guest: the sysenter callback (Intel)",
    &USER_32,
    Place::User,
    &[
        SYSENTER,
        Step {
            actor: Actor::Hypervisor,
            text: "Saves every register. Of the caller's frame nothing is known, so it notes CS 3, EIP 0, \
                   ESP 0, SS 0xe033 and the flags with IF set. Without a callback the guest gets #GP(0) \
                   instead.",
            changes: &[],
            citations: &[
                "xen/arch/x86/x86_64/entry.S, sysenter_entry",
                "xen/arch/x86/x86_64/compat/entry.S, compat_sysenter",
            ],
        },
        PUSH_FROM_USER,
        ENTER_SYSENTER,
    ],
    &["The handler must supply CS, EIP, ESP and SS of the way back itself."],
);

const INT80_USER: Transition = into_kernel(
    "int80-32",
    "INT 0x80 from a program: entry 0x80 of the trap table",
    &USER_32,
    Place::User,
    &[INT80, LOOK_UP_INT80, PUSH_FROM_USER, ENTER_TRAP_FROM_USER],
    &["32-bit Xen put the guest's handler into the IDT itself, so that INT 0x80 did not enter Xen."],
);

const EXCEPTION_USER: Transition = into_kernel(
    "exception-user-32",
    "An exception in a program: an entry of the trap table",
    &USER_32,
    Place::User,
    &[EXCEPTION, JUDGE_EXCEPTION, PUSH_FROM_USER, ENTER_TRAP_FROM_USER],
    &[],
);

const EXCEPTION_KERNEL: Transition = into_kernel(
    "exception-kernel-32",
    "An exception in the guest kernel: an entry of the trap table",
    &KERNEL_32,
    Place::Kernel,
    &[EXCEPTION, JUDGE_EXCEPTION, PUSH_FROM_KERNEL, ENTER_TRAP_FROM_KERNEL],
    &[],
);

const EVENT_USER: Transition = into_kernel(
    "event-user-32",
    "An event while a program runs: the event callback",
    &USER_32,
    Place::User,
    &[INTERRUPT, NOTICE_EVENT, PUSH_EVENT_FROM_USER, ENTER_EVENT_FROM_USER],
    &["The frame has no error code and names no event: the handler looks in shared_info."],
);

const EVENT_KERNEL: Transition = into_kernel(
    "event-kernel-32",
    "An event while the guest kernel runs with the event mask clear: the event callback",
    &KERNEL_32_OPEN,
    Place::Kernel,
    &[INTERRUPT, NOTICE_EVENT, PUSH_EVENT_FROM_KERNEL, ENTER_EVENT_FROM_KERNEL],
    &["An event that comes between clearing the event mask and IRET lands on a frame that is half gone; \
         kernels find out by EIP and merge the two frames."],
);

/// The kernel makes an iret frame.
const LAY_IRET_FRAME: Step = Step {
    actor: Actor::Guest,
    text: "The kernel pushes what IRET would take, EFLAGS, CS and EIP with SS and ESP above them for a \
           program, and jumps to slot 23 of the hypercall page, which pushes EAX and loads 23 into it.",
    changes: &[
        Change::number(Register::Rax, 23, Source::Instruction),
        Change::text(Register::Rsp, "the iret frame", Source::Instruction),
    ],
    citations: &["xen/arch/x86/pv/hypercall.c, pv_ring1_init_hypercall_page"],
};

/// The event mask and EAX of an iret frame.
const EVENT_MASK_FROM_FRAME: Change =
    Change::text(Register::EventMask, "1 if the frame's IF is 0, else 0", Source::IretFrame);
/// EAX of an iret frame.
const EAX_FROM_FRAME: Change = Change::text(Register::Rax, "frame's EAX", Source::IretFrame);

const IRET_USER: Transition = Transition {
    name: "iret-user-32",
    title: "The iret hypercall to a program",
    guest: Guest::Bits32,
    from: Place::Kernel,
    to: Place::User,
    start: &KERNEL_32,
    steps: &[
        LAY_IRET_FRAME,
        INT82,
        Step {
            actor: Actor::Hypervisor,
            text: "Hypercall 23 reads EAX, EIP, CS and EFLAGS at the guest's ESP. CS has RPL 2 or 3, so \
                   ESP and SS follow. IF of the frame's flags decides the event mask. A fault, or RPL 0, \
                   crashes the domain.",
            changes: &[
                Change::text(Register::Mode, "user", Source::IretFrame),
                EVENT_MASK_FROM_FRAME,
                EAX_FROM_FRAME,
            ],
            citations: &[XEN_COMPAT_IRET],
        },
        EVENTS_AFTER_IRET,
        Step {
            actor: Actor::Cpu,
            text: "IRETQ to 32-bit code takes the frame's values from the hypervisor's stack.",
            changes: &[
                Change::text(Register::Rip, "frame's EIP", Source::HypervisorStack),
                Change::text(Register::Cs, "frame's CS", Source::HypervisorStack),
                Change::text(Register::Rflags, "frame's flags, IF set, IOPL 0", Source::HypervisorStack),
                Change::text(Register::Rsp, "frame's ESP", Source::HypervisorStack),
                Change::text(Register::Ss, "frame's SS", Source::HypervisorStack),
            ],
            citations: &[XEN_COMPAT_EXIT, INTEL_IRET],
        },
    ],
    notes: &["A frame with VM set gives #GP: a 64-bit hypervisor has no virtual-8086 mode. 32-bit Xen had."],
};

/// Pending events come before the target.
const EVENTS_AFTER_IRET: Step = Step {
    actor: Actor::Hypervisor,
    text: "If that cleared the event mask and an event is pending, the event callback is entered first, \
           with a frame that returns to where this transition would have gone.",
    changes: &[],
    citations: &[XEN_COMPAT_EVENTS],
};

const IRET_KERNEL: Transition = into_kernel(
    "iret-kernel-32",
    "The iret hypercall within the guest kernel",
    &KERNEL_32,
    Place::Kernel,
    &[
        LAY_IRET_FRAME,
        INT82,
        Step {
            actor: Actor::Hypervisor,
            text: "Hypercall 23 reads EAX, EIP, CS and EFLAGS at the guest's ESP. CS has RPL 1, so the \
                   frame ends there and ESP moves past it. IF of the frame's flags decides the event mask.",
            changes: &[EVENT_MASK_FROM_FRAME, EAX_FROM_FRAME],
            citations: &[XEN_COMPAT_IRET],
        },
        EVENTS_AFTER_IRET,
        Step {
            actor: Actor::Cpu,
            text: "IRETQ to 32-bit code takes the frame's values from the hypervisor's stack.",
            changes: &[
                Change::text(Register::Rip, "frame's EIP", Source::HypervisorStack),
                Change::text(Register::Cs, "frame's CS", Source::HypervisorStack),
                Change::text(Register::Rflags, "frame's flags, IF set, IOPL 0", Source::HypervisorStack),
                Change::text(Register::Rsp, "above the iret frame", Source::HypervisorStack),
                Change::text(Register::Ss, "kernel's SS, usually 0xe021", Source::SavedState),
            ],
            citations: &[XEN_COMPAT_EXIT, INTEL_IRET],
        },
    ],
    &[],
);

const IRET_NATIVE: Transition = Transition {
    name: "iret-native-32",
    title: "IRET executed by the guest kernel itself, to a program",
    guest: Guest::Bits32,
    from: Place::Kernel,
    to: Place::User,
    start: &KERNEL_32,
    steps: &[
        Step {
            actor: Actor::Guest,
            text: "The kernel clears the event mask itself and looks whether an event is pending: IRET \
                   will not do it.",
            changes: &[Change::number(Register::EventMask, 0, Source::Instruction)],
            citations: &["xen/include/public/xen.h, struct vcpu_info"],
        },
        Step {
            actor: Actor::Cpu,
            text: "An ordinary IRET from ring 1 to ring 3. The hypervisor does not take part. IF of the \
                   popped flags is ignored, because ring 1 has no right to change it, and a segment \
                   register whose descriptor ring 3 may not use becomes null.",
            changes: &[
                Change::text(Register::Mode, "user", Source::Instruction),
                Change::text(Register::Rip, "popped EIP", Source::Instruction),
                Change::text(Register::Cs, "popped CS", Source::Instruction),
                Change::text(Register::Rflags, "popped flags, IF and IOPL as before", Source::Instruction),
                Change::text(Register::Rsp, "popped ESP", Source::Instruction),
                Change::text(Register::Ss, "popped SS", Source::Instruction),
            ],
            citations: &[INTEL_IRET_INSTRUCTION, AMD_INTERRUPT],
        },
    ],
    notes: &[
        "32-bit kernels return this way nearly always and keep the hypercall for NMIs and virtual-8086 mode.",
    ],
};
