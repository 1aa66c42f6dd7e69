//! Bounce frames: how control passes to the guest kernel.
//!
//! Exceptions, software interrupts, events and callbacks all enter a 64-bit guest kernel in the same way. The
//! vCPU changes to kernel mode if it was in user mode; a frame is pushed onto the kernel stack (the registered
//! one when coming from user mode, the current one otherwise), aligned down to 16 bytes; and execution goes on at
//! the handler as SYSRET leaves it.
//!
//! ```text
//!   low                                                                           high
//!  +-----+-----+------------+-----+-------------------------+--------+-----+----+
//!  | RCX | R11 | error code | RIP | CS | (upcall mask << 32) | RFLAGS | RSP | SS |
//!  +-----+-----+------------+-----+-------------------------+--------+-----+----+
//!               if the vector has one
//! ```
//!
//! The frame carries RCX and R11 because SYSRET destroys them. The saved CS tells the guest where it came from:
//! RPL 3 for user mode, RPL 0 for kernel mode, although the CPU is in ring 3 either way.
//!
//! Source: `create_bounce_frame` in `xen/arch/x86/x86_64/entry.S`.

use std::sync::LazyLock;

use paravane_abi::units::GuestVirt;
use paravane_engine::{Gpr, GuestMode, Segment, SegmentRegister, VcpuContext, rflags};
use paravane_x86::{
    gdt,
    mode::Mode,
    segments::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64},
    selector::Selector,
};
use zerocopy::IntoBytes;

use crate::{
    crash::CrashCause,
    domain::Call,
    guest::{XEN_END, XEN_START},
    vcpu::{Handler, vcpu_info},
};

/// An entry into the guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounce {
    /// Where to go, and whether events are masked on the way.
    pub(crate) handler: Handler,
    /// The error code, for the vectors that have one.
    pub(crate) error_code: Option<u32>,
}

/// `vm_assist` type 4: the guest handles IOPL as the architecture does.
pub(crate) const ARCHITECTURAL_IOPL: u64 = 1 << 4;

/// The seven words that every frame ends with or, with an error code, eight.
const FRAME_WORDS: usize = 7;

/// Enters the guest kernel. `what` names the reason in the crash report of a guest without a handler.
///
/// # Errors
///
/// The crash that follows if there is no handler or the stack cannot be written.
pub(crate) fn enter(
    call: &mut Call<'_>,
    bounce: Bounce,
    what: impl FnOnce() -> String,
) -> Result<(), CrashCause> {
    if bounce.handler.address.0 == 0 {
        return Err(CrashCause::NoHandler { what: what() });
    }
    let (stack, cs) = match call.context.mode {
        GuestMode::User => {
            call.context.toggle_mode();
            (call.vcpu().kernel_sp.0, call.context.segment(SegmentRegister::Cs).selector)
        }
        GuestMode::Kernel => {
            let cs = call.context.segment(SegmentRegister::Cs).selector & !3;
            (call.context.gpr(Gpr::Rsp), cs)
        }
    };
    let top = stack & !0xf;
    if top > XEN_START && top < XEN_END + 8 * 8 {
        return Err(CrashCause::BadStack {
            at: GuestVirt(top),
            why: "it lies in the address range reserved for Xen".to_owned(),
        });
    }
    let saved_mask = mask_events(call, bounce.handler.masks_events);
    let frame = frame(call, cs, saved_mask, bounce.error_code);
    let words = &frame.words[..frame.len];
    let bottom = GuestVirt(top.wrapping_sub(size_of_val(words) as u64));
    call.space().write(bottom, words.as_bytes()).map_err(|unreachable| CrashCause::BadStack {
        at: unreachable.at,
        why: "it is not mapped writable".to_owned(),
    })?;
    go_to(call.context, bounce.handler.address, bottom);
    Ok(())
}

/// Reads the upcall mask and, if asked, sets it.
fn mask_events(call: &Call<'_>, mask: bool) -> u8 {
    let at = call.vcpu().info(vcpu_info::UPCALL_MASK);
    let memory = &call.domain.memory;
    // The area was checked when it was registered, so these cannot fail.
    let saved = memory.load_u8(at).unwrap_or(1);
    if mask {
        let stored = memory.store_u8(at, saved | 1);
        debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
    }
    saved
}

/// A frame of seven or eight words.
struct Frame {
    words: [u64; FRAME_WORDS + 1],
    len: usize,
}

fn frame(call: &Call<'_>, cs: u16, saved_mask: u8, error_code: Option<u32>) -> Frame {
    let context = &call.context;
    let mut flags = context.rflags & !(rflags::IF | rflags::IOPL);
    if saved_mask == 0 {
        flags |= rflags::IF;
    }
    if call.domain.assists & ARCHITECTURAL_IOPL != 0 {
        flags |= u64::from(call.vcpu().iopl) << 12;
    }
    let tail = [
        context.rip,
        u64::from(cs) | u64::from(saved_mask) << 32,
        flags,
        context.gpr(Gpr::Rsp),
        u64::from(context.segment(SegmentRegister::Ss).selector),
    ];
    let (rcx, r11) = (context.gpr(Gpr::Rcx), context.gpr(Gpr::R11));
    let [rip, cs, flags, rsp, ss] = tail;
    match error_code {
        Some(code) => {
            Frame { words: [rcx, r11, u64::from(code), rip, cs, flags, rsp, ss], len: FRAME_WORDS + 1 }
        }
        None => Frame { words: [rcx, r11, rip, cs, flags, rsp, ss, 0], len: FRAME_WORDS },
    }
}

/// Puts the registers where SYSRET would.
fn go_to(context: &mut VcpuContext, handler: GuestVirt, stack: GuestVirt) {
    const CLEARED: u64 = rflags::AC | rflags::VM | rflags::RF | rflags::NT | rflags::TF;
    context.rflags &= !CLEARED;
    context.rip = handler.0;
    context.set_gpr(Gpr::Rsp, stack.0);
    sysret(context, FLAT_RING3_CS64);
}

/// What SYSRET leaves behind beside RIP: the flat segments, and RCX and R11 overwritten.
pub(crate) fn sysret(context: &mut VcpuContext, cs: Selector) {
    context.set_gpr(Gpr::Rcx, context.rip);
    context.set_gpr(Gpr::R11, context.rflags);
    *context.segment_mut(SegmentRegister::Cs) = flat(cs);
    *context.segment_mut(SegmentRegister::Ss) = flat(FLAT_RING3_SS64);
}

/// One of Xen's flat segments as the CPU caches it.
pub(crate) fn flat(selector: Selector) -> Segment {
    usual(selector).unwrap_or_else(|| flat_in_table(selector))
}

/// The same, if it is one of those that nearly every kernel and program runs on.
pub(crate) fn usual(selector: Selector) -> Option<Segment> {
    // Each system call and hypercall loads two of these; finding them in the table takes longer than the rest of it.
    static USUAL: LazyLock<[Segment; 3]> =
        LazyLock::new(|| [FLAT_RING3_CS64, FLAT_RING3_SS64, FLAT_RING3_CS32].map(flat_in_table));
    USUAL.iter().find(|segment| segment.selector == selector.0).copied()
}

fn flat_in_table(selector: Selector) -> Segment {
    let descriptor = gdt::supplied_descriptor(Mode::Guest64, selector).unwrap_or_default();
    Segment::of_descriptor(selector.0, descriptor.0)
}
