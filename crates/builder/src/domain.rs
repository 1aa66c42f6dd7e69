//! The domain side: from a PV kernel to a domain whose first vCPU can run.
//!
//! ```text
//! kernel, memory size, initrd ─► plan ─► load ─► tables ─► start ─► BuiltDomain
//!                                │       bytes   initial   start_info, p2m,
//!                                │               mapping   rings, registers
//!                                └── where everything goes: arithmetic only, or a refusal
//! ```
//!
//! Everything is written to machine memory; the caller says which machine frame each pseudo-physical one has.
//! Page tables are left as real tools leave them, to be validated (and adjusted) when the hypervisor pins the
//! root.
//!
//! Source: `xen/tools/libs/guest/xg_dom_core.c`, `xg_dom_x86.c`, `xg_dom_boot.c`.

mod build;
pub mod plan;
mod tables;

pub use build::{BuildError, BuildRequest, BuiltDomain, build};
pub use plan::{Plan, PlanError};
