//! What is run in each round, and where its figures go.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use paravane_bench_guest::{BENCHES, Kind, Measurement};

use super::child::{self, Finished};
use super::guests::{Guests, HYPERCALLS, Made, STRETCHES};
use super::kernel::STRETCH_INSTRUCTIONS;
use super::qemu::{Form, Qemu};
use super::samples::Samples;

/// Who was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum System {
    Paravane,
    /// QEMU in its best form.
    Qemu,
    /// QEMU as most people run it.
    QemuUsual,
    Native,
}

impl System {
    pub(super) const ALL: [Self; 4] = [Self::Paravane, Self::Qemu, Self::QemuUsual, Self::Native];
}

/// What was measured; times in seconds, sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// CPU time from start to power-off.
    BootCpu,
    /// The same on the wall clock.
    BootWall,
    /// A row of `BENCHES`.
    Bench(&'static str),
    /// A hypercall that does nothing.
    Hypercall,
    /// Translating one guest instruction.
    Instruction,
    /// CPU time until the first instruction of a kernel that was never seen before.
    FirstStartCpu,
    /// The same on the wall clock.
    FirstStartWall,
    /// CPU time until the first instruction of a kernel that was seen before.
    StartCpu,
    /// The same on the wall clock.
    StartWall,
    /// Host memory beyond what the guest touched, when it is idle.
    Overhead,
    /// Guest memory that was touched.
    Touched,
    /// The program's file.
    ProgramSize,
}

/// All figures of all rounds.
#[derive(Debug, Default)]
pub(super) struct Record(BTreeMap<(What, System), Samples>);

impl Record {
    pub(super) fn add(&mut self, what: What, system: System, value: f64) {
        self.0.entry((what, system)).or_default().add(value);
    }

    /// The median over the rounds.
    pub(super) fn median(&self, what: What, system: System) -> Option<f64> {
        self.0.get(&(what, system))?.median()
    }
}

/// One measurement of one contender.
type Step<'a> = Box<dyn Fn(&mut Record) -> anyhow::Result<()> + 'a>;

/// Runs one round, backward if asked.
pub(super) fn run(guests: &Guests, backward: bool, record: &mut Record) -> anyhow::Result<()> {
    let mut steps: Vec<Step<'_>> = vec![
        Box::new(|record| boot(record, System::Paravane, &mut guests.boot())),
        Box::new(|record| inside(record, System::Paravane, &mut guests.measure())),
        Box::new(|record| inside(record, System::Native, &mut guests.measure_natively())),
        Box::new(|record| start(record, guests)),
        Box::new(|record| made(record, guests)),
        Box::new(|record| sizes(record, guests)),
    ];
    if let Some(qemu) = &guests.qemu {
        with_qemu(&mut steps, guests, qemu);
    }
    if backward {
        steps.reverse();
    }
    for step in steps {
        step(record)?;
    }
    Ok(())
}

fn with_qemu<'a>(steps: &mut Vec<Step<'a>>, guests: &'a Guests, qemu: &'a Qemu) {
    // Next to the same work of Paravane.
    steps.insert(2, Box::new(|record| inside(record, System::Qemu, &mut guests.measure_qemu(qemu))));
    for (form, system) in [(Form::Usual, System::QemuUsual), (Form::Best, System::Qemu)] {
        steps.insert(1, Box::new(move |record| boot(record, system, &mut guests.boot_qemu(qemu, form))));
    }
}

fn boot(record: &mut Record, system: System, command: &mut Command) -> anyhow::Result<()> {
    let finished = child::run(command)?;
    // Linux says one or the other, depending on what the machine can do.
    let ended = ["reboot: System halted", "reboot: Power down"];
    ensure!(
        ended.iter().any(|line| finished.output.contains(line)),
        "the guest of {system:?} ended without powering off:\n{}",
        finished.output
    );
    tell(&format!("boot, {system:?}"), &finished);
    record.add(What::BootCpu, system, finished.cpu.as_secs_f64());
    record.add(What::BootWall, system, finished.wall.as_secs_f64());
    Ok(())
}

/// The program that measures itself.
fn inside(record: &mut Record, system: System, command: &mut Command) -> anyhow::Result<()> {
    let finished = child::run(command)?;
    let measurements = Measurement::all_in(&finished.output);
    for bench in BENCHES {
        let found = measurements.iter().find(|measurement| measurement.name == bench.name);
        let found = found.with_context(|| {
            format!("no measurement of {} with {system:?}:\n{}", bench.name, finished.output)
        })?;
        // Nothing may be fast by being wrong. What is asked of a kernel counts the answers that were as expected.
        let expected = match bench.kind {
            Kind::Compute => (bench.run)(1),
            Kind::System => 1,
        };
        ensure!(
            found.check == expected,
            "{} computed {:#x} with {system:?} instead of {expected:#x}",
            bench.name,
            found.check
        );
        record.add(What::Bench(bench.name), system, found.nanoseconds / 1e9);
    }
    tell(&format!("inside, {system:?}"), &finished);
    Ok(())
}

/// Until the first instruction of the stock kernel.
fn start(record: &mut Record, guests: &Guests) -> anyhow::Result<()> {
    guests.forget()?;
    let first = child::run(&guests.start())?;
    tell("start, first time", &first);
    record.add(What::FirstStartCpu, System::Paravane, first.cpu.as_secs_f64());
    record.add(What::FirstStartWall, System::Paravane, first.wall.as_secs_f64());
    let next = child::run(&guests.start())?;
    tell("start, next time", &next);
    record.add(What::StartCpu, System::Paravane, next.cpu.as_secs_f64());
    record.add(What::StartWall, System::Paravane, next.wall.as_secs_f64());
    Ok(())
}

/// The made kernels: what one thing costs is the difference between doing it often and not.
fn made(record: &mut Record, guests: &Guests) -> anyhow::Result<()> {
    let cpu = |made| -> anyhow::Result<f64> { Ok(child::run(&guests.made(made))?.cpu.as_secs_f64()) };
    let calls = cpu(Made::ManyHypercalls)? - cpu(Made::NoHypercalls)?;
    record.add(What::Hypercall, System::Paravane, calls / f64::from(HYPERCALLS));
    let translation = cpu(Made::MuchCode)? - cpu(Made::LittleCode)?;
    let instructions = as_float(STRETCHES as u64 * STRETCH_INSTRUCTIONS);
    record.add(What::Instruction, System::Paravane, translation / instructions);
    Ok(())
}

/// Memory and the program's size.
fn sizes(record: &mut Record, guests: &Guests) -> anyhow::Result<()> {
    let memory = child::memory_at(&mut guests.idle(), "idle now")?;
    let overhead = memory.anonymous + memory.file + memory.tables;
    record.add(What::Overhead, System::Paravane, as_float(overhead));
    record.add(What::Touched, System::Paravane, as_float(memory.shared));
    let size = fs::metadata(&guests.paravane).context("the size of the program is not told")?.len();
    record.add(What::ProgramSize, System::Paravane, as_float(size));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn as_float(value: u64) -> f64 {
    value as f64
}

/// Says how far the round is.
fn tell(what: &str, finished: &Finished) {
    let seconds = |time: Duration| time.as_secs_f64();
    eprintln!("  {what}: {:.2} s of CPU, {:.2} s", seconds(finished.cpu), seconds(finished.wall));
}
