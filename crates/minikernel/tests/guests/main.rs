//! Guests, a file for each family of hypercalls or traps.
#![forbid(unsafe_code)]

mod exceptions;
mod hello;
mod hostile;
mod random;
mod self_modifying;
mod user_mode;
