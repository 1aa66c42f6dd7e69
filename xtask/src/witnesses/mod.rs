//! Real programs as witnesses: the same programs on the same data, in a guest and on the host, must print the same.
//!
//! ```text
//!   list.rs    the witnesses, and the Debian packages that they come from
//!   tree.rs    the packages with our sources and scripts, as a folder and as an initial ramdisk
//!   runs.rs    a run on the host (in that folder, as its root) and one in a guest, and what they printed
//!   guest/     run.sh, which is the same for both, and what it feeds to the programs
//! ```
//!
//! The host's CPU is the reference. Nothing of what the witnesses print is written down here, so packages may change.

mod list;
mod runs;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

use crate::fetch;
use crate::program::{self, Profile};
use crate::repo::Repo;

use list::{WITNESSES, Witness};
use runs::Outcome;

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The witnesses to hear; without any, all
    #[arg(value_parser = witness_named)]
    witnesses: Vec<&'static Witness>,
    /// The kernel of the guest
    #[arg(long, value_enum, default_value = "stock")]
    kernel: Kernel,
    /// Repeat with a new guest each time until this many minutes are over
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Memory of the guest
    #[arg(short, long, value_name = "SIZE", default_value = "2G")]
    memory: String,
}

/// A kernel of Debian 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kernel {
    /// linux-image-amd64
    Stock,
    /// linux-image-cloud-amd64
    Cloud,
}

/// Hears the witnesses with a release build, and prints a table.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let witnesses: Vec<_> =
        if args.witnesses.is_empty() { WITNESSES.iter().collect() } else { args.witnesses.clone() };
    println!("== The program");
    let program = program::build(repo, Profile::Release)?;
    let stand = Stand::prepare(repo, &program, args.kernel, &args.memory, &witnesses)?;
    let end = args.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let mut rounds = 0;
    loop {
        stand.hear()?;
        rounds += 1;
        if end.is_none_or(|end| Instant::now() >= end) {
            println!("\nall witnesses agree with the host, {rounds} times");
            return Ok(());
        }
    }
}

/// Hears those that take a moment, with the program that the tests have built.
pub(crate) fn quick(repo: &Repo) -> anyhow::Result<()> {
    let program = program::build(repo, Profile::Dev)?;
    let witnesses: Vec<_> = WITNESSES.iter().filter(|witness| witness.quick).collect();
    Stand::prepare(repo, &program, Kernel::Cloud, "2G", &witnesses)?.hear()
}

/// All that guests need to be compared with the host, made once for however many of them.
struct Stand<'a> {
    program: &'a Path,
    kernel: PathBuf,
    initrd: PathBuf,
    memory: &'a str,
    witnesses: &'a [&'static Witness],
    names: Vec<&'static str>,
    /// What the witnesses said on the host.
    host: Outcome,
}

impl<'a> Stand<'a> {
    fn prepare(
        repo: &Repo,
        program: &'a Path,
        kernel: Kernel,
        memory: &'a str,
        witnesses: &'a [&'static Witness],
    ) -> anyhow::Result<Self> {
        println!("\n== The witnesses");
        let request = match kernel {
            Kernel::Stock => fetch::STOCK_KERNEL,
            Kernel::Cloud => fetch::CLOUD_KERNEL,
        };
        let kernel = fetch::kernel_in(&fetch::package(repo, &request.parse()?)?)?;
        let root = tree::make(repo)?;
        let initrd = program::target(repo)?.join("witnesses.cpio");
        tree::archive(&root, &initrd)?;
        let names: Vec<_> = witnesses.iter().map(|witness| witness.name).collect();

        println!("\n== On the host");
        let host = runs::on_the_host(&root, &names)?;
        Ok(Self { program, kernel, initrd, memory, witnesses, names, host })
    }

    /// Runs one guest and compares.
    fn hear(&self) -> anyhow::Result<()> {
        println!("\n== In a guest");
        let guest = runs::in_a_guest(self.program, &self.kernel, &self.initrd, self.memory, &self.names)?;
        compare(self.witnesses, &self.host, &guest)
    }
}

/// Prints the table, and fails unless each witness said the same in both places, and succeeded.
fn compare(witnesses: &[&Witness], host: &Outcome, guest: &Outcome) -> anyhow::Result<()> {
    println!(
        "\n{:<28} {:>9} {:>9} {:>7}  {:<9}  what it runs",
        "witness", "host", "guest", "ratio", "result"
    );
    let mut failures = Vec::new();
    for witness in witnesses {
        let said =
            host.said(witness.name).with_context(|| format!("{} did not end on the host", witness.name))?;
        ensure!(
            said.status == 0,
            "{} fails on the host with {}:\n{}",
            witness.name,
            said.status,
            said.lines.join("\n")
        );
        let Some(repeated) = guest.said(witness.name) else {
            failures.push(format!("{}: did not end in the guest", witness.name));
            continue;
        };
        let same = said.lines == repeated.lines && said.status == repeated.status;
        println!(
            "{:<28} {:>7.2} s {:>7.2} s {:>7.1}  {:<9}  {}",
            witness.name,
            said.seconds,
            repeated.seconds,
            repeated.seconds / said.seconds.max(0.001),
            if same { "the same" } else { "DIFFERENT" },
            witness.shows
        );
        if !same {
            failures.push(difference(witness.name, said, repeated));
        }
    }
    if guest.complaints != ["no complaints"] {
        failures.push(format!("the guest's kernel complained:\n  {}", guest.complaints.join("\n  ")));
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// The first line that differs.
fn difference(name: &str, host: &runs::Said, guest: &runs::Said) -> String {
    let lines = host.lines.len().max(guest.lines.len());
    let line =
        |said: &runs::Said, at: usize| said.lines.get(at).map_or("nothing", |line| line.as_str()).to_owned();
    let at = (0..lines).find(|at| line(host, *at) != line(guest, *at));
    match at {
        Some(at) => format!(
            "{name}, line {}:\n  the host printed  {}\n  the guest printed {}",
            at + 1,
            line(host, at),
            line(guest, at)
        ),
        None => format!("{name}: status {} on the host, {} in the guest", host.status, guest.status),
    }
}

fn witness_named(name: &str) -> anyhow::Result<&'static Witness> {
    if let Some(witness) = WITNESSES.iter().find(|witness| witness.name == name) {
        return Ok(witness);
    }
    let names: Vec<_> = WITNESSES.iter().map(|witness| witness.name).collect();
    bail!("the witnesses are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Witness = Witness { name: "one", shows: "", quick: true };

    fn outcome(text: &str) -> Outcome {
        Outcome::parse(text)
    }

    #[test]
    fn witnesses_agree_if_lines_and_status_are_the_same() {
        let host = outcome("witness: one| a\nwitness: one done 0 1.0 0.5\n");
        let same = outcome("witness: one| a\nwitness: one done 0 9.0 1.5\nwitness: kernel| no complaints\n");

        assert!(compare(&[&ONE], &host, &same).is_ok());
        for (guest, error) in [
            (
                "witness: one| b\nwitness: one done 0 1 1\nwitness: kernel| no complaints\n",
                "the guest printed b",
            ),
            ("witness: one done 0 1 1\nwitness: kernel| no complaints\n", "the guest printed nothing"),
            (
                "witness: one| a\nwitness: one done 3 1 1\nwitness: kernel| no complaints\n",
                "status 0 on the host, 3",
            ),
            ("witness: one| a\n", "did not end in the guest"),
            ("witness: one| a\nwitness: one done 0 9.0 1.5\n", "complained"),
            ("witness: one| a\nwitness: one done 0 9.0 1.5\nwitness: kernel| BUG: it\n", "BUG: it"),
        ] {
            let found = compare(&[&ONE], &host, &outcome(guest)).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn a_witness_that_fails_on_the_host_proves_nothing() {
        let failed = outcome("witness: one| no such file\nwitness: one done 1 1.0 0.5\n");

        let found = compare(&[&ONE], &failed, &failed).unwrap_err().to_string();
        assert!(found.contains("no such file"), "{found}");
    }

    #[test]
    fn an_unknown_witness_is_answered_with_the_known_ones() {
        assert!(witness_named("nobody").unwrap_err().to_string().contains("sqlite_database"));
    }
}
