//! Tests of frames and of the hypercalls about them, made as a guest would.

mod adoption;
mod advisories;
mod faults;
mod hostile;
mod memory;
mod mmu_update;
mod mmuext;
mod random;
mod tables;
