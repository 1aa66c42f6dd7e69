//! Paravane measured beside QEMU's TCG, and beside the bare CPU where that makes sense.
//!
//! All contenders run in turn in one run, forward in one round and backward in the next, so that what the machine does
//! otherwise meets all of them. What counts is CPU time of the whole process, user and system; wall-clock time is taken
//! too. Figures are medians over the rounds.
//!
//! ```text
//!   guests.rs   the programs and kernels, built and written to files
//!   kernel.rs   made kernels that do one thing
//!   qemu.rs     QEMU, fetched
//!   child.rs    a child process and what it cost
//!   rounds.rs   what is run in each round
//!   samples.rs  medians and means
//!   targets.rs  what the figures should be
//!   page.rs     the table, and docs/performance.md
//! ```

pub(crate) mod child;
mod guests;
mod kernel;
mod page;
mod qemu;
mod rounds;
mod samples;
mod targets;

use std::path::PathBuf;

use anyhow::ensure;

use crate::repo::Repo;

use guests::Guests;
use page::About;
use rounds::Record;

/// Memory of every guest, as QEMU and Paravane both read it.
const MEMORY: &str = "512M";
/// Rounds whose medians are worth writing down.
const ROUNDS: u32 = 5;
/// Rounds for a first impression.
const QUICK_ROUNDS: u32 = 1;

/// What to measure, and how to tell it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One round, and docs/performance.md stays as it is
    #[arg(long)]
    quick: bool,
    /// Rounds; docs/performance.md is written from five on
    #[arg(long, value_name = "COUNT", conflicts_with = "quick")]
    rounds: Option<u32>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Measure this program instead of building one; docs/performance.md stays as it is
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Leave QEMU out; docs/performance.md stays as it is
    #[arg(long)]
    no_qemu: bool,
}

/// Measures, prints, and writes the page.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let count = if args.quick { QUICK_ROUNDS } else { args.rounds.unwrap_or(ROUNDS) };
    ensure!(count > 0, "--rounds 0 measures nothing");
    let mut guests = Guests::prepare(repo, args.program.as_deref())?;
    if args.no_qemu {
        guests.qemu = None;
    }
    let mut record = Record::default();
    for round in 0..count {
        eprintln!("== Round {} of {count}", round + 1);
        rounds::run(&guests, round % 2 == 1, &mut record)?;
    }
    let about = About::gather(repo, &guests, count)?;
    if args.json {
        println!("{}", page::json(&about, &record)?);
    } else {
        println!("\n{}", page::tables(&record));
    }
    if count >= ROUNDS && args.program.is_none() && guests.qemu.is_some() {
        page::write(repo, &about, &record)?;
    }
    Ok(())
}
