//! Xen's public x86 PV guest interface as data.
//!
//! Numbers, names, layouts and units, each written once. Everything else in the project (dispatch, traces,
//! `paravane explain`, the coverage page) is derived from the tables here. There is no behaviour in this
//! crate: it does no I/O, allocates only for text, and knows nothing of engines or of the hypervisor.
//!
//! The reference for every fact is a header below `xen/include/public/` of Xen; each module names its own.
#![forbid(unsafe_code)]

pub mod elfnote;
pub mod errno;
pub mod features;
pub mod hypercall;
pub mod table;
pub mod units;
