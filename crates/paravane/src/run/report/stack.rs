//! The stack, and the calls that it remembers.

use std::fmt::Write as _;

use paravane_engine::Gpr;

use super::{code, view::View};

/// Words of the stack that are shown.
const WORDS: u64 = 24;
/// Bytes of the stack that are searched for return addresses: a kernel's whole stack, as Linux has it.
const SEARCHED_BYTES: u64 = 16 << 10;
/// Calls that are shown.
const CALLS: usize = 32;

/// The words at RSP.
pub(super) fn stack(out: &mut String, view: &View<'_>) {
    let top = view.context.gpr(Gpr::Rsp);
    let words = words(view, WORDS * 8);
    if words.is_empty() {
        let _ = writeln!(out, "\nstack: nothing is mapped at RSP {top:#x}");
        return;
    }
    out.push_str("\nstack:\n");
    for (at, value) in words {
        let name = view.symbols.name(value).unwrap_or_default();
        let _ = writeln!(out, "  {}", format!("{at:016x}  {value:016x}  {name}").trim_end());
    }
}

/// What on the stack could be where a call returns to: addresses of code that a CALL comes before, in the half of the
/// address space that the stack is in, which tells a kernel's from its user's. Some may be left over from calls that
/// are done.
pub(super) fn calls(out: &mut String, view: &View<'_>) {
    let half = view.context.gpr(Gpr::Rsp) >> 63;
    let found: Vec<(u64, u64)> = words(view, SEARCHED_BYTES)
        .into_iter()
        .filter(|&(_, value)| value >> 63 == half)
        .filter(|&(_, value)| view.page(value).is_some_and(|page| page.executable))
        .filter(|&(_, value)| code::follows_call(view, value))
        .take(CALLS + 1)
        .collect();
    if found.is_empty() {
        out.push_str("\ncalls: no word on the stack is an address behind a CALL\n");
        return;
    }
    out.push_str("\ncalls, by the return addresses on the stack, the latest first; some may be left over:\n");
    for (at, value) in &found[..found.len().min(CALLS)] {
        let _ = writeln!(out, "  {at:016x}  {}", view.place(*value));
    }
    if found.len() > CALLS {
        out.push_str("  …\n");
    }
}

/// The words from RSP on that can be read, in at most `bytes` bytes, with their addresses.
fn words(view: &View<'_>, bytes: u64) -> Vec<(u64, u64)> {
    let top = view.context.gpr(Gpr::Rsp);
    let bytes = view.read(top, bytes);
    let (words, _) = bytes.as_chunks::<8>();
    let address = |index: usize| top.wrapping_add(index as u64 * 8);
    words.iter().enumerate().map(|(index, word)| (address(index), u64::from_le_bytes(*word))).collect()
}
