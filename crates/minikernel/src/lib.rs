//! Small PV kernels, and a harness that runs them to their end.
//!
//! A kernel of this crate is assembled in the test that needs it, does what the test is about, prints what
//! went wrong, and shuts down. It takes the same way as any other: ELF file, builder, hypervisor core, binary
//! translator.
//!
//! ```text
//!  Setup ──► Layout ──► Program ──► Kernel ──────► run ────────► Outcome
//!  what      where      what it     an ELF file    builder,      how it ended, what it printed,
//!  it says   it all is  does                       core, engine  its traps, its memory
//! ```
//!
//! ```no_run
//! use paravane_abi::hypercall::Hypercall;
//! use paravane_minikernel::{Program, Setup};
//! use iced_x86::code_asm::registers::*;
//!
//! let outcome = Program::assemble(&Setup::default(), |p| {
//!     p.print("hello\n")?;
//!     p.call(Hypercall::XenVersion, &[7, 0])?;
//!     p.check("a page has 4096 bytes", 4096)
//! })
//! .run();
//! assert!(outcome.passed());
//! ```
//!
//! | file | what it knows |
//! | --- | --- |
//! | `setup.rs` | what the kernel file says of itself, and its ELF file |
//! | `layout.rs` | where everything is, before anything is assembled |
//! | `program.rs` | the assembler, with what kernels do often |
//! | `runtime.rs` | the kernel's own code: start, trap entries, report |
//! | `machine.rs` | the run loop of one vCPU |
//! | `outcome.rs`, `trap.rs` | what is left when it has ended |
//!
//! Only tests use this crate.
#![forbid(unsafe_code)]

mod layout;
mod machine;
mod outcome;
mod program;
mod runtime;
mod setup;
mod trap;

pub use layout::Layout;
pub use machine::{GUEST, Limits};
pub use outcome::{End, Outcome};
pub use program::{Assembled, Kernel, Program, both_ways};
pub use setup::{Metadata, Setup, Way};
pub use trap::{Entry, Trap};
