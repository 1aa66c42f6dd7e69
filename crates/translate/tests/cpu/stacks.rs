//! Stacks and code where there is none: pushes, pops, calls and returns at pages that are not there or cannot be
//! written, around addresses that are not canonical; instructions that are fetched, wholly or in part, from pages
//! that cannot be executed. Against the real CPU, in 64-bit and 32-bit code.
#![expect(clippy::cast_possible_truncation, reason = "addresses are cut to the width of a slot")]

use iced_x86::{Code, Encoder, Instruction};
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};
use paravane_engine::rflags;

use crate::forms::is_whole;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers_for, seed};
use crate::native::real::Access;
use crate::native::{Bits, Cpu, DATA, DATA_BYTES, DATA_PAGES, Machine, low, machine};
use crate::tally::{Contents, Tally};

/// Cases of each form in each kind of code.
const ROUNDS: usize = 40;
const HLT: u8 = 0xf4;

/// What every data page allows.
const PAGES: [Access; 8] = [
    Access::None,
    Access::All,
    Access::ReadOnly,
    Access::All,
    Access::None,
    Access::NoExecute,
    Access::None,
    Access::All,
];

fn protect(machine: &mut Machine, pages: &[Access; 8]) {
    for (page, access) in pages.iter().enumerate() {
        machine.protect(page, *access);
    }
}

fn data(bits: Bits) -> u64 {
    if bits == Bits::B64 { DATA } else { low(DATA) }
}

/// Forms that push or pop and then go on, and near calls and returns. Those that load segment registers are elsewhere.
fn is_of_stacks(code: Code) -> bool {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let name = format!("{:?}", code.mnemonic());
    let moves = instruction.is_stack_instruction() || matches!(name.as_str(), "Enter" | "Leave");
    let elsewhere =
        name.starts_with("Iret") || name == "Retf" || name.starts_with("Uiret") || code == Code::Popw_CS;
    let far = format!("{code:?}").contains("_ptr") || format!("{code:?}").contains("_m16");
    moves && !elsewhere && !far && !code.op_code().must_be_cpl0()
}

/// A stack pointer at a border of pages, or at the end of what is canonical.
fn pointer(bits: Bits, random: &mut Random) -> u64 {
    let distance = random.pick(&[0_u64, 1, 2, 3, 4, 6, 8, 12, 16, 24, 31, 32, 40]);
    let distance = if random.one_in(2) { distance } else { distance.wrapping_neg() };
    let border = match random.below(8) {
        0 if bits == Bits::B64 => 1 << 47,
        1 if bits == Bits::B64 => u64::MAX << 47,
        2 if bits == Bits::B64 => random.next(),
        _ => data(bits) + random.below(DATA_PAGES + 1) * PAGE_SIZE,
    };
    border.wrapping_add(distance) & if bits == Bits::B64 { u64::MAX } else { 0xffff_ffff }
}

/// One instruction of a form: near branches with a target, anything else at random.
fn made(code: Code, before: &Cpu, target: u64, random: &mut Random) -> Option<Instruction> {
    let info = code.op_code();
    if info.op_count() == 0 {
        return Some(Instruction::with(code));
    }
    let name = format!("{code:?}");
    if name.starts_with("Ret") {
        return Instruction::with1(code, random.below(64) as u32).ok();
    }
    if name.contains("_rel") {
        return Instruction::with_branch(code, target).ok();
    }
    instance(code, before, random)
}

#[test]
fn stacks_that_are_not_there_fault_as_on_the_cpu() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0x57ac);
    let mut tally = Tally::default();
    let codes: Vec<Code> = Code::values().filter(|code| is_of_stacks(*code)).collect();
    protect(machine, &PAGES);
    for code in &codes {
        for bits in [Bits::B64, Bits::B32] {
            let info = code.op_code();
            if !(if bits == Bits::B64 { info.mode64() } else { info.mode32() }) {
                continue;
            }
            for _ in 0..ROUNDS {
                let mut before = registers_for(machine, &mut random, bits, bits == Bits::B32);
                before.gprs[4] = pointer(bits, &mut random);
                if random.one_in(2) {
                    before.gprs[5] = pointer(bits, &mut random);
                }
                let target = before.rip + 20 + random.below(20);
                let Some(instruction) = made(*code, &before, target, &mut random) else { continue };
                if is_incomparable(&instruction) {
                    continue;
                }
                let mut encoder = Encoder::new(if bits == Bits::B64 { 64 } else { 32 });
                let Ok(_) = encoder.encode(&instruction, before.rip) else { continue };
                let mut bytes = encoder.take_buffer();
                if !is_whole(&bytes, bits) {
                    continue;
                }
                bytes.resize(60, HLT);
                let contents = slots(bits, target);
                tally.run(machine, &format!("{code:?} {bits:?}"), &bytes, &before, &contents);
            }
        }
    }
    protect(machine, &[Access::All; 8]);
    println!("{} forms", codes.len());
    assert!(codes.len() > 30 && tally.faults > 1000);
    tally.finish();
}

/// Memory in which each slot holds an address, or flags that mean nothing to most.
fn slots(bits: Bits, target: u64) -> Contents {
    // In 32-bit code, where this process has memory of its own, the same nothing wherever a slot is cut.
    let target = if bits == Bits::B64 { target } else { 0x2020_2020 };
    let target = target.to_le_bytes();
    let slot = if bits == Bits::B64 { &target[..] } else { &target[..4] };
    Contents {
        data: slot.iter().copied().cycle().take(DATA_BYTES).collect(),
        stack: slot.iter().copied().cycle().take(2 * PAGE_BYTES).collect(),
    }
}

#[test]
fn fetches_fault_as_on_the_cpu() {
    // Of 64-bit and 32-bit code: short, long, as long as can be, too long, too long if it were fetched.
    const INSTRUCTIONS: [&[u8]; 9] = [
        &[0x90],
        &[0xb8, 1, 2, 3, 4],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x81, 0x84, 0x24, 0, 0, 0, 0, 1, 0, 0, 0],
        &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90],
        &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90],
        &[0x0f, 0x0b],
        &[0xeb, 0],
    ];
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0xfe7c);
    let mut tally = Tally::default();
    for bits in [Bits::B64, Bits::B32] {
        for first in [Access::All, Access::ReadOnly, Access::NoExecute, Access::None] {
            for second in [Access::All, Access::ReadOnly, Access::NoExecute, Access::None] {
                let mut pages = [Access::All; 8];
                (pages[2], pages[3]) = (first, second);
                protect(machine, &pages);
                for instruction in INSTRUCTIONS {
                    for before_border in 0..18 {
                        let border = 3 * PAGE_SIZE;
                        let at = border - before_border;
                        let mut before = registers_for(machine, &mut random, bits, bits == Bits::B32);
                        before.gprs[0] = data(bits) + at;
                        if random.one_in(4) {
                            before.flags |= rflags::AC;
                        }
                        let mut contents =
                            Contents { data: vec![HLT; DATA_BYTES], stack: vec![HLT; 2 * PAGE_BYTES] };
                        contents.data[at as usize..][..instruction.len()].copy_from_slice(instruction);
                        let kind = format!("{bits:?} {first:?} {second:?} {instruction:02x?}");
                        // jmp rax
                        tally.run(machine, &kind, &[0xff, 0xe0], &before, &contents);
                    }
                }
            }
        }
    }
    protect(machine, &[Access::All; 8]);
    tally.finish();
}
