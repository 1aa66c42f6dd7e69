//! The vocabulary between the hypervisor core and the CPU engines.
//!
//! An engine runs a guest's instructions at ring 3 (ring 1 for 32-bit guests) over machine memory and page tables until the guest does
//! something that a hypervisor must see. It knows no hypercalls: it reports *what the guest did* as an
//! [`Exit`], with the CPU state in a [`VcpuContext`], and the core decides what that means, changes the context
//! and runs it again. A changed context is the whole of the way back in; there is no other command.
//!
//! | the guest executes | the core sees | RIP |
//! | --- | --- | --- |
//! | SYSCALL in kernel mode, INT 0x82 in ring 1 | [`Exit::Hypercall`] | after it |
//! | SYSCALL or SYSENTER in user mode | [`Exit::GuestSyscall`] | after it |
//! | INT n, INT3, INTO, ICEBP | [`Exit::SoftwareInterrupt`] | at it, the next one is in the exit |
//! | something that faults | [`Exit::Exception`], [`Exit::PageFault`] | at it |
//! | a single-stepped instruction | [`Exit::Exception`] vector 1 | after it |
//! | a privileged instruction, CPUID, XSETBV | [`Exit::Privileged`] | at it, with its length |
//! | anything, while somebody kicked | [`Exit::Interrupted`] | at the next one |
//!
//! [`scripted`] is an engine without a CPU, for tests of the core.
#![forbid(unsafe_code)]

mod context;
mod exit;
mod lookup;
mod privileged;
mod run;
pub mod scripted;

pub use context::{
    Control4, DescriptorTables, FPU_AREA_BYTES, FpuArea, GDT_FRAMES, Gpr, GuestMode, LDT_FRAMES, Segment,
    SegmentAttributes, VcpuContext, XSAVE_HEADER, rflags,
};
pub use exit::{Exception, Exit, Interrupt, PageFault, SyscallKind, vector};
pub use lookup::{LookupFault, lookup};
/// A segment register, as the tables of [`paravane_x86`] have it.
pub use paravane_x86::segments::SegmentRegister;
pub use privileged::{ControlRegister, Port, Privileged, PrivilegedOp, StringIo, Width};
pub use run::{Engine, Kick, ShadowStep, TlbFlush};
