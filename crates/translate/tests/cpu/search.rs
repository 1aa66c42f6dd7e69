//! The search for programs and instructions that the translator gets wrong, for as long or as far as it is told:
//! `cargo xtask fuzz translate`. In an ordinary test run it does nothing.
//!
//! Programs and instruction cases come from one printed seed, each kind by its own generator. Every other program is
//! straight code with jumps, the rest are sequences of all that moves control and stacks.
#![expect(clippy::unwrap_used, reason = "a search that cannot set up fails")]

use std::fs;
use std::time::{Duration, Instant};

use crate::cases::{Case, folder};
use crate::forms::{Forms, PLACES, Place, forms};
use crate::native::random::{Random, seed};
use crate::native::{Machine, machine};
use crate::programs::Programs;
use crate::sequences::Sequences;
use crate::tally::Tally;

/// Instruction cases between two looks at the clock.
const BATCH: u64 = 5000;

/// When to end.
struct Until {
    /// At this time.
    time: Option<Instant>,
    /// After so many programs.
    programs: u64,
    /// After so many instruction cases.
    cases: u64,
}

impl Until {
    /// What the environment asks for, if anything.
    fn asked() -> Option<Self> {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
        };
        let minutes = number("PARAVANE_FUZZ_MINUTES");
        let (programs, cases) = (number("PARAVANE_FUZZ_PROGRAMS"), number("PARAVANE_FUZZ_INSTRUCTIONS"));
        if minutes.is_none() && programs.is_none() && cases.is_none() {
            return None;
        }
        let rest = if minutes.is_some() { u64::MAX } else { 0 };
        Some(Self {
            time: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
            programs: programs.unwrap_or(rest),
            cases: cases.unwrap_or(rest),
        })
    }

    fn is_over(&self) -> bool {
        self.time.is_some_and(|end| Instant::now() >= end)
    }
}

/// A case that failed, reduced and kept.
fn keep(machine: &mut Machine, case: Case, count: u64) -> ! {
    let path = folder().join(format!("{:x}", case.seed));
    // Should reducing it never end, it is there as it was.
    fs::write(&path, case.line()).unwrap();
    let reduced = case.reduced(machine);
    fs::write(&path, reduced.line()).unwrap();
    panic!("program {count}: {:?}; kept in {}", reduced.check(machine), path.display());
}

#[test]
fn random_programs_are_searched_for_as_long_as_asked() {
    let Some(until) = Until::asked() else { return };
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let seed = seed();
    let (mut programs, mut sequences) = (Programs::new(seed), Sequences::new(seed ^ 0x5e9));
    let mut forms = Forms { random: Random(seed) };
    let mut tally = Tally::default();
    let (mut count, mut instructions) = (0, 0);
    while !until.is_over() && (count < until.programs || tally.cases < until.cases) {
        for _ in 0..BATCH.min(until.programs - count) {
            let case = if count % 2 == 0 { programs.case(machine) } else { sequences.case(machine) };
            count += 1;
            instructions += case.instructions();
            if case.check(machine).is_err() {
                keep(machine, case, count);
            }
        }
        if tally.cases < until.cases {
            round(&mut forms, machine, &mut tally, until.cases);
        }
    }
    println!("{count} programs of {instructions} instructions agreed");
    tally.finish();
}

/// One case of every form in every place, while more are wanted.
fn round(search: &mut Forms, machine: &mut Machine, tally: &mut Tally, wanted: u64) {
    for code in forms() {
        let contents = search.contents();
        let edges = PLACES.map(|place| Place { edges: true, ..place });
        for place in PLACES.into_iter().chain(edges) {
            if tally.cases == wanted {
                return;
            }
            search.check(machine, code, place, &contents, tally);
        }
    }
}
