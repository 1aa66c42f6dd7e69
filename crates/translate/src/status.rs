//! Where the guest's status flags are.
//!
//! The check clobbers the host's status flags. [`Emitter`] tracks where the guest's are: in the host's register, in
//! [`State::status`], in both, or only to be recalled (see `recall`). They are put away once and fetched when an
//! instruction needs them. They are nowhere only if they will be replaced before anybody can look.
//!
//! A block's body is entered with the flags in the host's register. If nothing in it needs them there, it begins by
//! putting them away, and whoever has them in memory already enters behind that.

use core::mem::offset_of;

use iced_x86::Mnemonic;

use crate::asm::{Buffer, Mem, Size, reg};
use crate::emit::{Decoded, Emitter};
use crate::liveness::Ahead;
use crate::reuse::Share;
use crate::state::{Layout, State};

impl Emitter {
    /// Makes sure that live flags survive in memory, if they are only in the host's.
    pub(crate) fn put_flags_away(&mut self) {
        if self.flags_in_host && !self.flags_in_memory {
            emit_save_flags(&mut self.hot, self.layout);
            self.flags_in_memory = true;
        }
    }

    /// Makes sure that live flags are in the host's. Clobbers R15 only.
    pub(crate) fn fetch_flags(&mut self) {
        if !self.flags_in_host {
            emit_restore_flags(&mut self.hot, self.layout);
            self.flags_in_host = true;
        }
    }

    /// The host's flags are clobbered; the guest's, as far as they matter, are in memory.
    pub(crate) fn clobber_flags(&mut self) {
        self.flags_in_host = false;
    }

    /// The host's flags are about to be clobbered by an address computation.
    pub(crate) fn before_check(&mut self, live: u32) {
        if live != 0 || self.recalled.is_none() {
            self.put_flags_away();
        }
        self.flags_in_host = false;
    }

    /// The instruction's one access comes next; if another check served it, no flags are touched.
    pub(crate) fn before_access(&mut self, live: u32) {
        match self.share {
            Share::Alone | Share::Leads(_) => self.before_check(live),
            Share::Follows { .. } => {}
        }
    }

    /// The guest's instruction itself comes next in the host's code.
    pub(crate) fn before_instruction(&mut self, decoded: &Decoded) {
        let effect = decoded.effect;
        if effect.touches() && decoded.live_before() != 0 {
            self.fetch_flags();
        } else if effect.changes != 0 && decoded.seen_after & !effect.kills != 0 {
            self.fetch_kept(decoded);
        }
    }

    /// Flags that the instruction keeps are only seen, but it adds its own to them.
    fn fetch_kept(&mut self, decoded: &Decoded) {
        if self.flags_in_host {
            return;
        }
        if matches!(decoded.instruction.mnemonic(), Mnemonic::Inc | Mnemonic::Dec) {
            // They keep CF alone. bt dword [status], 8
            self.hot.op_mem(false, &[0x0f, 0xba], 4, self.status());
            self.hot.put(&[8]);
        } else {
            self.fetch_flags();
        }
    }

    /// The guest's instruction was emitted.
    pub(crate) fn after_instruction(&mut self, decoded: &Decoded) {
        if decoded.effect.changes != 0 {
            self.flags_in_host = true;
            self.flags_in_memory = false;
            self.recalled = decoded.recall;
        }
    }

    /// Rust was here: it found the flags in memory and loaded them on the way back.
    pub(crate) fn after_helper(&mut self) {
        self.flags_in_host = true;
        self.flags_in_memory = true;
    }

    /// Where flags in memory are.
    pub(crate) fn status(&self) -> Mem {
        Mem::at(self.layout.field(offset_of!(State, status)))
    }

    /// Tells the target of the jump that comes next how its flags are made. Says whether they are, one way or the
    /// other, in memory, and not needed in the host's register.
    pub(crate) fn hand_over(&mut self, decoded: &Decoded) -> bool {
        if self.flags_in_memory {
            return decoded.ahead.live == 0;
        }
        if self.flags_in_host && decoded.ahead.seen == 0 {
            return false;
        }
        let Some(recipe) = decoded.hand_over else { return false };
        let word = self.recipes.word(recipe);
        self.hot.store_imm(Size::Dword, self.status(), word.cast_signed());
        true
    }

    /// A conditional jump was emitted: flags stay where they are, and may have become such as can be recalled.
    pub(crate) fn after_jump(&mut self, decoded: &Decoded) {
        self.recalled = decoded.recall;
    }

    /// A block's body starts here. Returns where to enter with the flags in the host's register only, and where with
    /// them in memory only, if that is a place of its own. With `aside`, who falls in from above has them in memory.
    pub(crate) fn body_starts(&mut self, ahead: Ahead, aside: bool) -> (u32, Option<u32>) {
        self.flags_in_host = true;
        self.flags_in_memory = false;
        if ahead.live != 0 || ahead.seen == 0 {
            return (self.hot.here(), (ahead.seen == 0).then_some(self.hot.here()));
        }
        let body = if aside {
            let body = self.cold.here();
            emit_save_flags(&mut self.cold, self.layout);
            self.cold.jmp(self.hot.here());
            body
        } else {
            let body = self.hot.here();
            self.put_flags_away();
            body
        };
        self.flags_only_in_memory();
        (body, Some(self.hot.here()))
    }

    /// Flags are as a landing pad finds them: in memory, the host's clobbered.
    pub(crate) fn flags_only_in_memory(&mut self) {
        self.flags_in_host = false;
        self.flags_in_memory = true;
    }
}

/// Puts the host's status flags into memory. Clobbers R15; flags stay as they are.
pub(crate) fn emit_save_flags(buffer: &mut Buffer, layout: Layout) {
    buffer.mov(reg::R15, reg::RAX);
    // lahf; seto al
    buffer.put(&[0x9f, 0x0f, 0x90, 0xc0]);
    buffer.store32(Mem::at(layout.field(offset_of!(State, status))), reg::RAX);
    buffer.mov(reg::RAX, reg::R15);
}

/// Loads the host's status flags from memory. Clobbers R15.
pub(crate) fn emit_restore_flags(buffer: &mut Buffer, layout: Layout) {
    buffer.mov(reg::R15, reg::RAX);
    buffer.load32(reg::RAX, Mem::at(layout.field(offset_of!(State, status))));
    // add al, 127; sahf
    buffer.put(&[0x04, 127, 0x9e]);
    buffer.mov(reg::RAX, reg::R15);
}
