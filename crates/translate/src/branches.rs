//! Near branches that translated code leaves to Rust: those of 32-bit code whose operand size is 16 bits, which cut
//! EIP, those that count in CX, and all of them while the code segment has a limit that a target can miss.
//!
//! Source: Intel SDM vol. 2, the pages of CALL, JMP, Jcc, LOOP and RET.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind, Register};
use paravane_engine::{Exit, Gpr, rflags, vector};

use crate::bits::low16;
use crate::engine::Translator;
use crate::help::{Done, exception_with};
use crate::state::Path;

impl Translator {
    /// Performs a near branch of 32-bit code. Whatever faults comes before any effect on registers.
    pub(crate) fn near_branch(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let size = if instruction.op_code().operand_size() == 16 { 2 } else { 4 };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "everything else has its target in the instruction"
        )]
        let target = match instruction.flow_control() {
            FlowControl::Return => self.peek(0, size)?,
            FlowControl::IndirectBranch | FlowControl::IndirectCall if is_memory(instruction) => {
                let linear = self.checked(instruction, size, Path::Read)?;
                self.read_number(linear, size)?
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall => self.get(instruction.op0_register()),
            _ => instruction.near_branch_target(),
        };
        let (goes, count) = self.goes(instruction);
        let before = self.stack_pointer();
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            self.push_number(instruction.next_ip(), size)?;
        }
        if goes && target > crate::limits::code_limit(&self.cpu.state().context) {
            // The return address that was pushed stays in memory.
            self.set_stack_pointer(before);
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        if let Some((register, count)) = count {
            self.set(register, count);
        }
        if instruction.flow_control() == FlowControl::Return {
            let extra = if instruction.op_count() == 0 { 0 } else { u64::from(instruction.immediate16()) };
            self.set_stack_pointer(self.stack_pointer().wrapping_add(size as u64 + extra));
        }
        Ok(Done::Jump(if goes { target } else { instruction.next_ip() }))
    }

    /// Undoes a branch to an address that is not canonical. Intel SDM vol. 2, the pages of CALL, JMP and RET: the
    /// branch itself faults.
    pub(crate) fn refuse(&mut self, rip: u64, popped: i32) -> Exit {
        let context = &mut self.cpu.state_mut().context;
        context.rip = rip;
        let before = context.gpr(Gpr::Rsp).wrapping_add_signed(-i64::from(popped));
        context.set_gpr(Gpr::Rsp, before);
        exception_with(vector::GENERAL_PROTECTION, 0)
    }

    /// Whether a branch is taken, and the count that it leaves in a register.
    fn goes(&self, instruction: &Instruction) -> (bool, Option<(Register, u64)>) {
        let flags = self.cpu.state().context.rflags;
        if instruction.is_jcc_short_or_near() {
            return (holds(instruction.condition_code(), flags), None);
        }
        let narrow = instruction.op_code().address_size() == 16;
        let register = if narrow { Register::CX } else { Register::ECX };
        let before = self.get(register);
        let less = before.wrapping_sub(1);
        let count = if narrow { u64::from(low16(less)) } else { less & 0xffff_ffff };
        let equal = flags & rflags::ZF != 0;
        #[expect(clippy::wildcard_enum_match_arm, reason = "five mnemonics of thousands")]
        match instruction.mnemonic() {
            Mnemonic::Loop => (count != 0, Some((register, count))),
            Mnemonic::Loope => (count != 0 && equal, Some((register, count))),
            Mnemonic::Loopne => (count != 0 && !equal, Some((register, count))),
            Mnemonic::Jcxz | Mnemonic::Jecxz => (before == 0, None),
            _ => (true, None),
        }
    }
}

fn is_memory(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

/// Whether a condition holds. Intel SDM vol. 1, "EFLAGS Condition Codes".
fn holds(condition: ConditionCode, flags: u64) -> bool {
    let has = |bits: u64| flags & bits != 0;
    let less = has(rflags::SF) != has(rflags::OF);
    match condition {
        ConditionCode::None => true,
        ConditionCode::o => has(rflags::OF),
        ConditionCode::no => !has(rflags::OF),
        ConditionCode::b => has(rflags::CF),
        ConditionCode::ae => !has(rflags::CF),
        ConditionCode::e => has(rflags::ZF),
        ConditionCode::ne => !has(rflags::ZF),
        ConditionCode::be => has(rflags::CF | rflags::ZF),
        ConditionCode::a => !has(rflags::CF | rflags::ZF),
        ConditionCode::s => has(rflags::SF),
        ConditionCode::ns => !has(rflags::SF),
        ConditionCode::p => has(rflags::PF),
        ConditionCode::np => !has(rflags::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || has(rflags::ZF),
        ConditionCode::g => !less && !has(rflags::ZF),
    }
}
