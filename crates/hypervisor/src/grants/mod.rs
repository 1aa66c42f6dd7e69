//! Grant tables: how a guest lets other domains use its pages.
//!
//! The guest writes entries into a table that it shares with the hypervisor: this domain may use that frame. The
//! other side names an entry by its index, the grant reference, and has the hypervisor map the page or copy to or
//! from it. While it does, the entry says so, and the guest must leave it alone.
//!
//! The table comes in two layouts. In version 1 the bits that say "in use" stand in the entry itself; in version 2,
//! whose entries are twice as large, they stand in an array of their own.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `table.rs` | the frames of the table, its size, where an entry is |
//! | `pins.rs` | entries in use, and the bits that say so |
//! | `backend.rs` | use by a backend, which lives in this process |
//! | `mapping.rs` | use by the guest itself, mapping by mapping |
//! | `copy.rs` | copying to and from grants |
//! | `version.rs` | changing from one layout to the other |
//!
//! Source: `xen/common/grant_table.c`, `xen/include/public/grant_table.h`.

mod backend;
mod copy;
mod mapping;
mod pins;
mod table;
#[cfg(test)]
mod tests;
mod version;

pub use backend::{BackendGrant, GrantAccess, GrantRefusal};
pub(crate) use mapping::Unmap;
pub(crate) use table::{GrantFrames, GrantTable, Version};
