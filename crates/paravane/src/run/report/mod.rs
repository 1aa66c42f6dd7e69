//! The crash report: what happened, where, and what there is to see there.
//!
//! Everything is read from machine memory as the guest left it, through the page tables it was running on; what
//! cannot be read is said so.
//!
//! ```text
//!   mod.rs        what happened, in words, and what to make of it
//!   registers.rs  registers and segments
//!   view.rs       the guest's memory as its vCPU saw it; page walks
//!   code.rs       the instructions around RIP
//!   stack.rs      the stack, and the calls that it remembers
//! ```

mod code;
mod registers;
mod stack;
mod view;

use std::fmt::Write as _;

use paravane_engine::{Exit, GuestMode, VcpuContext};
use paravane_hypervisor::{CrashCause, CrashReport, PastHypercall};
use paravane_memory::{Memory, paging::FaultCode};
use paravane_x86::fault::{ErrorCode, Exception, SelectorErrorCode, describe_page_fault};

use super::symbols::Symbols;
use view::View;

/// The report as text.
pub fn render<'a>(
    crash: &CrashReport,
    memory: &Memory,
    history: impl Iterator<Item = &'a PastHypercall>,
    symbols: &Symbols,
) -> String {
    let mut out = format!("the guest crashed on vCPU {}: {}\n", crash.vcpu, crash.cause);
    for hint in hints(crash) {
        let _ = writeln!(out, "  {hint}");
    }
    picture(&mut out, &crash.context, &crash.exit, memory, symbols);
    if let Some((what, address)) = address_of(&crash.cause) {
        View { memory, context: &crash.context, symbols }.walk(&mut out, what, address);
    }
    hypercalls(&mut out, history);
    out
}

/// The report of a guest that ended itself: its own kernel said why on its console, if it has one.
pub fn render_given_up<'a>(
    context: &VcpuContext,
    memory: &Memory,
    history: impl Iterator<Item = &'a PastHypercall>,
    symbols: &Symbols,
) -> String {
    let mut out = "the guest reported that it crashed (SHUTDOWN_crash)\n".to_owned();
    out.push_str("  What its kernel has to say of that is on its console. This is where it gave up.\n");
    picture(&mut out, context, &Exit::Hypercall, memory, symbols);
    hypercalls(&mut out, history);
    out
}

/// What every report shows: where, registers, code, stack, and how addresses are reached.
fn picture(out: &mut String, context: &VcpuContext, exit: &Exit, memory: &Memory, symbols: &Symbols) {
    let view = View { memory, context, symbols };
    let mode = match context.mode {
        GuestMode::Kernel => "guest kernel",
        GuestMode::User => "guest user program",
    };
    let _ = writeln!(
        out,
        "\nat {} in the {mode}, after {}",
        view.place(context.rip),
        exit_text(exit, context.mode)
    );
    registers::registers(out, &view);
    registers::segments(out, context);
    code::code(out, &view);
    stack::stack(out, &view);
    stack::calls(out, &view);
    view.walk(out, "RIP", context.rip);
    if let Exit::PageFault(fault) = exit
        && fault.address != context.rip
    {
        view.walk(out, "the faulting address", fault.address);
    }
}

fn hypercalls<'a>(out: &mut String, history: impl Iterator<Item = &'a PastHypercall>) {
    let mut history = history.peekable();
    if history.peek().is_none() {
        out.push_str("\nthere was no hypercall\n");
        return;
    }
    out.push_str("\nlast hypercalls, the latest at the end:\n");
    for past in history {
        let _ = writeln!(out, "  {past}");
    }
}

/// What an exit was, with its numbers in words.
fn exit_text(exit: &Exit, mode: GuestMode) -> String {
    match exit {
        Exit::Hypercall => "a hypercall".to_owned(),
        Exit::GuestSyscall(kind) => format!("a system call ({kind:?})"),
        Exit::SoftwareInterrupt(interrupt) => format!("INT {:#x}", interrupt.vector),
        Exit::Exception(exception) => exception_text(exception.vector, exception.error_code),
        Exit::PageFault(fault) => {
            // As the guest is told: both its modes run in ring 3.
            let code = match mode {
                GuestMode::Kernel => fault.code.0 & !FaultCode::USER,
                GuestMode::User => fault.code.0 | FaultCode::USER,
            };
            let access = describe_page_fault(code);
            format!("a page fault at {:#x}: {access} (error code {code:#x})", fault.address)
        }
        Exit::Privileged(privileged) => format!("a privileged instruction ({:?})", privileged.op),
        Exit::LdtPage { index } => format!("a look-up in page {index} of the LDT"),
        Exit::Interrupted => "an interruption".to_owned(),
    }
}

fn exception_text(vector: u8, error_code: Option<u32>) -> String {
    let facts = Exception::from_number(vector).map(|exception| (exception.name(), exception.facts()));
    let mut text = match facts {
        Some((name, facts)) => format!("exception {vector}, {name} ({})", facts.title),
        None => format!("exception {vector}"),
    };
    if let Some(code) = error_code {
        let _ = write!(text, ", error code {code:#x}");
        if facts.is_some_and(|(_, facts)| facts.error_code == ErrorCode::Selector) {
            let _ = write!(text, " ({})", SelectorErrorCode::from_bits(code));
        }
    }
    text
}

/// What somebody who reads such a report for the first time would want to be told.
fn hints(crash: &CrashReport) -> Vec<&'static str> {
    /// A pointer to a member of a structure at address 0 is at most this large.
    const NEAR_NULL: u64 = 0x1_0000;
    let mut hints = Vec::new();
    if let Exit::PageFault(fault) = &crash.exit {
        if fault.address == crash.context.rip {
            hints.push(
                "There is no code where the guest jumped, called or returned to. If it called, the caller is the \
                 first of the calls below.",
            );
        } else if fault.address < NEAR_NULL {
            hints.push("The address is close to 0: perhaps a null pointer.");
        }
        if fault.code.0 & FaultCode::RESERVED != 0 {
            hints.push(
                "An entry on the way names a frame that is not the guest's memory, or has a reserved bit.",
            );
        }
    }
    match &crash.cause {
        CrashCause::NoHandler { .. } => hints.push(
            "The guest has registered no handler for that: until it calls set_trap_table (and, for events, \
             set_callbacks), any of them is its end.",
        ),
        CrashCause::BadStack { .. } => hints.push(
            "An exception or event is delivered on the guest kernel's stack: RSP, or what stack_switch set when \
             it comes from user mode.",
        ),
        CrashCause::BadIretFrame { .. } => {
            hints.push("The iret hypercall takes its frame from the stack; `paravane explain iret` shows it.");
        }
        CrashCause::NoUserRoot => {
            hints.push("MMUEXT_NEW_USER_BASEPTR sets one; a 64-bit kernel has two page tables.");
        }
        CrashCause::BadRoot { .. } | CrashCause::Fatal(_) => {}
    }
    hints
}

/// The address that a cause is about.
fn address_of(cause: &CrashCause) -> Option<(&'static str, u64)> {
    match cause {
        CrashCause::BadStack { at, .. } => Some(("the frame that could not be written", at.0)),
        CrashCause::BadIretFrame { at } => Some(("the frame that could not be read", at.0)),
        CrashCause::NoHandler { .. }
        | CrashCause::NoUserRoot
        | CrashCause::BadRoot { .. }
        | CrashCause::Fatal(_) => None,
    }
}
