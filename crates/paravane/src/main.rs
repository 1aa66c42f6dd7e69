//! `paravane`: the program. The work is in the library of the same name.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "the program reports failures on standard error")]

use std::process::ExitCode;

use clap::Parser;
use paravane::{cli::Cli, commands};

fn main() -> ExitCode {
    match commands::run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("paravane: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
