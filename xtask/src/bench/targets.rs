//! What the figures should be, in one table.

use paravane_bench_guest::{BENCHES, Kind};

use super::rounds::{Record, System, What};
use super::samples::geometric_mean;

/// Something that should be so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// What is wanted, in words.
    pub(super) text: &'static str,
    pub(super) goal: Goal,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// At most this many seconds or bytes.
    AtMost(What, f64),
    /// Paravane takes this many times less than another.
    TimesLess(What, System, f64),
    /// The mean of what computation takes in a guest over what it takes natively.
    ComputeMean(f64),
    /// The worst of those.
    ComputeWorst(f64),
}

const MICRO: f64 = 1e-6;
const MIB: f64 = 1_048_576.0;

/// All of them.
pub(super) const TARGETS: [Target; 16] = [
    at_most("stock kernel, boot to power-off: below 1.5 s of CPU", What::BootCpu, 1.5),
    Target {
        text: "... 3 times less CPU than QEMU in its best form",
        goal: Goal::TimesLess(What::BootCpu, System::Qemu, 3.0),
    },
    Target {
        text: "... 8 times less CPU than QEMU as most run it",
        goal: Goal::TimesLess(What::BootCpu, System::QemuUsual, 8.0),
    },
    Target { text: "computation: 1.8 times native in the mean", goal: Goal::ComputeMean(1.8) },
    Target { text: "... none above 3 times native", goal: Goal::ComputeWorst(3.0) },
    at_most("getppid: below 0.25 us", What::Bench("getppid"), 0.25 * MICRO),
    at_most("anonymous page fault: below 6 us", What::Bench("page-fault"), 6.0 * MICRO),
    at_most("fork, exit and wait: below 600 us", What::Bench("fork-exit-wait"), 600.0 * MICRO),
    at_most("pipe round trip: below 20 us", What::Bench("pipe"), 20.0 * MICRO),
    at_most("exec of a busybox applet: below 1.5 ms", What::Bench("exec"), 1500.0 * MICRO),
    at_most("hypercall that does nothing: below 0.15 us", What::Hypercall, 0.15 * MICRO),
    at_most("translation: below 0.5 us an instruction", What::Instruction, 0.5 * MICRO),
    at_most("start to the first instruction of a new kernel: below 0.7 s", What::FirstStartWall, 0.7),
    at_most("... of a kernel seen before: below 60 ms", What::StartWall, 0.06),
    at_most("host memory beyond the guest's: below 48 MiB", What::Overhead, 48.0 * MIB),
    at_most("one static program, below 8 MiB", What::ProgramSize, 8.0 * MIB),
];

const fn at_most(text: &'static str, what: What, limit: f64) -> Target {
    Target { text, goal: Goal::AtMost(what, limit) }
}

/// What was measured against a goal: the value, and whether it is good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    pub(super) value: f64,
    pub(super) reached: bool,
}

impl Goal {
    /// `None` if it was not measured.
    pub(super) fn outcome(self, record: &Record) -> Option<Outcome> {
        let at_most = |value: f64, limit: f64| Outcome { value, reached: value <= limit };
        match self {
            Self::AtMost(what, limit) => Some(at_most(record.median(what, System::Paravane)?, limit)),
            Self::TimesLess(what, other, times) => {
                let value = record.median(what, other)? / record.median(what, System::Paravane)?;
                Some(Outcome { value, reached: value >= times })
            }
            Self::ComputeMean(limit) => Some(at_most(geometric_mean(&over_native(record))?, limit)),
            Self::ComputeWorst(limit) => {
                Some(at_most(over_native(record).into_iter().max_by(f64::total_cmp)?, limit))
            }
        }
    }
}

/// What each computation takes in a guest over what it takes natively.
fn over_native(record: &Record) -> Vec<f64> {
    let computing = BENCHES.iter().filter(|bench| bench.kind == Kind::Compute);
    let ratio = |what| Some(record.median(what, System::Paravane)? / record.median(what, System::Native)?);
    computing.filter_map(|bench| ratio(What::Bench(bench.name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(values: &[(What, System, f64)]) -> Record {
        let mut record = Record::default();
        values.iter().for_each(|&(what, system, value)| record.add(what, system, value));
        record
    }

    #[test]
    fn a_goal_is_reached_at_its_limit_and_missed_beyond() {
        let boot = |seconds| record(&[(What::BootCpu, System::Paravane, seconds)]);
        let goal = Goal::AtMost(What::BootCpu, 1.5);

        assert_eq!(goal.outcome(&boot(1.5)), Some(Outcome { value: 1.5, reached: true }));
        assert_eq!(goal.outcome(&boot(1.6)), Some(Outcome { value: 1.6, reached: false }));
        assert_eq!(goal.outcome(&Record::default()), None);
    }

    #[test]
    fn times_less_is_the_others_time_over_ours() {
        let goal = Goal::TimesLess(What::BootCpu, System::Qemu, 3.0);
        let both = |ours, theirs| {
            record(&[(What::BootCpu, System::Paravane, ours), (What::BootCpu, System::Qemu, theirs)])
        };

        assert_eq!(goal.outcome(&both(2.0, 8.0)), Some(Outcome { value: 4.0, reached: true }));
        assert_eq!(goal.outcome(&both(2.0, 4.0)), Some(Outcome { value: 2.0, reached: false }));
    }

    #[test]
    fn computation_is_judged_by_mean_and_worst() {
        let both = [("sort", 4.0), ("calls", 1.0)].map(|(name, guest)| {
            [(What::Bench(name), System::Paravane, guest), (What::Bench(name), System::Native, 1.0)]
        });
        let record = record(&both.concat());

        let mean = Goal::ComputeMean(1.8).outcome(&record).unwrap();
        assert!((mean.value - 2.0).abs() < 1e-9 && !mean.reached);
        assert_eq!(Goal::ComputeWorst(4.0).outcome(&record), Some(Outcome { value: 4.0, reached: true }));
    }
}
