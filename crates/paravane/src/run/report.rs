//! The crash report: what happened, where, and what there is to see there.
//!
//! Everything is read from machine memory as the guest left it, through the page tables it was running on; what cannot be
//! read is said so.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use paravane_abi::units::{GuestVirt, MachAddr, PAGE_SHIFT, PAGE_SIZE};
use paravane_engine::{Exit, Gpr, GuestMode, SegmentRegister, VcpuContext};
use paravane_hypervisor::{CrashReport, PastHypercall};
use paravane_memory::{Memory, paging};

use super::symbols::Symbols;

/// Words of the stack that are shown.
const STACK_WORDS: u64 = 24;
/// Bytes of code that are disassembled.
const CODE_BYTES: u64 = 48;

/// The report as text.
pub fn render<'a>(
    crash: &CrashReport,
    memory: &Memory,
    history: impl Iterator<Item = &'a PastHypercall>,
    symbols: &Symbols,
) -> String {
    let context = &crash.context;
    let view = View { memory, context, symbols };
    let mut out = format!("the guest crashed on vCPU {}: {}\n", crash.vcpu, crash.cause);
    let mode = match context.mode {
        GuestMode::Kernel => "guest kernel",
        GuestMode::User => "guest user program",
    };
    let _ = writeln!(out, "\nat {} in the {mode}, after {}", view.place(context.rip), exit_text(&crash.exit));
    registers(&mut out, context);
    segments(&mut out, context);
    view.code(&mut out);
    view.stack(&mut out);
    view.walk(&mut out, "RIP", context.rip);
    if let Exit::PageFault(fault) = &crash.exit {
        view.walk(&mut out, "the faulting address", fault.address);
    }
    let mut history = history.peekable();
    if history.peek().is_some() {
        out.push_str("\nlast hypercalls, the latest at the end:\n");
        for past in history {
            let _ = writeln!(out, "  {past}");
        }
    }
    out
}

fn exit_text(exit: &Exit) -> String {
    match exit {
        Exit::Hypercall => "a hypercall".to_owned(),
        Exit::GuestSyscall(kind) => format!("a system call ({kind:?})"),
        Exit::SoftwareInterrupt(interrupt) => format!("INT {:#x}", interrupt.vector),
        Exit::Exception(exception) => match exception.error_code {
            Some(code) => format!("exception {} with error code {code:#x}", exception.vector),
            None => format!("exception {}", exception.vector),
        },
        Exit::PageFault(fault) => {
            format!("a page fault at {:#x}, error code {:#x}", fault.address, fault.code.0)
        }
        Exit::Privileged(privileged) => format!("a privileged instruction ({:?})", privileged.op),
        Exit::LdtPage { index } => format!("a look-up in page {index} of the LDT"),
        Exit::Interrupted => "an interruption".to_owned(),
    }
}

fn registers(out: &mut String, context: &VcpuContext) {
    const ROWS: [[(&str, Gpr); 3]; 5] = [
        [("RAX", Gpr::Rax), ("RBX", Gpr::Rbx), ("RCX", Gpr::Rcx)],
        [("RDX", Gpr::Rdx), ("RSI", Gpr::Rsi), ("RDI", Gpr::Rdi)],
        [("RBP", Gpr::Rbp), ("R8 ", Gpr::R8), ("R9 ", Gpr::R9)],
        [("R10", Gpr::R10), ("R11", Gpr::R11), ("R12", Gpr::R12)],
        [("R13", Gpr::R13), ("R14", Gpr::R14), ("R15", Gpr::R15)],
    ];
    let _ = writeln!(
        out,
        "\n  RIP {:016x}  RSP {:016x}  RFLAGS {:08x}",
        context.rip,
        context.gpr(Gpr::Rsp),
        context.rflags
    );
    for row in ROWS {
        let cells: Vec<String> =
            row.iter().map(|(name, register)| format!("{name} {:016x}", context.gpr(*register))).collect();
        let _ = writeln!(out, "  {}", cells.join("  "));
    }
    let user = context.user_root.map_or_else(|| "none".to_owned(), |root| root.to_string());
    let _ = writeln!(
        out,
        "  kernel page table {}, user page table {user}, inactive GS base {:#x}, CR4 {:#x}, XCR0 {:#x}",
        context.kernel_root, context.inactive_gs_base, context.cr4.0, context.xcr0
    );
}

fn segments(out: &mut String, context: &VcpuContext) {
    for (name, register) in [
        ("CS", SegmentRegister::Cs),
        ("SS", SegmentRegister::Ss),
        ("DS", SegmentRegister::Ds),
        ("ES", SegmentRegister::Es),
        ("FS", SegmentRegister::Fs),
        ("GS", SegmentRegister::Gs),
    ] {
        let segment = context.segment(register);
        let selector = paravane_x86::selector::Selector(segment.selector);
        let place = if selector.is_null() {
            "null".to_owned()
        } else {
            format!("{} entry {}, RPL {}", selector.table(), selector.index(), selector.rpl())
        };
        let _ = writeln!(
            out,
            "  {name} {:04x} ({place}) base {:#x}, limit {:#x}, attributes {:#06x}",
            segment.selector, segment.base, segment.limit, segment.attributes.0
        );
    }
}

/// The guest's memory as the crashed vCPU saw it.
struct View<'a> {
    memory: &'a Memory,
    context: &'a VcpuContext,
    symbols: &'a Symbols,
}

impl View<'_> {
    /// An address, with its symbol where that is known.
    fn place(&self, address: u64) -> String {
        match self.symbols.name(address) {
            Some(name) => format!("{address:#x} ({name})"),
            None => format!("{address:#x}"),
        }
    }

    /// As many bytes from `address` on as can be read, at most `count`.
    fn read(&self, address: u64, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(root) = self.context.root() else { return bytes };
        while (bytes.len() as u64) < count {
            let at = address.wrapping_add(bytes.len() as u64);
            let (_, found) = paging::inspect(self.memory, root, GuestVirt(at));
            let Some(base) = found.map(|page| page.frame.0 << PAGE_SHIFT) else { break };
            let room = (PAGE_SIZE - at % PAGE_SIZE).min(count - bytes.len() as u64);
            let mut piece = vec![0; usize::try_from(room).unwrap_or(0)];
            if self.memory.read(MachAddr(base + at % PAGE_SIZE), &mut piece).is_err() {
                break;
            }
            bytes.extend(piece);
        }
        bytes
    }

    fn code(&self, out: &mut String) {
        let bytes = self.read(self.context.rip, CODE_BYTES);
        if bytes.is_empty() {
            out.push_str("\ncode: nothing is mapped at RIP\n");
            return;
        }
        out.push_str("\ncode:\n");
        let bits = if self.context.is_64_bit() { 64 } else { 32 };
        let mut decoder = Decoder::with_ip(bits, &bytes, self.context.rip, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        let mut instruction = Instruction::default();
        let mut text = String::new();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let start = usize::try_from(instruction.ip().wrapping_sub(self.context.rip)).unwrap_or(0);
            let Some(raw) = bytes.get(start..start + instruction.len()) else { break };
            text.clear();
            formatter.format(&instruction, &mut text);
            let hex: Vec<String> = raw.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(out, "  {:016x}  {:<30}  {text}", instruction.ip(), hex.join(" "));
        }
    }

    fn stack(&self, out: &mut String) {
        let top = self.context.gpr(Gpr::Rsp);
        let bytes = self.read(top, STACK_WORDS * 8);
        let (words, _) = bytes.as_chunks::<8>();
        if words.is_empty() {
            let _ = writeln!(out, "\nstack: nothing is mapped at RSP {top:#x}");
            return;
        }
        out.push_str("\nstack:\n");
        for (index, word) in words.iter().enumerate() {
            let value = u64::from_le_bytes(*word);
            let name = self.symbols.name(value).unwrap_or_default();
            let _ = writeln!(out, "  {:016x}  {value:016x}  {name}", top.wrapping_add(index as u64 * 8));
        }
    }

    fn walk(&self, out: &mut String, what: &str, address: u64) {
        let _ = writeln!(out, "\npage walk of {what}, {address:#x}:");
        let Some(root) = self.context.root() else {
            out.push_str("  there is no page table\n");
            return;
        };
        let (steps, found) = paging::inspect(self.memory, root, GuestVirt(address));
        for step in steps {
            let entry =
                step.entry.map_or_else(|| "not in guest memory".to_owned(), |entry| format!("{entry:#018x}"));
            let _ = writeln!(out, "  L{} at {:#x}: {entry}", step.level, step.address);
        }
        match found {
            Some(page) => {
                let may = |allowed: bool, what: &'static str| if allowed { what } else { "" };
                let _ = writeln!(
                    out,
                    "  frame {}: readable{}{}",
                    page.frame,
                    may(page.writable, ", writable"),
                    may(page.executable, ", executable")
                );
            }
            None => out.push_str("  not mapped\n"),
        }
    }
}
