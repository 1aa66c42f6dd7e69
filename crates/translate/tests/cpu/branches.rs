//! Every form of near branch, in 64-bit and 32-bit code, also under a limit of CS, against the real CPU: where it goes, what it pushes and
//! counts, and what it raises when it cannot go there.
//!
//! Code, data and stack are made so that wherever a branch leads there is HLT, which the CPU refuses a program: the
//! address of that refusal is where the branch went.
#![expect(clippy::cast_possible_truncation, reason = "numbers are cut to the width that is tested")]
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{Code, Encoder, FlowControl, Instruction, MemoryOperand, OpCodeOperandKind, OpKind, Register};
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};

use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, CODE, Cpu, DATA, DATA_BYTES, DATA_PAGES, low, machine};
use crate::segments::LIMITED_CODE;
use crate::tally::{Contents, Tally};

/// Cases of each form in each kind of code.
const ROUNDS: usize = 48;
/// Bytes of HLT before a branch and behind it.
const BEFORE: usize = 100;
const BEHIND: usize = 160;
const HLT: u8 = 0xf4;

/// Counts at which counting in 16, 32 or 64 bits differs.
const COUNTS: [u64; 9] = [0, 1, 2, 0x1_0000, 0x1_0001, 1 << 32, (1 << 32) + 1, (1 << 32) + 2, u64::MAX];

fn is_near_branch(code: Code) -> bool {
    let info = code.op_code();
    let name = format!("{code:?}");
    const OTHER: [&str; 10] =
        ["Retf", "Iret", "Jmpe", "Uiret", "Eret", "Xbegin", "Xabort", "Sys", "Vm", "Loadall"];
    let near = matches!(
        code.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
    );
    let is_far = ["_ptr", "1616", "1632", "1664"].iter().any(|part| name.contains(part));
    near && info.op_count() < 2
        && !is_far
        && !info.must_be_cpl0()
        && !OTHER.iter().any(|other| name.starts_with(other))
}

/// A place of HLTs around `rip`, anywhere in the data, or nowhere.
struct Targets {
    bits: Bits,
    is_low: bool,
    rip: u64,
}

impl Targets {
    fn place(&self, address: u64) -> u64 {
        if self.is_low { low(address) } else { address }
    }

    /// One of the HLTs.
    fn near(&self, random: &mut Random) -> u64 {
        let branch = self.rip + 2 + BEFORE as u64;
        if random.one_in(3) { branch - 1 - random.below(90) } else { branch + 16 + random.below(100) }
    }

    /// One that a branch through a register or memory may have.
    fn computed(&self, random: &mut Random) -> u64 {
        let unmapped = self.place(DATA) + DATA_PAGES * PAGE_SIZE;
        match (random.below(8), self.bits) {
            (0, _) => unmapped + random.below(PAGE_SIZE),
            (1, Bits::B64) => 1 << 47 | random.next() & 0xffff,
            (2, Bits::B64) => random.next() | 1 << 62 & !(1 << 63),
            _ => self.near(random),
        }
    }
}

/// An operand in memory whose every aligned slot holds the target.
fn operand(before: &mut Cpu, targets: &Targets, random: &mut Random) -> MemoryOperand {
    let is_64 = targets.bits == Bits::B64;
    let narrow = is_64 && targets.is_low && random.one_in(4);
    let data = targets.place(DATA) + PAGE_SIZE;
    let slot =
        |random: &mut Random| data + 8 * random.below(200) + if is_64 && random.one_in(6) { 3 } else { 0 };
    let register = |number: u64| match (is_64, narrow) {
        (true, false) => Register::RAX + number as u32,
        _ => Register::EAX + number as u32,
    };
    if random.one_in(8) {
        let address = slot(random);
        let base = if is_64 { Register::RIP } else { Register::None };
        return MemoryOperand::with_base_displ_size(base, address.cast_signed(), if is_64 { 8 } else { 4 });
    }
    let count = if is_64 { 16 } else { 8 };
    let base = random.below(count);
    let displacement = 8 * random.below(40).cast_signed() - 160;
    if base == 4 {
        // The stack holds targets as well.
        return MemoryOperand::with_base_displ(register(4), displacement);
    }
    before.gprs[base as usize] = slot(random);
    let index = random.below(count);
    if random.one_in(2) && index != 4 && index != base {
        before.gprs[index as usize] = random.below(16);
        return MemoryOperand::with_base_index_scale_displ_size(
            register(base),
            register(index),
            8,
            displacement,
            1,
        );
    }
    MemoryOperand::with_base_displ(register(base), displacement)
}

/// A branch of a form, with registers for it.
fn branch(code: Code, before: &mut Cpu, targets: &Targets, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    if info.op_count() == 0 {
        return Some(Instruction::with(code));
    }
    Some(match info.op0_kind() {
        Kind::br16_1 | Kind::br32_1 | Kind::br64_1 => {
            let target = targets.near(random);
            Instruction::with_branch(code, cut(code, target)).ok()?
        }
        Kind::br16_2 | Kind::br32_4 | Kind::br64_4 => {
            let unmapped = targets.place(DATA) + DATA_PAGES * PAGE_SIZE;
            let target = if random.one_in(8) { unmapped } else { targets.near(random) };
            Instruction::with_branch(code, cut(code, target)).ok()?
        }
        Kind::imm16 => Instruction::with1(code, 8 * random.below(20) as u32).ok()?,
        _ if random.one_in(2) => {
            let number = random.below(if targets.bits == Bits::B64 { 16 } else { 8 });
            before.gprs[number as usize] =
                if number == 4 { targets.near(random) } else { targets.computed(random) };
            let first = match info.op0_kind() {
                Kind::r16_or_mem => Register::AX,
                Kind::r32_or_mem => Register::EAX,
                Kind::r64_or_mem => Register::RAX,
                _ => return None,
            };
            Instruction::with1(code, first + number as u32).ok()?
        }
        _ => {
            let memory = operand(before, targets, random);
            Instruction::with1(code, memory).ok()?
        }
    })
}

/// What a 16-bit branch makes of a target.
fn cut(code: Code, target: u64) -> u64 {
    match code.op_code().op0_kind() {
        OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2 => target & 0xffff,
        _ => target,
    }
}

/// The branch in the middle of HLTs, with a jump to it at the start.
fn surrounded(branch: &[u8]) -> Vec<u8> {
    let mut code = vec![0xeb, BEFORE as u8];
    code.extend([HLT; BEFORE]);
    code.extend(branch);
    code.extend([HLT; BEHIND]);
    code
}

/// Prefixes that a branch may carry, and that say nothing to it or much.
fn prefixes(bits: Bits, random: &mut Random) -> Vec<u8> {
    let count = if random.one_in(3) { 1 + random.below(2) } else { 0 };
    let any = [0x66, 0x67, 0x2e, 0x3e, 0x26, 0x36, 0x64, 0xf2, 0xf3];
    // An address size of 16 bits in 32-bit code takes its operand from pages that are not there.
    (0..count).map(|_| random.pick(if bits == Bits::B64 { &any } else { &any[..6] })).collect()
}

#[test]
fn every_near_branch_goes_where_the_cpu_goes() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    crate::segments::set_up(machine);
    let mut random = Random(seed() ^ 0xb4a2);
    let mut tally = Tally::default();
    let mut forms = 0;
    for code in Code::values().filter(|code| is_near_branch(*code)) {
        let info = code.op_code();
        for (bits, is_low) in [(Bits::B64, false), (Bits::B64, true), (Bits::B32, true)] {
            if !(if bits == Bits::B64 { info.mode64() } else { info.mode32() }) {
                continue;
            }
            let mut used = false;
            for _ in 0..ROUNDS {
                let mut before = registers_for(machine, &mut random, bits, is_low);
                let code_start = if is_low { low(CODE) } else { CODE };
                before.rip = code_start + PAGE_SIZE - 300 + random.below(400);
                before.gprs[1] = random.pick(&COUNTS);
                before.bases = [8, 16];
                if bits == Bits::B32 {
                    if random.one_in(3) {
                        before.selectors[1] = u64::from(LIMITED_CODE);
                        before.rip = before.rip.min(code_start + PAGE_SIZE - 120);
                    }
                    before.gprs[1] &= 0xffff_ffff;
                }
                let targets = Targets { bits, is_low, rip: before.rip };
                let Some(instruction) = branch(code, &mut before, &targets, &mut random) else { continue };
                let contents = slots(&targets, &mut random);
                let mut encoder = Encoder::new(if bits == Bits::B64 { 64 } else { 32 });
                let at = before.rip + 2 + BEFORE as u64;
                let in_memory = instruction.op0_kind() == OpKind::Memory;
                // A shorter displacement would leave bytes behind that run on.
                let in_memory = in_memory || format!("{code:?}").contains("rel32_32");
                let prefixes = if in_memory { Vec::new() } else { prefixes(bits, &mut random) };
                let Ok(_) = encoder.encode(&instruction, at + prefixes.len() as u64) else { continue };
                let bytes = [prefixes, encoder.take_buffer()].concat();
                tally.run(machine, &format!("{code:?} {bits:?}"), &surrounded(&bytes), &before, &contents);
                used = true;
            }
            forms += u32::from(used);
        }
    }
    println!("{forms} forms");
    assert!(forms > 100);
    tally.finish();
}

/// Memory in which each slot holds a target.
fn slots(targets: &Targets, random: &mut Random) -> Contents {
    let target = targets.computed(random).to_le_bytes();
    let slot = if targets.bits == Bits::B64 { &target[..] } else { &target[..4] };
    Contents {
        data: slot.iter().copied().cycle().take(DATA_BYTES).collect(),
        stack: slot.iter().copied().cycle().take(2 * PAGE_BYTES).collect(),
    }
}
