//! Guests, a file for each family of hypercalls or traps.
#![forbid(unsafe_code)]

mod exceptions;
mod hello;
mod user_mode;
