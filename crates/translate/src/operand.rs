//! Instructions with and without a memory operand: replacing the operand and the stolen registers.

use iced_x86::{Code, Instruction, InstructionInfoOptions, OpAccess, OpKind, Register};

use crate::asm::{Mem, Size, reg};
use crate::bits::{low8, low32};
use crate::check::Check;
use crate::classify::{AddressKind, Operand};
use crate::emit::{Bits, Decoded, Emitter};
use crate::reuse::Share;
use crate::x87::is_x87;

/// Registers that may be borrowed for an instruction: those that need no REX prefix, except RSP.
const BORROWABLE: [Register; 7] =
    [Register::RBX, Register::RSI, Register::RDI, Register::RBP, Register::RDX, Register::RCX, Register::RAX];

/// The number of a general-purpose register in encodings.
pub(crate) fn number(register: Register) -> u8 {
    low8((register.full_register().number() & 15) as u64)
}

/// Whether the guest's register lives in memory.
pub(crate) fn is_stolen(number: u8) -> bool {
    number >= reg::R14
}

impl Emitter {
    /// An instruction without memory operand.
    pub(crate) fn plain(&mut self, decoded: &Decoded, bytes: &[u8]) {
        self.before_instruction(decoded);
        let stolen =
            (0..decoded.instruction.op_count()).any(|op| stolen_operand(&decoded.instruction, op).is_some());
        if stolen || self.conditions.bits == Bits::B32 {
            self.rewritten(decoded, decoded.instruction, None);
        } else {
            self.mark_instruction(decoded.instruction.ip(), is_x87(&decoded.instruction));
            self.hot.put(bytes);
        }
        self.after_instruction(decoded);
        self.finish(Some(decoded.instruction.next_ip()));
    }

    /// LEA: the address, cut to the operand's size.
    pub(crate) fn lea(&mut self, decoded: &Decoded, bytes: &[u8]) {
        let instruction = decoded.instruction;
        self.mark(instruction.ip());
        let to = number(instruction.op0_register());
        if self.conditions.bits == Bits::B64 && copies_address(&instruction) {
            self.hot.put(bytes);
            self.finish(Some(instruction.next_ip()));
            return;
        }
        if let Offset::Constant(value) = self.offset_adjusted(&instruction, 0) {
            self.hot.constant(reg::R14, value);
        }
        match (instruction.op0_register().size(), is_stolen(to)) {
            (8, false) => self.hot.mov(to, reg::R14),
            (4, false) => self.hot.mov32(to, reg::R14),
            // mov to16, r14w
            (_, false) => {
                self.hot.put(&[0x66]);
                self.hot.op_reg(false, &[0x89], reg::R14, to);
            }
            (8, true) => self.store_guest(to, reg::R14),
            (4, true) => {
                self.hot.mov32(reg::R14, reg::R14);
                self.store_guest(to, reg::R14);
            }
            (_, true) => self.hot.store_sized(Size::Word, Mem::at(self.layout.gpr(to)), reg::R14),
        }
        self.finish(Some(instruction.next_ip()));
    }

    /// An instruction with one explicit memory operand.
    pub(crate) fn memory(&mut self, decoded: &Decoded, operand: Operand) {
        let instruction = decoded.instruction;
        self.before_pointers(&instruction);
        self.pending_fault(&instruction);
        self.before_access(decoded.live_before());
        let masked = is_masked(&instruction);
        let check = Check {
            rip: instruction.ip(),
            size: operand.size,
            path: operand.path,
            masked,
            stack: uses_stack_segment(&instruction),
            segment: crate::segments::register(instruction.memory_segment()),
        };
        let displacement = match operand.address {
            AddressKind::Usual => match self.share {
                Share::Alone => self.operand_check(&instruction, check),
                Share::Leads(lead) => {
                    self.registers_and(&instruction, 8, lead.start);
                    self.lead(lead, check)
                }
                Share::Follows { slot, at } => self.follow(slot, at),
            },
            AddressKind::Table => {
                self.table_address(&instruction);
                self.check(check);
                0
            }
            AddressKind::BitOffset => {
                self.bit_address(&instruction, operand.size);
                self.check(check);
                0
            }
        };
        self.before_instruction(decoded);
        match operand.address {
            AddressKind::Usual => self.rewritten(decoded, instruction, Some(displacement)),
            AddressKind::Table => {
                self.mark(instruction.ip());
                // mov al, [r14]
                self.hot.op_mem(false, &[0x8a], reg::RAX, Mem::off(reg::R14, 0));
            }
            AddressKind::BitOffset => self.bit_operation(&instruction, operand.size),
        }
        self.after_instruction(decoded);
        self.finish(Some(instruction.next_ip()));
    }

    /// What x87 and MMX instructions do before they access memory: report an earlier x87 fault.
    fn pending_fault(&mut self, instruction: &Instruction) {
        use iced_x86::Mnemonic;
        let waits = !matches!(
            instruction.mnemonic(),
            Mnemonic::Fnstcw | Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fnstsw
        );
        let mmx = (0..instruction.op_count())
            .any(|op| instruction.op_kind(op) == OpKind::Register && instruction.op_register(op).is_mm());
        if mmx || waits && is_x87(instruction) {
            self.mark(instruction.ip());
            // fwait
            self.hot.put(&[0x9b]);
        }
    }

    /// Emits address and check of an explicit operand; returns what to add to R14.
    pub(crate) fn operand_check(&mut self, instruction: &Instruction, check: Check) -> i32 {
        match self.address(instruction, 0) {
            Offset::Constant(address) => self.check_constant(address, check),
            Offset::InScratch => {
                self.check(check);
                0
            }
        }
    }

    /// Emits the linear address of an explicit memory operand: known now, or in R14. `adjust` is added to RSP if that
    /// is the base (POP computes its address after incrementing).
    pub(crate) fn address(&mut self, instruction: &Instruction, adjust: i32) -> Offset {
        let offset = self.offset_adjusted(instruction, adjust);
        self.add_segment(instruction, offset)
    }

    fn add_segment(&mut self, instruction: &Instruction, offset: Offset) -> Offset {
        let segment = crate::segments::register(instruction.memory_segment());
        let based =
            matches!(segment, paravane_engine::SegmentRegister::Fs | paravane_engine::SegmentRegister::Gs);
        if !based && self.conditions.flat {
            return offset;
        }
        if let Offset::Constant(value) = offset {
            self.hot.constant(reg::R14, value);
        }
        // add r14, [base], in 32-bit code add r14d, [base]
        let base = Mem::at(self.layout.segment(segment));
        self.hot.op_mem(self.conditions.bits == Bits::B64, &[0x03], reg::R14, base);
        Offset::InScratch
    }

    /// Emits the offset (address without segment base) of an explicit memory operand. Leaves flags alone.
    fn offset_adjusted(&mut self, instruction: &Instruction, adjust: i32) -> Offset {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = instruction.memory_displacement64();
        let width = address_width(instruction, self.conditions.bits);
        if instruction.is_ip_rel_memory_operand() {
            return Offset::Constant(instruction.ip_rel_memory_address());
        }
        if base == Register::None && index == Register::None {
            return Offset::Constant(match width {
                2 => displacement & 0xffff,
                4 => displacement & 0xffff_ffff,
                _ => displacement,
            });
        }
        let mut disp = low32(displacement).cast_signed();
        if base.full_register() == Register::RSP {
            disp = disp.wrapping_add(adjust);
        }
        self.registers_and(instruction, width, disp);
        if width == 2 {
            // movzx r14d, r14w
            self.hot.op_reg(false, &[0x0f, 0xb7], reg::R14, reg::R14);
        }
        Offset::InScratch
    }

    /// Base and index of an explicit operand, and a displacement: to R14, cut to 32 bits if addresses are not 64 bits wide.
    fn registers_and(&mut self, instruction: &Instruction, width: u32, disp: i32) {
        let mut part = |register: Register, scratch: u8| {
            (register != Register::None).then(|| {
                let guest = number(register);
                if is_stolen(guest) {
                    self.load_guest(scratch, guest);
                    scratch
                } else {
                    guest
                }
            })
        };
        let base_number = part(instruction.memory_base(), reg::R14);
        let index_number = part(instruction.memory_index(), reg::R15);
        let scale = u8::try_from(instruction.memory_index_scale()).unwrap_or(1);
        let mem = Mem { base: base_number, index: index_number, scale, disp };
        self.hot.lea(width == 8, reg::R14, mem);
    }

    /// XLAT's address: rBX plus AL, in the segment.
    fn table_address(&mut self, instruction: &Instruction) {
        // movzx r14d, al
        self.hot.op_reg(false, &[0x0f, 0xb6], reg::R14, reg::RAX);
        let mem = Mem { base: Some(reg::RBX), index: Some(reg::R14), scale: 1, disp: 0 };
        let width = instruction.memory_base().size();
        self.hot.lea(width == 8, reg::R14, mem);
        if width == 2 {
            self.hot.op_reg(false, &[0x0f, 0xb7], reg::R14, reg::R14);
        }
        self.add_segment(instruction, Offset::InScratch);
    }

    /// The address of the word that a bit test with a register operand selects.
    fn bit_address(&mut self, instruction: &Instruction, size: u32) {
        if let Offset::Constant(offset) = self.offset_adjusted(instruction, 0) {
            self.hot.constant(reg::R14, offset);
        }
        let bits = number(instruction.op1_register());
        if is_stolen(bits) {
            self.load_guest(reg::R15, bits);
        } else {
            self.hot.mov(reg::R15, bits);
        }
        match size {
            // movsx r15, r15w / movsxd r15, r15d
            2 => self.hot.op_reg(true, &[0x0f, 0xbf], reg::R15, reg::R15),
            4 => self.hot.op_reg(true, &[0x63], reg::R15, reg::R15),
            _ => {}
        }
        // sar r15, log2(bits); lea r14, [r14 + r15 * bytes]
        let shift = low8(u64::from((size * 8).trailing_zeros()));
        self.hot.put(&[0x49, 0xc1, 0xff, shift]);
        let scale = u8::try_from(size).unwrap_or(8);
        let mem = Mem { base: Some(reg::R14), index: Some(reg::R15), scale, disp: 0 };
        // The sum is an offset like any other: cut to the address size, then added to the segment's base.
        let width = address_width(instruction, self.conditions.bits);
        self.hot.lea(width == 8, reg::R14, mem);
        if width == 2 {
            self.hot.op_reg(false, &[0x0f, 0xb7], reg::R14, reg::R14);
        }
        self.add_segment(instruction, Offset::InScratch);
        // The bit's number in the word, for later: cutting clobbers flags, so it is done now.
        if is_stolen(bits) {
            self.load_guest(reg::R15, bits);
        } else {
            self.hot.mov(reg::R15, bits);
        }
        self.hot.group1(false, 4, reg::R15, (size * 8 - 1).cast_signed());
        self.hot.store(Mem::at(self.layout.spill(2)), reg::R15);
    }

    /// The bit test proper, with the bit number cut to the word.
    fn bit_operation(&mut self, instruction: &Instruction, size: u32) {
        self.hot.load(reg::R15, Mem::at(self.layout.spill(2)));
        let mut rewritten = *instruction;
        rewritten.set_op1_register(match size {
            2 => Register::R15W,
            4 => Register::R15D,
            _ => Register::R15,
        });
        point_at(&mut rewritten, Register::R14, 0);
        self.mark(instruction.ip());
        self.encode(&rewritten);
    }

    /// An instruction with stolen registers replaced and, given a displacement, its memory operand by
    /// `[r14 + displacement]`.
    pub(crate) fn rewritten(&mut self, decoded: &Decoded, mut instruction: Instruction, memory: Option<i32>) {
        let original = decoded.instruction;
        let mut free = Free { scratch: if memory.is_some() { &[reg::R15] } else { &[reg::R14, reg::R15] } };
        let mut replaced: [Option<Replaced>; 2] = [None, None];
        for slot in [reg::R14, reg::R15] {
            let Some(usage) = usage(&mut self.factory, &original, slot) else { continue };
            let host = match free.take() {
                Some(host) => host,
                None => self.borrow_for(&original),
            };
            if usage.loads {
                self.load_guest(host, slot);
            }
            replaced[usize::from(slot - reg::R14)] =
                Some(Replaced { guest: slot, host, stores: usage.stores });
        }
        for op in 0..instruction.op_count() {
            let Some(guest) = stolen_operand(&original, op) else { continue };
            if let Some(replaced) = replaced[usize::from(guest - reg::R14)] {
                instruction.set_op_register(op, renamed(original.op_register(op), replaced.host));
            }
        }
        if let Some(displacement) = memory {
            let mut base = reg::R14;
            if (0..original.op_count()).any(|op| is_high_byte(&original, op)) {
                base = self.borrow_for(&original);
                self.hot.mov(base, reg::R14);
            }
            point_at(&mut instruction, gpr64(base), displacement);
        }
        self.mark_instruction(original.ip(), is_x87(&original));
        self.encode(&instruction);
        for replaced in replaced.into_iter().flatten().filter(|replaced| replaced.stores) {
            self.store_guest(replaced.guest, replaced.host);
        }
        self.return_register();
    }

    /// Saves a register that the instruction does not use, for its use as scratch.
    fn borrow_for(&mut self, instruction: &Instruction) -> u8 {
        let info = self.factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        let used = |register: &Register| {
            info.used_registers().iter().any(|used| used.register().full_register() == *register)
        };
        // No instruction uses seven registers beside its memory operand's.
        let register = BORROWABLE.iter().copied().find(|register| !used(register)).unwrap_or(Register::RBX);
        self.borrow_register(number(register));
        number(register)
    }

    /// Encodes a rewritten instruction as 64-bit code.
    pub(crate) fn encode(&mut self, instruction: &Instruction) {
        let mut instruction = *instruction;
        instruction.set_code(encodable(instruction.code()));
        self.encoder.set_buffer(core::mem::take(&mut self.hot.bytes));
        // The position does not matter: nothing that is encoded here is relative to it.
        let encoded = self.encoder.encode(&instruction, 0);
        self.hot.bytes = self.encoder.take_buffer();
        if encoded.is_err() {
            // An instruction that this translator's tables do not know how to rewrite: let the CPU say #UD.
            self.hot.put(&[0x0f, 0x0b]);
        }
    }
}

/// Scratch registers not yet given to an operand.
struct Free {
    scratch: &'static [u8],
}

impl Free {
    fn take(&mut self) -> Option<u8> {
        let (last, rest) = self.scratch.split_last()?;
        self.scratch = rest;
        Some(*last)
    }
}

/// A stolen register that an instruction names.
#[derive(Clone, Copy)]
struct Replaced {
    guest: u8,
    host: u8,
    stores: bool,
}

/// How an instruction uses a stolen register.
struct Usage {
    loads: bool,
    stores: bool,
}

fn usage(
    factory: &mut iced_x86::InstructionInfoFactory,
    instruction: &Instruction,
    guest: u8,
) -> Option<Usage> {
    let mut found: Option<Usage> = None;
    let options = InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
    let info = factory.info_options(instruction, options);
    for op in 0..instruction.op_count() {
        if stolen_operand(instruction, op) != Some(guest) {
            continue;
        }
        let whole = instruction.op_register(op).size() >= 4;
        let (loads, stores) = match info.op_access(op) {
            OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead => (true, false),
            OpAccess::Write => (!whole, true),
            OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        };
        let before = found.unwrap_or(Usage { loads: false, stores: false });
        found = Some(Usage { loads: before.loads || loads, stores: before.stores || stores });
    }
    found
}

/// The stolen register that an operand is, if it is one.
fn stolen_operand(instruction: &Instruction, operand: u32) -> Option<u8> {
    if instruction.op_kind(operand) != OpKind::Register {
        return None;
    }
    let register = instruction.op_register(operand);
    (register.is_gpr() && is_stolen(number(register))).then(|| number(register))
}

fn is_high_byte(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_kind(operand) == OpKind::Register
        && matches!(
            instruction.op_register(operand),
            Register::AH | Register::BH | Register::CH | Register::DH
        )
}

/// Makes an instruction's memory operand `[base + displacement]`.
pub(crate) fn point_at(instruction: &mut Instruction, base: Register, displacement: i32) {
    instruction.set_segment_prefix(Register::None);
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(i64::from(displacement).cast_unsigned());
    // 8: "a 32-bit displacement in 64-bit addressing"; the encoder shortens it where it can.
    instruction.set_memory_displ_size(if displacement == 0 { 0 } else { 8 });
}

/// The 64-bit register of a number.
pub(crate) fn gpr64(number: u8) -> Register {
    const ALL: [Register; 16] = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    ALL[usize::from(number & 15)]
}

/// The register of the same width as `like` with another number. Never a high byte.
fn renamed(like: Register, host: u8) -> Register {
    const BYTES: [Register; 16] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
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
    let index = u32::from(host & 15);
    match like.size() {
        1 => BYTES[usize::from(host & 15)],
        2 => Register::AX + index,
        4 => Register::EAX + index,
        _ => Register::RAX + index,
    }
}

/// The form of an instruction that 64-bit code has too, and that takes any register or address.
#[expect(clippy::wildcard_enum_match_arm, reason = "names the few forms that differ")]
pub(crate) fn encodable(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        other => other,
    }
}

/// Bytes of an address, before segmentation.
pub(crate) fn address_width(instruction: &Instruction, bits: Bits) -> u32 {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let register = if base == Register::None { index } else { base };
    if register != Register::None {
        return u32::try_from(register.size()).unwrap_or(8);
    }
    match (instruction.memory_displ_size(), bits) {
        (0, Bits::B64) => 8,
        (0, Bits::B32) => 4,
        (size, _) => size,
    }
}

/// Whether 64-bit code's LEA can run as it is.
pub(crate) fn copies_address(instruction: &Instruction) -> bool {
    let stolen = |register: Register| register != Register::None && is_stolen(number(register));
    !instruction.is_ip_rel_memory_operand()
        && !stolen(instruction.op0_register())
        && !stolen(instruction.memory_base())
        && !stolen(instruction.memory_index())
}

/// Whether the CPU must be asked if an access that cannot be made is made: elements may be masked out, a store may not
/// happen because of a floating-point exception, and one of an MMX register has cleared TOP when it faults.
pub(crate) fn is_masked(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic;
    instruction.has_op_mask()
        || (instruction.op0_kind() == OpKind::Memory && instruction.op1_register().is_mm())
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Vcvtps2ph
                | Mnemonic::Fst
                | Mnemonic::Fstp
                | Mnemonic::Fist
                | Mnemonic::Fistp
                | Mnemonic::Fisttp
                | Mnemonic::Fbstp
        )
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq
        )
}

/// Whether the operand's segment is SS, so that a bad address is #SS. Of the overrides, 64-bit code obeys two.
pub(crate) fn uses_stack_segment(instruction: &Instruction) -> bool {
    let base = instruction.memory_base().full_register();
    let by_base = matches!(base, Register::RSP | Register::RBP);
    match (instruction.segment_prefix(), instruction.code_size()) {
        (Register::FS | Register::GS, _) => false,
        (Register::None, _) | (_, iced_x86::CodeSize::Code64) => by_base,
        (prefix, _) => prefix == Register::SS,
    }
}

/// Where an address is after emission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offset {
    Constant(u64),
    InScratch,
}
