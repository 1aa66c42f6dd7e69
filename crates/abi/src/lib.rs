//! Xen's public x86 PV guest interface as data.
//!
//! Numbers, names, layouts and units, each written once. Everything else in the project (dispatch, traces,
//! `paravane explain`, the coverage page) is derived from the tables here. There is no behaviour in this
//! crate: it does no I/O, allocates only for text, and knows nothing of engines or of the hypervisor.
//!
//! The reference for every fact is a header below `xen/include/public/` of Xen; each module names its own.
//!
//! | what | where |
//! | --- | --- |
//! | units of the interface | [`units`] |
//! | what a kernel image says of itself | [`elfnote`], [`features`] |
//! | what a guest finds when it starts | [`start_of_day`], [`start_info`], [`shared_info`] |
//! | hypercalls, their arguments and errors | [`hypercall`], [`errno`] |
//! | sub-operations and the structures they take | [`mmu`], [`memory`], [`vcpu`], [`sched`], [`vm`] |
//! | the same for other domains, devices, the hypervisor | [`event_channel`], [`grant_table`], [`physdev`], [`version`] |
//! | shared rings of every domain | [`console`], [`xenstore`] |
//! | a vCPU's whole state | [`vcpu_context`] |
//! | how tables and layouts are written, and a list of all layouts | [`table`], [`layout`], [`structures`] |
#![forbid(unsafe_code)]
#![expect(
    missing_debug_implementations,
    unnameable_types,
    reason = "zerocopy's derives emit helper types, which these lints see when abi_struct! runs the derives"
)]

pub mod console;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypercall;
pub mod layout;
pub mod memory;
pub mod mmu;
pub mod physdev;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod start_of_day;
pub mod structures;
pub mod table;
pub mod units;
pub mod vcpu;
pub mod vcpu_context;
pub mod version;
pub mod vm;
pub mod xenstore;
