//! Kept cases, and the search for new ones.
//!
//! A case is one line of hexadecimal numbers: RIP, flags, the sixteen registers separated by commas, the seed of
//! memory and vector state, the code. Those in `tests/cpu/cases/` once failed and are replayed by an ordinary test.
//! `cargo xtask fuzz translate` runs random programs for as long as it is told; a program that fails is
//! reduced (every instruction that need not be there becomes NOPs, so that jumps still meet) and written there.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use iced_x86::{Decoder, DecoderOptions};
use paravane_abi::units::PAGE_BYTES;

use crate::native::compare::compare;
use crate::native::random::{Random, area, seed};
use crate::native::{Cpu, DATA_BYTES, Machine, machine};
use crate::programs::Programs;

/// Registers and code, with a seed for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) rip: u64,
    pub(crate) flags: u64,
    pub(crate) gprs: [u64; 16],
    pub(crate) seed: u64,
    pub(crate) code: Vec<u8>,
}

impl Case {
    fn line(&self) -> String {
        let gprs: Vec<String> = self.gprs.iter().map(|gpr| format!("{gpr:x}")).collect();
        let code: String = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:x} {:x} {} {:x} {code}\n", self.rip, self.flags, gprs.join(","), self.seed)
    }

    fn of_line(line: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut words = line.split_whitespace();
        let (rip, flags) = (number(words.next()?)?, number(words.next()?)?);
        let gprs: Option<Vec<u64>> = words.next()?.split(',').map(number).collect();
        let seed = number(words.next()?)?;
        let digits = words.next()?;
        let code: Option<Vec<u8>> = (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        Some(Self { rip, flags, gprs: gprs?.try_into().ok()?, seed, code: code? })
    }

    /// Runs on both sides; the error says what differs.
    fn check(&self, machine: &mut Machine) -> Result<(), String> {
        let mut random = Random(self.seed);
        let mut cpu = Cpu::plain(self.rip);
        cpu.gprs = self.gprs;
        cpu.flags = self.flags;
        cpu.area = area(machine.mask, &mut random);
        let (data, stack) = (random.bytes(DATA_BYTES), random.bytes(2 * PAGE_BYTES));
        let (native, translated) = machine.both(&self.code, &cpu, &data, &stack);
        compare(&native, &translated, crate::programs::ignored(&native))
    }

    /// Replaces what need not be there by NOPs.
    fn reduced(mut self, machine: &mut Machine) -> Self {
        let mut at = 0;
        while at < self.code.len() {
            let ip = self.rip + at as u64;
            let len = Decoder::with_ip(64, &self.code[at..], ip, DecoderOptions::NONE).decode().len().max(1);
            let mut without = self.clone();
            without.code[at..at + len].fill(0x90);
            if without.check(machine).is_err() {
                self = without;
            }
            at += len;
        }
        self
    }
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cpu/cases"))
}

#[test]
fn kept_cases_do_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let case = Case::of_line(&fs::read_to_string(&path).unwrap()).expect("a line as described above");
        let same = case.check(machine);
        assert!(same.is_ok(), "{}: {same:?}", path.display());
        count += 1;
    }
    assert!(count > 0, "the folder of cases is not empty");
}

#[test]
fn a_case_survives_being_written_and_read() {
    let case = Case {
        rip: 0x20_0000_0001,
        flags: 0x246,
        gprs: std::array::from_fn(|n| n as u64 * 77),
        seed: 9,
        code: vec![0x90, 0xf4],
    };
    assert_eq!(Case::of_line(&case.line()), Some(case));
}

/// Does nothing in an ordinary test run.
#[test]
fn random_programs_are_searched_for_as_long_as_asked() {
    let Ok(minutes) = std::env::var("PARAVANE_FUZZ_MINUTES") else { return };
    let minutes: u64 = minutes.parse().expect("a number of minutes");
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut programs = Programs::new(seed());
    let mut count = 0_u64;
    while Instant::now() < end {
        let case = programs.case(machine);
        count += 1;
        if case.check(machine).is_err() {
            let reduced = case.reduced(machine);
            let path = folder().join(format!("{:x}", reduced.seed));
            fs::write(&path, reduced.line()).unwrap();
            panic!("program {count}: {:?}; kept in {}", reduced.check(machine), path.display());
        }
    }
    println!("{count} programs agreed");
}
