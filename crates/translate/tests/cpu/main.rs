//! The engine against the real CPU.
//!
//! One program for all of these tests: they share the native mappings at fixed addresses, and so take turns.

mod branches;
mod cases;
mod cross;
mod crossings;
mod evictions;
mod faults;
mod forms;
mod garbage;
mod hostile;
mod kicks;
mod modes;
mod native;
mod programs;
mod promises;
mod search;
mod segments;
mod sequences;
mod shown_flags;
mod smc;
mod stacks;
mod steps;
mod strings;
mod tally;
mod walks;
