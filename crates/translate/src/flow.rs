//! Near jumps, calls and returns.
//!
//! A jump to a constant address in the same page goes straight to the target block's body, flags in the host's
//! register; it stays valid as long as the page's translations do, because code of a page only runs while the
//! page is mapped where it was translated. A jump to another page goes to the block's *pad*, flags in
//! memory; the pad checks that the target's page still is what it was. Both start as a leave that asks Rust to
//! find the block and patch the jump.
//!
//! A jump to a computed address looks the low 16 bits up in a cache of pads. The pad compares the whole address
//! (in R14), then checks the page.

use core::mem::offset_of;

use iced_x86::{Instruction, OpKind};
use paravane_abi::units::PAGE_SIZE;

use crate::asm::{Mem, Rel32, Size, cond, reg};
use crate::bits::low32;
use crate::check::Check;
use crate::classify::Flow;
use crate::emit::{Bits, Decoded, Emitter};
use crate::liveness::Ahead;
use crate::operand::{is_stolen, number, uses_stack_segment};
use crate::recall::Recipe;
use crate::sites::{Access, Chain, ChainKind, PageId, Site};
use crate::state::{Path, State};
use crate::status::emit_restore_flags;
use crate::walk::Walk;

impl Emitter {
    /// A near control transfer. Says whether the block goes on behind it.
    pub(crate) fn flow(&mut self, decoded: &Decoded, flow: Flow) -> bool {
        let instruction = &decoded.instruction;
        match flow {
            Flow::Jump => {
                self.finish(None);
                let handed = self.hand_over(decoded);
                self.jump_to(instruction.ip(), instruction.near_branch_target(), decoded.ahead, handed);
            }
            Flow::Conditional => {
                self.conditional(decoded);
                return true;
            }
            Flow::Counted => {
                self.counted(decoded);
                return true;
            }
            Flow::Call => self.call(decoded),
            Flow::CallIndirect => self.call_indirect(decoded),
            Flow::JumpIndirect => {
                self.before_check(decoded.live_before());
                self.target(instruction, reg::R14);
                self.finish(None);
                self.dispatch(instruction, 0);
            }
            Flow::Return => self.ret(decoded),
        }
        false
    }

    /// Ends the block with a jump to a constant address.
    pub(crate) fn jump_to(&mut self, from: u64, target: u64, ahead: Ahead, handed: bool) {
        let kind = self.chain_kind(from, target);
        if kind == ChainKind::Far {
            self.put_flags_away();
        } else if ahead.live != 0 {
            self.fetch_flags();
        }
        let jump = self.hot.jmp_later();
        let site = self.exit_site(jump, target, kind, ahead, handed);
        self.leave_for(jump, site);
    }

    /// A check that covers several accesses failed. Misses go to Rust, which resumes behind it; a range that crosses
    /// pages goes to the plain variant of the block.
    pub(crate) fn cold_lead(
        &mut self,
        access: Access,
        miss: Option<Rel32>,
        recall: Option<Recipe>,
        again: u32,
    ) {
        const NEXT_PAGE: i32 = 0x1000;
        if let Some(jump) = miss {
            let here = self.cold.here();
            self.hot.patch(jump, here);
        }
        let tags = self.layout.tlb(self.conditions.mode, access.path).cast_signed();
        self.cold.op_mem(true, &[0x03], reg::R14, Mem::off(reg::R15, tags));
        self.cold_recall(recall);
        // lea r15, [r14 + size - 1]; xor r15, r14; test r15d, bit 12
        self.cold.lea(true, reg::R15, Mem::off(reg::R14, access.size.cast_signed() - 1));
        self.cold.op_reg(true, &[0x31], reg::R14, reg::R15);
        self.cold.put(&[0x41, 0xf7, 0xc7]);
        self.cold.put(&NEXT_PAGE.to_le_bytes());
        let crosses = self.cold.jcc_later(cond::NOT_EQUAL);
        let index = self.site(Site::Access(access));
        let leave = self.stubs.leave;
        self.walk((access.path, false), index, again);
        let here = self.cold.here();
        self.cold.patch(crosses, here);
        let jump = self.cold.jmp_later();
        let (page, kind) = (self.page, ChainKind::Plain);
        let chain =
            Chain { at: jump.0, target: access.rip, page, kind, flags_in_memory: true, flags_exact: true };
        let index = self.site(Site::Chain(chain));
        let here = self.cold.here();
        self.cold.patch(jump, here);
        self.cold.constant(reg::R15, u64::from(index));
        self.cold.jmp(leave);
    }

    /// The site of a direct exit: to be linked, or always back to Rust when single-stepping.
    fn exit_site(&self, jump: Rel32, target: u64, kind: ChainKind, ahead: Ahead, handed: bool) -> Site {
        if self.conditions.single {
            return Site::Enter { rip: target };
        }
        Site::Chain(Chain {
            at: jump.0,
            target,
            page: self.page,
            kind,
            flags_in_memory: handed,
            flags_exact: ahead.seen != 0 || kind != ChainKind::Near,
        })
    }

    fn chain_kind(&self, from: u64, target: u64) -> ChainKind {
        if from / PAGE_SIZE != target / PAGE_SIZE {
            ChainKind::Far
        } else if target <= from {
            ChainKind::Loop
        } else {
            ChainKind::Near
        }
    }

    fn conditional(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        self.fetch_flags();
        // The low nibble of a conditional jump's opcode is what iced counts from 1.
        let condition = (instruction.condition_code() as u8).wrapping_sub(1) & 15;
        let target = instruction.near_branch_target();
        let kind = self.chain_kind(instruction.ip(), target);
        let handed = self.hand_over(decoded);
        let jump = self.hot.jcc_later(condition);
        self.exit_aside(jump, target, kind, decoded.ahead, handed);
        self.after_jump(decoded);
        self.finish(None);
    }

    /// A conditional exit: straight to the target, or by way of cold code that puts the flags away.
    fn exit_aside(&mut self, jump: Rel32, target: u64, kind: ChainKind, ahead: Ahead, handed: bool) {
        if kind == ChainKind::Far && !self.flags_in_memory {
            let here = self.cold.here();
            self.hot.patch(jump, here);
            crate::status::emit_save_flags(&mut self.cold, self.layout);
            let onward = self.cold.jmp_later();
            let site = self.exit_site(onward, target, kind, ahead, handed);
            let index = self.site(site);
            let here = self.cold.here();
            self.cold.patch(onward, here);
            self.cold.constant(reg::R15, u64::from(index));
            let leave = self.stubs.leave;
            self.cold.jmp(leave);
        } else {
            let site = self.exit_site(jump, target, kind, ahead, handed);
            self.leave_for(jump, site);
        }
    }

    /// LOOP, LOOPcc and JrCXZ have only short forms: the taken side jumps over the other.
    fn counted(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        if decoded.live_before() != 0 {
            self.fetch_flags();
        }
        let target = instruction.near_branch_target();
        let kind = self.chain_kind(instruction.ip(), target);
        self.mark(instruction.ip());
        let counter = instruction.op_code().address_size();
        let narrow = match self.conditions.bits {
            Bits::B32 => true,
            Bits::B64 => counter == 32,
        };
        if narrow {
            self.hot.put(&[0x67]);
        }
        // op +2; jmp +5; jmp rel32
        self.hot.put(&[counted_opcode(instruction), 2, 0xeb, 5]);
        let jump = self.hot.jmp_later();
        let handed = self.hand_over(decoded);
        self.exit_aside(jump, target, kind, decoded.ahead, handed);
        self.finish(None);
    }

    fn call(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        let target = instruction.near_branch_target();
        self.before_access(decoded.live_before());
        self.push_return_address(instruction);
        self.finish(Some(target));
        let handed = self.hand_over(decoded);
        self.jump_to(instruction.ip(), target, decoded.ahead, handed);
    }

    fn call_indirect(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        self.before_access(decoded.live_before());
        self.target(instruction, reg::R15);
        self.hot.store(Mem::at(self.layout.spill(3)), reg::R15);
        self.push_return_address(instruction);
        self.finish(None);
        self.hot.load(reg::R14, Mem::at(self.layout.spill(3)));
        // The return address that was pushed stays in memory, as on the CPU.
        let pushed = self.pointer_size().bytes().cast_signed();
        self.dispatch(instruction, -pushed);
    }

    fn push_return_address(&mut self, instruction: &Instruction) {
        let size = self.pointer_size();
        let at = self.stack_write_check(instruction, size);
        let address = instruction.next_ip();
        let slot = Mem::off(reg::R14, at);
        let low = low32(address).cast_signed();
        if size == Size::Dword || i64::from(low) == address.cast_signed() {
            self.hot.store_imm(size, slot, low);
        } else {
            self.hot.constant(reg::R15, address);
            self.hot.store(slot, reg::R15);
        }
        self.move_stack_pointer(-size.bytes().cast_signed());
    }

    fn ret(&mut self, decoded: &Decoded) {
        let instruction = &decoded.instruction;
        let size = self.pointer_size();
        self.before_access(decoded.live_before());
        let at = self.stack_read_check(instruction, reg::RSP, size);
        self.hot.load_sized(size, reg::R14, Mem::off(reg::R14, at));
        let extra = if instruction.op_count() == 0 { 0 } else { i32::from(instruction.immediate16()) };
        let popped = size.bytes().cast_signed() + extra;
        self.move_stack_pointer(popped);
        self.finish(None);
        self.dispatch(instruction, popped);
    }

    /// Loads the target of an indirect jump or call into a scratch register.
    fn target(&mut self, instruction: &Instruction, to: u8) {
        let size = self.pointer_size();
        if instruction.op0_kind() == OpKind::Memory {
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
            self.hot.load_sized(size, to, Mem::off(reg::R14, offset));
            return;
        }
        let register = number(instruction.op0_register());
        if is_stolen(register) {
            self.load_guest(to, register);
        } else {
            self.hot.mov(to, register);
        }
        if size == Size::Dword {
            self.hot.mov32(to, to);
        }
    }

    /// Jumps to the guest address in R14, through the cache.
    ///
    /// Only a target that the cache does not know can be one that is not canonical. So nothing is checked here: what
    /// Rust needs to undo the branch is noted.
    fn dispatch(&mut self, instruction: &Instruction, popped: i32) {
        self.put_flags_away();
        if self.conditions.bits == Bits::B64 {
            let branch = self.site(Site::Refused { rip: instruction.ip(), popped });
            let note = Mem::at(self.layout.field(offset_of!(State, branch)));
            self.hot.store_imm(Size::Dword, note, branch.cast_signed());
        }
        if self.conditions.single {
            let jump = self.hot.jmp_later();
            self.leave_for(jump, Site::Indirect);
            return;
        }
        // movzx r15d, r14w; mov r15d, [cache + r15 * 4]; jmp r15
        self.hot.op_reg(false, &[0x0f, 0xb7], reg::R15, reg::R14);
        let cache = self.layout.jumps(self.conditions.mode);
        let entry = Mem { base: None, index: Some(reg::R15), scale: 4, disp: cache.cast_signed() };
        self.hot.load32(reg::R15, entry);
        self.hot.put(&[0x41, 0xff, 0xe7]);
    }

    /// Emits the pad of the block at `rip`, up to where its body follows: checks for jumps that come through the
    /// jump cache (entry at the returned `indirect` address) or from other pages (`far`).
    pub(crate) fn pad(&mut self, rip: u64, expected: Expected, live: u32) -> Pad {
        let page = expected.page;
        self.flags_only_in_memory();
        let indirect = self.hot.here();
        if let Ok(short) = i32::try_from(rip.cast_signed()) {
            self.hot.group1(true, 7, reg::R14, short);
        } else {
            self.hot.constant(reg::R15, rip);
            // cmp r14, r15
            self.hot.op_reg(true, &[0x39], reg::R15, reg::R14);
        }
        let other = self.hot.jcc_later(cond::NOT_EQUAL);
        self.hot.patch(other, expected.indirect_miss);
        let far = self.hot.here();
        let entry = self.layout.code_page(self.conditions.mode, rip);
        self.hot.cmp32_mem(Mem::at(entry), page.0);
        let moved = self.hot.jcc_later(cond::NOT_EQUAL);
        self.hot.cmp32_mem(Mem::at(self.layout.kick_pointer()), 0);
        let kicked = self.hot.jcc_later(cond::EQUAL);
        self.look_again(moved, rip, far, expected);
        self.leave_for(kicked, Site::Enter { rip });
        if live != 0 {
            emit_restore_flags(&mut self.hot, self.layout);
        }
        Pad { indirect, far }
    }

    /// The cold part of a pad whose page is not current: if a walk finds what it expects, its number is made current.
    fn look_again(&mut self, moved: Rel32, rip: u64, far: u32, expected: Expected) {
        let target = self.cold.here();
        self.hot.patch(moved, target);
        let walk = self.layout.field(offset_of!(State, walk));
        for (offset, value) in [
            (offset_of!(Walk, expected_env), expected.env),
            (offset_of!(Walk, expected_frame), expected.frame),
            (offset_of!(Walk, expected_page), expected.page.0),
        ] {
            let field = Mem::at(walk + low32(offset as u64));
            self.cold.store_imm(Size::Dword, field, value.cast_signed());
        }
        self.cold.constant(reg::R14, rip);
        let index = self.site(Site::Moved { rip, far, page: expected.page });
        self.cold.constant(reg::R15, u64::from(far) << 32 | u64::from(index));
        let walk = self.stubs.code_walk;
        self.cold.jmp(walk);
    }

    /// Emits a poll for kicks at the head of the block at `rip`.
    pub(crate) fn poll(&mut self, rip: u64) {
        if self.flags_in_memory {
            self.hot.cmp32_mem(Mem::at(self.layout.kick_pointer()), 0);
            let kicked = self.hot.jcc_later(cond::EQUAL);
            self.leave_for(kicked, Site::Enter { rip });
        } else {
            // A kick nulls the pointer: the load faults, and the signal handler brings it here.
            self.hot.load(reg::R14, Mem::at(self.layout.kick_pointer()));
            self.mark(rip);
            self.hot.load32(reg::R14, Mem::off(reg::R14, 0));
        }
    }

    /// Emits, in the cold part, a poll for who comes with the flags in memory, and the way from there to where the hot
    /// part goes on. Returns its address.
    pub(crate) fn poll_aside(&mut self, rip: u64) -> u32 {
        let start = self.cold.here();
        self.cold.cmp32_mem(Mem::at(self.layout.kick_pointer()), 0);
        let quiet = self.cold.jcc_later(cond::NOT_EQUAL);
        let index = self.site(Site::Enter { rip });
        self.cold.constant(reg::R15, u64::from(index));
        self.cold.jmp(self.stubs.leave);
        let here = self.cold.here();
        self.cold.patch(quiet, here);
        self.cold.jmp(self.hot.here());
        start
    }

    /// Emits the check that a block whose only instruction crosses into a second page needs.
    pub(crate) fn second_page(&mut self, rip: u64, next_page: u64, page: PageId) {
        self.put_flags_away();
        let entry = self.layout.code_page(self.conditions.mode, next_page);
        self.hot.cmp32_mem(Mem::at(entry), page.0);
        let moved = self.hot.jcc_later(cond::NOT_EQUAL);
        self.flags_only_in_memory();
        self.leave_for(moved, Site::Enter { rip });
    }
}

/// What must be mapped where a pad is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The page's number ...
    pub(crate) page: PageId,
    /// ... its frame's index in guest memory ...
    pub(crate) frame: u32,
    /// ... and the number of what its code takes for granted.
    pub(crate) env: u32,
    /// Where a jump through the cache goes on that was meant for another address.
    pub(crate) indirect_miss: u32,
}

/// The entries of a pad.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pad {
    /// From the jump cache: the target is in R14.
    pub(crate) indirect: u32,
    /// From a direct jump in another page.
    pub(crate) far: u32,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "four mnemonics of thousands")]
fn counted_opcode(instruction: &Instruction) -> u8 {
    match instruction.mnemonic() {
        iced_x86::Mnemonic::Loopne => 0xe0,
        iced_x86::Mnemonic::Loope => 0xe1,
        iced_x86::Mnemonic::Loop => 0xe2,
        _ => 0xe3,
    }
}
