//! Fuzzing on the stable toolchain: libFuzzer with LLVM's own coverage instrumentation.
//!
//! The layout below `fuzz/` is cargo-fuzz's, but cargo-fuzz wants a nightly compiler for its sanitizers. The
//! targets are safe code, where a sanitizer finds little that a panic does not; what fuzzing needs is coverage,
//! and the compiler's `sancov-module` pass gives it on stable. The flags are set for a named platform, which
//! keeps them away from build scripts and macros.
//!
//! Inputs: `fuzz/corpus/TARGET/` are seeds and `fuzz/regressions/TARGET/` are inputs that once failed, both
//! committed. What a long run finds is kept in `fuzz/target/corpus/TARGET/`, which is not.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::command;
use crate::metadata::PLATFORM;
use crate::repo::Repo;

/// The manifest of the fuzz workspace.
pub(crate) const MANIFEST: &str = "fuzz/Cargo.toml";

/// The search for programs that the translator gets wrong.
const TRANSLATE: &str = "translate";

/// Flags of libFuzzer for every run: what counts as a hang, and as too much memory.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

/// What the quick check runs: the same inputs each time, so that a run that passed passes again.
const QUICK: [&str; 3] = ["-seed=1", "-runs=20000", "-max_total_time=10"];

/// What to fuzz and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The target; without one, the targets are listed
    target: Option<String>,
    /// How long to run
    #[arg(long, value_name = "N", conflicts_with = "minutes", requires = "target")]
    seconds: Option<u64>,
    /// How long to run; one minute if neither is given
    #[arg(long, value_name = "N", requires = "target")]
    minutes: Option<u64>,
    /// `translate` only: how many random programs to run on the translator and on this CPU
    #[arg(long, value_name = "N", requires = "target", conflicts_with_all = ["seconds", "minutes"])]
    programs: Option<u64>,
    /// `translate` only: how many random instructions, of every form in turn, to run on both
    #[arg(long, value_name = "N", requires = "target", conflicts_with_all = ["seconds", "minutes"])]
    instructions: Option<u64>,
    /// `translate` only: the seed of both; a run prints its own, so that it can be repeated
    #[arg(long, value_name = "N", requires = "target")]
    seed: Option<u64>,
}

/// Fuzzes one target, or lists them.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let targets = targets(repo)?;
    let Some(target) = &args.target else {
        targets.iter().map(String::as_str).chain([TRANSLATE]).for_each(|target| println!("{target}"));
        return Ok(());
    };
    if target == TRANSLATE {
        return translate(repo, args);
    }
    let of_translate = args.programs.or(args.instructions).or(args.seed);
    ensure!(of_translate.is_none(), "only the target {TRANSLATE} counts programs and takes a seed");
    ensure!(targets.contains(target), "no fuzz target {target:?}; there are {}", targets.join(", "));
    build(repo)?;
    let minutes = args.minutes.unwrap_or(1);
    let seconds = args.seconds.unwrap_or(minutes.saturating_mul(60));
    let found = repo.path("fuzz/target/corpus").join(target);
    let mut fuzzer = fuzzer(repo, target, found)?;
    command::run(fuzzer.arg(format!("-max_total_time={seconds}")))
}

/// Runs random programs in the translator and on this CPU, which is what they are compared with. No coverage guides
/// this search, so it is a test of the crate that is told to go on.
fn translate(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    let minutes = args.minutes.or(args.seconds.map(|seconds| seconds.div_ceil(60)));
    let is_counted = args.programs.or(args.instructions).is_some();
    let minutes = if is_counted { None } else { Some(minutes.unwrap_or(1)) };
    let mut cargo = command::cargo(repo);
    cargo.args(["test", "--locked", "-p", "paravane-translate", "--test", "cpu", "--", "--nocapture"]);
    cargo.arg("random_programs_are_searched_for_as_long_as_asked");
    for (name, value) in [
        ("PARAVANE_FUZZ_MINUTES", minutes),
        ("PARAVANE_FUZZ_PROGRAMS", args.programs),
        ("PARAVANE_FUZZ_INSTRUCTIONS", args.instructions),
        ("PARAVANE_SEED", args.seed),
    ] {
        if let Some(value) = value {
            cargo.env(name, value.to_string());
        }
    }
    command::run(&mut cargo)
}

/// Builds all targets and runs each for a moment from its committed inputs, keeping nothing it finds but
/// failures.
pub(crate) fn quick(repo: &Repo) -> anyhow::Result<()> {
    build(repo)?;
    for target in targets(repo)? {
        let scratch = repo.path("fuzz/target/quick").join(&target);
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        let mut fuzzer = fuzzer(repo, &target, scratch)?;
        let output = command::output(fuzzer.args(QUICK).arg("-print_final_stats=1"))?;
        let summary = summary(&output)
            .with_context(|| format!("`{}`\n{}", command::line(&fuzzer), without_progress(&output)))
            .with_context(|| {
                format!("fuzzing {target} failed; what failed is kept in fuzz/regressions/{target}")
            })?;
        println!("{target}: {summary}");
    }
    Ok(())
}

/// Checks that C++ can be compiled, which libFuzzer is written in.
fn ensure_compiler() -> anyhow::Result<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let works = command::output(Command::new(&compiler).arg("--version")).is_ok_and(|it| it.status.success());
    ensure!(
        works,
        "libFuzzer needs a C++ compiler, and `{compiler}` is not there; install one, on Debian with \
         `apt-get install g++`"
    );
    Ok(())
}

/// cargo for the fuzz workspace, with the environment that instruments the code. Builds and checks use the
/// same, so that they share what they compile.
pub(crate) fn cargo(repo: &Repo, subcommand: &str) -> Command {
    let mut cargo = command::cargo(repo);
    cargo.arg(subcommand).args(["--manifest-path", MANIFEST, "--release", "--target", PLATFORM]);
    cargo.env("RUSTFLAGS", INSTRUMENTED.join(" "));
    cargo
}

/// Compiler flags: edge coverage with counters and a table of places, comparisons that guide the mutations,
/// and the checks of a debug build.
const INSTRUMENTED: [&str; 9] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

fn build(repo: &Repo) -> anyhow::Result<()> {
    ensure_compiler()?;
    command::run(cargo(repo, "build").args(["--locked", "--bins"]))
}

/// The names of all targets: the programs of the fuzz workspace.
pub(crate) fn targets(repo: &Repo) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        bin: Vec<Bin>,
    }
    #[derive(Deserialize)]
    struct Bin {
        name: String,
    }
    let text = fs::read_to_string(repo.path(MANIFEST)).context("could not read the fuzz manifest")?;
    let manifest: Manifest = toml::from_str(&text).context("the fuzz manifest lists no programs")?;
    Ok(manifest.bin.into_iter().map(|bin| bin.name).collect())
}

/// The command that fuzzes `target`: new inputs go to `found`, failures to the regressions.
fn fuzzer(repo: &Repo, target: &str, found: PathBuf) -> anyhow::Result<Command> {
    let program = repo.path("fuzz/target").join(PLATFORM).join("release").join(target);
    let seeds = repo.path("fuzz/corpus").join(target);
    let regressions = repo.path("fuzz/regressions").join(target);
    let mut command = Command::new(program);
    command.current_dir(repo.root()).args(LIMITS);
    command.arg(format!("-artifact_prefix={}/", regressions.display()));
    for folder in [found, seeds, regressions] {
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        command.arg(folder);
    }
    Ok(command)
}

/// What a finished quick run did, from libFuzzer's output.
///
/// A run without coverage would pass and find nothing, so it counts as failed.
fn summary(output: &Output) -> anyhow::Result<String> {
    if !output.status.success() {
        bail!("ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last_word_after = |label: &str| {
        let line = text.lines().rfind(|line| line.contains(label))?;
        line.split(label).nth(1)?.split_whitespace().next()?.parse::<u64>().ok()
    };
    let runs =
        last_word_after("stat::number_of_executed_units:").context("libFuzzer printed no statistics")?;
    let covered =
        last_word_after(" cov: ").context("libFuzzer saw no coverage: is the code instrumented?")?;
    ensure!(covered > 1, "libFuzzer saw no coverage: is the code instrumented?");
    Ok(format!("{runs} runs, {covered} edges covered"))
}

/// What a finished run printed, but for the line per input that added coverage.
fn without_progress(output: &Output) -> String {
    let text = command::printed(output);
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    fn finished(status: i32, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(status << 8), stdout: Vec::new(), stderr: stderr.into() }
    }

    #[test]
    fn a_run_is_summed_up_by_its_last_statistics() {
        let text = "#2\tINITED cov: 8 ft: 8 corp: 1/1b\n#97\tDONE   cov: 93 ft: 9 corp: 2/5b\n\
                    stat::number_of_executed_units: 20000\n";

        assert_eq!(summary(&finished(0, text)).unwrap(), "20000 runs, 93 edges covered");
    }

    #[test]
    fn a_run_without_coverage_fails() {
        for text in
            ["stat::number_of_executed_units: 9\n", "#2\tINITED cov: 0\nstat::number_of_executed_units: 9\n"]
        {
            assert!(summary(&finished(0, text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_run_that_ended_badly_fails_whatever_it_printed() {
        let text = "#9\tDONE cov: 93\nstat::number_of_executed_units: 9\n";

        assert!(summary(&finished(77, text)).is_err());
    }
}
