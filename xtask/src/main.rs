//! The project's own commands: `cargo xtask --help` lists them.
//!
//! Whatever a person or the CI does with this repository beyond plain `cargo build` and `cargo test` is a
//! command here, so that it is written once, in Rust, and works the same everywhere. Nothing here is part of
//! the program.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

mod bench;
mod command;
mod demo;
mod fetch;
mod fuzz;
mod generate;
mod guests;
mod licences;
mod metadata;
mod program;
mod repo;
mod test;
mod tidy;
mod witnesses;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::repo::Repo;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check everything: what the CI runs
    Test(test::Args),
    /// Boot a stock Debian kernel: to a shell on a terminal, otherwise to a check of the guest from inside
    Demo(demo::Args),
    /// Measure the program beside QEMU, and write docs/performance.md
    Bench(bench::Args),
    /// Fetch Debian packages with real PV guests into target/debian, without root
    Fetch(fetch::Args),
    /// Fetch and run every 64-bit PV guest that can be had, and print a table
    Guests(guests::Args),
    /// Fuzz one target, or list the targets
    Fuzz(fuzz::Args),
    /// Run real programs in a guest and on the host, and compare what they print
    Witnesses(witnesses::Args),
    /// Check the style rules that a machine can check
    Tidy,
    /// Write the pages of the documentation that come from the project's tables
    Generate,
    /// Check every dependency's licence and origin against deny.toml
    Licences,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match Repo::find().and_then(|repo| run(&repo, args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(repo: &Repo, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test(args) => test::run(repo, &args),
        Command::Demo(args) => demo::run(repo, &args),
        Command::Bench(args) => bench::run(repo, &args),
        Command::Fetch(args) => fetch::run(repo, &args),
        Command::Guests(args) => guests::run(repo, &args),
        Command::Fuzz(args) => fuzz::run(repo, &args),
        Command::Witnesses(args) => witnesses::run(repo, &args),
        Command::Tidy => tidy::run(repo),
        Command::Generate => generate::run(repo),
        Command::Licences => licences::run(repo),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        Args::command().debug_assert();
    }
}
