//! Registers and segments in words.

use std::fmt::Write as _;

use paravane_engine::{Gpr, Segment, SegmentAttributes, SegmentRegister, VcpuContext};
use paravane_x86::{bits, descriptor::Descriptor, flags, selector::Selector};

use super::view::View;
use crate::commands::descriptor_summary;

/// The general registers, RFLAGS in words, and what else the vCPU holds.
pub(super) fn registers(out: &mut String, view: &View<'_>) {
    const ROWS: [[(&str, Gpr); 3]; 5] = [
        [("RAX", Gpr::Rax), ("RBX", Gpr::Rbx), ("RCX", Gpr::Rcx)],
        [("RDX", Gpr::Rdx), ("RSI", Gpr::Rsi), ("RDI", Gpr::Rdi)],
        [("RBP", Gpr::Rbp), ("R8 ", Gpr::R8), ("R9 ", Gpr::R9)],
        [("R10", Gpr::R10), ("R11", Gpr::R11), ("R12", Gpr::R12)],
        [("R13", Gpr::R13), ("R14", Gpr::R14), ("R15", Gpr::R15)],
    ];
    let context = view.context;
    let _ = writeln!(
        out,
        "\n  RIP {:016x}  RSP {:016x}  RFLAGS {:08x}{}",
        context.rip,
        context.gpr(Gpr::Rsp),
        context.rflags,
        set_bits(flags::RFLAGS, context.rflags)
    );
    for row in ROWS {
        let cells: Vec<String> =
            row.iter().map(|(name, register)| format!("{name} {:016x}", context.gpr(*register))).collect();
        let _ = writeln!(out, "  {}", cells.join("  "));
    }
    let user = context.user_root.map_or_else(|| "none".to_owned(), |root| root.to_string());
    let _ = writeln!(
        out,
        "  kernel page table {}, user page table {user}, inactive GS base {:#x}",
        context.kernel_root, context.inactive_gs_base
    );
    let _ = writeln!(
        out,
        "  CR4 {:#x}{}, XCR0 {:#x}{}",
        context.cr4.0,
        set_bits(flags::CR4, context.cr4.0),
        context.xcr0,
        if context.task_switched { ", CR0.TS is set" } else { "" }
    );
    for row in ROWS.iter().flatten() {
        if let Some(name) = view.symbols.name(context.gpr(row.1)) {
            let _ = writeln!(out, "  {} is {name}", row.0.trim_end());
        }
    }
}

/// The names of the bits that are set, in parentheses; nothing if none is. A bit named 1 is set always.
fn set_bits(table: &'static [bits::BitField], value: u64) -> String {
    let names: Vec<&str> = bits::decode(table, value)
        .filter(|bit| bit.value != 0 && bit.field.name != "1")
        .map(|bit| bit.field.name)
        .collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(" ")) }
}

/// The segment registers: where each was loaded from, and what it holds.
pub(super) fn segments(out: &mut String, context: &VcpuContext) {
    out.push('\n');
    for (name, register) in [
        ("CS", SegmentRegister::Cs),
        ("SS", SegmentRegister::Ss),
        ("DS", SegmentRegister::Ds),
        ("ES", SegmentRegister::Es),
        ("FS", SegmentRegister::Fs),
        ("GS", SegmentRegister::Gs),
    ] {
        let segment = context.segment(register);
        let selector = Selector(segment.selector);
        let _ = match (selector.is_null(), segment.base) {
            (true, 0) => writeln!(out, "  {name} {:04x}  null", segment.selector),
            (true, base) => writeln!(out, "  {name} {:04x}  null; base {base:#x}", segment.selector),
            (false, base) => writeln!(
                out,
                "  {name} {:04x}  {} entry {}, RPL {}: {}{}",
                segment.selector,
                selector.table(),
                selector.index(),
                selector.rpl(),
                descriptor_summary(descriptor(segment)),
                // A base of 64 bits, which no descriptor holds.
                if base >> 32 == 0 { String::new() } else { format!("; base {base:#x}") },
            ),
        };
    }
}

/// The descriptor that a register could have been loaded from.
fn descriptor(segment: &Segment) -> Descriptor {
    let granular = segment.attributes.has(SegmentAttributes::GRANULAR);
    let limit = u64::from(if granular { segment.limit >> 12 } else { segment.limit });
    let (base, attributes) = (segment.base, u64::from(segment.attributes.0));
    Descriptor(
        limit & 0xffff
            | (limit & 0xf_0000) << 32
            | (base & 0xff_ffff) << 16
            | (base & 0xff00_0000) << 32
            | attributes << 40,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_told_as_the_descriptor_it_came_from() {
        for quadword in [0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x1240_f234_5678_9abc] {
            assert_eq!(descriptor(&Segment::of_descriptor(0xe033, quadword)), Descriptor(quadword));
        }
    }
}
