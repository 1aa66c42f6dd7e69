//! PUSH, POP and LEAVE, and the stack halves of CALL and RET.
//!
//! The guest's stack pointer is the host's, so only the access needs translation; RSP changes by LEA, which leaves
//! flags alone, after everything that can fault.

use core::mem::offset_of;

use iced_x86::{Instruction, OpKind};
use paravane_engine::{VcpuContext, rflags};

use crate::asm::{Mem, Size, reg};
use crate::bits::low32;
use crate::check::Check;
use crate::classify::StackOp;
use crate::emit::{Bits, Decoded, Emitter};
use crate::operand::{Offset, is_stolen, number, uses_stack_segment};
use crate::reuse::Share;
use crate::state::{Path, State};

impl Emitter {
    /// PUSH, POP or LEAVE.
    pub(crate) fn stack(&mut self, decoded: &Decoded, operation: StackOp) {
        if operation == StackOp::PushFlags {
            self.flags_word();
        }
        self.before_access(decoded.live_before());
        match operation {
            StackOp::PushFlags => self.push_flags(&decoded.instruction),
            StackOp::Push => self.push(&decoded.instruction),
            StackOp::Pop => self.pop(&decoded.instruction),
            StackOp::Leave => self.leave_frame(&decoded.instruction),
        }
        self.finish(Some(decoded.instruction.next_ip()));
    }

    fn push(&mut self, instruction: &Instruction) {
        let size = slot(instruction.stack_pointer_increment());
        let kind = instruction.op0_kind();
        if kind == OpKind::Memory {
            let check = Check {
                rip: instruction.ip(),
                size: size.bytes(),
                path: Path::Read,
                masked: false,
                stack: uses_stack_segment(instruction),
                segment: crate::segments::register(instruction.memory_segment()),
            };
            let offset = self.operand_check(instruction, check);
            self.mark(instruction.ip());
            self.hot.load_sized(size, reg::R15, Mem::off(reg::R14, offset));
            self.hot.store(Mem::at(self.layout.spill(2)), reg::R15);
        }
        let at = self.stack_write_check(instruction, size);
        let slot = Mem::off(reg::R14, at);
        if kind == OpKind::Register {
            let register = number(instruction.op0_register());
            if is_stolen(register) {
                self.load_guest(reg::R15, register);
                self.hot.store_sized(size, slot, reg::R15);
            } else {
                self.hot.store_sized(size, slot, register);
            }
        } else if kind == OpKind::Memory {
            self.hot.load(reg::R15, Mem::at(self.layout.spill(2)));
            self.hot.store_sized(size, slot, reg::R15);
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "pushed immediates are sign-extended 32-bit values"
            )]
            self.hot.store_imm(size, slot, instruction.immediate(0) as i32);
        }
        self.move_stack_pointer(-size.bytes().cast_signed());
    }

    /// Puts RFLAGS together in a spill slot. The guest's status flags are in memory afterwards.
    fn flags_word(&mut self) {
        const IN_AH: i32 = 0xd5;
        // What PUSHF never shows, and what is kept elsewhere.
        let elsewhere = rflags::STATUS | rflags::DF | rflags::RF | rflags::VM;
        let status = self.layout.field(offset_of!(State, status));
        let rest = offset_of!(State, context) + offset_of!(VcpuContext, rflags);
        self.put_flags_away();
        self.clobber_flags();
        // movzx r15d, byte [status + 1]: what LAHF gave; movzx r14d, byte [status]: what SETO gave
        self.hot.op_mem(false, &[0x0f, 0xb6], reg::R15, Mem::at(status + 1));
        self.hot.op_mem(false, &[0x0f, 0xb6], reg::R14, Mem::at(status));
        self.hot.group1(false, 4, reg::R15, IN_AH);
        self.hot.shl32(reg::R14, 11);
        self.hot.or32(reg::R15, reg::R14);
        self.hot.load32(reg::R14, Mem::at(self.layout.field(offset_of!(State, direction))));
        self.hot.shl32(reg::R14, 10);
        self.hot.or32(reg::R15, reg::R14);
        self.hot.load32(reg::R14, Mem::at(self.layout.field(rest)));
        self.hot.group1(false, 4, reg::R14, low32(!elsewhere).cast_signed());
        self.hot.or32(reg::R15, reg::R14);
        self.hot.store(Mem::at(self.layout.spill(2)), reg::R15);
    }

    fn push_flags(&mut self, instruction: &Instruction) {
        let at = self.stack_write_check(instruction, Size::Qword);
        self.hot.load(reg::R15, Mem::at(self.layout.spill(2)));
        self.hot.store(Mem::off(reg::R14, at), reg::R15);
        self.move_stack_pointer(-8);
    }

    fn pop(&mut self, instruction: &Instruction) {
        let size = slot(instruction.stack_pointer_increment());
        let bytes = size.bytes().cast_signed();
        let at = self.stack_read_check(instruction, reg::RSP, size);
        if instruction.op0_kind() == OpKind::Memory {
            self.hot.load_sized(size, reg::R15, Mem::off(reg::R14, at));
            self.hot.store(Mem::at(self.layout.spill(2)), reg::R15);
            let check = Check {
                rip: instruction.ip(),
                size: size.bytes(),
                path: Path::Write,
                masked: false,
                stack: uses_stack_segment(instruction),
                segment: crate::segments::register(instruction.memory_segment()),
            };
            let offset = match self.address(instruction, bytes) {
                Offset::Constant(address) => self.check_constant(address, check),
                Offset::InScratch => {
                    self.check(check);
                    0
                }
            };
            self.mark(instruction.ip());
            self.hot.load(reg::R15, Mem::at(self.layout.spill(2)));
            self.hot.store_sized(size, Mem::off(reg::R14, offset), reg::R15);
            self.move_stack_pointer(bytes);
            return;
        }
        let register = number(instruction.op0_register());
        let slot = Mem::off(reg::R14, at);
        // A popped RSP is the value, whatever the increment.
        if size == Size::Word {
            self.hot.load_sized(size, reg::R15, slot);
            self.move_stack_pointer(bytes);
            if is_stolen(register) {
                self.hot.store_sized(Size::Word, Mem::at(self.layout.gpr(register)), reg::R15);
            } else {
                self.hot.put(&[0x66]);
                self.hot.op_reg(false, &[0x89], reg::R15, register);
            }
        } else if is_stolen(register) {
            self.hot.load_sized(size, reg::R15, slot);
            self.move_stack_pointer(bytes);
            self.store_guest(register, reg::R15);
        } else if register == reg::RSP {
            self.hot.load_sized(size, reg::RSP, slot);
        } else {
            self.hot.load_sized(size, register, slot);
            self.move_stack_pointer(bytes);
        }
    }

    fn leave_frame(&mut self, instruction: &Instruction) {
        let size = slot(leave_slot(instruction));
        let at = self.stack_read_check(instruction, reg::RBP, size);
        self.hot.load_sized(size, reg::R15, Mem::off(reg::R14, at));
        let wide = self.conditions.bits == Bits::B64;
        self.hot.lea(wide, reg::RSP, Mem::off(reg::RBP, size.bytes().cast_signed()));
        match size {
            Size::Word => {
                self.hot.put(&[0x66]);
                self.hot.op_reg(false, &[0x89], reg::R15, reg::RBP);
            }
            Size::Dword => self.hot.mov32(reg::RBP, reg::R15),
            Size::Qword => self.hot.mov(reg::RBP, reg::R15),
        }
    }

    /// The slot that a push writes: its host address to R14, but for the displacement that is returned.
    pub(crate) fn stack_write_check(&mut self, instruction: &Instruction, size: Size) -> i32 {
        self.stack_check(instruction, (reg::RSP, -size.bytes().cast_signed()), size, Path::Write)
    }

    /// The slot that a pop through `pointer` reads: its host address to R14, but for the displacement that is
    /// returned.
    pub(crate) fn stack_read_check(&mut self, instruction: &Instruction, pointer: u8, size: Size) -> i32 {
        self.stack_check(instruction, (pointer, 0), size, Path::Read)
    }

    fn stack_check(
        &mut self,
        instruction: &Instruction,
        (pointer, displacement): (u8, i32),
        size: Size,
        path: Path,
    ) -> i32 {
        let check = Check {
            rip: instruction.ip(),
            size: size.bytes(),
            path,
            masked: false,
            stack: true,
            segment: paravane_engine::SegmentRegister::Ss,
        };
        let at = match self.share {
            Share::Alone => {
                self.stack_address(pointer, displacement);
                self.check(check);
                0
            }
            Share::Leads(lead) => {
                self.stack_address(pointer, lead.start);
                self.lead(lead, check)
            }
            Share::Follows { slot, at } => self.follow(slot, at),
        };
        self.mark(instruction.ip());
        at
    }

    fn stack_address(&mut self, pointer: u8, displacement: i32) {
        let wide = self.conditions.bits == Bits::B64;
        self.hot.lea(wide, reg::R14, Mem::off(pointer, displacement));
        if !self.conditions.flat {
            let base = Mem::at(self.layout.segment(paravane_engine::SegmentRegister::Ss));
            self.hot.op_mem(false, &[0x03], reg::R14, base);
        }
    }

    /// Adds to the stack pointer without touching flags.
    pub(crate) fn move_stack_pointer(&mut self, bytes: i32) {
        let wide = self.conditions.bits == Bits::B64;
        self.hot.lea(wide, reg::RSP, Mem::off(reg::RSP, bytes));
    }

    /// The size of a near return address.
    pub(crate) fn pointer_size(&self) -> Size {
        match self.conditions.bits {
            Bits::B64 => Size::Qword,
            Bits::B32 => Size::Dword,
        }
    }
}

/// The size of a stack slot, from how far the stack pointer moves.
fn slot(increment: i32) -> Size {
    match increment.unsigned_abs() {
        2 => Size::Word,
        4 => Size::Dword,
        _ => Size::Qword,
    }
}

/// LEAVE pops RBP, EBP or BP.
#[expect(clippy::wildcard_enum_match_arm, reason = "LEAVE has three codes")]
fn leave_slot(instruction: &Instruction) -> i32 {
    match instruction.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    }
}
