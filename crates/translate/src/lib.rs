//! The default engine: same-ISA binary translation.
//!
//! Guest and host are both x86-64, and a PV guest never needs ring 0. So most instructions run as they are; the
//! translator rewrites memory operands (through a software TLB), control flow (through its own jumps), and what
//! touches segments or system state. The pieces:
//!
//! * `block` decodes and drives; `classify` decides the treatment; `emit`, `operand`, `stack`, `flow`, `moves` and
//!   `registers` make host code; `asm` is the assembler below them; `liveness` knows which flags matter, `recall`
//!   which can be had again, `reuse` which accesses one check can serve.
//! * `pages` names translated code by linear page and frame; `sites` says why code comes back to Rust.
//! * `breakpoints` watches what the debug registers name.
//! * `engine` is the run loop, `environment` what code may assume in it; `access`, `tlb` and `walk` serve memory; `runs`
//!   moves much of it, `crossings` what lies in two pages; `help`, `branches`, `strings`, `segments`, `system`, `fpu`, `x87`
//!   and `elements` perform what is not worth emitting.
//! * `sharing` keeps to the rules among several engines of one memory.
//! * `presence` says which instructions exist, `limits` which segments restrict, and `coverage` puts together what
//!   happens to each form.
//! * `verify` proves of each block, in builds with debug assertions, that it keeps to its place.
//! * `arena`, `state`, `trampoline` and `signal` hold the unsafe ground: shared memory, entry, host faults.
//!
//! # Registers
//!
//! Guest registers are the host's, except R14 and R15, which the translation uses and the guest keeps in memory.
//! RSP too is the guest's: translated code has no host stack. Vector and x87 registers are the guest's; they are
//! saved (XSAVEOPT) whenever Rust runs. The direction flag and flags above bit 11 live in memory.
//!
//! What is not exact is listed in [`coverage::INEXACT`], and so in docs/translator-coverage.md.

mod access;
mod ahead;
mod arena;
mod asm;
mod bits;
mod block;
mod branches;
mod breakpoints;
mod check;
mod classify;
pub mod coverage;
mod crossings;
mod elements;
mod emit;
mod engine;
mod environment;
mod features;
mod flags;
mod flow;
mod fpu;
mod help;
mod limits;
#[cfg(test)]
mod listing;
mod liveness;
mod moves;
mod operand;
mod pages;
mod perf_map;
mod presence;
mod recall;
mod registers;
mod reuse;
mod runs;
mod segments;
mod sharing;
mod signal;
mod sites;
mod stack;
mod state;
mod stats;
mod status;
mod strings;
mod stubs;
mod system;
mod tlb;
mod trampoline;
mod tsc;
mod verify;
mod walk;
mod x87;

pub use engine::{Options, Translator, TranslatorError};
pub use features::{Host, Leaf};
pub use stats::Stats;
pub use tsc::read_tsc;
