//! The emitter: what all instruction kinds share.
//!
//! A block is emitted into two buffers. The *hot* one holds the expected path; the *cold* one what happens when a
//! TLB check fails, a jump is not linked yet, a helper is needed. Both know their final addresses, so jumps are
//! resolved as they are made. Accesses are in `check`, flags in `status`.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use paravane_engine::GuestMode;

use crate::asm::{Buffer, Mem, Rel32, reg};
use crate::check::Pending;
use crate::classify::{Class, Helper};
use crate::limits::Strict;
use crate::liveness::{ALL, Ahead, Effect, shows};
use crate::recall::{Recipe, Recipes};
use crate::reuse::Share;
use crate::sites::{HelperSite, Mark, PageId, Site, offset_in_page};
use crate::state::Layout;
use crate::stubs::Stubs;
use crate::verify::Record;

/// Whether code is 64-bit or 32-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bits {
    B64,
    B32,
}

/// An instruction with what the translation needs to know of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub(crate) instruction: Instruction,
    pub(crate) class: Class,
    pub(crate) effect: Effect,
    /// Status flags live after it.
    pub(crate) live_after: u32,
    /// Status flags that can be seen after it.
    pub(crate) seen_after: u32,
    /// Of a jump or call: which flags matter at its target.
    pub(crate) ahead: Ahead,
    /// How to make its flags again, if they only matter to whoever sees them.
    pub(crate) recall: Option<Recipe>,
    /// Of a jump: the same for its target.
    pub(crate) hand_over: Option<Recipe>,
    /// How its memory access is checked.
    pub(crate) share: Share,
}

impl Decoded {
    /// An instruction of which nothing is known but itself: all flags matter behind it.
    pub(crate) fn alone(instruction: Instruction, class: Class, effect: Effect) -> Self {
        Self {
            instruction,
            class,
            effect,
            live_after: ALL,
            seen_after: ALL,
            ahead: Ahead::ALL,
            recall: None,
            hand_over: None,
            share: Share::Alone,
        }
    }

    /// Status flags live before it.
    pub(crate) fn live_before(&self) -> u32 {
        self.effect.before(self.live_after)
    }

    /// Which flags matter before it.
    pub(crate) fn before(&self) -> Ahead {
        let seen = match shows(self.class, &self.instruction) {
            true => ALL,
            false => self.effect.before(self.seen_after),
        };
        Ahead { live: self.live_before(), seen }
    }
}

/// What the code in a block may assume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) mode: GuestMode,
    pub(crate) bits: Bits,
    /// Segments other than FS and GS have base 0 (always true of 64-bit code).
    pub(crate) flat: bool,
    /// Segments whose accesses Rust must look at: see [`crate::limits`].
    pub(crate) strict: Strict,
    /// EFLAGS.AC: misaligned accesses fault.
    pub(crate) aligned: bool,
    /// Single-stepping: every way out of the block goes to Rust.
    pub(crate) single: bool,
    /// BMI2 on the host: RORX is there.
    pub(crate) rorx: bool,
}

/// Emits blocks.
pub(crate) struct Emitter {
    pub(crate) hot: Buffer,
    pub(crate) cold: Buffer,
    pub(crate) layout: Layout,
    pub(crate) conditions: Conditions,
    pub(crate) encoder: Encoder,
    pub(crate) factory: InstructionInfoFactory,
    pub(crate) sites: Vec<Site>,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) recipes: Recipes,
    pub(crate) hot_marks: Vec<Mark>,
    pub(crate) cold_marks: Vec<Mark>,
    pub(crate) page: PageId,
    pub(crate) stubs: Stubs,
    /// The guest's status flags are in the host's register.
    pub(crate) flags_in_host: bool,
    /// They are in memory: as such or, if they can only be seen, as a recipe's number.
    pub(crate) flags_in_memory: bool,
    /// How to make the flags that the last instruction to change any has left.
    pub(crate) recalled: Option<Recipe>,
    /// How the access of the instruction at hand is checked.
    pub(crate) share: Share,
    pub(crate) pending: Vec<Pending>,
    borrowed: Option<u8>,
    /// For the verification of what was emitted.
    pub(crate) record: Record,
}

impl core::fmt::Debug for Emitter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Emitter").field("sites", &self.sites.len()).finish_non_exhaustive()
    }
}

impl Emitter {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            hot: Buffer::default(),
            cold: Buffer::default(),
            layout,
            conditions: Conditions {
                mode: GuestMode::Kernel,
                bits: Bits::B64,
                flat: true,
                strict: Strict::default(),
                aligned: false,
                single: false,
                rorx: false,
            },
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            sites: Vec::new(),
            instructions: Vec::new(),
            recipes: Recipes::default(),
            hot_marks: Vec::new(),
            cold_marks: Vec::new(),
            page: PageId(0),
            stubs: Stubs::default(),
            flags_in_host: true,
            flags_in_memory: false,
            recalled: None,
            share: Share::Alone,
            pending: Vec::new(),
            borrowed: None,
            record: Record::default(),
        }
    }

    /// Forgets all sites and marks, when the cache is emptied.
    pub(crate) fn reset(&mut self) {
        self.sites.clear();
        self.instructions.clear();
        self.recipes.clear();
        self.hot_marks.clear();
        self.cold_marks.clear();
        self.record.reset();
    }

    /// Starts a block. The guest's flags are in the host's.
    pub(crate) fn start(&mut self, hot: u32, cold: u32, page: PageId, conditions: Conditions) {
        self.hot.restart(hot);
        self.cold.restart(cold);
        self.page = page;
        self.conditions = conditions;
        self.flags_in_host = true;
        self.flags_in_memory = false;
        self.recalled = None;
        self.pending.clear();
        self.borrowed = None;
        self.record.start(self.sites.len());
    }

    /// Remembers a site.
    pub(crate) fn site(&mut self, site: Site) -> u32 {
        self.sites.push(site);
        u32::try_from(self.sites.len() - 1).expect("the cache is flushed long before 4 G sites")
    }

    /// Remembers an instruction for Rust.
    pub(crate) fn remember(&mut self, instruction: Instruction) -> u32 {
        self.instructions.push(instruction);
        u32::try_from(self.instructions.len() - 1).expect("the cache is flushed long before 4 G instructions")
    }

    // Marks.

    /// Host code from here on belongs to the guest instruction at `rip`.
    pub(crate) fn mark(&mut self, rip: u64) {
        self.mark_instruction(rip, false);
    }

    /// As [`Emitter::mark`], right before the host's form of the guest's instruction.
    pub(crate) fn mark_instruction(&mut self, rip: u64, is_x87: bool) {
        let host = self.hot.here();
        let (page, offset) = (self.page, offset_in_page(rip));
        let (borrowed, host_flags) = (self.borrowed, self.flags_in_host);
        let mark = Mark { host, borrowed, host_flags, is_x87, page, offset };
        // A mark holds until the next one, and many instructions are marked before and after their check.
        let known = self
            .hot_marks
            .last()
            .is_some_and(|last| last.host >= self.hot.base && Mark { host: mark.host, ..*last } == mark);
        if !known {
            self.hot_marks.push(mark);
        }
    }

    /// A register's value is in spill slot 1 for the instruction that follows.
    pub(crate) fn borrow_register(&mut self, register: u8) {
        self.hot.store(Mem::at(self.layout.spill(1)), register);
        self.borrowed = Some(register);
    }

    /// Gives the borrowed register its value back.
    pub(crate) fn return_register(&mut self) {
        if let Some(register) = self.borrowed.take() {
            self.hot.load(register, Mem::at(self.layout.spill(1)));
        }
    }

    /// The stub to leave by at this point of the hot code.
    pub(crate) fn leave_stub(&self) -> u32 {
        if self.flags_in_host && !self.flags_in_memory {
            self.stubs.leave_with_flags
        } else {
            self.stubs.leave
        }
    }

    /// Emits a call of Rust for a whole instruction. With `resume`, code goes on behind it.
    pub(crate) fn helper(&mut self, decoded: &Decoded, helper: Helper, resume: bool) {
        self.put_flags_away();
        let rip = decoded.instruction.ip();
        self.mark(rip);
        let instruction = self.remember(decoded.instruction);
        let jump = self.hot.jmp_later();
        let target = self.cold.here();
        self.hot.patch(jump, target);
        let resume = if resume { self.hot.here() } else { 0 };
        let index = self.site(Site::Helper(HelperSite { rip, helper, instruction, resume, page: self.page }));
        self.cold.constant(reg::R15, u64::from(index));
        let leave = self.stubs.leave;
        self.cold.jmp(leave);
        self.after_helper();
    }

    /// Emits the cold part of an instruction that Rust performs if any of `jumps` is taken, the guest's flags being in
    /// memory as far as they matter. Rust continues behind what the hot part has so far. Returns the site.
    pub(crate) fn helper_aside(&mut self, decoded: &Decoded, helper: Helper, jumps: &[Rel32]) -> u32 {
        let target = self.cold.here();
        for jump in jumps {
            self.hot.patch(*jump, target);
        }
        let instruction = self.remember(decoded.instruction);
        let rip = decoded.instruction.ip();
        let resume = self.hot.here();
        let index = self.site(Site::Helper(HelperSite { rip, helper, instruction, resume, page: self.page }));
        self.cold.constant(reg::R15, u64::from(index));
        let leave = self.stubs.leave;
        self.cold.jmp(leave);
        index
    }

    /// Emits a jump from hot code to a leave for `site`.
    pub(crate) fn leave_for(&mut self, jump: Rel32, site: Site) {
        let target = self.cold.here();
        self.hot.patch(jump, target);
        let index = self.site(site);
        self.cold.constant(reg::R15, u64::from(index));
        let leave = self.leave_stub();
        self.cold.jmp(leave);
    }

    /// Loads a stolen register's guest value into a host register.
    pub(crate) fn load_guest(&mut self, host: u8, guest: u8) {
        self.hot.load(host, Mem::at(self.layout.gpr(guest)));
    }

    /// Stores a stolen register's guest value.
    pub(crate) fn store_guest(&mut self, guest: u8, host: u8) {
        self.hot.store(Mem::at(self.layout.gpr(guest)), host);
    }
}
