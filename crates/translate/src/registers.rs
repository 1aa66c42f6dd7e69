//! Instructions on state that translated code keeps in memory: DF, segment bases, TSC_AUX.

use core::mem::offset_of;

use iced_x86::{Instruction, Mnemonic};
use paravane_engine::{SegmentRegister, VcpuContext};

use crate::asm::{Mem, Size, reg};
use crate::classify::{Helper, StateOp};
use crate::emit::{Decoded, Emitter};
use crate::operand::{is_stolen, number};
use crate::state::State;

impl Emitter {
    /// Emits one. `privileged_time` is CR4.TSD.
    pub(crate) fn state(
        &mut self,
        decoded: &Decoded,
        operation: StateOp,
        bytes: &[u8],
        privileged_time: bool,
    ) {
        let instruction = &decoded.instruction;
        let next = Some(instruction.next_ip());
        let direction = Mem::at(self.layout.field(offset_of!(State, direction)));
        let tsc_aux = offset_of!(State, context) + offset_of!(VcpuContext, tsc_aux);
        let tsc_aux = Mem::at(self.layout.field(tsc_aux));
        self.mark(instruction.ip());
        match operation {
            StateOp::ClearDirection => self.hot.store_imm(Size::Dword, direction, 0),
            StateOp::SetDirection => self.hot.store_imm(Size::Dword, direction, 1),
            StateOp::ReadBase => {
                let segment = match instruction.mnemonic() == Mnemonic::Rdfsbase {
                    true => SegmentRegister::Fs,
                    false => SegmentRegister::Gs,
                };
                let size = if instruction.op0_register().size() == 8 { Size::Qword } else { Size::Dword };
                self.hot.load_sized(size, reg::R15, Mem::at(self.layout.segment(segment)));
                self.put_register(instruction, reg::R15);
            }
            StateOp::ReadSelector => self.read_selector(instruction),
            StateOp::Time | StateOp::TimeAndNumber if privileged_time => {
                self.helper(decoded, Helper::Privileged, false);
                return;
            }
            StateOp::Time => self.hot.put(bytes),
            StateOp::TimeAndNumber => {
                self.hot.put(bytes);
                self.hot.load32(reg::RCX, tsc_aux);
            }
            StateOp::ProcessorNumber => {
                self.hot.load32(reg::R15, tsc_aux);
                self.put_register(instruction, reg::R15);
            }
        }
        self.finish(next);
    }

    /// MOV from a segment register: 16 bits into 16, zero-extended into more.
    fn read_selector(&mut self, instruction: &Instruction) {
        let segment = crate::segments::register(instruction.op1_register());
        self.hot.load_sized(Size::Word, reg::R15, Mem::at(self.layout.selector(segment)));
        if instruction.op0_register().size() > 2 {
            self.put_register(instruction, reg::R15);
            return;
        }
        let to = number(instruction.op0_register());
        if is_stolen(to) {
            self.hot.store_sized(Size::Word, Mem::at(self.layout.gpr(to)), reg::R15);
        } else {
            self.hot.put(&[0x66]);
            self.hot.op_reg(false, &[0x89], reg::R15, to);
        }
    }

    fn put_register(&mut self, instruction: &Instruction, from: u8) {
        let to = number(instruction.op0_register());
        if is_stolen(to) {
            self.store_guest(to, from);
        } else {
            self.hot.mov(to, from);
        }
    }
}
