//! Segment registers, far transfers, and what asks about selectors.
//!
//! Every load goes through the descriptor tables with the checks of the CPU at the guest's privilege level; a selector
//! that would fault there faults here. Sources: AMD APM vol. 2, "Segment Loads, and Segment-Protection Checks";
//! vol. 3, the pages of each instruction.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use paravane_abi::units::{MachAddr, PAGE_SIZE};
use paravane_engine::{Exit, GDT_FRAMES, Segment, SegmentAttributes, SegmentRegister, rflags, vector};

use crate::bits::{low8, low16};
use crate::emit::Bits;
use crate::engine::Translator;
use crate::help::{Done, exception, exception_with, stack_slot};
use crate::state::Path;

/// Descriptors in a page.
const PER_PAGE: usize = 512;

/// A descriptor and where it lies.
#[derive(Clone, Copy, Debug)]
struct Found {
    value: u64,
    at: Option<MachAddr>,
}

/// The segment register of iced's name.
pub(crate) fn register(register: Register) -> SegmentRegister {
    match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// The error code that names a selector.
fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Translator {
    /// MOV, PUSH, POP and far-pointer loads of segment registers.
    pub(crate) fn segment_instruction(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let is_segment = |op: u32| {
            op < instruction.op_count()
                && instruction.op_kind(op) == OpKind::Register
                && instruction.op_register(op).is_segment_register()
        };
        match instruction.mnemonic() {
            Mnemonic::Push => {
                let selector = self.selector(register(instruction.op0_register()));
                let size = instruction.stack_pointer_increment().unsigned_abs() as usize;
                if size != 4 {
                    return self.push_number(u64::from(selector), size);
                }
                // The upper half of the slot stays as it was.
                let before = self.stack_pointer();
                self.set_stack_pointer(before.wrapping_sub(2));
                let pushed = self.push_number(u64::from(selector), 2);
                if pushed.is_err() {
                    self.set_stack_pointer(before);
                }
                pushed
            }
            Mnemonic::Pop => {
                let size = instruction.stack_pointer_increment().unsigned_abs() as usize;
                // Of the slot only the selector is read.
                let value = self.peek(0, 2)?;
                self.load_segment(register(instruction.op0_register()), low16(value))?;
                self.set_stack_pointer(self.stack_pointer().wrapping_add(size as u64));
                Ok(())
            }
            Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
                self.load_far_pointer(instruction)
            }
            _ if is_segment(0) => {
                let value = self.operand(instruction, 1, 2)?;
                let target = register(instruction.op0_register());
                if target == SegmentRegister::Cs {
                    return Err(exception(vector::INVALID_OPCODE));
                }
                self.load_segment(target, low16(value))
            }
            _ => {
                let selector = u64::from(self.selector(register(instruction.op1_register())));
                if instruction.op0_kind() == OpKind::Register {
                    self.set(instruction.op0_register(), selector);
                    return Ok(());
                }
                let linear = self.checked(instruction, 2, Path::Write)?;
                self.write_number(linear, 2, selector)
            }
        }
    }

    fn load_far_pointer(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let target = match instruction.mnemonic() {
            Mnemonic::Les => SegmentRegister::Es,
            Mnemonic::Lss => SegmentRegister::Ss,
            Mnemonic::Lfs => SegmentRegister::Fs,
            Mnemonic::Lgs => SegmentRegister::Gs,
            _ => SegmentRegister::Ds,
        };
        let size = instruction.op0_register().size();
        let linear = self.far_pointer(instruction, size)?;
        let offset = self.read_number(linear, size)?;
        let selector = self.read_number(linear.wrapping_add(size as u64), 2)?;
        self.load_segment(target, low16(selector))?;
        self.set(instruction.op0_register(), offset);
        Ok(())
    }

    /// The linear address of a far pointer in memory. One of 32 bits is aligned as two words.
    fn far_pointer(&self, instruction: &Instruction, size: usize) -> Result<u64, Exit> {
        let linear = self.checked_pair(instruction, size + 2, Path::Read)?;
        self.check_alignment(linear, if size == 2 { 2 } else { size as u64 + 2 })?;
        Ok(linear)
    }

    fn selector(&self, which: SegmentRegister) -> u16 {
        self.cpu.state().context.segment(which).selector
    }

    /// Reads the descriptor that a selector names. `Ok(None)` if it is beyond its table.
    fn descriptor(&self, selector: u16) -> Result<Option<Found>, Exit> {
        let tables = &self.cpu.state().context.descriptors;
        let index = usize::from(selector >> 3);
        let (page, slot) = (index / PER_PAGE, index % PER_PAGE);
        let frame = if selector & 4 == 0 {
            if page >= GDT_FRAMES {
                return Ok(None);
            }
            let Some(frame) = tables.gdt[page] else { return Ok(Some(Found { value: 0, at: None })) };
            frame
        } else {
            if index >= usize::from(tables.ldt_entries) {
                return Ok(None);
            }
            let Some(frame) = tables.ldt.get(page).copied().flatten() else {
                return Err(Exit::LdtPage { index: low8(page as u64) });
            };
            frame
        };
        let at = MachAddr(frame.0 * PAGE_SIZE + slot as u64 * 8);
        Ok(Some(Found { value: self.memory.load_u64(at).unwrap_or(0), at: Some(at) }))
    }

    /// Sets the accessed bit, as a load does.
    fn mark_accessed(&self, found: Found) -> u64 {
        const ACCESSED: u64 = 1 << 40;
        if found.value & ACCESSED == 0
            && let Some(at) = found.at
        {
            // A frame that is not there cannot have given the descriptor.
            let _old = self.memory.fetch_or_u64(at, ACCESSED);
        }
        found.value | ACCESSED
    }

    /// Loads a data segment register (any but CS).
    pub(crate) fn load_segment(&mut self, target: SegmentRegister, selector: u16) -> Result<(), Exit> {
        let cpl = self.cpu.state().context.cpl();
        let refused = exception_with(vector::GENERAL_PROTECTION, selector_error(selector));
        let is_stack = target == SegmentRegister::Ss;
        if selector & !3 == 0 {
            if is_stack {
                return Err(exception_with(vector::GENERAL_PROTECTION, 0));
            }
            *self.cpu.state_mut().context.segment_mut(target) = Segment::null(selector);
            return Ok(());
        }
        let found = self.descriptor(selector)?.ok_or(refused)?;
        let attributes = SegmentAttributes::of_descriptor(found.value);
        let rpl = (selector & 3) as u8;
        let code = attributes.has(SegmentAttributes::CODE);
        let readable_or_writable = attributes.has(SegmentAttributes::READABLE_OR_WRITABLE);
        let allowed = if is_stack {
            !code && readable_or_writable && rpl == cpl && attributes.dpl() == cpl
        } else {
            let conforming = code && attributes.has(SegmentAttributes::CONFORMING_OR_DOWN);
            (!code || readable_or_writable)
                && (conforming || (rpl <= attributes.dpl() && cpl <= attributes.dpl()))
        };
        if !attributes.has(SegmentAttributes::USER_SEGMENT) || !allowed {
            return Err(refused);
        }
        if !attributes.has(SegmentAttributes::PRESENT) {
            let vector = if is_stack { vector::STACK } else { vector::SEGMENT_NOT_PRESENT };
            return Err(exception_with(vector, selector_error(selector)));
        }
        let value = self.mark_accessed(found);
        *self.cpu.state_mut().context.segment_mut(target) = Segment::of_descriptor(selector, value);
        Ok(())
    }

    /// Checks a selector for CS in a transfer that keeps the privilege level.
    fn code_segment(&mut self, selector: u16, returns: bool) -> Result<Segment, Exit> {
        let cpl = self.cpu.state().context.cpl();
        if selector & !3 == 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        let refused = exception_with(vector::GENERAL_PROTECTION, selector_error(selector));
        let found = self.descriptor(selector)?.ok_or(refused)?;
        let attributes = SegmentAttributes::of_descriptor(found.value);
        let rpl = (selector & 3) as u8;
        let conforming = attributes.has(SegmentAttributes::CONFORMING_OR_DOWN);
        let privilege = match (conforming, returns) {
            (true, false) => attributes.dpl() <= cpl,
            (true, true) => attributes.dpl() <= rpl && rpl == cpl,
            (false, false) => rpl <= cpl && attributes.dpl() == cpl,
            (false, true) => rpl == cpl && attributes.dpl() == rpl,
        };
        let both = attributes.has(SegmentAttributes::LONG | SegmentAttributes::BIG);
        let code = attributes.has(SegmentAttributes::USER_SEGMENT | SegmentAttributes::CODE);
        if !code || both || !privilege {
            return Err(refused);
        }
        if !attributes.has(SegmentAttributes::PRESENT) {
            return Err(exception_with(vector::SEGMENT_NOT_PRESENT, selector_error(selector)));
        }
        let value = self.mark_accessed(found);
        Ok(Segment::of_descriptor(selector & !3 | u16::from(cpl), value))
    }

    /// Checks where a transfer goes: canonical in 64-bit code, within the limit in 32-bit code.
    fn target(&self, segment: &Segment, offset: u64) -> Result<u64, Exit> {
        let refused = exception_with(vector::GENERAL_PROTECTION, 0);
        if segment.attributes.has(SegmentAttributes::LONG) {
            return if paravane_abi::units::GuestVirt(offset).is_canonical() {
                Ok(offset)
            } else {
                Err(refused)
            };
        }
        let offset = offset & 0xffff_ffff;
        if offset > u64::from(segment.limit) { Err(refused) } else { Ok(offset) }
    }

    /// Far JMP and CALL.
    pub(crate) fn far_transfer(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let call = instruction.is_call_far() || instruction.is_call_far_indirect();
        let size = match instruction.op_code().operand_size() {
            16 => 2,
            64 => 8,
            _ => 4,
        };
        let (selector, offset) = if instruction.op0_kind() == OpKind::Memory {
            let linear = self.far_pointer(instruction, size)?;
            let offset = self.read_number(linear, size)?;
            (low16(self.read_number(linear.wrapping_add(size as u64), 2)?), offset)
        } else {
            let offset = if size == 2 {
                u64::from(instruction.far_branch16())
            } else {
                u64::from(instruction.far_branch32())
            };
            (instruction.far_branch_selector(), offset)
        };
        let segment = self.code_segment(selector, false)?;
        let before = self.stack_pointer();
        if call {
            let old = u64::from(self.selector(SegmentRegister::Cs));
            self.push_number(old, size)?;
            let pushed = self.push_number(instruction.next_ip(), size);
            pushed.inspect_err(|_| self.set_stack_pointer(before))?;
        }
        // A target that cannot be leaves what was pushed in memory.
        let target = self.target(&segment, offset);
        let target = target.inspect_err(|_| self.set_stack_pointer(before))?;
        *self.cpu.state_mut().context.segment_mut(SegmentRegister::Cs) = segment;
        Ok(Done::Jump(target))
    }

    /// Far RET, within the privilege level.
    pub(crate) fn far_return(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let size = stack_slot(instruction, self.env.bits);
        let size = if instruction.op_code().operand_size() == 0 { 4 } else { size };
        let selector = low16(self.peek(size as u64, 2)?);
        let offset = self.peek(0, size)?;
        let segment = self.code_segment(selector, true)?;
        let target = self.target(&segment, offset)?;
        let extra = if instruction.op_count() == 0 { 0 } else { u64::from(instruction.immediate16()) };
        *self.cpu.state_mut().context.segment_mut(SegmentRegister::Cs) = segment;
        self.set_stack_pointer(self.stack_pointer().wrapping_add(2 * size as u64 + extra));
        Ok(Done::Jump(target))
    }

    /// IRET, within the privilege level: an ordinary return that also loads flags.
    pub(crate) fn interrupt_return(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let size = match instruction.mnemonic() {
            Mnemonic::Iret => 2,
            Mnemonic::Iretd => 4,
            _ => 8,
        };
        if self.cpu.state().context.rflags & rflags::NT != 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        let step = size as u64;
        let flags = self.peek(2 * step, size.min(4))?;
        let selector = low16(self.peek(step, 2)?);
        let offset = self.peek(0, size)?;
        let segment = self.code_segment(selector, true)?;
        let target = self.target(&segment, offset);
        let target = match self.env.bits {
            Bits::B64 => {
                let stack = low16(self.peek(4 * step, 2)?);
                let pointer = self.peek(3 * step, size)?;
                // The stack's segment is checked before the target is.
                let before = *self.cpu.state().context.segment(SegmentRegister::Ss);
                self.load_segment(SegmentRegister::Ss, stack)?;
                let target = target.inspect_err(|_| {
                    *self.cpu.state_mut().context.segment_mut(SegmentRegister::Ss) = before;
                })?;
                self.set(Register::RSP, pointer);
                target
            }
            Bits::B32 => {
                let target = target?;
                self.set_stack_pointer(self.stack_pointer().wrapping_add(3 * step));
                target
            }
        };
        *self.cpu.state_mut().context.segment_mut(SegmentRegister::Cs) = segment;
        self.set_flags(flags, size);
        Ok(Done::Jump(target))
    }

    /// LAR, LSL, VERR, VERW and ARPL.
    pub(crate) fn selector_instruction(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        if instruction.mnemonic() == Mnemonic::Arpl {
            return self.adjust_rpl(instruction);
        }
        let source = if instruction.op_count() == 2 { 1 } else { 0 };
        let selector = low16(self.operand(instruction, source, 2)?);
        let found = if selector & !3 == 0 { None } else { self.descriptor(selector)? };
        let answer = found.and_then(|found| self.describe(instruction.mnemonic(), selector, found.value));
        let context = &mut self.cpu.state_mut().context;
        match answer {
            None => context.rflags &= !rflags::ZF,
            Some(value) => {
                context.rflags |= rflags::ZF;
                if instruction.op_count() == 2 {
                    self.set(instruction.op0_register(), value);
                }
            }
        }
        Ok(())
    }

    /// What LAR or LSL returns for a descriptor that the guest may ask about; zero for VERR and VERW that succeed.
    fn describe(&self, mnemonic: Mnemonic, selector: u16, descriptor: u64) -> Option<u64> {
        let attributes = SegmentAttributes::of_descriptor(descriptor);
        let cpl = self.cpu.state().context.cpl();
        let rpl = (selector & 3) as u8;
        let code = attributes.has(SegmentAttributes::CODE);
        let user = attributes.has(SegmentAttributes::USER_SEGMENT);
        let conforming = user && code && attributes.has(SegmentAttributes::CONFORMING_OR_DOWN);
        let visible = conforming || (cpl <= attributes.dpl() && rpl <= attributes.dpl());
        let right = attributes.has(SegmentAttributes::READABLE_OR_WRITABLE);
        let kind = attributes.0 & SegmentAttributes::TYPE;
        let limit = u64::from(Segment::of_descriptor(selector, descriptor).limit);
        let allowed = match mnemonic {
            Mnemonic::Verr => user && (!code || right),
            Mnemonic::Verw => user && !code && right,
            // In long mode: LDT and TSS have limits; call gates have rights as well.
            Mnemonic::Lsl => user || matches!(kind, 2 | 9 | 11),
            _ => user || matches!(kind, 2 | 9 | 11 | 12),
        };
        if !visible || !allowed {
            return None;
        }
        Some(match mnemonic {
            Mnemonic::Lsl => limit,
            // The limit's upper bits come along, on every processor that was asked.
            Mnemonic::Lar => (descriptor >> 32) & 0x00ff_ff00,
            _ => 0,
        })
    }

    fn adjust_rpl(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let target = self.operand(instruction, 0, 2)?;
        let rpl = self.get(instruction.op1_register()) & 3;
        let adjust = target & 3 < rpl;
        if adjust {
            let value = target & !3 | rpl;
            if instruction.op0_kind() == OpKind::Register {
                self.set(instruction.op0_register(), value);
            } else {
                let linear = self.checked(instruction, 2, Path::Write)?;
                self.write_number(linear, 2, value)?;
            }
        }
        let flags = &mut self.cpu.state_mut().context.rflags;
        *flags = *flags & !rflags::ZF | if adjust { rflags::ZF } else { 0 };
        Ok(())
    }

    /// WRFSBASE and WRGSBASE.
    pub(crate) fn write_base(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let value = self.get(instruction.op0_register());
        if !paravane_abi::units::GuestVirt(value).is_canonical() {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        let which = match instruction.mnemonic() {
            Mnemonic::Wrfsbase => SegmentRegister::Fs,
            _ => SegmentRegister::Gs,
        };
        self.cpu.state_mut().context.segment_mut(which).base = value;
        Ok(())
    }
}
