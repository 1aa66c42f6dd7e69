//! The ways out of translated code.
//!
//! One copy of each in the code cache. R15's lower half is the index of a site; for walks and runs, its upper half is
//! where to continue.

use core::mem::offset_of;

use crate::asm::{Buffer, Mem, Size, reg};
use crate::runs::Runs;
use crate::state::{Layout, State};
use crate::status::emit_save_flags;
use crate::walk::Walk;

/// Their addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stubs {
    /// Leaves, with flags dead or in memory. The first of all: a fault handler continues here.
    pub(crate) leave: u32,
    /// Puts the host's flags away first.
    pub(crate) leave_with_flags: u32,
    /// Walks the page tables for the linear address in R14.
    pub(crate) read_walk: u32,
    /// The same for a write.
    pub(crate) write_walk: u32,
    /// The same for a page of code.
    pub(crate) code_walk: u32,
    /// Do long runs of REP MOVS and STOS; in the order of [`Runs::entries`].
    pub(crate) runs: [u32; 8],
}

impl Stubs {
    /// Emits them.
    pub(crate) fn emit(buffer: &mut Buffer, layout: Layout) -> Self {
        let state = |offset| Mem::at(layout.field(offset));
        let exit = |buffer: &mut Buffer, flags: bool, target: usize| {
            let at = buffer.here();
            buffer.store(state(offset_of!(State, scratch)), reg::R14);
            buffer.store32(state(offset_of!(State, reason)), reg::R15);
            if flags {
                emit_save_flags(buffer, layout);
            }
            buffer.constant(reg::R14, u64::from(layout.field(0)));
            // jmp [target]
            buffer.op_mem(false, &[0xff], 4, state(target));
            at
        };
        // The first of all.
        let leave = exit(buffer, false, offset_of!(State, leave));
        let runs = offset_of!(State, runs);
        let mut run = |number: usize| {
            // A walk comes back here.
            let again = buffer.here();
            buffer.constant(reg::R14, u64::from(layout.field(0)));
            buffer.op_mem(false, &[0xff], 4, state(runs + offset_of!(Runs, entries) + 8 * number));
            let at = buffer.here();
            buffer.store32(state(offset_of!(State, reason)), reg::R15);
            buffer.store(state(runs + offset_of!(Runs, given)), reg::R15);
            let field = state(runs + offset_of!(Runs, again));
            buffer.store_imm(Size::Dword, field, again.cast_signed());
            buffer.jmp(again);
            at
        };
        let runs = core::array::from_fn(&mut run);
        let walks = offset_of!(State, walk) + offset_of!(Walk, entries);
        Self {
            leave,
            leave_with_flags: exit(buffer, true, offset_of!(State, leave)),
            read_walk: exit(buffer, false, walks),
            write_walk: exit(buffer, false, walks + 8),
            code_walk: exit(buffer, false, walks + 16),
            runs,
        }
    }
}
