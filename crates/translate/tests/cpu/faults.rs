//! Faults at every kind of access, against the real CPU: every form whose operand lies in, or crosses into, pages
//! that are not there or cannot be written. Vector, error code, CR2, RIP and all state must agree.

use crate::forms::{Forms, Place, forms};
use crate::native::random::{Random, seed};
use crate::native::real::Access;
use crate::native::{Bits, Machine, machine};
use crate::tally::Tally;
use iced_x86::Code;

/// What every data page allows: holes and read-only pages beside ordinary ones.
const PAGES: [Access; 8] = [
    Access::None,
    Access::All,
    Access::None,
    Access::All,
    Access::ReadOnly,
    Access::None,
    Access::ReadOnly,
    Access::All,
];

pub(crate) fn protect(machine: &mut Machine, pages: &[Access]) {
    for (page, access) in pages.iter().enumerate() {
        machine.protect(page, *access);
    }
}

/// Every form in every kind of code, `rounds` times, on pages of which not all allow everything.
fn check_all(aligned: bool, rounds: usize) -> u64 {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut forms = Forms { random: Random(seed() ^ 0xfa17) };
    let mut tally = Tally::default();
    let contents = forms.contents();
    protect(machine, &PAGES);
    for code in self::forms().filter(|code| !aligned || has_a_simple_operand(*code)) {
        for bits in [Bits::B64, Bits::B32] {
            let place = Place { bits, is_low: true, edges: true, aligned };
            for _ in 0..rounds {
                forms.check(machine, code, place, &contents, &mut tally);
            }
        }
    }
    protect(machine, &[Access::All; 8]);
    let faults = tally.faults;
    tally.finish();
    faults
}

/// Whether EFLAGS.AC looks at a form's operand as a whole, and before anything else: not at vectors of which some
/// elements are left out or repeated, at saved state, whose own alignment the processor may check first, at what the
/// x87 unit only stores if that raises nothing, or at MMX registers, whose stores change the unit first.
fn has_a_simple_operand(code: Code) -> bool {
    const OTHERS: [&str; 12] = [
        "EVEX", "Vpgather", "Vgather", "Xsave", "Xrstor", "Fxsave", "Fxrstor", "askmov", "Vcvtp", "Fst",
        "Fist", "Fbst",
    ];
    let name = format!("{code:?}");
    if name.ends_with("_mm") && name.starts_with("Mov") {
        return false;
    }
    !OTHERS.iter().any(|other| name.contains(other))
}

#[test]
fn every_form_faults_as_the_cpu_does() {
    let faults = check_all(false, 4);
    assert!(faults > 1000, "only {faults} cases faulted");
}

#[test]
fn every_form_checks_alignment_as_the_cpu_does() {
    let faults = check_all(true, 4);
    assert!(faults > 1000, "only {faults} cases faulted");
}
