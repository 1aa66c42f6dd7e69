//! Kernel images for tests: small ones to order, and real ones from a directory.
//!
//! [`elf`] makes ELF files with segments, notes and sections; [`bzimage`] wraps them as Linux's build does;
//! [`data`] finds the kernels of distributions that `cargo xtask test` fetches.

pub mod bzimage;
pub mod data;
pub mod elf;
