//! Random instructions of a given form.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]
#![expect(clippy::cast_possible_wrap, reason = "displacements are small")]

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};
use paravane_abi::units::PAGE_SIZE;

use super::random::Random;
use super::{Bits, Cpu, DATA, DATA_PAGES, low, real};

/// Instructions that cannot be compared: the CPU answers differently each time or as the host's kernel has set it
/// up, or they would change this process.
pub(crate) fn is_incomparable(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        // Time, randomness, identity.
        Mnemonic::Rdtsc
        | Mnemonic::Rdtscp
        | Mnemonic::Rdpid
        | Mnemonic::Rdrand
        | Mnemonic::Rdseed
        | Mnemonic::Cpuid
        | Mnemonic::Rdpmc
        | Mnemonic::Xgetbv
        // The host's tables; UMIP may forbid them.
        | Mnemonic::Smsw
        | Mnemonic::Sgdt
        | Mnemonic::Sidt
        | Mnemonic::Sldt
        | Mnemonic::Str
        // Its operand in memory is read, because the hypervisor emulates it.
        | Mnemonic::Lmsw
        // Features that the engine hides.
        | Mnemonic::Rdpkru
        | Mnemonic::Wrpkru
        | Mnemonic::Xbegin
        | Mnemonic::Xabort
        | Mnemonic::Xend
        | Mnemonic::Xtest
        | Mnemonic::Umonitor
        | Mnemonic::Umwait
        | Mnemonic::Tpause
        | Mnemonic::Enclu
        | Mnemonic::Enclv
        | Mnemonic::Getsec
        | Mnemonic::Vmcall
        | Mnemonic::Vmmcall
        | Mnemonic::Vmfunc
        // The host's kernel answers.
        | Mnemonic::Syscall
        | Mnemonic::Sysenter
        | Mnemonic::Int => true,
        _ => false,
    }
}

/// A random instruction of a form, or `None` if the form has operands that this test does not make.
pub(crate) fn instance(code: Code, cpu: &Cpu, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let in_memory = random.one_in(2);
    let wide = address_size(cpu, random);
    for op in 0..info.op_count() {
        let kind = info.op_kind(op);
        match kind {
            Kind::mem | Kind::mem_offs | Kind::mem_mpx | Kind::mem_mib | Kind::sibmem => {
                memory(&mut instruction, op, kind, cpu, random);
            }
            _ if is_either(kind) && in_memory => memory(&mut instruction, op, kind, cpu, random),
            Kind::mem_vsib32x
            | Kind::mem_vsib64x
            | Kind::mem_vsib32y
            | Kind::mem_vsib64y
            | Kind::mem_vsib32z
            | Kind::mem_vsib64z => indexed_memory(&mut instruction, op, kind, cpu, random),
            Kind::seg_rBX_al => {
                instruction.set_op_kind(op, OpKind::Memory);
                instruction.set_memory_base(gpr(wide, 3));
                instruction.set_memory_index(Register::AL);
            }
            Kind::seg_rSI => {
                instruction.set_op_kind(
                    op,
                    string_kind(wide, [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
                );
            }
            Kind::seg_rDI => {
                instruction.set_op_kind(
                    op,
                    string_kind(wide, [OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
                );
            }
            Kind::es_rDI => {
                instruction.set_op_kind(
                    op,
                    string_kind(wide, [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]),
                );
            }
            Kind::imm8
            | Kind::imm8_const_1
            | Kind::imm4_m2z
            | Kind::imm16
            | Kind::imm32
            | Kind::imm32sex64
            | Kind::imm64
            | Kind::imm8sex16
            | Kind::imm8sex32
            | Kind::imm8sex64 => immediate(&mut instruction, op, kind, random),
            _ => {
                let register = register(kind, code, cpu, random)?;
                instruction.set_op_kind(op, OpKind::Register);
                instruction.set_op_register(op, register);
            }
        }
    }
    prefixes(&mut instruction, random);
    Some(instruction)
}

fn is_either(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as Kind;
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::r32_or_mem_mpx
            | Kind::r64_or_mem_mpx
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
            | Kind::zmm_or_mem
            | Kind::bnd_or_mem_mpx
            | Kind::k_or_mem
    )
}

/// Masks, LOCK, REP, segments, rounding, broadcasts: whatever the form takes.
fn prefixes(instruction: &mut Instruction, random: &mut Random) {
    let code = instruction.code();
    let info = code.op_code();
    let has_memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    if info.can_use_op_mask_register() && (info.require_op_mask_register() || random.one_in(2)) {
        instruction.set_op_mask(Register::K1 + small(random, 7));
        if info.can_use_zeroing_masking() && instruction.op0_kind() == OpKind::Register && random.one_in(2) {
            instruction.set_zeroing_masking(true);
        }
    }
    if info.can_broadcast() && has_memory && random.one_in(2) {
        instruction.set_is_broadcast(true);
    }
    if info.can_use_rounding_control() && !has_memory && random.one_in(2) {
        let rounding = [
            iced_x86::RoundingControl::RoundToNearest,
            iced_x86::RoundingControl::RoundDown,
            iced_x86::RoundingControl::RoundUp,
            iced_x86::RoundingControl::RoundTowardZero,
        ];
        instruction.set_rounding_control(random.pick(&rounding));
    } else if info.can_suppress_all_exceptions() && !has_memory && random.one_in(2) {
        instruction.set_suppress_all_exceptions(true);
    }
    if info.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory && random.one_in(2) {
        instruction.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() || info.can_use_repne_prefix() {
        match random.below(3) {
            0 => instruction.set_has_repe_prefix(true),
            1 if info.can_use_repne_prefix() => instruction.set_has_repne_prefix(true),
            _ => {}
        }
    }
}

fn small(random: &mut Random, limit: u64) -> u32 {
    random.below(limit) as u32
}

/// Bytes of an address.
fn address_size(cpu: &Cpu, random: &mut Random) -> u32 {
    let is_low = cpu.rip < 1 << 32;
    match cpu.bits() {
        Bits::B64 if is_low && random.one_in(3) => 4,
        Bits::B64 => 8,
        Bits::B32 if random.one_in(16) => 2,
        Bits::B32 => 4,
    }
}

fn gpr(size: u32, number: u32) -> Register {
    match size {
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

fn string_kind(wide: u32, kinds: [OpKind; 3]) -> OpKind {
    match wide {
        2 => kinds[0],
        4 => kinds[1],
        _ => kinds[2],
    }
}

/// A random register for a register operand.
fn register(kind: OpCodeOperandKind, code: Code, cpu: &Cpu, random: &mut Random) -> Option<Register> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let is_64 = cpu.bits() == Bits::B64;
    let gprs = if is_64 { 16 } else { 8 };
    let vectors = match info.encoding() {
        _ if !is_64 => 8,
        iced_x86::EncodingKind::EVEX => 32,
        _ => 16,
    };
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => r8(random, info.op_count() == 1, is_64),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode | Kind::r16_reg_mem => {
            Register::AX + not_rsp(small(random, gprs))
        }
        Kind::r32_or_mem
        | Kind::r32_or_mem_mpx
        | Kind::r32_reg
        | Kind::r32_rm
        | Kind::r32_opcode
        | Kind::r32_vvvv
        | Kind::r32_reg_mem => Register::EAX + not_rsp(small(random, gprs)),
        Kind::r64_or_mem
        | Kind::r64_or_mem_mpx
        | Kind::r64_reg
        | Kind::r64_rm
        | Kind::r64_opcode
        | Kind::r64_vvvv
        | Kind::r64_reg_mem => Register::RAX + not_rsp(small(random, gprs)),
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => Register::MM0 + small(random, 8),
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 | Kind::xmm_is5 => {
            Register::XMM0 + small(random, vectors)
        }
        Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 | Kind::ymm_is5 => {
            Register::YMM0 + small(random, vectors)
        }
        Kind::zmm_or_mem | Kind::zmm_reg | Kind::zmm_rm | Kind::zmm_vvvv => {
            Register::ZMM0 + small(random, vectors)
        }
        Kind::xmmp3_vvvv => Register::XMM0 + small(random, vectors / 4) * 4,
        Kind::zmmp3_vvvv => Register::ZMM0 + small(random, vectors / 4) * 4,
        Kind::k_or_mem | Kind::k_reg | Kind::k_rm | Kind::k_vvvv => Register::K0 + small(random, 8),
        Kind::kp1_reg => Register::K0 + small(random, 4) * 2,
        Kind::bnd_reg | Kind::bnd_or_mem_mpx => Register::BND0 + small(random, 4),
        Kind::cr_reg => random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
        Kind::dr_reg => Register::DR0 + small(random, 8),
        Kind::seg_reg => random.pick(&[Register::ES, Register::SS, Register::DS, Register::FS, Register::GS]),
        Kind::es => Register::ES,
        Kind::cs => Register::CS,
        Kind::ss => Register::SS,
        Kind::ds => Register::DS,
        Kind::fs => Register::FS,
        Kind::gs => Register::GS,
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        Kind::st0 => Register::ST0,
        Kind::sti_opcode => Register::ST0 + small(random, 8),
        Kind::tmm_reg | Kind::tmm_rm | Kind::tmm_vvvv => Register::TMM0 + small(random, 8),
        _ => return None,
    })
}

fn not_rsp(number: u32) -> u32 {
    // It is the stack's.
    match number {
        4 => 6,
        number => number,
    }
}

fn r8(random: &mut Random, alone: bool, is_64: bool) -> Register {
    if (alone || !is_64) && random.one_in(3) {
        return Register::AH + small(random, 4);
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
    LOW[random.below(if is_64 { 15 } else { 4 }) as usize]
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
        Kind::imm4_m2z => (OpKind::Immediate8, value & 3),
        _ if op == 1 && instruction.mnemonic() == Mnemonic::Enter => {
            (OpKind::Immediate8_2nd, if value & 1 << 40 == 0 { value & 3 } else { value & 0xff })
        }
        _ if op > 0 && instruction.op_kind(op - 1) == OpKind::Immediate8 => {
            (OpKind::Immediate8_2nd, value & 0xff)
        }
        _ => (OpKind::Immediate8, value & 0xff),
    };
    // Frames that fit the stack.
    let value = if instruction.mnemonic() == Mnemonic::Enter && op == 0 { value & 0x3f } else { value };
    instruction.set_op_kind(op, kind);
    if instruction.try_set_immediate_u64(op, value).is_err() {
        instruction.set_immediate_i64(op, value.cast_signed());
    }
}

fn memory(instruction: &mut Instruction, op: u32, kind: OpCodeOperandKind, cpu: &Cpu, random: &mut Random) {
    instruction.set_op_kind(op, OpKind::Memory);
    let is_64 = cpu.bits() == Bits::B64;
    let is_low = cpu.rip < 1 << 32;
    let data = if is_low { low(DATA) } else { DATA };
    let size = address_size(cpu, random);
    let somewhere = data + PAGE_SIZE + random.below(2 * PAGE_SIZE);
    instruction.set_memory_displ_size(if size == 2 {
        2
    } else if is_64 {
        8
    } else {
        4
    });
    let no_base = matches!(kind, OpCodeOperandKind::mem_offs);
    let bases = is_64 && real::has_bases();
    if no_base || (!is_64 && random.one_in(10)) || (is_64 && is_low && random.one_in(20)) {
        instruction.set_memory_displ_size(if is_64 { 8 } else { 4 });
        instruction.set_memory_displacement64(somewhere);
        return;
    }
    if is_64 && random.one_in(12) && kind != OpCodeOperandKind::sibmem {
        instruction.set_memory_base(if size == 4 { Register::EIP } else { Register::RIP });
        instruction.set_memory_displacement64(somewhere);
        return;
    }
    if bases && random.one_in(16) && !matches!(kind, OpCodeOperandKind::mem_mib | OpCodeOperandKind::sibmem) {
        instruction.set_segment_prefix(Register::FS);
        instruction.set_memory_displacement64(PAGE_SIZE * 2 + random.below(PAGE_SIZE));
        return;
    }
    let mut pick = |wanted: &dyn Fn(u64) -> bool| loop {
        let number = random.below(if is_64 { 16 } else { 8 }) as u32;
        if number != 4 && wanted(cpu.gprs[number as usize]) {
            return number;
        }
        if random.one_in(300) {
            return 3;
        }
    };
    let base = pick(&|value| (data..data + DATA_PAGES * PAGE_SIZE).contains(&value));
    let index = pick(&|value| value < 64);
    if size == 2 {
        instruction.set_memory_base(random.pick(&[Register::BX, Register::BP]));
        instruction.set_memory_index(random.pick(&[Register::SI, Register::DI]));
    } else {
        instruction.set_memory_base(gpr(size, base));
        if random.one_in(3) || kind == OpCodeOperandKind::sibmem {
            instruction.set_memory_index(gpr(size, index));
            instruction.set_memory_index_scale(1 << random.below(4));
        }
    }
    let displacement = match random.below(3) {
        0 => 0,
        1 => random.below(64) as i64,
        _ => random.below(300) as i64 - 150,
    };
    instruction.set_memory_displacement64(displacement.cast_unsigned());
    if displacement == 0 {
        instruction.set_memory_displ_size(0);
    }
    if size == 2 && displacement != 0 {
        instruction.set_memory_displacement64(displacement.cast_unsigned() & 0xffff);
    }
    segment(instruction, is_64, bases, random);
}

/// Overrides: GS has a small base; the others mean nothing in 64-bit code.
fn segment(instruction: &mut Instruction, is_64: bool, bases: bool, random: &mut Random) {
    if bases && random.one_in(12) {
        instruction.set_segment_prefix(Register::GS);
    } else if random.one_in(16) {
        let any = [Register::ES, Register::CS, Register::SS, Register::DS];
        instruction.set_segment_prefix(random.pick(if is_64 { &any } else { &any[..4] }));
    }
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
    instruction.set_op_kind(op, OpKind::Memory);
    let wide = if cpu.bits() == Bits::B64 { 8 } else { 4 };
    instruction.set_memory_base(gpr(wide, random.pick(&[3, 5, 6, 7])));
    let number = 1 + small(random, 3);
    let index = match kind {
        Kind::mem_vsib32x | Kind::mem_vsib64x => Register::XMM0,
        Kind::mem_vsib32y | Kind::mem_vsib64y => Register::YMM0,
        _ => Register::ZMM0,
    };
    instruction.set_memory_index(index + number);
    instruction.set_memory_index_scale(1 << random.below(4));
    instruction.set_memory_displ_size(0);
}
