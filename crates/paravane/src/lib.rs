//! The parts of the `paravane` program, as a library so that tests and fuzzers reach them.
//!
//! Parse everything, then act: [`cli`] turns arguments into values, [`commands`] turns values into answers,
//! [`output`] prints them, [`failure`] knows the exit codes.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod failure;
pub mod input;
pub mod output;
pub mod run;
