//! From a kernel file to a PV domain that is ready to run.
//!
//! [`image`] understands the kernel file: it unpacks it, reads what the kernel tells its loader, and says
//! whether and how it boots.
#![forbid(unsafe_code)]

pub mod domain;
pub mod image;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
