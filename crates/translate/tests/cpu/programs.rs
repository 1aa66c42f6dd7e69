//! Random short programs with branches and a loop, against the real CPU: flags across instructions, jumps, stolen
//! registers, linked blocks.
#![expect(clippy::cast_possible_truncation, reason = "programs are short")]
#![expect(clippy::cast_possible_wrap, reason = "programs are short")]

use crate::cases::Case;
use crate::native::compare::compare;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers, seed};
use crate::native::{Bits, Cpu, DATA, DATA_PAGES, End, Machine, machine};
use iced_x86::{Code, Encoder, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};
use paravane_abi::units::PAGE_SIZE;

const PROGRAMS: usize = 3000;
/// Registers that programs must not write: pointers, the loop's counter, the stack's.
const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::RSI, Register::RDI, Register::R9, Register::RSP];

/// Forms that ordinary code is made of.
pub(crate) fn is_ordinary(code: Code, bits: Bits) -> bool {
    let info = code.op_code();
    let text = format!("{:?}", code.mnemonic());
    const NAMES: [&str; 58] = [
        "Mov", "Add", "Sub", "Adc", "Sbb", "And", "Or", "Xor", "Cmp", "Test", "Inc", "Dec", "Neg", "Not",
        "Shl", "Shr", "Sar", "Rol", "Ror", "Rcl", "Rcr", "Shld", "Shrd", "Imul", "Mul", "Lea", "Movzx",
        "Movsx", "Movsxd", "Cmove", "Cmovb", "Cmovl", "Cmovp", "Sete", "Setb", "Setg", "Seto", "Xchg",
        "Xadd", "Cmpxchg", "Bt", "Bts", "Btr", "Btc", "Bsf", "Bsr", "Bswap", "Cdq", "Cqo", "Cwde", "Clc",
        "Stc", "Cmc", "Lahf", "Sahf", "Movdqu", "Paddd", "Pxor",
    ];
    let exists = if bits == Bits::B64 { info.mode64() } else { info.mode32() };
    exists
        && !info.must_be_cpl0()
        && code.flow_control() == FlowControl::Next
        && NAMES.contains(&text.as_str())
}

pub(crate) fn keeps_pointers(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
    let info = factory.info(instruction);
    info.used_registers().iter().all(|used| {
        let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        !(writes && KEPT.contains(&used.register().full_register()))
    })
}

fn state(machine: &Machine, random: &mut Random) -> Cpu {
    let mut cpu = registers(machine, random);
    for number in 0..16 {
        if number != 4 && (DATA..DATA + DATA_PAGES * PAGE_SIZE).contains(&cpu.gprs[number]) {
            cpu.gprs[number] = random.next();
        }
        if cpu.gprs[number] < 64 {
            cpu.gprs[number] = random.next();
        }
    }
    for number in [3, 5, 6, 7] {
        let offset = random.below(2) * (PAGE_SIZE - 16) + random.below(32);
        cpu.gprs[number] = DATA + PAGE_SIZE * (2 + random.below(3)) + offset;
    }
    cpu.gprs[9] = 3;
    cpu
}

fn program(codes: &[Code], cpu: &Cpu, random: &mut Random, factory: &mut InstructionInfoFactory) -> Vec<u8> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    while pieces.len() < 14 {
        if random.below(8) == 0 {
            // push r14; pop rax, and relatives: the stack moves and comes back.
            pieces.push(match random.below(4) {
                0 => vec![0x41, 0x56, 0x58],
                1 => vec![0x50, 0x41, 0x5f],
                2 => vec![0x9c, 0x9d],
                _ => vec![0x6a, 0x85, 0x41, 0x5e],
            });
            continue;
        }
        let code = codes[random.below(codes.len() as u64) as usize];
        let Some(instruction) = instance(code, cpu, random) else { continue };
        if is_incomparable(&instruction) || !keeps_pointers(&instruction, factory) {
            continue;
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&instruction, 0).is_ok() {
            pieces.push(encoder.take_buffer());
        }
    }
    let mut bytes = Vec::new();
    let mut index = 0;
    let mut jump_again = 0;
    while index < pieces.len() {
        if random.below(3) == 0 && index >= jump_again && index + 2 < pieces.len() {
            jump_again = index + 2;
            let skipped = pieces[index].len() + pieces[index + 1].len();
            bytes.extend([0x70 | random.below(16) as u8, skipped as u8]);
        }
        bytes.extend(&pieces[index]);
        index += 1;
    }
    // lea r9, [r9 - 1]; test r9, r9; jnz start
    bytes.extend([0x4d, 0x8d, 0x49, 0xff, 0x4d, 0x85, 0xc9]);
    let back = -(bytes.len() as i32 + 6);
    bytes.extend([0x0f, 0x85]);
    bytes.extend(back.to_le_bytes());
    bytes
}

/// Makes random programs.
pub(crate) struct Programs {
    random: Random,
    factory: InstructionInfoFactory,
    codes: Vec<Code>,
}

impl Programs {
    pub(crate) fn new(seed: u64) -> Self {
        let codes = Code::values().filter(|code| is_ordinary(*code, Bits::B64)).collect();
        Self { random: Random(seed), factory: InstructionInfoFactory::new(), codes }
    }

    /// The next one, with registers for it.
    pub(crate) fn case(&mut self, machine: &Machine) -> Case {
        let mut before = state(machine, &mut self.random);
        before.bases = [0; 2];
        let code = program(&self.codes, &before, &mut self.random, &mut self.factory);
        let seed = self.random.next() | 1;
        Case { rip: before.rip, flags: before.flags, gprs: before.gprs, seed, code, bits: Bits::B64 }
    }
}

#[test]
fn random_programs_do_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed());
    let mut factory = InstructionInfoFactory::new();
    let codes: Vec<Code> = Code::values().filter(|code| is_ordinary(*code, Bits::B64)).collect();
    let data = random.bytes((DATA_PAGES * PAGE_SIZE) as usize);
    let stack = random.bytes(2 * PAGE_SIZE as usize);
    let mut failures = Vec::new();
    let mut finished = 0;
    for number in 0..PROGRAMS {
        let before = state(machine, &mut random);
        let bytes = program(&codes, &before, &mut random, &mut factory);
        let (native, translated) = machine.both(&bytes, &before, &data, &stack);
        finished += usize::from(native.end == End::Done);
        if let Err(why) = compare(&native, &translated) {
            failures.push(format!("program {number} at {:#x}: {why}\n  {bytes:02x?}", before.rip));
        }
    }
    println!("{PROGRAMS} programs, {finished} of them ran to their end");
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures[..failures.len().min(8)].join("\n"));
    assert!(finished > PROGRAMS / 2);
}

#[test]
fn saved_and_restored_state_is_what_the_cpu_saves_and_restores() {
    // xsave, xsave64, xsaveopt, xsavec, fxsave, fxsave64 to [rbx], each with what restores it.
    const SAVES: [(&[u8], &[u8]); 6] = [
        (&[0x0f, 0xae, 0x23], &[0x0f, 0xae, 0x2b]),
        (&[0x48, 0x0f, 0xae, 0x23], &[0x48, 0x0f, 0xae, 0x2b]),
        (&[0x0f, 0xae, 0x33], &[0x0f, 0xae, 0x2b]),
        (&[0x0f, 0xc7, 0x23], &[0x0f, 0xae, 0x2b]),
        (&[0x0f, 0xae, 0x03], &[0x0f, 0xae, 0x0b]),
        (&[0x48, 0x0f, 0xae, 0x03], &[0x48, 0x0f, 0xae, 0x0b]),
    ];
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed());
    let data = vec![0; (DATA_PAGES * PAGE_SIZE) as usize];
    let stack = vec![0; 2 * PAGE_SIZE as usize];
    for (save, restore) in SAVES {
        for (kept, asked) in
            [(0xe7, 0xe7), (0xe7, 2), (7, 0xe7), (3, 7), (1, 6), (0xe7, 0x60), (0, 0xe7), (6, 0x86)]
        {
            // Nothing, VZEROALL, FNINIT: no x87 instruction that would leave its own address behind.
            for between in [&[0xc5, 0xfc, 0x77][..], &[0xdb, 0xe3], &[]] {
                let mut before = state(machine, &mut random);
                before.area[512..520].copy_from_slice(&(kept & machine.mask).to_le_bytes());
                before.gprs[3] = DATA + 64;
                before.gprs[0] = asked & machine.mask;
                before.gprs[2] = 0;
                let code = [save, between, restore].concat();
                let (native, translated) = machine.both(&code, &before, &data, &stack);
                assert_eq!(native.end, End::Done);
                let same = compare(&native, &translated);
                assert!(same.is_ok(), "{code:02x?} kept {kept:#x} asked {asked:#x}: {same:?}");
            }
        }
    }
}
