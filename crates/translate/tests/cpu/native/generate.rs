//! Random instructions of a given form, and random registers for them.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]
#![expect(clippy::cast_possible_wrap, reason = "displacements are small")]

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind, OpKind, Register};
use paravane_abi::units::PAGE_SIZE;

use super::{CODE, Cpu, DATA, DATA_PAGES, Machine, Random, STACK_TOP};

/// Instructions that cannot be compared: the CPU answers differently each time, or they are not this test's business.
pub(crate) fn is_incomparable(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Cli
        | Mnemonic::Sti
        | Mnemonic::Rdtsc
        | Mnemonic::Rdtscp
        | Mnemonic::Rdpid
        | Mnemonic::Rdrand
        | Mnemonic::Rdseed
        | Mnemonic::Cpuid
        | Mnemonic::Rdpmc
        | Mnemonic::Xgetbv
        | Mnemonic::Smsw
        | Mnemonic::Sgdt
        | Mnemonic::Sidt
        | Mnemonic::Sldt
        | Mnemonic::Str
        | Mnemonic::Lar
        | Mnemonic::Lsl
        | Mnemonic::Verr
        | Mnemonic::Verw
        | Mnemonic::Rdpkru
        | Mnemonic::Wrpkru
        // Would change the test's own thread.
        | Mnemonic::Wrfsbase
        | Mnemonic::Wrgsbase
        | Mnemonic::Rdfsbase
        | Mnemonic::Rdgsbase
        | Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Pushf
        | Mnemonic::Pushfq
        // Store host addresses: FIP.
        | Mnemonic::Fnstenv
        | Mnemonic::Fstenv
        | Mnemonic::Fnsave
        | Mnemonic::Fsave
        | Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Fxrstor
        | Mnemonic::Fxrstor64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xrstor
        | Mnemonic::Xrstor64
        | Mnemonic::Ldmxcsr
        | Mnemonic::Vldmxcsr
        | Mnemonic::Fldcw
        | Mnemonic::Fldenv
        | Mnemonic::Frstor
        | Mnemonic::Xbegin
        | Mnemonic::Xabort
        | Mnemonic::Xend
        | Mnemonic::Xtest
        | Mnemonic::Umonitor
        | Mnemonic::Umwait
        | Mnemonic::Tpause
        | Mnemonic::Enclu
        | Mnemonic::Getsec => true,
        _ => (0..instruction.op_count()).any(|op| {
            instruction.op_kind(op) == OpKind::Register && instruction.op_register(op).is_segment_register()
        }),
    }
}

/// A random instruction of a form, or `None` if the form has operands that this test does not make.
pub(crate) fn instance(code: Code, cpu: &Cpu, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let in_memory = random.below(2) == 0;
    for op in 0..info.op_count() {
        let kind = info.op_kind(op);
        let either = matches!(
            kind,
            Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::mm_or_mem
                | Kind::xmm_or_mem
                | Kind::ymm_or_mem
                | Kind::zmm_or_mem
                | Kind::k_or_mem
        );
        match kind {
            Kind::mem | Kind::mem_offs | Kind::mem_mpx | Kind::mem_mib => {
                memory(&mut instruction, op, kind, cpu, random);
            }
            _ if either && in_memory => memory(&mut instruction, op, kind, cpu, random),
            Kind::mem_vsib32x
            | Kind::mem_vsib64x
            | Kind::mem_vsib32y
            | Kind::mem_vsib64y
            | Kind::mem_vsib32z
            | Kind::mem_vsib64z => indexed_memory(&mut instruction, op, kind, cpu, random),
            Kind::imm8
            | Kind::imm8_const_1
            | Kind::imm16
            | Kind::imm32
            | Kind::imm32sex64
            | Kind::imm64
            | Kind::imm8sex16
            | Kind::imm8sex32
            | Kind::imm8sex64 => immediate(&mut instruction, op, kind, random),
            _ => {
                let register = register(kind, code, random)?;
                instruction.set_op_kind(op, OpKind::Register);
                instruction.set_op_register(op, register);
            }
        }
    }
    if info.can_use_op_mask_register() && (info.require_op_mask_register() || random.below(2) == 0) {
        instruction.set_op_mask(Register::K1 + small(random, 7));
    }
    if info.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory && random.below(2) == 0 {
        instruction.set_has_lock_prefix(true);
    }
    Some(instruction)
}

fn small(random: &mut Random, limit: u64) -> u32 {
    random.below(limit) as u32
}

/// A random register for a register operand.
fn register(kind: OpCodeOperandKind, code: Code, random: &mut Random) -> Option<Register> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let vectors = if info.encoding() == iced_x86::EncodingKind::EVEX { 32 } else { 16 };
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => r8(small(random, 20), info.op_count() == 1),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => {
            Register::AX + gpr(small(random, 16))
        }
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            Register::EAX + gpr(small(random, 16))
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            Register::RAX + gpr(small(random, 16))
        }
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => Register::MM0 + small(random, 8),
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
            Register::XMM0 + small(random, vectors)
        }
        Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
            Register::YMM0 + small(random, vectors)
        }
        Kind::zmm_or_mem | Kind::zmm_reg | Kind::zmm_rm | Kind::zmm_vvvv => {
            Register::ZMM0 + small(random, 32)
        }
        Kind::k_or_mem | Kind::k_reg | Kind::k_rm | Kind::k_vvvv => Register::K0 + small(random, 8),
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        Kind::st0 => Register::ST0,
        Kind::sti_opcode => Register::ST0 + small(random, 8),
        _ => return None,
    })
}

fn gpr(number: u32) -> u32 {
    // Not RSP: it is the stack's.
    if number == 4 { 14 } else { number }
}

fn r8(number: u32, high: bool) -> Register {
    if high && number < 4 {
        return Register::AH + number;
    }
    const LOW: [Register; 15] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
        Register::R8L,
        Register::R9L,
        Register::R10L,
        Register::R11L,
        Register::R12L,
        Register::R13L,
        Register::R14L,
        Register::R15L,
    ];
    LOW[number as usize % 15]
}

fn immediate(instruction: &mut Instruction, op: u32, kind: OpCodeOperandKind, random: &mut Random) {
    let value = random.next();
    use OpCodeOperandKind as Kind;
    let (kind, value) = match kind {
        Kind::imm16 => (OpKind::Immediate16, value & 0xffff),
        Kind::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
        Kind::imm64 => (OpKind::Immediate64, value),
        Kind::imm32sex64 => (OpKind::Immediate32to64, i64::from(value as i32).cast_unsigned()),
        Kind::imm8sex16 => (OpKind::Immediate8to16, i64::from(value as i8).cast_unsigned()),
        Kind::imm8sex32 => (OpKind::Immediate8to32, i64::from(value as i8).cast_unsigned()),
        Kind::imm8sex64 => (OpKind::Immediate8to64, i64::from(value as i8).cast_unsigned()),
        Kind::imm8_const_1 => (OpKind::Immediate8, 1),
        _ => (OpKind::Immediate8, value & 0xff),
    };
    instruction.set_op_kind(op, kind);
    if instruction.try_set_immediate_u64(op, value).is_err() {
        instruction.set_immediate_i64(op, value.cast_signed());
    }
}

fn memory(instruction: &mut Instruction, op: u32, kind: OpCodeOperandKind, cpu: &Cpu, random: &mut Random) {
    instruction.set_op_kind(op, OpKind::Memory);
    let operand = if kind == OpCodeOperandKind::mem_offs {
        MemoryOperand::with_displ(DATA + PAGE_SIZE + random.below(2 * PAGE_SIZE), 8)
    } else {
        let pick = |random: &mut Random, wanted: fn(u64) -> bool| loop {
            let number = random.below(16) as usize;
            if number != 4 && wanted(cpu.gprs[number]) {
                return Register::RAX + number as u32;
            }
        };
        let base = pick(random, |value| (DATA..DATA + DATA_PAGES * PAGE_SIZE).contains(&value));
        match random.below(3) {
            0 => {
                let index = pick(random, |value| value < 64);
                let scale = 1 << random.below(4);
                MemoryOperand::with_base_index_scale_displ_size(
                    base,
                    index,
                    scale,
                    random.below(64) as i64,
                    1,
                )
            }
            1 => MemoryOperand::with_base_displ(base, random.below(300) as i64 - 150),
            _ => MemoryOperand::with_base(base),
        }
    };
    instruction.set_memory_base(operand.base);
    instruction.set_memory_index(operand.index);
    instruction.set_memory_index_scale(operand.scale);
    instruction.set_memory_displacement64(operand.displacement.cast_unsigned());
    let size = if kind == OpCodeOperandKind::mem_offs || operand.displ_size != 0 { 8 } else { 0 };
    instruction.set_memory_displ_size(size.max(u32::from(operand.displacement != 0) * 8));
}

/// A gather's or scatter's operand: a pointer plus vectors 1 to 3, whose elements are small.
fn indexed_memory(
    instruction: &mut Instruction,
    op: u32,
    kind: OpCodeOperandKind,
    cpu: &Cpu,
    random: &mut Random,
) {
    use OpCodeOperandKind as Kind;
    memory(instruction, op, Kind::mem, cpu, random);
    let number = 1 + small(random, 3);
    let index = match kind {
        Kind::mem_vsib32x | Kind::mem_vsib64x => Register::XMM0,
        Kind::mem_vsib32y | Kind::mem_vsib64y => Register::YMM0,
        _ => Register::ZMM0,
    };
    instruction.set_memory_index(index + number);
    instruction.set_memory_index_scale(1 << random.below(4));
}

/// Random registers: pointers into the data, small numbers, anything.
pub(crate) fn registers(machine: &Machine, random: &mut Random) -> Cpu {
    let mut gprs = [0; 16];
    for gpr in &mut gprs {
        let near = DATA + PAGE_SIZE * (2 + random.below(4)) - 40 + random.below(80);
        *gpr = match random.below(8) {
            0 | 1 => DATA + 2 * PAGE_SIZE + (random.below(2 * PAGE_SIZE) & !63),
            2 => near,
            3 | 4 => random.below(64),
            5 => random.next() >> 33,
            _ => random.next(),
        };
    }
    for pointer in [3, 5, 6, 7] {
        let aligned = DATA + 2 * PAGE_SIZE + (random.below(3 * PAGE_SIZE) & !63);
        gprs[pointer] = if random.below(3) == 0 { aligned + random.below(64) } else { aligned };
    }
    gprs[1] = random.below(40);
    gprs[9] = random.below(64);
    gprs[4] = STACK_TOP;
    Cpu {
        area: machine.random_area(random),
        gprs,
        flags: 0x202 | random.next() & 0x8d5,
        rip: CODE + random.below(64),
    }
}
