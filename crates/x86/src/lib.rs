//! What x86 defines and Xen's PV interface bends.
//!
//! Segments and the descriptors behind them, page-table entries, fault codes, the hypercall page, and the
//! ways control passes between guest and hypervisor: each as a table or a pure function over plain values.
//! The hypervisor loads what is written here; `paravane decode` and `paravane explain` print the same.
//!
//! Nothing here touches memory, runs code or knows of a domain's state.
#![forbid(unsafe_code)]

pub mod bits;
pub mod bounce_frame;
pub mod cpuid;
pub mod descriptor;
pub mod fault;
pub mod flags;
pub mod gdt;
pub mod hypercall_page;
pub mod install;
pub mod iret_frame;
pub mod load;
pub mod mode;
pub mod msr;
pub mod pte;
pub mod segments;
pub mod selector;
pub mod submit;
pub mod transitions;
