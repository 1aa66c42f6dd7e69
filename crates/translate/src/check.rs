//! Memory accesses: the check that turns a guest address into a host address, and what happens if it fails.
//!
//! The guest address goes to R14, the sequence of [`Emitter::check`] turns it into a host address, and the
//! instruction then uses `[r14]`. If the check fails, cold code hands a site to Rust, which fills the TLB and
//! continues at the instruction, or raises the fault. For accesses that one host address cannot serve (two
//! pages, a write into translated code) Rust lets the instruction run on a copy: reads continue in place
//! with R14 at the copy; for writes the instruction's bytes are emitted once more in the cold part, followed by a
//! leave that commits the copy. All checks come before the first effect, so a fault finds the guest's state
//! as it was before the instruction.

use paravane_engine::SegmentRegister;

use crate::asm::{Mem, Rel32, Size, cond, reg};
use crate::bits::low8;
use crate::emit::Emitter;
use crate::recall::Recipe;
use crate::reuse::Lead;
use crate::sites::{Access, Commit, Mark, Site, offset_in_page};
use crate::state::{Path, tlb_index};

/// An access whose cold part is still to be emitted.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Jumps of the check that lead there.
    jumps: [Option<Rel32>; 2],
    /// The guest address, if the code knows it; otherwise R14 and R15 tell.
    constant: Option<u64>,
    /// How to make the flags if they are not in memory but can be seen.
    recall: Option<Recipe>,
    /// Where the check begins, for another attempt.
    again: u32,
    access: Access,
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

impl Emitter {
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

    /// With EFLAGS.AC, misaligned operands take the cold path, where Rust raises #AC.
    fn alignment_check(&mut self, size: u32) -> Option<Rel32> {
        let alignment = alignment(u64::from(size));
        if !self.conditions.aligned || alignment == 1 {
            return None;
        }
        // test r14b, alignment - 1
        self.hot.put(&[0x41, 0xf6, 0xc6]);
        self.hot.put(&[low8(alignment - 1)]);
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
        let recall = self.recalled.filter(|_| !self.flags_in_memory);
        self.pending.push(Pending { jumps, constant, recall, again, access });
    }

    /// The instruction's emission is complete: emits the cold parts of its accesses. `next` is the guest
    /// address that follows, if it is known.
    pub(crate) fn finish(&mut self, next: Option<u64>) {
        while let Some(pending) = self.pending.pop() {
            self.cold_access(pending, next);
        }
    }

    fn cold_access(&mut self, pending: Pending, next: Option<u64>) {
        let Pending { jumps, constant, recall, again, mut access } = pending;
        let layout = self.layout;
        let [miss, misaligned] = jumps;
        if access.shared {
            self.cold_lead(access, miss, recall, again);
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
        self.cold_recall(recall);
        let index = self.site(Site::Access(access));
        self.walk((access.path, misaligned.is_some()), index, again);
        if access.path == Path::Write {
            access.aside = self.cold.here();
            self.sites[index as usize] = Site::Access(access);
            self.copy_aside(access, next);
        }
    }

    /// Puts flags into memory that are not there but can be seen now.
    pub(crate) fn cold_recall(&mut self, recall: Option<Recipe>) {
        if let Some(recipe) = recall {
            let word = self.recipes.word(recipe);
            self.cold.store_imm(Size::Dword, self.status(), word.cast_signed());
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
            let is_x87 = mark.is_x87 && mark.host >= access.resume;
            self.cold_marks.push(Mark { host, is_x87, ..*mark });
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
            is_x87: false,
            page: self.page,
            offset: offset_in_page(access.rip),
        });
    }
}

/// What the address of an operand of some bytes must be a multiple of while EFLAGS.AC is set: numbers, far pointers, and
/// the environments of the x87 unit. Intel SDM vol. 3A, "Alignment Check Exception (#AC)".
pub(crate) fn alignment(size: u64) -> u64 {
    match size {
        2 | 4 | 8 => size,
        6 | 28 | 108 => 4,
        10 => 8,
        14 | 94 => 2,
        _ => 1,
    }
}
