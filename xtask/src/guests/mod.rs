//! `cargo xtask guests`: every 64-bit PV guest that can be had, fetched, run and judged.
//!
//! ```text
//!   catalogue.rs  which guests there are, and when each is tried
//!   host.rs       the program they run in
//!   linux.rs      Linux, which checks itself
//!   installer.rs  Debian's installer, up to a command of ours
//!   grub.rs       PV-GRUB: its prompt, and a Linux that it starts
//!   outcome.rs    the results as a table, JSON, a page
//! ```
//!
//! Trials run one after another, so that their times are their own. One that fails does not keep the others from running.

mod catalogue;
mod grub;
mod host;
mod installer;
pub(crate) mod linux;
mod outcome;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail, ensure};

use crate::fetch;
use crate::program::Profile;
use crate::repo::Repo;

use catalogue::{Kind, TRIALS, Trial, When};
use host::{Ended, Host, Program};
use outcome::Outcome;

/// The page that `--record` writes.
const PAGE: &str = "docs/guests.md";

/// Which guests to try, and what to do with the results.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Parts of names or of packages; without any, all guests
    #[arg(value_name = "GUEST")]
    guests: Vec<String>,
    /// Write the results to this file, as JSON; `/dev/stdout` prints them
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/guests.md, if all guests pass
    #[arg(long, conflicts_with = "guests")]
    record: bool,
    /// The program to run guests in; without it, the release program is built
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Tries the chosen guests and prints a table.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let trials = Trial::chosen(&args.guests)?;
    let built = Program::Built(Profile::Release);
    let program = args.program.as_deref().map_or(built, Program::At);
    let outcomes = try_all(repo, &program, &trials)?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&outcomes)?;
        fs::write(path, json + "\n").with_context(|| format!("could not write {}", path.display()))?;
    }
    verdict(&outcomes)?;
    if args.record {
        ensure!(outcomes.len() == TRIALS.len(), "{PAGE} tells of all guests");
        let often = |guest: &str| TRIALS.iter().any(|trial| trial.name == guest && trial.when != When::Asked);
        fs::write(repo.path(PAGE), outcome::page(&outcomes, often))
            .with_context(|| format!("could not write {PAGE}"))?;
        println!("{PAGE}");
    }
    Ok(())
}

/// The step `guests` of `cargo xtask test`: the trials that are made always, in the program that the tests built.
pub(crate) fn always(repo: &Repo) -> anyhow::Result<()> {
    let program = Program::Built(Profile::Dev);
    verdict(&try_all(repo, &program, &Trial::always())?)
}

fn try_all(repo: &Repo, program: &Program<'_>, trials: &[Trial]) -> anyhow::Result<Vec<Outcome>> {
    let host = Host::prepare(repo, program)?;
    let mut outcomes = Vec::new();
    for (index, trial) in trials.iter().enumerate() {
        println!("\n== {} of {}, {}: {}", index + 1, trials.len(), trial.name, trial.kind.proves());
        let outcome = attempt(repo, &host, trial);
        match &outcome.error {
            None => println!("  {} facts hold, {:.1} s of CPU", outcome.facts, outcome.cpu.as_secs_f64()),
            Some(error) => println!("  FAILED: {error}"),
        }
        outcomes.push(outcome);
    }
    println!("\n{}", outcome::table(&outcomes));
    Ok(outcomes)
}

/// Fails if a trial did.
fn verdict(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed: Vec<&str> =
        outcomes.iter().filter(|outcome| outcome.error.is_some()).map(|outcome| outcome.guest).collect();
    if !failed.is_empty() {
        bail!("{} of {} guests failed: {}", failed.len(), outcomes.len(), failed.join("; "));
    }
    println!("all {} guests passed", outcomes.len());
    Ok(())
}

/// Makes one trial. Whatever goes wrong is in the outcome.
fn attempt(repo: &Repo, host: &Host, trial: &Trial) -> Outcome {
    let mut outcome = Outcome::of(trial);
    match judged(repo, host, trial, &mut outcome) {
        Ok(facts) => outcome.facts = facts,
        Err(error) => outcome.error = Some(format!("{error:#}")),
    }
    outcome
}

fn judged(repo: &Repo, host: &Host, trial: &Trial, outcome: &mut Outcome) -> anyhow::Result<usize> {
    let package = fetch::package(repo, &trial.request.parse()?)?;
    outcome.version = fetch::version_in(&package)?;
    let mut ended = |ended: anyhow::Result<Ended>| {
        if let Ok(ended) = &ended {
            outcome.cpu = ended.cpu;
        }
        ended
    };
    let explained = |result: anyhow::Result<usize>, ended: &Ended| {
        result.map_err(|error| anyhow!("{error:#}; {}", ended.excerpt()))
    };
    match trial.kind {
        Kind::Linux => {
            let kernel = fetch::kernel_in(&package)?;
            let ended = ended(linux::boot(host, &kernel))?;
            explained(linux::passed(&ended, &kernel), &ended)
        }
        Kind::Installer => {
            let ended = ended(installer::start(host, &package))?;
            explained(installer::told(&ended), &ended)
        }
        Kind::GrubPrompt => {
            let ended = ended(grub::prompt(host, &package))?;
            explained(grub::answered(&ended), &ended)
        }
        Kind::GrubStartsLinux => {
            let kernel = fetch::kernel_in(&package)?;
            let ended = ended(grub::start_linux(host, repo, &kernel))?;
            explained(grub::linux_passed(&ended, &kernel), &ended)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_cannot_be_fetched_is_a_failure_that_says_so() {
        let root = std::env::temp_dir().join(format!("paravane-guests-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let host = Host { paravane: "true".into(), initrd: PathBuf::new(), folder: root.clone() };
        let trial = Trial { request: "no-such-package@no-such-suite", ..TRIALS[0] };

        let outcome = attempt(&Repo::at(&root), &host, &trial);
        fs::remove_dir_all(root).unwrap();

        let error = outcome.error.clone().unwrap();
        assert!(error.contains("could not fetch no-such-package@no-such-suite"), "{error}");
        assert!(verdict(&[outcome]).unwrap_err().to_string().contains(TRIALS[0].name));
    }
}
