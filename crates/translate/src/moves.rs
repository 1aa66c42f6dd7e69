//! MOVS and STOS in place.
//!
//! Within one page of the destination, and of the source, the host's own string instruction does the work: the TLB
//! check turns RSI and RDI into host addresses, and afterwards what was added is taken off again. A longer run, or one
//! whose pages the TLB does not know, is done page by page; see [`runs`](crate::runs). A single element that does not
//! fit, and everything with the direction flag set, goes to Rust, which works in chunks and fills the TLB as it goes.
//!
//! Overlapping operands need no care: pages that share a frame share its host address, so bytes propagate as on the
//! guest's own CPU.

use core::mem::offset_of;

use iced_x86::{Instruction, Mnemonic};

use crate::asm::{Mem, Rel32, cond, reg};
use crate::bits::low8;
use crate::classify::Helper;
use crate::emit::{Bits, Decoded, Emitter};
use crate::state::{Path, State};

impl Emitter {
    /// MOVS or STOS.
    pub(crate) fn string_move(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        if self.conditions.bits == Bits::B32 || self.conditions.single || self.conditions.aligned {
            let resume = !self.conditions.single;
            self.helper(decoded, Helper::String, resume);
            return;
        }
        self.before_check(decoded.live_before());
        self.mark(instruction.ip());
        let (size, moves) = shape(instruction);
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let mut slow = Vec::with_capacity(8);
        self.hot.cmp32_mem(Mem::at(self.layout.field(offset_of!(State, direction))), 0);
        let downward = self.hot.jcc_later(cond::NOT_EQUAL);
        if repeats {
            self.hot.group1(true, 7, reg::RCX, 4096 / i32::from(size));
            slow.push(self.hot.jcc_later(cond::ABOVE));
        }
        if moves {
            self.run_address(reg::RSI, Path::Read, (size, repeats), &mut slow);
            self.hot.store(Mem::at(self.layout.spill(2)), reg::R14);
        }
        self.run_address(reg::RDI, Path::Write, (size, repeats), &mut slow);
        // What to add to each pointer, and to take off again.
        self.hot.sub(reg::R14, reg::RDI);
        self.hot.add(reg::RDI, reg::R14);
        if moves {
            self.hot.load(reg::R15, Mem::at(self.layout.spill(2)));
            self.hot.sub(reg::R15, reg::RSI);
            self.hot.add(reg::RSI, reg::R15);
        }
        self.host_string(size, moves, repeats);
        self.hot.sub(reg::RDI, reg::R14);
        if moves {
            self.hot.sub(reg::RSI, reg::R15);
        }
        if !repeats {
            slow.push(downward);
            self.helper_aside(decoded, Helper::String, &slow);
            return;
        }
        let site = self.helper_aside(decoded, Helper::String, &[downward]);
        self.long_run(&slow, site, (size, moves));
    }

    /// The cold part of a run that does not fit: goes on behind what the hot part has so far, or at the site.
    fn long_run(&mut self, slow: &[Rel32], site: u32, (size, moves): (u8, bool)) {
        let target = self.cold.here();
        for jump in slow {
            self.hot.patch(*jump, target);
        }
        let resume = self.hot.here();
        self.cold.constant(reg::R15, u64::from(resume) << 32 | u64::from(site));
        let number = size.trailing_zeros() as usize + if moves { 0 } else { 4 };
        self.cold.jmp(self.stubs.runs[number]);
    }

    /// The host address of the run of elements at `pointer`, all in one page: to R14.
    fn run_address(&mut self, pointer: u8, path: Path, (size, repeats): (u8, bool), slow: &mut Vec<Rel32>) {
        let tags = self.layout.tlb(self.conditions.mode, path).cast_signed();
        let last = if repeats { 4095 } else { 4096 - i32::from(size) };
        self.hot.mov(reg::R14, pointer);
        self.select_entry();
        self.hot.op_mem(true, &[0x2b], reg::R14, Mem::off(reg::R15, tags));
        self.hot.group1(true, 7, reg::R14, last);
        slow.push(self.hot.jcc_later(cond::ABOVE));
        self.hot.op_mem(true, &[0x03], reg::R14, Mem::off(reg::R15, tags + 8));
        if repeats {
            self.hot.mov32(reg::R15, pointer);
            self.hot.group1(false, 4, reg::R15, 4095);
            let end = Mem { base: Some(reg::R15), index: Some(reg::RCX), scale: size, disp: 0 };
            self.hot.lea(true, reg::R15, end);
            self.hot.group1(true, 7, reg::R15, 4096);
            slow.push(self.hot.jcc_later(cond::ABOVE));
        }
    }

    fn host_string(&mut self, size: u8, moves: bool, repeats: bool) {
        if size == 2 {
            self.hot.put(&[0x66]);
        }
        if repeats {
            self.hot.put(&[0xf3]);
        }
        if size == 8 {
            self.hot.put(&[0x48]);
        }
        self.hot.put(&[if moves { 0xa4 } else { 0xaa } | u8::from(size > 1)]);
    }
}

/// Bytes of an element, and whether there is a source in memory.
fn shape(instruction: &Instruction) -> (u8, bool) {
    let moves = matches!(
        instruction.mnemonic(),
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
    );
    (low8(instruction.memory_size().size() as u64), moves)
}
