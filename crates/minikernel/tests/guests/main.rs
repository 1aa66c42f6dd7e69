//! Guests, a file for each family of hypercalls or traps.
#![forbid(unsafe_code)]

mod breakpoints;
mod descriptors;
mod events;
mod exceptions;
mod grants;
mod hello;
mod hostile;
mod iret;
mod mmu;
mod random;
mod self_modifying;
mod small;
mod start;
mod tables_of_tables;
mod user_mode;
