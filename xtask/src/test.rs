//! Everything that is checked: what the CI runs, and each step alone.
//!
//! Steps run in order, cheap ones first, and the first failure ends the run. Cargo writes to this process's own
//! streams, so its test result lines are there to be read.

use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::repo::Repo;
use crate::{command, fetch, fuzz, generate, guests, licences, tidy, witnesses};

/// Which steps to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The steps to run; without any, all
    #[arg(value_parser = step_named)]
    steps: Vec<&'static Step>,
}

/// One step: its name on the command line, what it checks, how.
#[derive(Debug)]
struct Step {
    name: &'static str,
    checks: &'static str,
    run: fn(&Repo) -> anyhow::Result<()>,
}

const STEPS: [Step; 12] = [
    Step { name: "format", checks: "the code is formatted", run: format },
    Step { name: "tidy", checks: "the style rules hold", run: tidy::run },
    Step { name: "generated", checks: "generated pages say what the tables say", run: generate::check },
    Step { name: "licences", checks: "dependencies are as deny.toml wants them", run: licences::run },
    Step { name: "clippy", checks: "the compiler and clippy have nothing to say", run: clippy },
    Step { name: "docs", checks: "the documentation builds without a warning", run: docs },
    Step { name: "fetch", checks: "real guests are there to be tested", run: fetch::all_guests },
    Step { name: "tests", checks: "all tests and the examples in the documentation pass", run: tests },
    Step { name: "guests", checks: "real guests of each kind run and are content", run: guests::always },
    Step {
        name: "witnesses",
        checks: "real programs print in a guest what they print here",
        run: witnesses::quick,
    },
    Step {
        name: "regressions",
        checks: "every input that fuzzing ever tripped over passes",
        run: regressions,
    },
    Step { name: "fuzz", checks: "a moment of fuzzing finds nothing", run: fuzz::quick },
];

/// Runs the steps, each with its time, up to the first that fails.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let steps: Vec<&Step> = if args.steps.is_empty() { STEPS.iter().collect() } else { args.steps.clone() };
    let start = Instant::now();
    for (index, step) in steps.iter().enumerate() {
        println!("\n== {} of {}, {}: {}", index + 1, steps.len(), step.name, step.checks);
        let step_start = Instant::now();
        (step.run)(repo).with_context(|| {
            let seconds = step_start.elapsed().as_secs_f32();
            format!(
                "step {} failed after {seconds:.1} s; repeat it with `cargo xtask test {}`",
                step.name, step.name
            )
        })?;
        println!("== {} passed in {:.1} s", step.name, step_start.elapsed().as_secs_f32());
    }
    println!("\nall {} steps passed in {:.0} s", steps.len(), start.elapsed().as_secs_f32());
    Ok(())
}

fn step_named(name: &str) -> anyhow::Result<&'static Step> {
    if let Some(step) = STEPS.iter().find(|step| step.name == name) {
        return Ok(step);
    }
    let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
    bail!("the steps are {}", names.join(", "))
}

fn format(repo: &Repo) -> anyhow::Result<()> {
    command::run(command::cargo(repo).args(["fmt", "--all", "--check"]))?;
    command::run(command::cargo(repo).args(["fmt", "--all", "--check", "--manifest-path", fuzz::MANIFEST]))
}

fn clippy(repo: &Repo) -> anyhow::Result<()> {
    let deny = ["--locked", "--all-targets", "--", "-D", "warnings"];
    command::run(command::cargo(repo).args(["clippy", "--workspace"]).args(deny))?;
    command::run(fuzz::cargo(repo, "clippy").args(deny))
}

fn docs(repo: &Repo) -> anyhow::Result<()> {
    let mut cargo = command::cargo(repo);
    command::run(
        cargo.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn tests(repo: &Repo) -> anyhow::Result<()> {
    command::run(command::cargo(repo).args(["test", "--workspace", "--locked"]))
}

/// The same functions that fuzzing calls, on the committed inputs, without libFuzzer.
fn regressions(repo: &Repo) -> anyhow::Result<()> {
    let mut cargo = command::cargo(repo);
    cargo.args(["test", "--manifest-path", fuzz::MANIFEST, "--locked", "--lib", "--no-default-features"]);
    // The dependencies are those of the other tests, built the same way: one folder serves both.
    command::run(cargo.args(["--target-dir", "target"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_found_by_its_name() {
        for step in &STEPS {
            assert_eq!(step_named(step.name).unwrap().checks, step.checks);
        }
    }

    #[test]
    fn an_unknown_step_is_answered_with_the_known_ones() {
        let error = step_named("everything").unwrap_err().to_string();

        assert!(error.contains("clippy") && error.contains("fuzz"), "{error}");
    }
}
