//! The trap flag against the real CPU: where a step ends, what it did, and what takes its place.
//!
//! A step is a run that starts with the flag set. The next one starts from where and how the CPU's ended, so both
//! sides do each instruction of a program from the same state.
#![expect(clippy::cast_possible_truncation, reason = "a program is short")]

use paravane_engine::rflags;

use crate::native::compare::compare;
use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, Cpu, End, Machine, USER_DATA, machine};
use crate::programs::Programs;
use crate::sequences::Sequences;
use crate::tally::{Contents, Tally};

/// Random programs of each kind.
const PROGRAMS: u64 = 40;
/// Steps of a program at most.
const STEPS: usize = 90;
const STEP: u64 = 1;

/// Steps through code until it ends or something else than a step is raised.
fn walk(
    machine: &mut Machine,
    kind: &str,
    code: &[u8],
    mut before: Cpu,
    contents: &Contents,
    tally: &mut Tally,
) -> usize {
    let base = before.rip;
    let (mut data, mut stack) = (contents.data.clone(), contents.stack.clone());
    for step in 0..STEPS {
        let Some(rest) = before.rip.checked_sub(base).and_then(|at| code.get(at as usize..)) else {
            return step;
        };
        if rest.is_empty() {
            return step;
        }
        let (native, translated) = machine.both(rest, &before, &data, &stack);
        let outcome = compare(&native, &translated).map_err(|why| {
            format!(
                "step {step} from flags {:#x} at +{:#x} of {code:02x?}: {why}",
                before.flags,
                before.rip - base
            )
        });
        let agrees = outcome.is_ok();
        tally.note(kind, native.end, outcome);
        if !agrees || !matches!(native.end, End::Fault { vector: STEP, .. }) {
            return step;
        }
        (before, data, stack) = (native.cpu, native.data, native.stack);
        before.flags |= rflags::TF;
    }
    STEPS
}

#[test]
fn random_programs_are_stepped_through_as_on_the_cpu() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let seed = seed() ^ 0x57e9;
    let (mut programs, mut sequences) = (Programs::new(seed), Sequences::new(seed));
    let mut tally = Tally::default();
    let mut steps = 0;
    for number in 0..2 * PROGRAMS {
        let case = if number % 2 == 0 { programs.case(machine) } else { sequences.case(machine) };
        let (mut before, contents) = case.start(machine);
        before.flags |= rflags::TF;
        steps += walk(machine, &format!("program {number}"), &case.code, before, &contents, &mut tally);
    }
    println!("{steps} steps");
    assert!(steps > 1000);
    tally.finish();
}

/// What is special about traps: name, code of both kinds of code or one, and whether the flag is set at the start.
const SPECIAL: &[(&str, Which, &[u8])] = &[
    ("mov ss", Which::Both, &[0x8e, 0xd0, 0x90, 0x90]),
    ("mov ss twice", Which::Both, &[0x8e, 0xd0, 0x8e, 0xd0, 0x90, 0x90]),
    ("mov ss three times", Which::Both, &[0x8e, 0xd0, 0x8e, 0xd0, 0x8e, 0xd0, 0x90, 0x90]),
    ("mov ds", Which::Both, &[0x8e, 0xd8, 0x90, 0x90]),
    ("mov ss, a fault", Which::Both, &[0x8e, 0xd0, 0x0f, 0x0b, 0x90]),
    ("mov ss, int3", Which::Both, &[0x8e, 0xd0, 0xcc, 0x90]),
    ("mov ss, popf", Which::Both, &[0x9c, 0x8e, 0xd0, 0x9d, 0x90, 0x90]),
    ("mov ss of memory", Which::Both, &[0x50, 0x8e, 0x14, 0x24, 0x90, 0x90]),
    ("mov ss of a bad selector", Which::Both, &[0x31, 0xc0, 0x8e, 0xd0, 0x90]),
    ("pop ss", Which::B32, &[0x50, 0x17, 0x90, 0x90]),
    ("pop ss, pop ss", Which::B32, &[0x50, 0x50, 0x17, 0x17, 0x90, 0x90]),
    ("pop ds", Which::B32, &[0x50, 0x1f, 0x90, 0x90]),
    ("lss", Which::Both, &[0x50, 0x54, 0x0f, 0xb2, 0x24, 0x24, 0x90, 0x90]),
    ("popf sets it", Which::Both, &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90]),
    ("popf clears it", Which::Both, &[0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0x90, 0x90]),
    ("pushf shows it", Which::Both, &[0x9c, 0x58, 0x90]),
    ("rep movsb", Which::Both, &[0xb9, 3, 0, 0, 0, 0xf3, 0xa4, 0x90]),
    ("rep movsb of one", Which::Both, &[0xb9, 1, 0, 0, 0, 0xf3, 0xa4, 0x90]),
    ("rep movsb of none", Which::Both, &[0x31, 0xc9, 0xf3, 0xa4, 0x90]),
    ("rep stosd", Which::Both, &[0xb9, 3, 0, 0, 0, 0xf3, 0xab, 0x90]),
    ("rep lodsw", Which::Both, &[0xb9, 3, 0, 0, 0, 0xf3, 0x66, 0xad, 0x90]),
    ("repe cmpsb", Which::Both, &[0xb9, 5, 0, 0, 0, 0xf3, 0xa6, 0x90]),
    ("repne scasb", Which::Both, &[0xb9, 5, 0, 0, 0, 0xf2, 0xae, 0x90]),
    ("int3", Which::Both, &[0xcc, 0x90]),
    ("int 3", Which::Both, &[0xcd, 3, 0x90]),
    ("int 4", Which::Both, &[0xcd, 4, 0x90]),
    ("int 1", Which::Both, &[0xcd, 1, 0x90]),
    ("int 0x20", Which::Both, &[0xcd, 0x20, 0x90]),
    ("icebp", Which::Both, &[0xf1, 0x90]),
    ("into, not taken", Which::B32, &[0x31, 0xc0, 0xce, 0x90]),
    ("into, taken", Which::B32, &[0xb8, 0, 0, 0, 0x80, 0x48, 0xce, 0x90]),
    ("into of 64-bit code", Which::B64, &[0xce, 0x90]),
    ("bound, inside", Which::B32, &[0x31, 0xc0, 0x50, 0x50, 0x62, 0x04, 0x24, 0x90]),
    ("bound, outside", Which::B32, &[0x6a, 9, 0x6a, 3, 0x31, 0xc0, 0x62, 0x04, 0x24, 0x90]),
    ("a division by zero", Which::Both, &[0x31, 0xc9, 0xf7, 0xf1, 0x90]),
    ("a fault at once", Which::Both, &[0x0f, 0x0b]),
    ("hlt", Which::Both, &[0xf4]),
    ("a read of nothing", Which::Both, &[0x31, 0xc0, 0x8b, 0x00]),
    ("call and return", Which::Both, &[0xe8, 1, 0, 0, 0, 0x90, 0xc3]),
    ("loop", Which::Both, &[0xb9, 3, 0, 0, 0, 0xe2, 0xfe, 0x90]),
    ("a jump not taken", Which::Both, &[0x31, 0xc0, 0x75, 1, 0x90, 0x90]),
    ("a jump to itself", Which::Both, &[0xeb, 0xfe]),
    ("prefetch and pause", Which::Both, &[0x0f, 0x18, 0x03, 0xf3, 0x90, 0x90]),
    ("fnop and wait", Which::Both, &[0xd9, 0xd0, 0x9b, 0x90]),
    ("pusha and popa", Which::B32, &[0x60, 0x61, 0x90]),
    ("enter and leave", Which::Both, &[0xc8, 8, 0, 1, 0xc9, 0x90]),
    (
        "iret sets it",
        Which::B32,
        &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x0e, 0xe8, 0, 0, 0, 0, 0x83, 4, 0x24, 5, 0xcf, 0x90, 0x90],
    ),
];

/// In which code a case exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Both,
    B64,
    B32,
}

#[test]
fn special_instructions_trap_as_on_the_cpu() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut random = Random(seed() ^ 0x7f);
    let mut tally = Tally::default();
    let mut forms = crate::forms::Forms { random: Random(seed()) };
    let contents = forms.contents();
    for (name, which, code) in SPECIAL {
        for (bits, other) in [(Bits::B64, Which::B32), (Bits::B32, Which::B64)] {
            if *which == other {
                continue;
            }
            for stepped in [false, true] {
                let mut before = registers_for(machine, &mut random, bits, bits == Bits::B32);
                before.gprs[0] = u64::from(USER_DATA);
                if stepped {
                    before.flags |= rflags::TF;
                }
                // What the code does not say ends with a step too, were it for ever.
                let ends = stepped || !matches!(*name, "a jump to itself");
                if ends {
                    walk(machine, &format!("{name} {bits:?} {stepped}"), code, before, &contents, &mut tally);
                }
            }
        }
    }
    tally.finish();
}
