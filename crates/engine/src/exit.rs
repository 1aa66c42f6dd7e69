//! Why an engine stopped.

use paravane_memory::paging::FaultCode;

use crate::privileged::Privileged;

/// Exception vectors (AMD APM vol. 2, "Vectors").
pub mod vector {
    /// #DE: division.
    pub const DIVIDE: u8 = 0;
    /// #DB: single step, breakpoints.
    pub const DEBUG: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// #BP: INT3.
    pub const BREAKPOINT: u8 = 3;
    /// #OF: INTO.
    pub const OVERFLOW: u8 = 4;
    /// #BR: BOUND.
    pub const BOUND: u8 = 5;
    /// #UD: undefined instruction.
    pub const INVALID_OPCODE: u8 = 6;
    /// #NM: FPU instruction with CR0.TS set.
    pub const NO_DEVICE: u8 = 7;
    /// #NP: segment not present.
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// #SS: stack segment, or a non-canonical stack address.
    pub const STACK: u8 = 12;
    /// #GP.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #PF.
    pub const PAGE_FAULT: u8 = 14;
    /// #MF: x87.
    pub const X87: u8 = 16;
    /// #AC: alignment.
    pub const ALIGNMENT: u8 = 17;
    /// #MC: the host could not provide memory that the guest's tables name.
    pub const MACHINE_CHECK: u8 = 18;
    /// #XM: SIMD floating point.
    pub const SIMD: u8 = 19;
}

/// Why an engine stopped. See the crate's page for where RIP stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SYSCALL in kernel mode of a 64-bit guest (RCX and R11 hold RIP and RFLAGS, as the CPU leaves them), or
    /// INT 0x82 in ring 1 of a 32-bit one.
    Hypercall,
    /// A system call of a guest's user program. For SYSCALL, RCX and R11 are as the CPU leaves them.
    GuestSyscall(SyscallKind),
    /// A software interrupt. RIP is at the instruction; the core decides by the trap table whether it traps
    /// (and continues at `next_rip`) or faults.
    SoftwareInterrupt(Interrupt),
    /// An exception other than #PF.
    Exception(Exception),
    /// A page fault.
    PageFault(PageFault),
    /// An instruction that needs the hypervisor. RIP is at it.
    Privileged(Privileged),
    /// A descriptor in this page of the LDT is needed and `DescriptorTables::ldt` has no frame for it. The core
    /// fills it in and runs again, or delivers a fault.
    LdtPage {
        /// The page of the LDT, 0 to 15.
        index: u8,
    },
    /// Somebody kicked, or an engine wanted to give the core a turn. RIP is at the next instruction.
    Interrupted,
}

/// How a user program called its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyscallKind {
    /// SYSCALL in 64-bit code.
    Syscall,
    /// SYSCALL in 32-bit code.
    Syscall32,
    /// SYSENTER, in either. RIP stands after it, although the real instruction forgets where it was.
    Sysenter,
}

/// INT n and its short forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// The vector: 3 for INT3, 4 for INTO, 1 for ICEBP.
    pub vector: u8,
    /// RIP after the instruction.
    pub next_rip: u64,
}

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exception {
    /// The vector, see [`vector`].
    pub vector: u8,
    /// The error code of those vectors that have one.
    pub error_code: Option<u32>,
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageFault {
    /// The linear address (CR2). For an access across two pages, the first byte that faults.
    pub address: u64,
    /// The error code.
    pub code: FaultCode,
}
