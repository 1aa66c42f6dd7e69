//! The emitter: what all instruction kinds share.
//!
//! A block is emitted into two buffers. The *hot* one holds the expected path; the *cold* one what happens when a
//! TLB check fails, a jump is not linked yet, a helper is needed. Both know their final addresses, so jumps are
//! resolved as they are made.
//!
//! # Memory access
//!
//! The guest address goes to R14, the sequence of [`Emitter::check`] turns it into a host address, and the
//! instruction then uses `[r14]`. If the check fails, cold code hands a site to Rust, which fills the TLB and
//! continues at the instruction, or raises the fault. For accesses that one host address cannot serve (two
//! pages, a write into translated code) Rust lets the instruction run on a copy: reads continue in place
//! with R14 at the copy; for writes the instruction's bytes are emitted once more in the cold part, followed by a
//! leave that commits the copy. All checks come before the first effect, so a fault finds the guest's state
//! as it was before the instruction.
//!
//! # Flags
//!
//! The check clobbers the host's status flags. [`Emitter`] tracks where the guest's are: in the host's register, in
//! [`State::status`], in both, or nowhere because they are dead. They are put away once and fetched when an
//! instruction needs them.

use core::mem::offset_of;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use paravane_engine::{GuestMode, SegmentRegister};

use crate::asm::{Buffer, Mem, Rel32, cond, reg};
use crate::bits::low8;
use crate::classify::Helper;
use crate::limits::Strict;
use crate::liveness::Effect;
use crate::reuse::{Lead, Share};
use crate::sites::{Access, Commit, HelperSite, Mark, PageId, Site};
use crate::state::{Layout, Path, State, tlb_index};
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
    pub(crate) class: crate::classify::Class,
    pub(crate) effect: Effect,
    /// Status flags live after it.
    pub(crate) live_after: u32,
    /// How its memory access is checked.
    pub(crate) share: Share,
}

impl Decoded {
    /// Status flags live before it.
    pub(crate) fn live_before(&self) -> u32 {
        self.effect.before(self.live_after)
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

/// An access whose cold part is still to be emitted.
#[derive(Debug)]
struct Pending {
    /// Jumps of the check that lead there.
    jumps: [Option<Rel32>; 2],
    /// The guest address, if the code knows it; otherwise R14 and R15 tell.
    constant: Option<u64>,
    /// Whether live flags are in memory.
    flags: bool,
    /// Where the check begins, for another attempt.
    again: u32,
    access: Access,
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
    pub(crate) hot_marks: Vec<Mark>,
    pub(crate) cold_marks: Vec<Mark>,
    pub(crate) page: PageId,
    pub(crate) stubs: Stubs,
    flags_in_host: bool,
    flags_in_memory: bool,
    /// How the access of the instruction at hand is checked.
    pub(crate) share: Share,
    pending: Vec<Pending>,
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
            hot_marks: Vec::new(),
            cold_marks: Vec::new(),
            page: PageId(0),
            stubs: Stubs::default(),
            flags_in_host: true,
            flags_in_memory: false,
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

    // Flags.

    pub(crate) fn flags_in_memory(&self) -> bool {
        self.flags_in_memory
    }

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
        if live != 0 {
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
        if decoded.effect.touches() && decoded.live_before() != 0 {
            self.fetch_flags();
        }
    }

    /// The guest's instruction was emitted.
    pub(crate) fn after_instruction(&mut self, decoded: &Decoded) {
        if decoded.effect.changes != 0 {
            self.flags_in_host = true;
            self.flags_in_memory = false;
        }
    }

    /// Rust was here: it found the flags in memory and loaded them on the way back.
    fn after_helper(&mut self) {
        self.flags_in_host = true;
        self.flags_in_memory = true;
    }

    // Marks.

    /// Host code from here on belongs to the guest instruction at `rip`.
    pub(crate) fn mark(&mut self, rip: u64) {
        let mark =
            Mark { host: self.hot.here(), borrowed: self.borrowed, host_flags: self.flags_in_host, rip };
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

    // Accesses.

    /// Turns the guest's linear address in R14 into a host address. R15 and the flags are clobbered. What is emitted
    /// from here to [`Emitter::finish`] is the instruction proper; it must consist of position-independent code.
    pub(crate) fn check(&mut self, access: Check) {
        self.check_range(access, false);
    }

    /// The check of a group whose range starts at the address in R14: returns where in the range the leader's own
    /// operand is.
    pub(crate) fn lead(&mut self, lead: Lead, access: Check) -> i32 {
        self.check_range(Check { size: lead.span, ..access }, true);
        if let Some(slot) = lead.slot {
            self.hot.store(Mem::at(self.layout.shared(slot)), reg::R14);
        }
        lead.at
    }

    /// The host address that a group's leader found.
    pub(crate) fn follow(&mut self, slot: Option<u8>, at: i32) -> i32 {
        if let Some(slot) = slot {
            self.hot.load(reg::R14, Mem::at(self.layout.shared(slot)));
        }
        at
    }

    fn check_range(&mut self, access: Check, shared: bool) {
        if self.conditions.strict.has(access.segment) {
            let jump = self.hot.jmp_later();
            self.expect([None, Some(jump)], None, access, (0, shared, 0));
            return;
        }
        let layout = self.layout;
        let tags = layout.tlb(self.conditions.mode, access.path);
        let again = self.hot.here();
        let aligned = self.alignment_check(access.size);
        self.select_entry();
        let entry = Mem::off(reg::R15, tags.cast_signed());
        self.hot.op_mem(true, &[0x2b], reg::R14, entry);
        self.hot.group1(true, 7, reg::R14, (4096 - access.size).cast_signed());
        let miss = self.hot.jcc_later(cond::ABOVE);
        self.hot.op_mem(true, &[0x03], reg::R14, Mem::off(reg::R15, tags.cast_signed() + 8));
        self.expect([Some(miss), aligned], None, access, (0, shared, again));
    }

    /// The entry of the TLB that the address in R14 selects: its offset in the table to R15.
    pub(crate) fn select_entry(&mut self) {
        if self.conditions.rorx {
            // rorx r15, r14, 8
            self.hot.put(&[0xc4, 0x43, 0xfb, 0xf0, 0xfe, 8]);
        } else {
            self.hot.mov(reg::R15, reg::R14);
            // shr r15, 8
            self.hot.put(&[0x49, 0xc1, 0xef, 8]);
        }
        self.hot.group1(false, 4, reg::R15, 0xfff0);
    }

    /// The same for an address that is known now: leaves the host address of its page in R14; returns the offset
    /// in the page. Falls back to the general sequence across pages.
    pub(crate) fn check_constant(&mut self, address: u64, access: Check) -> i32 {
        let offset = (address & 0xfff) as u32;
        let plain = !self.conditions.strict.has(access.segment);
        if offset + access.size > 4096 || (self.conditions.aligned && access.size > 1) || !plain {
            self.hot.constant(reg::R14, address);
            self.check(access);
            return 0;
        }
        let page = address & !0xfff;
        let again = self.hot.here();
        let entry = self.layout.tlb(self.conditions.mode, access.path) + entry_offset(address);
        if let Ok(short) = i32::try_from(page.cast_signed()) {
            // cmp qword [tag], imm32
            self.hot.op_mem(true, &[0x81], 7, Mem::at(entry));
            self.hot.put(&short.to_le_bytes());
        } else {
            self.hot.constant(reg::R14, page);
            self.hot.op_mem(true, &[0x3b], reg::R14, Mem::at(entry));
        }
        let miss = self.hot.jcc_later(cond::NOT_EQUAL);
        self.hot.load(reg::R14, Mem::at(entry + 8));
        let bias = u16::try_from(offset).expect("an offset in a page");
        self.expect([Some(miss), None], Some(address), access, (bias, false, again));
        offset.cast_signed()
    }

    /// With EFLAGS.AC, misaligned scalars take the cold path, where Rust raises #AC.
    fn alignment_check(&mut self, size: u32) -> Option<Rel32> {
        if !self.conditions.aligned || !matches!(size, 2 | 4 | 8) {
            return None;
        }
        // test r14b, size - 1
        self.hot.put(&[0x41, 0xf6, 0xc6]);
        self.hot.put(&[low8(u64::from(size - 1))]);
        Some(self.hot.jcc_later(cond::NOT_EQUAL))
    }

    fn expect(
        &mut self,
        jumps: [Option<Rel32>; 2],
        constant: Option<u64>,
        check: Check,
        (bias, shared, again): (u16, bool, u32),
    ) {
        let access = Access {
            rip: check.rip,
            size: check.size,
            path: check.path,
            resume: self.hot.here(),
            aside: 0,
            shared,
            bias,
            masked: check.masked,
            stack: check.stack,
            segment: self.conditions.strict.has(check.segment).then_some(check.segment),
            page: self.page,
        };
        self.pending.push(Pending { jumps, constant, flags: self.flags_in_memory, again, access });
    }

    /// The instruction's emission is complete: emits the cold parts of its accesses. `next` is the guest
    /// address that follows, if it is known.
    pub(crate) fn finish(&mut self, next: Option<u64>) {
        while let Some(pending) = self.pending.pop() {
            self.cold_access(pending, next);
        }
    }

    fn cold_access(&mut self, pending: Pending, next: Option<u64>) {
        let Pending { jumps, constant, flags, again, mut access } = pending;
        let layout = self.layout;
        let [miss, misaligned] = jumps;
        if access.shared {
            self.cold_lead(access, miss, flags, again);
            return;
        }
        if let Some(jump) = miss {
            let here = self.cold.here();
            self.hot.patch(jump, here);
        }
        match constant {
            Some(address) => self.cold.constant(reg::R14, address),
            None => {
                let tags = layout.tlb(self.conditions.mode, access.path);
                self.cold.op_mem(true, &[0x03], reg::R14, Mem::off(reg::R15, tags.cast_signed()));
            }
        }
        if let Some(jump) = misaligned {
            // Here R14 still is the guest's address.
            let here = self.cold.here();
            self.hot.patch(jump, here);
        }
        let index = self.site(Site::Access(access));
        self.walk((access.path, misaligned.is_some()), index, again);
        if access.path == Path::Write {
            access.aside = self.cold.here();
            self.sites[index as usize] = Site::Access(access);
            self.copy_aside(access, next);
        }
    }

    /// Emits what follows a miss: a walk of the page tables for the address in R14, and the check once more; or a
    /// leave for a site if what comes here may be more than a miss (`unsure`).
    pub(crate) fn walk(&mut self, (path, unsure): (Path, bool), site: u32, again: u32) {
        if unsure {
            self.cold.constant(reg::R15, u64::from(site));
            self.cold.jmp(self.stubs.leave);
            return;
        }
        self.cold.constant(reg::R15, u64::from(again) << 32 | u64::from(site));
        let stub = match path {
            Path::Read => self.stubs.read_walk,
            Path::Write => self.stubs.write_walk,
        };
        self.cold.jmp(stub);
    }

    /// The instruction once more, with a leave behind it.
    fn copy_aside(&mut self, access: Access, next: Option<u64>) {
        let start = (access.resume - self.hot.base) as usize;
        let moved = self.cold.here();
        self.cold.bytes.extend_from_slice(&self.hot.bytes[start..]);
        // The mark that holds where the copied range starts, and those inside, apply to the copy as well.
        let later = self.hot_marks.iter().rev().take_while(|mark| mark.host > access.resume).count();
        let first = (self.hot_marks.len() - later).saturating_sub(1);
        for mark in &self.hot_marks[first..] {
            let host = mark.host.max(access.resume) - access.resume + moved;
            self.cold_marks.push(Mark { host, ..*mark });
        }
        let commit = Commit { next, resume: self.hot.here(), page: self.page };
        let index = self.site(Site::Commit(commit));
        self.cold.constant(reg::R15, u64::from(index));
        let leave = self.leave_stub();
        self.cold.jmp(leave);
        // Whoever faults behind the copy is somebody else.
        self.cold_marks.push(Mark {
            host: self.cold.here(),
            borrowed: None,
            host_flags: false,
            rip: access.rip,
        });
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

    /// A block's body starts here: whoever comes has the flags in the host's register only.
    pub(crate) fn body_starts(&mut self) {
        self.flags_in_host = true;
        self.flags_in_memory = false;
    }

    /// Flags are as a landing pad finds them: in memory, the host's clobbered.
    pub(crate) fn flags_only_in_memory(&mut self) {
        self.flags_in_host = false;
        self.flags_in_memory = true;
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

/// An access to emit a check for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) rip: u64,
    pub(crate) size: u32,
    pub(crate) path: Path,
    pub(crate) masked: bool,
    pub(crate) stack: bool,
    pub(crate) segment: SegmentRegister,
}

fn entry_offset(address: u64) -> u32 {
    u32::try_from(tlb_index(address) * 16).expect("an offset in a TLB")
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
