//! Guest machine memory.
//!
//! All machine frames of a guest are one contiguous range of machine frame numbers, backed by one memfd that is
//! mapped once ([`Memory`]). The first number is the caller's choice, so that machine and pseudo-physical
//! numbers differ and a mix-up shows. The host gives pages as they are touched and takes them back when a
//! frame is released.
//!
//! Guest threads write this memory at any time, so nothing here hands out a Rust reference to plain bytes:
//! ranges are copied, words that are shared with the guest (page-table entries, event words) are read and
//! written atomically. Out-of-range addresses are errors, never panics.
//!
//! [`paging`] walks long-mode page tables as the CPU does. [`code`] remembers which parts of which frames a
//! translating engine has read as instructions, so that a write by anybody (guest, hypercall, backend) makes
//! the engine drop what it derived from them.
//!
//! `unsafe` lives in `mapping.rs` alone.

pub mod code;
mod mapping;
mod memory;
pub mod paging;
mod runners;

pub use memory::{Memory, MemoryError, OutOfRange};
