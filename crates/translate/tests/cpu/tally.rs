//! Outcomes of many cases, told together: one failure must not hide the others.
#![expect(clippy::print_stdout, reason = "how much a test did")]

use std::collections::BTreeMap;

use crate::native::compare::compare;
use crate::native::{Cpu, End, Machine};

/// Counts cases and collects differences, the first of each kind.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    /// Cases that ended in a fault or trap on both sides.
    pub(crate) faults: u64,
    failures: BTreeMap<String, String>,
}

/// Memory that a case starts with.
pub(crate) struct Contents {
    pub(crate) data: Vec<u8>,
    pub(crate) stack: Vec<u8>,
}

impl Tally {
    /// Runs a case on both sides and notes what came of it; `kind` names cases that fail for one reason.
    pub(crate) fn run(
        &mut self,
        machine: &mut Machine,
        kind: &str,
        code: &[u8],
        before: &Cpu,
        contents: &Contents,
    ) -> End {
        let (native, translated) = machine.both(code, before, &contents.data, &contents.stack);
        let outcome = compare(&native, &translated).map_err(|why| {
            let start = &code[..code.len().min(80)];
            format!("{start:02x?} at {:#x}: {why}", before.rip)
        });
        self.note(kind, native.end, outcome);
        native.end
    }

    /// Notes a case.
    pub(crate) fn note(&mut self, kind: &str, native: End, outcome: Result<(), String>) {
        self.cases += 1;
        self.faults += u64::from(native != End::Done);
        if let Err(why) = outcome {
            self.failures.entry(kind.to_owned()).or_insert(why);
        }
    }

    /// Says more about the first difference of a kind.
    pub(crate) fn explain(&mut self, kind: &str, more: &str) {
        if let Some(why) = self.failures.get_mut(kind)
            && !why.contains('\n')
        {
            why.push_str("\n    ");
            why.push_str(more);
        }
    }

    /// Fails if anything differed.
    pub(crate) fn finish(self) {
        println!("{} cases, {} of them faulted on both sides", self.cases, self.faults);
        let report: Vec<String> =
            self.failures.iter().take(100).map(|(kind, why)| format!("{kind}: {why}")).collect();
        assert!(report.is_empty(), "{} kinds of cases differ:\n{}", self.failures.len(), report.join("\n"));
    }
}
