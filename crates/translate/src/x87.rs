//! Where the x87 unit's last instruction was.
//!
//! The unit remembers that address (FIP), and translated code is elsewhere than the guest's. Whenever Rust runs, an
//! address in the code cache is replaced by the guest's that it stands for, and XRSTOR puts that into the unit on the
//! way back. Instructions that store FIP are Rust's (XSAVE), or Rust is entered right before them (FNSTENV, FNSAVE,
//! FXSAVE): they themselves leave it as it is.
//!
//! FDP, the address of the last operand, needs nothing of the kind: where the processor still keeps it, it does so only
//! for instructions that raise an unmasked exception (CPUID leaf 7, FDP_EXCPTN_ONLY). On older ones it is the host's.
//!
//! Source: Intel SDM vol. 1, "x87 FPU Instruction and Data (Operand) Pointers".

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use crate::emit::Emitter;
use crate::engine::Translator;
use crate::fpu::number;
use crate::sites::{Mark, Site};
use crate::state::{COLD_BYTES, HOT_BYTES};

/// FIP in the legacy region of XSAVE's 64-bit forms.
const FIP: core::ops::Range<usize> = 8..16;

/// Whether an instruction is the x87 unit's.
pub(crate) fn is_x87(instruction: &Instruction) -> bool {
    instruction
        .cpuid_features()
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
}

impl Emitter {
    /// Has Rust put FIP right if the instruction that comes next stores it.
    pub(crate) fn before_pointers(&mut self, instruction: &Instruction) {
        let stores = matches!(
            instruction.mnemonic(),
            Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fxsave | Mnemonic::Fxsave64
        );
        if !stores {
            return;
        }
        self.put_flags_away();
        let jump = self.hot.jmp_later();
        let resume = self.hot.here();
        self.leave_for(jump, Site::Pointers { rip: instruction.ip(), resume });
        self.after_helper();
    }
}

impl Translator {
    /// Makes FIP the address of a guest instruction, if translated code has left its own.
    pub(crate) fn settle_pointers(&mut self) {
        let fpu = &self.cpu.state().context.fpu;
        if fpu.extended[0] & 1 == 0 {
            return;
        }
        let pointer = number(&fpu.legacy[FIP]);
        let code = u64::from(self.cpu.layout().code());
        if !(code..code + u64::from(HOT_BYTES + COLD_BYTES)).contains(&pointer) {
            return;
        }
        let starts = |mark: &Mark| mark.is_x87 && u64::from(mark.host) == pointer;
        if let Some(mark) = u32::try_from(pointer).ok().and_then(|host| self.mark_at(host)).filter(starts) {
            let rip = self.rip_of(mark);
            self.cpu.state_mut().context.fpu.legacy[FIP].copy_from_slice(&rip.to_le_bytes());
        }
    }
}
