//! The hypercalls, one file for each family.
//!
//! A handler takes the [`Call`](crate::domain::Call) and the raw argument words, and returns an
//! [`Outcome`](crate::dispatch::Outcome) or a [`Refusal`](crate::refusal::Refusal). Arguments are guest input:
//! numbers are narrowed as the C prototypes do, pointers are read through [`crate::guest`], and closed sets
//! enter through `from_number`.

mod batch;
pub(crate) mod control;
pub(crate) mod descriptors;
pub(crate) mod event_channel;
mod exchange;
mod flush;
pub(crate) mod grant_table;
pub(crate) mod iret;
pub(crate) mod memory;
mod memory_map;
pub(crate) mod misc;
pub(crate) mod mmu_update;
pub(crate) mod mmuext;
pub(crate) mod multicall;
mod owner;
pub(crate) mod physdev;
pub(crate) mod sched;
pub(crate) mod segments;
#[cfg(test)]
mod tests;
pub(crate) mod traps;
pub(crate) mod va_mapping;
pub(crate) mod vcpu;
mod vcpu_context;
pub(crate) mod version;
