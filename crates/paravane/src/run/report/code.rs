//! The instructions around RIP.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::view::View;

/// Bytes from RIP on that are disassembled.
const BYTES: u64 = 48;
/// Bytes before RIP among which the start of an instruction is looked for.
const BYTES_BEFORE: u64 = 32;
/// Instructions before RIP that are shown.
const BEFORE: usize = 6;
/// The longest instruction.
const LONGEST: u64 = 15;

/// Disassembles around RIP.
pub(super) fn code(out: &mut String, view: &View<'_>) {
    let rip = view.context.rip;
    if view.page(rip).is_none() {
        out.push_str("\ncode: nothing is mapped at RIP\n");
        return;
    }
    out.push_str("\ncode:\n");
    let before = before(view, rip);
    for instruction in &before[before.len().saturating_sub(BEFORE)..] {
        line(out, view, " ", instruction);
    }
    for (index, instruction) in decode(view, rip, BYTES).iter().enumerate() {
        line(out, view, if index == 0 { ">" } else { " " }, instruction);
    }
}

/// The instructions of `count` bytes from `start` on, without one that is cut off.
fn decode(view: &View<'_>, start: u64, count: u64) -> Vec<Instruction> {
    let bytes = view.read(start, count);
    let bits = if view.context.is_64_bit() { 64 } else { 32 };
    let decoder = Decoder::with_ip(bits, &bytes, start, DecoderOptions::NONE);
    let end = start.wrapping_add(bytes.len() as u64);
    let is_cut = |instruction: &Instruction| {
        instruction.is_invalid() && end.wrapping_sub(instruction.ip()) < LONGEST && instruction.ip() != start
    };
    decoder.into_iter().take_while(|instruction| !is_cut(instruction)).collect()
}

/// Instructions that lead up to `rip`. x86 code cannot be read backwards: a start is taken from which reading forwards
/// arrives at `rip`, that of the function where it is known. It is right most often, and never certain.
fn before(view: &View<'_>, rip: u64) -> Vec<Instruction> {
    let function = view.symbols.start_of(rip);
    if function == Some(rip) {
        return Vec::new();
    }
    let function = function.filter(|start| rip - start <= BYTES_BEFORE * 8);
    let farthest = BYTES_BEFORE.min(rip);
    let guesses = (1..=farthest).rev().map(|distance| rip - distance);
    for start in function.into_iter().chain(guesses) {
        if view.page(start).is_none() {
            continue;
        }
        let instructions = decode(view, start, rip - start);
        let arrives = instructions.last().is_some_and(|last| last.next_ip() == rip);
        if arrives && !instructions.iter().any(Instruction::is_invalid) {
            return instructions;
        }
    }
    Vec::new()
}

fn line(out: &mut String, view: &View<'_>, mark: &str, instruction: &Instruction) {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    let raw: Vec<String> = view
        .read(instruction.ip(), instruction.len() as u64)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let is_branch = instruction.is_call_near()
        || instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near();
    let target = is_branch.then(|| view.symbols.name(instruction.near_branch_target())).flatten();
    let target = target.map_or_else(String::new, |name| format!("  ; {name}"));
    let _ = writeln!(out, "{mark} {:016x}  {:<30}  {text}{target}", instruction.ip(), raw.join(" "));
}

/// Whether `address` is right behind a CALL, so that it could be where one returns to.
pub(super) fn follows_call(view: &View<'_>, address: u64) -> bool {
    const LONGEST_CALL: u64 = 8;
    const SHORTEST_CALL: u64 = 2;
    (SHORTEST_CALL..=LONGEST_CALL).any(|len| {
        let Some(start) = address.checked_sub(len) else { return false };
        decode(view, start, len).first().is_some_and(|first| {
            first.len() as u64 == len && (first.is_call_near() || first.is_call_near_indirect())
        })
    })
}
