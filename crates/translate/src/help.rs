//! Instructions that Rust performs: the way in, and the small ones.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use paravane_engine::{Exception, Exit, Interrupt, SegmentRegister, rflags, vector};

use crate::access::blame_stack;
use crate::classify::Helper;
use crate::emit::Bits;
use crate::engine::{Entry, Go, Translator};
use crate::operand::{address_width, number};
use crate::sites::HelperSite;
use crate::state::Path;

/// How a helper ended, other than by an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// The next instruction follows.
    Next,
    /// The guest continues elsewhere.
    Jump(u64),
}

impl Translator {
    /// Performs the instruction of a helper site.
    pub(crate) fn help(&mut self, site: HelperSite) -> Result<Go, Exit> {
        let Some(instruction) = self.emitter.instructions.get(site.instruction as usize).copied() else {
            return Ok(Go::At(site.rip));
        };
        self.flags_to_context();
        let done = self.perform(site.helper, &instruction)?;
        self.flags_changed();
        match done {
            Done::Jump(rip) => Ok(Go::At(rip)),
            Done::Next => {
                self.catch_up();
                let goes_on = site.resume != 0 && self.pages.is_alive(site.page) && !self.cpu.is_kicked();
                if goes_on {
                    let state = self.cpu.state_mut();
                    state.resume = u64::from(site.resume);
                    state.context.rip = instruction.next_ip();
                    return Ok(Go::Resume(Entry::Middle));
                }
                Ok(Go::At(instruction.next_ip()))
            }
        }
    }

    fn perform(&mut self, helper: Helper, instruction: &Instruction) -> Result<Done, Exit> {
        match helper {
            Helper::String => return self.string(instruction),
            Helper::FarTransfer => return self.far_transfer(instruction),
            Helper::FarReturn => return self.far_return(instruction),
            Helper::InterruptReturn => return self.interrupt_return(instruction),
            Helper::Branch => return self.near_branch(instruction),
            Helper::Enter => self.enter_frame(instruction)?,
            Helper::PushFlags => self.push_flags(instruction)?,
            Helper::PopFlags => self.pop_flags(instruction)?,
            Helper::AllRegisters => self.all_registers(instruction)?,
            Helper::Segment => self.segment_instruction(instruction)?,
            Helper::Selector => self.selector_instruction(instruction)?,
            Helper::StoreTable => self.store_table(instruction)?,
            Helper::WriteBase => self.write_base(instruction)?,
            Helper::ReadControl => self.read_extended_control()?,
            Helper::SaveState => self.save_state(instruction)?,
            Helper::SaveLegacy => self.save_legacy(instruction)?,
            Helper::ZeroVectors => self.zero_vectors(instruction),
            Helper::Elements => self.elements(instruction)?,
            Helper::MaskedMove => self.masked_move(instruction)?,
            Helper::Check => self.check_instruction(instruction)?,
            Helper::Decimal => self.decimal(instruction)?,
            Helper::Interrupt => return Err(self.software_interrupt(instruction)),
            Helper::SystemCall => return Err(self.system_call(instruction)),
            Helper::Privileged => return Err(self.privileged(instruction)?),
            Helper::Undefined => return Err(self.undefined(instruction)),
            Helper::NoDevice => return Err(exception(vector::NO_DEVICE)),
        }
        Ok(Done::Next)
    }

    // Registers and addresses.

    /// Reads a general-purpose register of any width, zero-extended.
    pub(crate) fn get(&self, register: Register) -> u64 {
        let value = self.cpu.state().context.gprs[usize::from(number(register))];
        match (register.size(), register) {
            (1, Register::AH | Register::CH | Register::DH | Register::BH) => {
                let parent = register as u32 - Register::AH as u32;
                self.cpu.state().context.gprs[parent as usize & 3] >> 8 & 0xff
            }
            (1, _) => value & 0xff,
            (2, _) => value & 0xffff,
            (4, _) => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes a general-purpose register: 32-bit writes clear the upper half, narrower ones keep the rest.
    pub(crate) fn set(&mut self, register: Register, value: u64) {
        let gprs = &mut self.cpu.state_mut().context.gprs;
        if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
            let parent = (register as u32 - Register::AH as u32) as usize & 3;
            gprs[parent] = gprs[parent] & !0xff00 | (value & 0xff) << 8;
            return;
        }
        let slot = &mut gprs[usize::from(number(register))];
        *slot = merged(*slot, value, register.size());
    }

    /// The linear address of an explicit memory operand.
    pub(crate) fn linear(&self, instruction: &Instruction) -> u64 {
        let part = |register: Register| {
            if register == Register::None { 0 } else { self.get(register) }
        };
        let offset = if instruction.is_ip_rel_memory_operand() {
            instruction.ip_rel_memory_address()
        } else {
            let scaled =
                part(instruction.memory_index()).wrapping_mul(u64::from(instruction.memory_index_scale()));
            instruction
                .memory_displacement64()
                .wrapping_add(part(instruction.memory_base()))
                .wrapping_add(scaled)
        };
        let width = address_width(instruction, self.env.bits);
        self.linear_of(crate::segments::register(instruction.memory_segment()), cut(offset, width))
    }

    /// A segment's base plus an offset.
    pub(crate) fn linear_of(&self, segment: SegmentRegister, offset: u64) -> u64 {
        let base = self.cpu.state().context.segment(segment).base;
        match (self.env.bits, segment) {
            (Bits::B64, SegmentRegister::Fs | SegmentRegister::Gs) => base.wrapping_add(offset),
            (Bits::B64, _) => offset,
            (Bits::B32, _) => base.wrapping_add(offset) & 0xffff_ffff,
        }
    }

    /// The linear address of a stack offset.
    fn stack_linear(&self, pointer: u64) -> u64 {
        self.linear_of(SegmentRegister::Ss, self.cut_stack(pointer))
    }

    fn cut_stack(&self, pointer: u64) -> u64 {
        match self.env.bits {
            Bits::B64 => pointer,
            Bits::B32 => pointer & 0xffff_ffff,
        }
    }

    /// The stack pointer.
    pub(crate) fn stack_pointer(&self) -> u64 {
        self.cut_stack(self.get(Register::RSP))
    }

    /// Sets the stack pointer.
    pub(crate) fn set_stack_pointer(&mut self, pointer: u64) {
        let pointer = self.cut_stack(pointer);
        self.set(Register::RSP, pointer);
    }

    /// The linear address of an explicit memory operand of `size` bytes, checked against its segment.
    pub(crate) fn checked(&self, instruction: &Instruction, size: usize, path: Path) -> Result<u64, Exit> {
        let linear = self.checked_pair(instruction, size, path)?;
        self.check_alignment(linear, size as u64)?;
        Ok(linear)
    }

    /// The same for an operand of `size` bytes in all that is no number and is aligned as its parts are.
    pub(crate) fn checked_pair(
        &self,
        instruction: &Instruction,
        size: usize,
        path: Path,
    ) -> Result<u64, Exit> {
        let linear = self.linear(instruction);
        let segment = crate::segments::register(instruction.memory_segment());
        self.check_segment(segment, linear, size as u64, path)?;
        let stack = crate::operand::uses_stack_segment(instruction);
        self.canonical_to_its_end(linear, size).map_err(|exit| blame_stack(exit, stack))?;
        Ok(linear)
    }

    /// Checks a stack slot.
    fn check_slot(&self, linear: u64, size: usize, path: Path) -> Result<(), Exit> {
        self.check_segment(SegmentRegister::Ss, linear, size as u64, path)?;
        self.canonical_to_its_end(linear, size).map_err(|exit| blame_stack(exit, true))?;
        self.check_alignment(linear, size as u64)
    }

    /// Reads a stack slot, `offset` bytes above the stack pointer.
    pub(crate) fn peek(&mut self, offset: u64, size: usize) -> Result<u64, Exit> {
        let linear = self.stack_linear(self.stack_pointer().wrapping_add(offset));
        self.check_slot(linear, size, Path::Read)?;
        self.read_number(linear, size).map_err(|exit| blame_stack(exit, true))
    }

    /// Pushes a number.
    pub(crate) fn push_number(&mut self, value: u64, size: usize) -> Result<(), Exit> {
        let pointer = self.stack_pointer().wrapping_sub(size as u64);
        let linear = self.stack_linear(pointer);
        self.check_slot(linear, size, Path::Write)?;
        self.write_number(linear, size, value).map_err(|exit| blame_stack(exit, true))?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Reads a general-purpose or memory operand.
    pub(crate) fn operand(
        &mut self,
        instruction: &Instruction,
        index: u32,
        size: usize,
    ) -> Result<u64, Exit> {
        match instruction.op_kind(index) {
            OpKind::Register => Ok(self.get(instruction.op_register(index))),
            _ => {
                let linear = self.checked(instruction, size, Path::Read)?;
                self.read_number(linear, size)
            }
        }
    }

    // The small ones.

    fn enter_frame(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let size = stack_slot(instruction, self.env.bits);
        let level = u64::from(instruction.immediate8_2nd() & 31);
        let frame_bytes = u64::from(instruction.immediate16());
        let step = size as u64;
        let frame = self.stack_pointer().wrapping_sub(step);
        // Frame pointers are copied one by one; what was written stays if a later one faults.
        let base = self.get(Register::RBP);
        let mut at = frame;
        self.store_slot(at, base, size)?;
        for index in 1..level {
            let from = self.stack_linear(base.wrapping_sub(step * index));
            self.check_slot(from, size, Path::Read)?;
            let outer = self.read_number(from, size).map_err(|exit| blame_stack(exit, true))?;
            at = at.wrapping_sub(step);
            self.store_slot(at, outer, size)?;
        }
        if level > 0 {
            at = at.wrapping_sub(step);
            self.store_slot(at, frame, size)?;
        }
        // The processor checks that the new top of the stack could be written.
        let top = at.wrapping_sub(frame_bytes);
        let linear = self.stack_linear(top);
        self.check_slot(linear, size, Path::Write)?;
        self.pages_for(linear, size, Path::Write).map_err(|exit| blame_stack(exit, true))?;
        self.set(if size == 2 { Register::BP } else { Register::RBP }, self.cut_stack(frame));
        self.set_stack_pointer(top);
        Ok(())
    }

    fn store_slot(&mut self, pointer: u64, value: u64, size: usize) -> Result<(), Exit> {
        let linear = self.stack_linear(pointer);
        self.check_slot(linear, size, Path::Write)?;
        self.write_number(linear, size, value).map_err(|exit| blame_stack(exit, true))
    }

    fn push_flags(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let size = stack_slot(instruction, self.env.bits);
        let flags = self.cpu.state().context.rflags & !(rflags::RF | rflags::VM);
        self.push_number(flags, size)
    }

    fn pop_flags(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let size = stack_slot(instruction, self.env.bits);
        let value = self.peek(0, size)?;
        self.set_stack_pointer(self.stack_pointer().wrapping_add(size as u64));
        self.set_flags(value, size);
        Ok(())
    }

    /// Loads flags as ring 3 may: IF, IOPL and VM stay.
    pub(crate) fn set_flags(&mut self, value: u64, size: usize) {
        let mut loadable = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
        if size > 2 {
            loadable |= rflags::AC | rflags::ID;
        }
        let flags = &mut self.cpu.state_mut().context.rflags;
        *flags = (*flags & !(loadable | rflags::RF)) | (value & loadable);
    }

    fn all_registers(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        const ORDER: [Register; 8] = [
            Register::EDI,
            Register::ESI,
            Register::EBP,
            Register::ESP,
            Register::EBX,
            Register::EDX,
            Register::ECX,
            Register::EAX,
        ];
        let push = matches!(instruction.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad);
        let size = if matches!(instruction.mnemonic(), Mnemonic::Pushad | Mnemonic::Popad) { 4 } else { 2 };
        let (step, top) = (size as u64, self.stack_pointer());
        // One by one: what came before a slot that faults is done, but the stack pointer has not moved.
        if push {
            for (index, register) in (1..).zip(ORDER.iter().rev()) {
                let value = self.get(*register);
                self.store_slot(top.wrapping_sub(step * index), value, size)?;
            }
            self.set_stack_pointer(top.wrapping_sub(8 * step));
            return Ok(());
        }
        for (index, register) in (0..).zip(ORDER) {
            let value = self.peek(step * index, size)?;
            if register != Register::ESP {
                let slot = &mut self.cpu.state_mut().context.gprs[usize::from(number(register))];
                *slot = merged(*slot, value, size);
            }
        }
        self.set_stack_pointer(top.wrapping_add(8 * step));
        Ok(())
    }

    /// BOUND and INTO.
    fn check_instruction(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        if instruction.mnemonic() == Mnemonic::Into {
            if self.cpu.state().context.rflags & rflags::OF == 0 {
                return Ok(());
            }
            let next_rip = instruction.next_ip();
            return Err(Exit::SoftwareInterrupt(Interrupt { vector: vector::OVERFLOW, next_rip }));
        }
        let size = instruction.op0_register().size();
        let linear = self.checked_pair(instruction, 2 * size, Path::Read)?;
        self.check_alignment(linear, size as u64)?;
        let low = sign_extend(self.read_number(linear, size)?, size);
        let index = sign_extend(self.get(instruction.op0_register()), size);
        // The second bound is only read if the first one holds.
        if index < low {
            return Err(exception(vector::BOUND));
        }
        let high = sign_extend(self.read_number(linear.wrapping_add(size as u64), size)?, size);
        if index > high {
            return Err(exception(vector::BOUND));
        }
        Ok(())
    }
}

/// A register's value after a write of some width.
pub(crate) fn merged(old: u64, value: u64, size: usize) -> u64 {
    match size {
        1 => old & !0xff | value & 0xff,
        2 => old & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// The low `width` bytes of an address.
pub(crate) fn cut(value: u64, width: u32) -> u64 {
    match width {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Sign-extends a number of some bytes.
pub(crate) fn sign_extend(value: u64, size: usize) -> i64 {
    let shift = 64 - 8 * size.clamp(1, 8);
    (value << shift).cast_signed() >> shift
}

/// An exception without error code.
pub(crate) fn exception(vector: u8) -> Exit {
    Exit::Exception(Exception { vector, error_code: None })
}

/// A #GP, #SS or #NP with an error code.
pub(crate) fn exception_with(vector: u8, error_code: u32) -> Exit {
    Exit::Exception(Exception { vector, error_code: Some(error_code) })
}

/// Bytes of a stack slot of an instruction without operands.
pub(crate) fn stack_slot(instruction: &Instruction, bits: Bits) -> usize {
    match (instruction.op_code().operand_size(), bits) {
        (16, _) => 2,
        (32, _) => 4,
        (64, _) | (_, Bits::B64) => 8,
        (_, Bits::B32) => 4,
    }
}
