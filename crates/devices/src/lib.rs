//! Backends of a PV guest's devices.
//!
//! A backend reaches the guest only as a driver domain would: through pages that the guest granted and event
//! channels. It works on values: bytes in, bytes out. Whoever owns it moves the bytes to a terminal or a file and
//! raises the events.
//!
//! [`console`] is the guest's console; [`xenstore`] the store in which guest and host meet, with the ring
//! that leads to it.
#![forbid(unsafe_code)]

pub mod byte_ring;
pub mod console;
pub mod xenstore;
