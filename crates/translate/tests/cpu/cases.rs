//! Kept cases.
//!
//! A case is one line of hexadecimal numbers: RIP, flags, the sixteen registers separated by commas, the seed of
//! memory and vector state, the code, and `32` if it is 32-bit code. Those in `tests/cpu/cases/` once failed and are replayed by an ordinary test.
//! A random program that fails is reduced (every instruction that need not be there becomes NOPs, so that jumps still
//! meet) and written there by the search in `search.rs`.

use std::fs;
use std::path::PathBuf;

use iced_x86::{Decoder, DecoderOptions};
use paravane_abi::units::PAGE_BYTES;

use crate::native::compare::compare;
use crate::native::random::{Random, area};
use crate::native::{Bits, Cpu, DATA_BYTES, End, Machine, USER_CODE_32, machine};
use crate::sequences::counter;
use crate::tally::Contents;

/// Registers and code, with a seed for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) rip: u64,
    pub(crate) flags: u64,
    pub(crate) gprs: [u64; 16],
    pub(crate) seed: u64,
    pub(crate) code: Vec<u8>,
    pub(crate) bits: Bits,
}

impl Case {
    pub(crate) fn line(&self) -> String {
        let gprs: Vec<String> = self.gprs.iter().map(|gpr| format!("{gpr:x}")).collect();
        let code: String = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
        let bits = if self.bits == Bits::B64 { "" } else { " 32" };
        format!("{:x} {:x} {} {:x} {code}{bits}\n", self.rip, self.flags, gprs.join(","), self.seed)
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
        let bits = match words.next() {
            None => Bits::B64,
            Some("32") => Bits::B32,
            Some(_) => return None,
        };
        Some(Self { rip, flags, gprs: gprs?.try_into().ok()?, seed, code: code?, bits })
    }

    /// Runs on both sides; the error says what differs.
    pub(crate) fn check(&self, machine: &mut Machine) -> Result<(), String> {
        self.run(machine).1
    }

    /// The registers and memory that it starts with.
    pub(crate) fn start(&self, machine: &Machine) -> (Cpu, Contents) {
        let mut random = Random(self.seed);
        let mut cpu = Cpu::plain(self.rip);
        cpu.gprs = self.gprs;
        cpu.flags = self.flags;
        if self.bits == Bits::B32 {
            cpu.selectors[1] = u64::from(USER_CODE_32);
        }
        cpu.area = area(machine.mask, &mut random);
        (cpu, Contents { data: random.bytes(DATA_BYTES), stack: random.bytes(2 * PAGE_BYTES) })
    }

    /// Runs on both sides: how it ended on the CPU, and what differs.
    pub(crate) fn run(&self, machine: &mut Machine) -> (End, Result<(), String>) {
        let (cpu, contents) = self.start(machine);
        let (native, translated) = machine.both(&self.code, &cpu, &contents.data, &contents.stack);
        (native.end, compare(&native, &translated))
    }

    /// Instructions in its code.
    pub(crate) fn instructions(&self) -> u64 {
        let bitness = if self.bits == Bits::B64 { 64 } else { 32 };
        Decoder::with_ip(bitness, &self.code, self.rip, DecoderOptions::NONE).into_iter().count() as u64
    }

    /// Replaces what need not be there by NOPs.
    pub(crate) fn reduced(mut self, machine: &mut Machine) -> Self {
        let mut at = 0;
        while at < self.code.len() {
            let ip = self.rip + at as u64;
            let bitness = if self.bits == Bits::B64 { 64 } else { 32 };
            let mut decoder = Decoder::with_ip(bitness, &self.code[at..], ip, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let len = instruction.len().max(1);
            // A program that counts no more would not end.
            if instruction.op0_register().full_register() == counter(self.bits) {
                at += len;
                continue;
            }
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

pub(crate) fn folder() -> PathBuf {
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
        bits: Bits::B32,
    };
    assert_eq!(Case::of_line(&case.line()), Some(case));
}
