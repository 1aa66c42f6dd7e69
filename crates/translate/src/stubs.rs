//! The ways out of translated code.
//!
//! One copy of each in the code cache. R15's lower half is the index of a site; for walks, its upper half is where to
//! continue.

use core::mem::offset_of;

use crate::asm::{Buffer, Mem, reg};
use crate::emit::emit_save_flags;
use crate::state::{Layout, State};
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
        let walks = offset_of!(State, walk) + offset_of!(Walk, entries);
        Self {
            leave: exit(buffer, false, offset_of!(State, leave)),
            leave_with_flags: exit(buffer, true, offset_of!(State, leave)),
            read_walk: exit(buffer, false, walks),
            write_walk: exit(buffer, false, walks + 8),
            code_walk: exit(buffer, false, walks + 16),
        }
    }
}
