//! The transitions of 64-bit guests.

use paravane_abi::vm::CallbackType;

use super::model::{Actor, Change, Place, Register, Source, Step, Transition};
use super::star;
use super::steps::{
    AMD_INTERRUPT, AMD_SYSCALL, ENTER_FROM_SYSCALL, ENTER_FROM_SYSENTER_64, EXCEPTION, HANDLER,
    HANDLER_FLAGS, INT80, INTEL_IRET, INTEL_IRET_INSTRUCTION, INTEL_SYSCALL, INTERRUPT, JUDGE_EXCEPTION,
    JUDGE_INT, KERNEL_64, KERNEL_64_OPEN, LOOK_UP_INT80, NOTICE_EVENT, PREPARE_TRAP, PUSH_EVENT_FROM_KERNEL,
    PUSH_EVENT_FROM_USER, PUSH_FROM_KERNEL, PUSH_FROM_USER, REFUSED_INT, SYSCALL, SYSCALL_COMPAT, SYSENTER,
    SYSRET_TO_HANDLER, TO_KERNEL, TO_USER, USER_64, USER_COMPAT_64, XEN_BOUNCE, XEN_EVENTS, XEN_EXIT,
    XEN_IRET, prepare_handler_64,
};
use crate::mode::Guest;

/// Every transition of 64-bit guests.
pub(super) const ALL: &[&Transition] = &[
    &HYPERCALL,
    &SYSCALL_USER,
    &SYSCALL_USER_COMPAT,
    &SYSENTER_USER,
    &INT80_USER,
    &INT_USER,
    &EXCEPTION_USER,
    &EXCEPTION_KERNEL,
    &EVENT_USER,
    &EVENT_KERNEL,
    &IRET_USER,
    &IRET_USER_SYSRET,
    &IRET_USER_SYSRETL,
    &IRET_KERNEL,
    &IRETQ_NATIVE,
    &RESUME,
];

/// The flags that SYSRET restores after a hypercall.
const RETURN_FLAGS: &str = "flags at the SYSCALL, IF set, IOPL 0, VM clear";

const HYPERCALL: Transition = Transition {
    name: "hypercall-64",
    title: "SYSCALL from the guest kernel: a hypercall, and its return by SYSRET",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::Kernel,
    start: &KERNEL_64,
    steps: &[
        SYSCALL,
        ENTER_FROM_SYSCALL,
        Step {
            actor: Actor::Hypervisor,
            text: "The guest is in kernel mode, so this is a hypercall, wherever the SYSCALL stood. RAX is \
                   looked up in the dispatch table; RDI, RSI, RDX, R10 and R8 are the arguments. A number \
                   without an entry is ENOSYS.",
            changes: &[Change::text(Register::Rax, "the result", Source::HypercallTable)],
            citations: &["xen/arch/x86/pv/hypercall.c, pv_hypercall"],
        },
        EVENTS_FIRST,
        Step {
            actor: Actor::Hypervisor,
            text: "Restores the registers, of which the argument registers may have changed, and loads \
                   what SYSRET needs.",
            changes: &[
                Change::text(Register::Rcx, "address after the SYSCALL", Source::SavedState),
                Change::text(Register::R11, RETURN_FLAGS, Source::SavedState),
                Change::text(Register::Rsp, "kernel stack", Source::SavedState),
            ],
            citations: &[XEN_EXIT],
        },
        Step {
            actor: Actor::Cpu,
            text: "SYSRETQ takes RIP from RCX, the flags from R11, and CS and SS from STAR.",
            changes: &[
                Change::text(Register::Rip, "address after the SYSCALL", Source::Rcx),
                Change::text(Register::Rflags, RETURN_FLAGS, Source::R11),
                Change::selector(Register::Cs, star::SYSRETQ_CS, Source::Star63To48Plus16),
                Change::selector(Register::Ss, star::SYSRET_SS, Source::Star63To48Plus8),
            ],
            citations: &[AMD_SYSCALL, INTEL_SYSCALL],
        },
    ],
    notes: &[
        "A kernel that ran on a CS or SS of its own GDT comes back on 0xe033 and 0xe02b.",
        "RCX and R11 are lost, which is why the hypercall page's stubs push and pop them.",
        "A long hypercall may come back early with RIP at the SYSCALL again and its arguments changed to \
         the work that is left.",
    ],
};

/// Pending events come before the return.
const EVENTS_FIRST: Step = Step {
    actor: Actor::Hypervisor,
    text: "If an event is pending and the event mask is clear, the event callback is entered first, as in \
           event-kernel-64; its frame returns to where this transition would have gone.",
    changes: &[],
    citations: &[XEN_EVENTS],
};

prepare_handler_64!(
    /// The exit to the syscall callback.
    PREPARE_SYSCALL,
    Source::Callback(CallbackType::Syscall),
    SYSCALL_FLAGS,
    "Restores the other registers and loads what SYSRET needs. DF is cleared for this callback only."
);

/// The flags with which the syscall callback starts.
const SYSCALL_FLAGS: &str = "program's flags; TF, NT, RF, VM, AC, DF clear, IF set";

/// The CPU enters the syscall callback.
const SYSRET_TO_SYSCALL: Step = Step {
    changes: &[
        Change::text(Register::Rip, HANDLER, Source::Rcx),
        Change::text(Register::Rflags, SYSCALL_FLAGS, Source::R11),
        Change::selector(Register::Cs, star::SYSRETQ_CS, Source::Star63To48Plus16),
        Change::selector(Register::Ss, star::SYSRET_SS, Source::Star63To48Plus8),
    ],
    ..SYSRET_TO_HANDLER
};

/// The hypervisor takes a SYSCALL for the guest kernel's.
const IS_SYSTEM_CALL: Step = Step {
    actor: Actor::Hypervisor,
    text: "The guest is in user mode, so this is a system call for the guest kernel. Without a callback \
           the guest gets #UD, with RIP back at the SYSCALL.",
    changes: &[],
    citations: &["xen/arch/x86/x86_64/entry.S, switch_to_kernel"],
};

const SYSCALL_USER: Transition = Transition {
    name: "syscall-64",
    title: "SYSCALL from a 64-bit program: the guest kernel's syscall callback",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_64,
    steps: &[
        SYSCALL,
        ENTER_FROM_SYSCALL,
        IS_SYSTEM_CALL,
        TO_KERNEL,
        PUSH_FROM_USER,
        PREPARE_SYSCALL,
        SYSRET_TO_SYSCALL,
    ],
    notes: &[
        "In the frame RCX is the address after the SYSCALL and R11 the flags, as the CPU left them; CS and \
         SS are 0xe033 and 0xe02b whatever the program used.",
        "Events are masked on entry if the callback was registered so.",
    ],
};

prepare_handler_64!(
    /// The exit to the syscall32 callback.
    PREPARE_SYSCALL32,
    Source::Callback(CallbackType::Syscall32),
    SYSCALL_FLAGS,
    "Restores the other registers and loads what SYSRET needs. DF is cleared as for the syscall callback."
);

const SYSCALL_USER_COMPAT: Transition = Transition {
    name: "syscall-compat-64",
    title: "SYSCALL from a 32-bit program of a 64-bit guest: the syscall32 callback (AMD)",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_COMPAT_64,
    steps: &[
        SYSCALL_COMPAT,
        Step {
            actor: Actor::Hypervisor,
            text: "The stub switches to this CPU's stack, saves every register and notes CS 0xe023 and SS \
                   0xe02b.",
            changes: &[Change::text(Register::Rsp, "hypervisor's stack", Source::HypervisorCode)],
            citations: &["xen/arch/x86/x86_64/entry.S, cstar_enter"],
        },
        Step {
            text: "The noted CS is 0xe023, so the callback is syscall32. Without one the guest gets #UD, \
                   with RIP back at the SYSCALL.",
            ..IS_SYSTEM_CALL
        },
        TO_KERNEL,
        PUSH_FROM_USER,
        PREPARE_SYSCALL32,
        SYSRET_TO_SYSCALL,
    ],
    notes: &[
        "The handler is 64-bit code: it is entered by SYSRETQ like every other.",
        "Whether events are masked on entry is decided by the flag with which the *syscall* callback was \
         registered; the flag of syscall32 counts for 32-bit guests only.",
    ],
};

prepare_handler_64!(
    /// The exit to the sysenter callback.
    PREPARE_SYSENTER,
    Source::Callback(CallbackType::Sysenter),
    HANDLER_FLAGS,
    "Restores the other registers and loads what SYSRET needs."
);

const SYSENTER_USER: Transition = Transition {
    name: "sysenter-64",
    title: "SYSENTER from a program of a 64-bit guest: the sysenter callback (Intel)",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_COMPAT_64,
    steps: &[
        SYSENTER,
        ENTER_FROM_SYSENTER_64,
        TO_KERNEL,
        PUSH_FROM_USER,
        PREPARE_SYSENTER,
        SYSRET_TO_HANDLER,
    ],
    notes: &["The handler must supply CS, RIP, RSP and SS of the way back itself."],
};

const INT80_USER: Transition = Transition {
    name: "int80-64",
    title: "INT 0x80 from a program: entry 0x80 of the trap table",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_COMPAT_64,
    steps: &[INT80, LOOK_UP_INT80, TO_KERNEL, PUSH_FROM_USER, PREPARE_TRAP, SYSRET_TO_HANDLER],
    notes: &["From kernel mode it is the same without the change of mode, on the stack in use."],
};

const INT_USER: Transition = Transition {
    name: "int-64",
    title: "Another INT n from a program: refused by the CPU, delivered by the hypervisor",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_64,
    steps: &[REFUSED_INT, JUDGE_INT, TO_KERNEL, PUSH_FROM_USER, PREPARE_TRAP, SYSRET_TO_HANDLER],
    notes: &[
        "Vectors 3 and 4 have gates of DPL 3 and come as exceptions: the trap table's DPL is not asked.",
        "The virtual ring of a program is 3; that of a 64-bit kernel counts as 1, or 0 with assist \
         architectural_iopl.",
    ],
};

const EXCEPTION_USER: Transition = Transition {
    name: "exception-user-64",
    title: "An exception in a program: an entry of the trap table",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_64,
    steps: &[EXCEPTION, JUDGE_EXCEPTION, TO_KERNEL, PUSH_FROM_USER, PREPARE_TRAP, SYSRET_TO_HANDLER],
    notes: &[],
};

const EXCEPTION_KERNEL: Transition = Transition {
    name: "exception-kernel-64",
    title: "An exception in the guest kernel: an entry of the trap table",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::Kernel,
    start: &KERNEL_64,
    steps: &[EXCEPTION, JUDGE_EXCEPTION, PUSH_FROM_KERNEL, PREPARE_TRAP, SYSRET_TO_HANDLER],
    notes: &[
        "A kernel that ran on a CS or SS of its own finds them in the frame, CS with RPL 0; the handler \
         runs on 0xe033 and 0xe02b.",
        "There is no double fault: a fault while pushing the frame crashes the domain.",
    ],
};

prepare_handler_64!(
    /// The exit to the event callback.
    PREPARE_EVENT,
    Source::Callback(CallbackType::Event),
    HANDLER_FLAGS,
    "Restores the other registers and loads what SYSRET needs."
);

const EVENT_USER: Transition = Transition {
    name: "event-user-64",
    title: "An event while a program runs: the event callback",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::Kernel,
    start: &USER_64,
    steps: &[INTERRUPT, NOTICE_EVENT, TO_KERNEL, PUSH_EVENT_FROM_USER, PREPARE_EVENT, SYSRET_TO_HANDLER],
    notes: &["The frame has no error code and names no event: the handler looks in shared_info."],
};

const EVENT_KERNEL: Transition = Transition {
    name: "event-kernel-64",
    title: "An event while the guest kernel runs with the event mask clear: the event callback",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::Kernel,
    start: &KERNEL_64_OPEN,
    steps: &[INTERRUPT, NOTICE_EVENT, PUSH_EVENT_FROM_KERNEL, PREPARE_EVENT, SYSRET_TO_HANDLER],
    notes: &["The frame has no error code and names no event: the handler looks in shared_info."],
};

/// The kernel makes an iret frame.
const LAY_IRET_FRAME: Step = Step {
    actor: Actor::Guest,
    text: "The kernel pushes SS, RSP, RFLAGS, CS, RIP and a flags word of 0, and jumps to slot 23 of the \
           hypercall page, which pushes RCX, R11 and RAX and loads 23 into EAX.",
    changes: &[
        Change::number(Register::Rax, 23, Source::Instruction),
        Change::text(Register::Rsp, "the iret frame", Source::Instruction),
    ],
    citations: &["xen/include/public/arch-x86/xen-x86_64.h, HYPERVISOR_iret", "xen/arch/x86/pv/hypercall.c"],
};

/// The kernel makes an iret frame for SYSRET.
const LAY_IRET_FRAME_SYSRET: Step = Step {
    text: "The kernel pushes SS, RSP, RFLAGS, CS, RIP and a flags word with bit 8, VGCF_in_syscall, and \
           jumps to slot 23 of the hypercall page, which pushes RCX, R11 and RAX and loads 23 into EAX.",
    ..LAY_IRET_FRAME
};

/// The hypervisor reads an iret frame to user mode.
const READ_IRET_TO_USER: Step = Step {
    actor: Actor::Hypervisor,
    text: "Hypercall 23 reads the nine words at the guest's RSP; a fault crashes the domain. RPL 3 of the \
           frame's CS means user mode.",
    changes: &[],
    citations: &[XEN_IRET],
};

/// The hypervisor reads an iret frame to kernel mode.
const READ_IRET_TO_KERNEL: Step = Step {
    text: "Hypercall 23 reads the nine words at the guest's RSP; a fault crashes the domain. RPL 0, 1 or 2 \
           of the frame's CS means kernel mode: nothing to exchange.",
    ..READ_IRET_TO_USER
};

/// The frame's registers, when all of them count.
const TAKE_IRET_FRAME: Step = Step {
    actor: Actor::Hypervisor,
    text: "IF of the frame's flags decides the event mask. RAX, RCX and R11 come from the frame, and the \
           rest goes into the frame that IRETQ will take: CS and SS with RPL 3, the flags with IF set, \
           IOPL 0 and VM clear.",
    changes: &[
        Change::text(Register::EventMask, "1 if the frame's IF is 0, else 0", Source::IretFrame),
        Change::text(Register::Rax, "frame's RAX", Source::IretFrame),
        Change::text(Register::Rcx, "frame's RCX", Source::IretFrame),
        Change::text(Register::R11, "frame's R11", Source::IretFrame),
    ],
    citations: &[XEN_IRET],
};

/// Pending events come before user code.
const EVENTS_AFTER_IRET: Step = Step {
    actor: Actor::Hypervisor,
    text: "If that cleared the event mask and an event is pending, the event callback is entered first, \
           with a frame that returns to where this transition would have gone.",
    changes: &[],
    citations: &[XEN_EVENTS, XEN_BOUNCE],
};

/// The CPU leaves by IRETQ.
const IRETQ: Step = Step {
    actor: Actor::Cpu,
    text: "IRETQ takes RIP, CS, RFLAGS, RSP and SS from the hypervisor's stack. A fault here becomes the \
           guest's, as if it had happened at the target.",
    changes: &[
        Change::text(Register::Rip, "frame's RIP", Source::HypervisorStack),
        Change::text(Register::Cs, "frame's CS, RPL 3", Source::HypervisorStack),
        Change::text(Register::Rflags, "frame's flags, IF set, IOPL 0, VM clear", Source::HypervisorStack),
        Change::text(Register::Rsp, "frame's RSP", Source::HypervisorStack),
        Change::text(Register::Ss, "frame's SS, RPL 3", Source::HypervisorStack),
    ],
    citations: &[AMD_INTERRUPT, INTEL_IRET, XEN_EXIT],
};

const IRET_USER: Transition = Transition {
    name: "iret-user-64",
    title: "The iret hypercall to a program, all registers restored",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::User,
    start: &KERNEL_64,
    steps: &[
        LAY_IRET_FRAME,
        SYSCALL,
        ENTER_FROM_SYSCALL,
        READ_IRET_TO_USER,
        TO_USER,
        TAKE_IRET_FRAME,
        EVENTS_AFTER_IRET,
        IRETQ,
    ],
    notes: &["CS and SS of the guest's own GDT or LDT are honoured: this is the way to programs on other \
         segments."],
};

/// The flags that SYSRET restores from an iret frame.
const IRET_SYSRET_FLAGS: &str = "frame's flags, IF set, IOPL 0, VM clear";

/// The frame's registers, when SYSRET needs RCX and R11.
const TAKE_IRET_FRAME_SYSRET: Step = Step {
    actor: Actor::Hypervisor,
    text: "IF of the frame's flags decides the event mask. The frame's RCX, R11 and SS are dropped: RCX \
           and R11 take what SYSRET needs. Of the frame's CS counts only whether it is 0xe023.",
    changes: &[
        Change::text(Register::EventMask, "1 if the frame's IF is 0, else 0", Source::IretFrame),
        Change::text(Register::Rax, "frame's RAX", Source::IretFrame),
        Change::text(Register::Rcx, "frame's RIP", Source::IretFrame),
        Change::text(Register::R11, IRET_SYSRET_FLAGS, Source::IretFrame),
        Change::text(Register::Rsp, "frame's RSP", Source::IretFrame),
    ],
    citations: &[XEN_IRET, XEN_EXIT],
};

const IRET_USER_SYSRET: Transition = Transition {
    name: "iret-user-sysret-64",
    title: "The iret hypercall to a program with VGCF_in_syscall: the return of a system call",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::User,
    start: &KERNEL_64,
    steps: &[
        LAY_IRET_FRAME_SYSRET,
        SYSCALL,
        ENTER_FROM_SYSCALL,
        READ_IRET_TO_USER,
        TO_USER,
        TAKE_IRET_FRAME_SYSRET,
        EVENTS_AFTER_IRET,
        Step {
            actor: Actor::Cpu,
            text: "SYSRETQ takes RIP from RCX, the flags from R11, and CS and SS from STAR.",
            changes: &[
                Change::text(Register::Rip, "frame's RIP", Source::Rcx),
                Change::text(Register::Rflags, IRET_SYSRET_FLAGS, Source::R11),
                Change::selector(Register::Cs, star::SYSRETQ_CS, Source::Star63To48Plus16),
                Change::selector(Register::Ss, star::SYSRET_SS, Source::Star63To48Plus8),
            ],
            citations: &[AMD_SYSCALL, INTEL_SYSCALL, XEN_EXIT],
        },
    ],
    notes: &["A RIP that is not canonical makes it IRETQ after all, so that the fault is the guest's."],
};

const IRET_USER_SYSRETL: Transition = Transition {
    name: "iret-user-sysretl-64",
    title: "The same to a 32-bit program, with 0xe023 as the frame's CS",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::User,
    start: &KERNEL_64,
    steps: &[
        LAY_IRET_FRAME_SYSRET,
        SYSCALL,
        ENTER_FROM_SYSCALL,
        READ_IRET_TO_USER,
        TO_USER,
        TAKE_IRET_FRAME_SYSRET,
        EVENTS_AFTER_IRET,
        Step {
            actor: Actor::Cpu,
            text: "SYSRETL takes EIP from ECX, the flags from R11, and CS and SS from STAR, for 32-bit code.",
            changes: &[
                Change::text(Register::Rip, "frame's RIP", Source::Rcx),
                Change::text(Register::Rflags, IRET_SYSRET_FLAGS, Source::R11),
                Change::selector(Register::Cs, star::SYSRETL_CS, Source::Star63To48),
                Change::selector(Register::Ss, star::SYSRET_SS, Source::Star63To48Plus8),
            ],
            citations: &[AMD_SYSCALL, INTEL_SYSCALL, XEN_EXIT],
        },
    ],
    notes: &["A 32-bit program on any other code selector needs the iret hypercall without VGCF_in_syscall."],
};

const IRET_KERNEL: Transition = Transition {
    name: "iret-kernel-64",
    title: "The iret hypercall within the guest kernel: the return of an interrupted kernel",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::Kernel,
    start: &KERNEL_64,
    steps: &[
        LAY_IRET_FRAME,
        SYSCALL,
        ENTER_FROM_SYSCALL,
        READ_IRET_TO_KERNEL,
        TAKE_IRET_FRAME,
        EVENTS_AFTER_IRET,
        IRETQ,
    ],
    notes: &["CS of a frame that the hypervisor pushed has RPL 0 and can be given back as it is."],
};

const IRETQ_NATIVE: Transition = Transition {
    name: "iretq-native-64",
    title: "IRETQ executed by the guest kernel itself",
    guest: Guest::Bits64,
    from: Place::Kernel,
    to: Place::Kernel,
    start: &KERNEL_64,
    steps: &[Step {
        actor: Actor::Cpu,
        text: "An ordinary IRETQ from ring 3 to ring 3. The hypervisor does not take part: the guest stays \
               in kernel mode, on the kernel root, and the event mask stays. IF and IOPL of the popped \
               flags are ignored, because ring 3 has no right to change them.",
        changes: &[
            Change::text(Register::Rip, "popped RIP", Source::Instruction),
            Change::text(Register::Cs, "popped CS, which must have RPL 3", Source::Instruction),
            Change::text(Register::Rflags, "popped flags, IF and IOPL as before", Source::Instruction),
            Change::text(Register::Rsp, "popped RSP", Source::Instruction),
            Change::text(Register::Ss, "popped SS", Source::Instruction),
        ],
        citations: &[INTEL_IRET_INSTRUCTION, AMD_INTERRUPT],
    }],
    notes: &[
        "A frame pushed by the hypervisor has a CS of RPL 0, with the event mask above it; a kernel that \
         wants IRETQ must set RPL 3 first and deal with the mask and with RCX and R11 itself.",
    ],
};

const RESUME: Transition = Transition {
    name: "resume-64",
    title: "An interrupt that is none of the guest's business, and the return by IRETQ",
    guest: Guest::Bits64,
    from: Place::User,
    to: Place::User,
    start: &USER_64,
    steps: &[
        INTERRUPT,
        Step {
            actor: Actor::Hypervisor,
            text: "The hypervisor does what the interrupt asks, finds nothing to deliver and restores the \
                   registers.",
            changes: &[],
            citations: &[XEN_EVENTS, XEN_EXIT],
        },
        Step {
            actor: Actor::Cpu,
            text: "IRETQ takes back exactly what the interrupt pushed. The guest has noticed nothing.",
            changes: &[
                Change::text(Register::Rip, "program code", Source::HypervisorStack),
                Change::text(Register::Cs, "program's CS, usually 0xe033", Source::HypervisorStack),
                Change::text(Register::Rflags, "program's flags, IF set", Source::HypervisorStack),
                Change::text(Register::Rsp, "program stack", Source::HypervisorStack),
                Change::text(Register::Ss, "program's SS, usually 0xe02b", Source::HypervisorStack),
            ],
            citations: &[AMD_INTERRUPT, INTEL_IRET],
        },
    ],
    notes: &[
        "It is the same in kernel mode, and after an instruction that the hypervisor emulated or a fault \
         that it mended.",
    ],
};
