//! The figures as tables, as JSON, and in docs/performance.md.
//!
//! The page is written by hand but for the part between two marks, which each full run writes anew.

use std::fs;
use std::process::Command;

use anyhow::Context as _;
use paravane_bench_guest::BENCHES;
use serde::Serialize;

use super::guests::Guests;
use super::rounds::{Record, System, What};
use super::targets::{Goal, TARGETS};
use crate::command;
use crate::repo::Repo;

const PAGE: &str = "docs/performance.md";
const START: &str = "<!-- figures: written by `cargo xtask bench` -->";
const END: &str = "<!-- end of the figures -->";

/// Where and with what the figures were taken.
#[derive(Debug, Serialize)]
pub(super) struct About {
    date: String,
    cpu: String,
    cpus: usize,
    host_kernel: String,
    rustc: String,
    commit: String,
    guest_kernel: String,
    qemu: Option<String>,
    rounds: u32,
}

impl About {
    /// Asks the machine.
    pub(super) fn gather(repo: &Repo, guests: &Guests, rounds: u32) -> anyhow::Result<Self> {
        let line = |program: &str, arguments: &[&str]| -> anyhow::Result<String> {
            let mut ask = Command::new(program);
            Ok(command::read(ask.args(arguments).current_dir(repo.root()))?.trim().to_owned())
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("the CPU's name is not told")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let name = guests.kernel.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            date: line("date", &["-u", "+%Y-%m-%d"])?,
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            // What its builder appended tells nobody anything.
            host_kernel: line("uname", &["-r"])?.split('-').next().unwrap_or_default().to_owned(),
            rustc: line("rustc", &["--version"])?,
            commit: line("git", &["rev-parse", "--short", "HEAD"])?,
            guest_kernel: name.trim_start_matches("vmlinuz-").to_owned(),
            qemu: guests.qemu.as_ref().map(|qemu| qemu.version()).transpose()?,
            rounds,
        })
    }

    fn text(&self) -> String {
        format!(
            "Taken on {}, at commit {}: {} with {} CPUs, Linux {}, {}. The guest is Debian's Linux {} with {} of \
             memory. {}. Medians over {} rounds.\n",
            self.date,
            self.commit,
            self.cpu,
            self.cpus,
            self.host_kernel,
            self.rustc,
            self.guest_kernel,
            super::MEMORY,
            self.qemu.as_deref().unwrap_or("Without QEMU"),
            self.rounds
        )
    }
}

/// How a value reads.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Seconds,
    Bytes,
}

/// Every row of the table: its name, what it shows, and how.
fn rows() -> Vec<(String, What, Unit)> {
    let mut rows = vec![
        ("boot to power-off, CPU".to_owned(), What::BootCpu, Unit::Seconds),
        ("boot to power-off, wall clock".to_owned(), What::BootWall, Unit::Seconds),
        ("start to first instruction, new kernel, CPU".to_owned(), What::FirstStartCpu, Unit::Seconds),
        (
            "start to first instruction, new kernel, wall clock".to_owned(),
            What::FirstStartWall,
            Unit::Seconds,
        ),
        ("start to first instruction, CPU".to_owned(), What::StartCpu, Unit::Seconds),
        ("start to first instruction, wall clock".to_owned(), What::StartWall, Unit::Seconds),
    ];
    let benches = BENCHES
        .iter()
        .map(|bench| (format!("{}: {}", bench.name, bench.unit), What::Bench(bench.name), Unit::Seconds));
    rows.extend(benches);
    rows.extend([
        ("hypercall that does nothing".to_owned(), What::Hypercall, Unit::Seconds),
        ("translation of an instruction, run once".to_owned(), What::Instruction, Unit::Seconds),
        ("host memory beyond the guest's".to_owned(), What::Overhead, Unit::Bytes),
        ("guest memory touched, idle after boot".to_owned(), What::Touched, Unit::Bytes),
        ("program".to_owned(), What::ProgramSize, Unit::Bytes),
    ]);
    rows
}

/// Both tables, in Markdown.
pub(super) fn tables(record: &Record) -> String {
    let mut text = String::from(
        "| what | Paravane | QEMU, best form | QEMU, usual form | native |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    for (name, what, unit) in rows() {
        let value = |system| record.median(what, system).map_or_else(String::new, |it| unit.show(it));
        let [paravane, qemu, usual, native] = System::ALL.map(value);
        text.push_str(&format!("| {name} | {paravane} | {qemu} | {usual} | {native} |\n"));
    }
    text.push_str("\n| target | measured | reached |\n| --- | ---: | --- |\n");
    for target in TARGETS {
        let (measured, reached) = match target.goal.outcome(record) {
            None => ("not measured".to_owned(), ""),
            Some(outcome) => (shown(target.goal, outcome.value), if outcome.reached { "yes" } else { "no" }),
        };
        text.push_str(&format!("| {} | {measured} | {reached} |\n", target.text));
    }
    text
}

fn shown(goal: Goal, value: f64) -> String {
    match goal {
        Goal::AtMost(What::Overhead | What::Touched | What::ProgramSize, _) => Unit::Bytes.show(value),
        Goal::AtMost(
            What::BootCpu
            | What::BootWall
            | What::Bench(_)
            | What::Hypercall
            | What::Instruction
            | What::FirstStartCpu
            | What::FirstStartWall
            | What::StartCpu
            | What::StartWall,
            _,
        ) => Unit::Seconds.show(value),
        Goal::TimesLess(..) | Goal::ComputeMean(_) | Goal::ComputeWorst(_) => format!("{value:.2} times"),
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        let (value, unit) = match self {
            Self::Bytes => (value / 1_048_576.0, "MiB"),
            Self::Seconds if value < 1e-6 => (value * 1e9, "ns"),
            Self::Seconds if value < 1e-3 => (value * 1e6, "us"),
            Self::Seconds if value < 1.0 => (value * 1e3, "ms"),
            Self::Seconds => (value, "s"),
        };
        let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
        format!("{value:.digits$} {unit}")
    }
}

/// Everything for programs: times in seconds, sizes in bytes.
pub(super) fn json(about: &About, record: &Record) -> anyhow::Result<String> {
    let rows = rows().into_iter().map(|(name, what, _)| {
        let values: serde_json::Map<_, _> = System::ALL
            .into_iter()
            .filter_map(|system| {
                let key = serde_json::to_value(system).ok()?.as_str()?.to_owned();
                Some((key, record.median(what, system)?.into()))
            })
            .collect();
        serde_json::json!({ "what": name, "values": values })
    });
    let targets = TARGETS.iter().map(|target| {
        let outcome = target.goal.outcome(record);
        serde_json::json!({
            "target": target.text,
            "measured": outcome.map(|it| it.value),
            "reached": outcome.map(|it| it.reached),
        })
    });
    let all = serde_json::json!({
        "about": about,
        "rows": rows.collect::<Vec<_>>(),
        "targets": targets.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&all)?)
}

/// Puts the figures into the page.
pub(super) fn write(repo: &Repo, about: &About, record: &Record) -> anyhow::Result<()> {
    let path = repo.path(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("could not read {PAGE}"))?;
    let page = with_figures(&page, &format!("{}\n{}", about.text(), tables(record)))?;
    fs::write(&path, page).with_context(|| format!("could not write {PAGE}"))?;
    eprintln!("written to {PAGE}");
    Ok(())
}

fn with_figures(page: &str, figures: &str) -> anyhow::Result<String> {
    let missing = || format!("{PAGE} needs the lines `{START}` and `{END}`, between which the figures go");
    let (before, rest) = page.split_once(START).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{START}\n\n{figures}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_in_the_unit_that_fits_it() {
        for (unit, value, text) in [
            (Unit::Seconds, 1.234, "1.23 s"),
            (Unit::Seconds, 0.5, "500 ms"),
            (Unit::Seconds, 42.04e-6, "42.0 us"),
            (Unit::Seconds, 148.8e-9, "149 ns"),
            (Unit::Bytes, 48.0 * 1_048_576.0, "48.0 MiB"),
        ] {
            assert_eq!(unit.show(value), text);
        }
    }

    #[test]
    fn new_figures_replace_the_old_ones_and_nothing_else() {
        let page = format!("# Title\n{START}\nold\n{END}\nmore\n");
        let new = with_figures(&page, "new\n").unwrap();

        assert_eq!(new, format!("# Title\n{START}\n\nnew\n\n{END}\nmore\n"));
        assert_eq!(with_figures(&new, "new\n").unwrap(), new);
        assert!(with_figures("# Title\n", "new").unwrap_err().to_string().contains(START));
    }

    #[test]
    fn what_was_not_measured_is_said_not_to_be() {
        let text = tables(&Record::default());

        assert_eq!(text.matches("not measured").count(), TARGETS.len());
    }

    #[test]
    fn the_page_of_this_repository_has_a_place_for_the_figures() {
        let page = fs::read_to_string(Repo::find().unwrap().path(PAGE)).unwrap();

        assert!(with_figures(&page, "").is_ok());
    }
}
