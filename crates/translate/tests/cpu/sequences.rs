//! Random programs made of what compilers and kernels make theirs of: functions that call each other, computed jumps,
//! tables of jumps, stacks that are switched, strings, flags that are pushed and popped, and code that
//! overwrites itself; in 64-bit and in 32-bit code.
//!
//! A program is a loop that runs three times over a body. The body and each function are ordinary instructions with
//! events between them. Functions only call later ones, so every program ends. Addresses of labels are numbers in
//! the code; a program is made twice from the same random numbers, the second time with the addresses of the first.
#![expect(clippy::cast_possible_truncation, reason = "random numbers are cut to size")]

use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use iced_x86::{
    BlockEncoderOptions, Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Register,
};
use paravane_abi::units::PAGE_SIZE;

use paravane_engine::rflags;

use crate::cases::Case;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, CODE, Cpu, DATA, DATA_PAGES, End, low, machine};
use crate::programs::{is_ordinary, keeps_pointers};
use crate::tally::Tally;

const PROGRAMS: u64 = 2000;
/// Functions of a program.
const FUNCTIONS: usize = 3;
/// An address that is not known yet.
const UNKNOWN: u64 = 0x1234_5678;

/// Makes random programs.
pub(crate) struct Sequences {
    random: Random,
    factory: InstructionInfoFactory,
    /// Forms of ordinary code: 64-bit, 32-bit.
    codes: [Vec<Code>; 2],
}

impl Sequences {
    pub(crate) fn new(seed: u64) -> Self {
        let codes = [Bits::B64, Bits::B32]
            .map(|bits| Code::values().filter(|code| is_ordinary(*code, bits)).collect());
        Self { random: Random(seed), factory: InstructionInfoFactory::new(), codes }
    }

    /// The next one, with registers for it.
    pub(crate) fn case(&mut self, machine: &crate::native::Machine) -> Case {
        let bits = if self.random.one_in(3) { Bits::B32 } else { Bits::B64 };
        let mut cpu = registers_for(machine, &mut self.random, bits, bits == Bits::B32);
        registers(&mut cpu, bits, &mut self.random);
        let start = self.random.next() | 1;
        let mut addresses = Vec::new();
        let mut code = Vec::new();
        for _ in 0..2 {
            let mut builder = Builder::new(bits, Random(start), &cpu, &addresses);
            builder.program(&self.codes[usize::from(bits == Bits::B32)], &mut self.factory);
            (code, addresses) = builder.finish();
        }
        let seed = self.random.next() | 1;
        Case { rip: cpu.rip, flags: cpu.flags, gprs: cpu.gprs, seed, code, bits }
    }
}

/// Four pointers into the data, two of them near the ends of pages; the counter of the loop; anything else.
fn registers(cpu: &mut Cpu, bits: Bits, random: &mut Random) {
    let place = |address| if bits == Bits::B32 { low(address) } else { address };
    let data = place(DATA)..place(DATA) + DATA_PAGES * PAGE_SIZE;
    for number in 0..16 {
        let gpr = &mut cpu.gprs[number];
        // Pointers are those that stay: what changes must not become one.
        if number != 4 && (data.contains(gpr) || *gpr < 64) {
            *gpr = random.next() & if bits == Bits::B32 { 0xffff_ffff } else { u64::MAX };
        }
    }
    for number in [3, 5, 6, 7] {
        let offset = random.below(2) * (PAGE_SIZE - 16) + random.below(32);
        cpu.gprs[number] = place(DATA) + PAGE_SIZE * (2 + random.below(3)) + offset;
    }
    cpu.gprs[counter(bits).number()] = 3;
    cpu.bases = [0; 2];
    // Anywhere around the border of the two code pages.
    cpu.rip = place(CODE) + if random.one_in(2) { random.below(64) } else { PAGE_SIZE - random.below(600) };
}

/// The register that counts the rounds of the loop: R9 or EDI.
pub(crate) fn counter(bits: Bits) -> Register {
    match bits {
        Bits::B64 => Register::R9,
        Bits::B32 => Register::RDI,
    }
}

/// A program in the making.
struct Builder<'a> {
    bits: Bits,
    random: Random,
    cpu: &'a Cpu,
    assembler: CodeAssembler,
    labels: Vec<CodeLabel>,
    /// Where labels are, if this is the second time.
    known: &'a [u64],
    functions: [usize; FUNCTIONS],
    /// Slots that each function removes when it returns.
    popped: [u64; FUNCTIONS],
    /// Instructions that others may overwrite: label, offset of the byte, what to write there.
    patches: Vec<(usize, i64, Option<u8>)>,
}

impl<'a> Builder<'a> {
    fn new(bits: Bits, mut random: Random, cpu: &'a Cpu, known: &'a [u64]) -> Self {
        let assembler = CodeAssembler::new(if bits == Bits::B64 { 64 } else { 32 }).expect("64 or 32");
        let popped = [(); FUNCTIONS].map(|()| if random.one_in(3) { 1 + random.below(3) } else { 0 });
        let mut builder = Self {
            bits,
            random,
            cpu,
            assembler,
            labels: Vec::new(),
            known,
            functions: [0; FUNCTIONS],
            popped,
            patches: Vec::new(),
        };
        builder.functions = [(); FUNCTIONS].map(|()| builder.label());
        builder
    }

    /// The code, and where its labels are.
    fn finish(mut self) -> (Vec<u8>, Vec<u64>) {
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let made =
            self.assembler.assemble_options(self.cpu.rip, options).expect("every instruction was tried");
        let addresses = self.labels.iter().map(|label| made.label_ip(label).unwrap_or(UNKNOWN)).collect();
        (made.inner.code_buffer, addresses)
    }

    fn program(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        let (again, over) = (self.label(), self.label());
        self.place(again);
        self.body(0, codes, factory);
        let counter = self.register(counter(self.bits).number() as u8);
        self.add(Instruction::with2(
            self.pick(Code::Lea_r64_m, Code::Lea_r32_m),
            counter,
            MemoryOperand::with_base_displ(counter, -1),
        ));
        self.add(Instruction::with2(self.pick(Code::Test_rm64_r64, Code::Test_rm32_r32), counter, counter));
        let (jump, end) = (self.labels[again], self.labels[over]);
        self.assembler.jne(jump).expect("a label");
        self.assembler.jmp(end).expect("a label");
        for function in 0..FUNCTIONS {
            let label = self.functions[function];
            self.place(label);
            self.body(function + 1, codes, factory);
            let bytes = self.popped[function] * self.slot();
            if bytes == 0 {
                self.assembler.ret().expect("no operands");
            } else {
                self.assembler.ret_1(bytes as u32).expect("a small number");
            }
        }
        self.place(over);
        self.assembler.nop().expect("no operands");
    }

    /// Ordinary instructions and events; calls go to functions from `first` on.
    fn body(&mut self, first: usize, codes: &[Code], factory: &mut InstructionInfoFactory) {
        for _ in 0..1 + self.random.below(4) {
            for _ in 0..1 + self.random.below(4) {
                self.ordinary(codes, factory);
            }
            match self.random.below(10) {
                0..3 if first < FUNCTIONS => self.call(first),
                0 | 3 => self.jump(codes, factory),
                1 | 4 => self.table(codes, factory),
                2 | 5 => self.other_stack(codes, factory),
                6 => self.frame(codes, factory),
                7 => self.string(),
                8 => self.flags(),
                _ => self.patch(),
            }
        }
        self.ordinary(codes, factory);
    }

    // Parts.

    fn pick(&self, wide: Code, narrow: Code) -> Code {
        match self.bits {
            Bits::B64 => wide,
            Bits::B32 => narrow,
        }
    }

    fn slot(&self) -> u64 {
        match self.bits {
            Bits::B64 => 8,
            Bits::B32 => 4,
        }
    }

    fn register(&self, number: u8) -> Register {
        let first = if self.bits == Bits::B64 { Register::RAX } else { Register::EAX };
        first + u32::from(number)
    }

    /// A register that may be overwritten.
    fn free(&mut self) -> Register {
        let number = match self.bits {
            Bits::B64 => self.random.pick(&[0, 1, 2, 8, 10, 11, 12, 13, 14, 15]),
            Bits::B32 => self.random.pick(&[0, 1, 2]),
        };
        self.register(number)
    }

    /// One of the pointers, with a distance that keeps it in the data.
    fn pointer(&mut self) -> MemoryOperand {
        let number = self.random.pick(&[3, 5, 6]);
        let distance = self.random.below(200).cast_signed() - 100;
        MemoryOperand::with_base_displ(self.register(number), distance)
    }

    fn add(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        let instruction = instruction.expect("operands of the right kinds");
        self.assembler.add_instruction(instruction).expect("an instruction");
    }

    fn label(&mut self) -> usize {
        self.labels.push(self.assembler.create_label());
        self.labels.len() - 1
    }

    fn place(&mut self, label: usize) {
        self.assembler.set_label(&mut self.labels[label]).expect("a new label before an instruction");
    }

    fn address(&self, label: usize) -> u64 {
        self.known.get(label).copied().unwrap_or(UNKNOWN)
    }

    fn load(&mut self, register: Register, value: u64) {
        self.add(match self.bits {
            Bits::B64 => Instruction::with2(Code::Mov_r64_imm64, register, value),
            Bits::B32 => Instruction::with2(Code::Mov_r32_imm32, register, value as u32),
        });
    }

    fn push(&mut self, register: Register) {
        self.add(Instruction::with1(self.pick(Code::Push_r64, Code::Push_r32), register));
    }

    fn pop(&mut self, register: Register) {
        self.add(Instruction::with1(self.pick(Code::Pop_r64, Code::Pop_r32), register));
    }

    fn ordinary(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        loop {
            let code = self.random.pick(codes);
            let Some(instruction) = instance(code, self.cpu, &mut self.random) else { continue };
            // An address that a register makes up could be anything, in 32-bit code even this process's own memory.
            let wanders = self.bits == Bits::B32
                && (instruction.memory_index() != Register::None || format!("{code:?}").starts_with("Bt"));
            if wanders || is_incomparable(&instruction) || !keeps_pointers(&instruction, factory) {
                continue;
            }
            if Encoder::new(self.assembler.bitness()).encode(&instruction, self.cpu.rip).is_ok() {
                self.add(Ok(instruction));
                return;
            }
        }
    }

    // Events.

    /// A call of a later function, in one of the ways there are.
    fn call(&mut self, first: usize) {
        let function = first + self.random.below((FUNCTIONS - first) as u64) as usize;
        for _ in 0..self.popped[function] {
            let pushed = self.free();
            self.push(pushed);
        }
        let label = self.functions[function];
        match self.random.below(3) {
            0 => {
                let target = self.labels[label];
                self.assembler.call(target).expect("a label");
            }
            1 => {
                let register = self.free();
                self.load(register, self.address(label));
                self.add(Instruction::with1(self.pick(Code::Call_rm64, Code::Call_rm32), register));
            }
            _ => {
                let memory = self.stored(label);
                self.add(Instruction::with1(self.pick(Code::Call_rm64, Code::Call_rm32), memory));
            }
        }
    }

    /// A place in the data that holds a label's address.
    fn stored(&mut self, label: usize) -> MemoryOperand {
        let (register, memory) = (self.free(), self.pointer());
        self.load(register, self.address(label));
        self.add(Instruction::with2(self.pick(Code::Mov_rm64_r64, Code::Mov_rm32_r32), memory, register));
        memory
    }

    /// A jump over some instructions.
    fn jump(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        let over = self.label();
        let target = self.labels[over];
        match self.random.below(5) {
            0 => self.assembler.jmp(target).expect("a label"),
            1 => self.assembler.jb(target).expect("a label"),
            2 => {
                let register = self.free();
                self.load(register, self.address(over));
                self.add(Instruction::with1(self.pick(Code::Jmp_rm64, Code::Jmp_rm32), register));
            }
            3 => {
                let memory = self.stored(over);
                self.add(Instruction::with1(self.pick(Code::Jmp_rm64, Code::Jmp_rm32), memory));
            }
            _ => {
                let register = self.free();
                self.load(register, self.address(over));
                self.push(register);
                self.assembler.ret().expect("no operands");
            }
        }
        for _ in 0..1 + self.random.below(3) {
            self.ordinary(codes, factory);
        }
        self.place(over);
        self.ordinary(codes, factory);
    }

    /// A jump through a table of four, chosen by a register's low bits.
    fn table(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        let (table, over) = (self.label(), self.label());
        let targets = [(); 4].map(|()| self.label());
        let (index, base) = (self.register(0), self.register(1));
        self.add(Instruction::with2(Code::And_rm32_imm8, Register::EAX, 3));
        self.load(base, self.address(table));
        let scale = self.slot() as u32;
        let entry = MemoryOperand::with_base_index_scale(base, index, scale);
        self.add(Instruction::with1(self.pick(Code::Jmp_rm64, Code::Jmp_rm32), entry));
        self.place(table);
        for target in targets {
            let address = self.address(target);
            match self.bits {
                Bits::B64 => self.assembler.dq(&[address]).expect("bytes"),
                Bits::B32 => self.assembler.dd(&[address as u32]).expect("bytes"),
            }
        }
        for target in targets {
            self.place(target);
            self.ordinary(codes, factory);
            let target = self.labels[over];
            if self.random.one_in(2) {
                self.assembler.jmp(target).expect("a label");
            }
        }
        self.place(over);
        self.assembler.nop().expect("no operands");
    }

    /// Another stack for a while, in the data, near the end of a page.
    fn other_stack(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        let data = if self.bits == Bits::B64 { DATA } else { low(DATA) };
        let top = data + PAGE_SIZE * (6 + self.random.below(2)) + self.slot() * self.random.below(4);
        let (stack, kept) = (self.register(4), self.free());
        self.load(kept, top);
        let exchange = self.random.one_in(2);
        if exchange {
            self.add(Instruction::with2(self.pick(Code::Xchg_rm64_r64, Code::Xchg_rm32_r32), stack, kept));
        } else {
            let pushed = MemoryOperand::with_base_displ(kept, -self.slot().cast_signed());
            self.add(Instruction::with2(self.pick(Code::Mov_rm64_r64, Code::Mov_rm32_r32), pushed, stack));
            self.add(Instruction::with2(self.pick(Code::Lea_r64_m, Code::Lea_r32_m), stack, pushed));
        }
        if exchange {
            self.push(kept);
        }
        let pushed = self.free();
        self.push(pushed);
        self.ordinary(codes, factory);
        let popped = self.free();
        self.pop(popped);
        self.pop(stack);
    }

    /// ENTER and LEAVE, or room on the stack by LEA, with pushes of every kind inside.
    fn frame(&mut self, codes: &[Code], factory: &mut InstructionInfoFactory) {
        let stack = self.register(4);
        let lea = self.pick(Code::Lea_r64_m, Code::Lea_r32_m);
        let enters = self.random.one_in(2);
        let room = 8 * self.random.below(6);
        if enters {
            let level = self.random.pick(&[0, 0, 1, 2]);
            self.add(Instruction::with2(
                self.pick(Code::Enterq_imm16_imm8, Code::Enterd_imm16_imm8),
                room as u32,
                level,
            ));
        } else {
            self.add(Instruction::with2(
                lea,
                stack,
                MemoryOperand::with_base_displ(stack, -room.cast_signed()),
            ));
        }
        let memory = self.pointer();
        self.add(Instruction::with1(self.pick(Code::Push_rm64, Code::Push_rm32), memory));
        let number = self.random.below(200) as i32 - 100;
        self.add(Instruction::with1(self.pick(Code::Pushq_imm8, Code::Pushd_imm8), number));
        let memory = self.pointer();
        self.add(Instruction::with1(self.pick(Code::Pop_rm64, Code::Pop_rm32), memory));
        let popped = self.free();
        self.pop(popped);
        if self.bits == Bits::B32 {
            self.assembler.pushad().expect("no operands");
            self.ordinary(codes, factory);
            self.assembler.popad().expect("no operands");
        }
        if enters {
            self.assembler.leave().expect("no operands");
        } else {
            self.add(Instruction::with2(
                lea,
                stack,
                MemoryOperand::with_base_displ(stack, room.cast_signed()),
            ));
        }
    }

    /// A string instruction, with its registers saved around it.
    fn string(&mut self) {
        let saved = [1, 6, 7].map(|number| self.register(number));
        let source = self.pointer();
        saved.iter().for_each(|register| self.push(*register));
        self.add(Instruction::with2(self.pick(Code::Lea_r64_m, Code::Lea_r32_m), saved[2], source));
        let count = self.random.below(40) as u32;
        self.add(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count));
        let forms: [&[u8]; 9] = [
            &[0xf3, 0xa4],
            &[0xf3, 0xa5],
            &[0xf3, 0xaa],
            &[0xf3, 0xab],
            &[0xf3, 0xa6],
            &[0xf2, 0xae],
            &[0xa5],
            &[0xac],
            &[0x66, 0xf3, 0xab],
        ];
        let form = self.random.pick(&forms);
        self.assembler.db(form).expect("bytes");
        saved.iter().rev().for_each(|register| self.pop(*register));
    }

    /// Flags that are pushed and popped, or loaded: direction, alignment and identification too.
    fn flags(&mut self) {
        const LOADED: u64 = 0x24_0cd5;
        if self.random.one_in(2) {
            self.add(Ok(Instruction::with(self.pick(Code::Pushfq, Code::Pushfd))));
            let register = self.free();
            self.pop(register);
            self.push(register);
        } else {
            let kept = if self.random.one_in(3) { u64::MAX } else { !rflags::AC };
            let value = self.random.next() & LOADED & kept;
            self.add(Instruction::with1(self.pick(Code::Pushq_imm32, Code::Pushd_imm32), value as i32));
        }
        self.add(Ok(Instruction::with(self.pick(Code::Popfq, Code::Popfd))));
    }

    /// An instruction that a store overwrites: the next one, one further on, or one that ran before.
    fn patch(&mut self) {
        let label = self.label();
        let overwrites_later = self.random.one_in(2);
        let is_opcode = self.random.one_in(2);
        let written = is_opcode.then(|| self.random.pick(&[0x01, 0x29, 0x09, 0x31, 0x39]));
        let patch = (label, if is_opcode { 0 } else { 1 }, written);
        if overwrites_later {
            self.overwrite(patch);
        }
        self.place(label);
        if is_opcode {
            // add edx, eax, which becomes a relative.
            self.assembler.db(&[0x01, 0xc2]).expect("bytes");
        } else {
            let number = self.random.next() as u32;
            self.add(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, number));
        }
        self.patches.push(patch);
        let any = self.random.below(self.patches.len() as u64) as usize;
        if self.random.one_in(2) {
            let patch = self.patches[any];
            self.overwrite(patch);
        }
    }

    fn overwrite(&mut self, (label, offset, byte): (usize, i64, Option<u8>)) {
        let pointer = self.register(1);
        self.load(pointer, self.address(label));
        let memory = MemoryOperand::with_base_displ(pointer, offset);
        match byte {
            Some(byte) => self.add(Instruction::with2(Code::Mov_rm8_imm8, memory, u32::from(byte))),
            None if self.random.one_in(2) => self.add(Instruction::with2(Code::Add_rm8_imm8, memory, 7)),
            None => self.add(Instruction::with2(Code::Mov_rm32_r32, memory, Register::EAX)),
        }
    }
}

#[test]
fn random_sequences_do_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut sequences = Sequences::new(seed() ^ 0x5e9);
    let mut tally = Tally::default();
    let mut finished = 0;
    for number in 0..PROGRAMS {
        let case = sequences.case(machine);
        let (native, outcome) = case.run(machine);
        finished += u64::from(native == End::Done);
        let told = outcome.map_err(|why| format!("{why}\n  {}", case.line()));
        tally.note(&format!("program {number}"), native, told);
    }
    println!("{finished} of {PROGRAMS} programs ran to their end");
    assert!(finished > PROGRAMS / 3);
    tally.finish();
}
