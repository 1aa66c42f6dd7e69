//! Xenstore: the tree of small values in which a guest, its toolstack and its backends meet.
//!
//! ```text
//! ring.rs        the guest's page: bytes to messages and back
//! request.rs     one message to one reply
//! store.rs       the tree, transactions and watches
//! tree.rs        nodes and who may use them
//! path.rs        what a path may look like
//! ```
//!
//! The protocol is served whole for a guest: reading, writing, permissions, transactions with conflict
//! detection, watches, limits. What only a control domain may ask is refused.
//!
//! Source: `docs/misc/xenstore.txt`, `xen/include/public/io/xs_wire.h`, `tools/xenstored/`.

mod path;
mod request;
mod ring;
mod store;
mod tree;

pub use path::{Path, PathError};
pub use ring::StoreConnection;
pub use store::{Fault, Store, WatchEvent};
pub use tree::{Permission, Permissions, Rights};
