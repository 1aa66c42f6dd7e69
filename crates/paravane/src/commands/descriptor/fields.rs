//! The fields of a descriptor, each with its value and what that means.

use paravane_x86::{
    descriptor::{
        Kind, SystemType, bits,
        gate::Gate,
        kind::{CodeType, CodeWidth, DataType},
    },
    selector::Ring,
};

use super::{
    diagram::{LowByte, low_byte},
    entry::Entry,
    summary::{byte_size, valid_offsets},
};

/// Names and explained values, in the order in which people ask for them.
pub(in crate::commands) fn rows(entry: Entry) -> Vec<(&'static str, String)> {
    match (entry.low.kind(), entry.gate()) {
        (Kind::Code(code), _) => code_rows(entry, code),
        (Kind::Data(data), _) => data_rows(entry, data),
        (Kind::System(system), Some(gate)) => gate_rows(entry, system, gate),
        (Kind::System(system), None) => system_rows(entry, system),
    }
}

/// One bit: 1 or 0, and what that value means.
fn bit(entry: Entry, mask: u64, set: &str, clear: &str) -> String {
    if entry.low.has(mask) { format!("1: {set}") } else { format!("0: {clear}") }
}

fn code_rows(entry: Entry, code: CodeType) -> Vec<(&'static str, String)> {
    let mut rows = vec![("kind", kind(entry))];
    rows.extend(extent_rows(entry));
    rows.extend([
        (
            "DPL",
            dpl(
                entry,
                if code.conforming {
                    "code of this ring or any less privileged one may jump or call here and stays in its ring"
                } else {
                    "only code of this ring may jump or call here"
                },
            ),
        ),
        ("P", present(entry)),
        ("X", "1: executable, so bits 42 and 41 are C and R".to_owned()),
        ("C", bit(entry, 4 << 40, "conforming", "non-conforming")),
        ("R", bit(entry, 2 << 40, "may be read through CS: and the data registers", "execute-only")),
        ("A", accessed(entry)),
        ("L, D", width(code.width).to_owned()),
        ("AVL", avl(entry)),
    ]);
    rows
}

fn data_rows(entry: Entry, data: DataType) -> Vec<(&'static str, String)> {
    let big = match (data.expand_down, entry.low.has(bits::DB)) {
        (false, true) => "1: as a stack it uses ESP",
        (false, false) => "0: as a stack it uses SP, 16 bits",
        (true, true) => "1: offsets end at 0xffffffff; as a stack it uses ESP",
        (true, false) => "0: offsets end at 0xffff; as a stack it uses SP, 16 bits",
    };
    let mut rows = vec![("kind", kind(entry))];
    rows.extend(extent_rows(entry));
    rows.extend([
        (
            "DPL",
            dpl(entry, "for data, code of this ring or a more privileged one; as a stack, this ring only"),
        ),
        ("P", present(entry)),
        ("X", "0: data, so bits 42 and 41 are E and W".to_owned()),
        (
            "E",
            bit(entry, 4 << 40, "expand-down: valid are the offsets above the limit", "expand-up, as usual"),
        ),
        ("W", bit(entry, 2 << 40, "writable, so it may be a stack", "read-only, so it cannot be a stack")),
        ("A", accessed(entry)),
        ("B", big.to_owned()),
        ("AVL", avl(entry)),
    ]);
    rows
}

fn system_rows(entry: Entry, system: SystemType) -> Vec<(&'static str, String)> {
    let mut rows = vec![("kind", format!("{}: {}", kind(entry), system_purpose(system)))];
    rows.extend(extent_rows(entry));
    rows.extend([("DPL", u8::from(entry.low.dpl()).to_string()), ("P", present(entry)), ("AVL", avl(entry))]);
    rows
}

fn gate_rows(entry: Entry, system: SystemType, gate: Gate) -> Vec<(&'static str, String)> {
    let target = gate.selector;
    let what = if system == SystemType::TaskGate { "its TSS" } else { "its code segment" };
    let mut rows = vec![
        ("kind", format!("{}: {}", kind(entry), system_purpose(system))),
        (
            "selector",
            format!("{target}: {what} is {} entry {}, RPL {}", target.table(), target.index(), target.rpl()),
        ),
    ];
    if system != SystemType::TaskGate {
        rows.push(("offset", format!("{:#x}", gate.offset)));
    }
    rows.push(("DPL", dpl(entry, "code of this ring or a more privileged one may use the gate")));
    rows.push(("P", present(entry)));
    match (low_byte(system), entry.high) {
        (LowByte::Count, None) => {
            let words = gate.parameter_count();
            rows.push(("count", format!("{words}: stack words copied to the new stack")));
        }
        (LowByte::Ist, Some(_)) => {
            let stack = match gate.ist() {
                0 => "0: the handler keeps the stack, or takes that of its ring".to_owned(),
                index => {
                    format!("{index}: the handler starts on stack {index} of the TSS's interrupt stacks")
                }
            };
            rows.push(("IST", stack));
        }
        (LowByte::Count, Some(_)) | (LowByte::Ist, None) | (LowByte::Nothing, _) => {}
    }
    rows
}

fn kind(entry: Entry) -> String {
    let low = entry.low;
    let wide = if entry.high.is_some() { ", 16 bytes" } else { "" };
    match low.kind() {
        kind @ (Kind::Code(_) | Kind::Data(_)) => format!("{kind} (S = 1, type {:#06b})", low.type_bits()),
        kind @ Kind::System(_) => format!("{kind} (S = 0, type {}{wide})", low.type_bits()),
    }
}

fn system_purpose(system: SystemType) -> &'static str {
    match system {
        SystemType::Reserved0 => "no segment, or the upper half of a 16-byte descriptor",
        SystemType::Reserved8 | SystemType::Reserved10 | SystemType::Reserved13 => "no segment",
        SystemType::Tss16Available
        | SystemType::Tss16Busy
        | SystemType::TssAvailable
        | SystemType::TssBusy => "task state segment",
        SystemType::Ldt => "where a local descriptor table lies",
        SystemType::CallGate16 | SystemType::CallGate => "door for far calls to another ring",
        SystemType::TaskGate => "door to another hardware task",
        SystemType::InterruptGate16 | SystemType::InterruptGate => {
            "door to an interrupt handler, which clears IF"
        }
        SystemType::TrapGate16 | SystemType::TrapGate => "door to an exception handler, which keeps IF",
    }
}

fn extent_rows(entry: Entry) -> Vec<(&'static str, String)> {
    let low = entry.low;
    let base = entry.base();
    let units = if low.has(bits::G) { "in 4 KiB units (G = 1)" } else { "in bytes (G = 0)" };
    let meaning = if matches!(low.kind(), Kind::Data(data) if data.expand_down) {
        format!("offsets up to {:#x} are invalid", low.limit())
    } else {
        format!("the last offset is {:#x}, {}", low.limit(), byte_size(u64::from(low.limit()) + 1))
    };
    let limit = format!("{:#x} {units}: {meaning}", low.limit_field());
    let digits = if entry.high.is_some() { 18 } else { 10 };
    let covers = match (low.kind(), valid_offsets(low)) {
        (Kind::Code(CodeType { width: CodeWidth::Bits64, .. }), _) => {
            "everything: 64-bit code ignores base and limit".to_owned()
        }
        (_, None) => "nothing: no offset is above the limit".to_owned(),
        (_, Some((first, last))) => format!(
            "first byte {:#0digits$x}, last byte {:#0digits$x}",
            address(entry, first),
            address(entry, last)
        ),
    };
    vec![("base", format!("{base:#0digits$x}")), ("limit", limit), ("covers", covers)]
}

/// The linear address of `offset`, which wraps at the width of the base.
fn address(entry: Entry, offset: u32) -> u64 {
    match entry.high {
        Some(_) => entry.base().wrapping_add(u64::from(offset)),
        None => u64::from(entry.low.base().wrapping_add(offset)),
    }
}

fn dpl(entry: Entry, meaning: &str) -> String {
    let ring = entry.low.dpl();
    let whose = match ring {
        Ring::R0 => "ring 0, Xen's",
        Ring::R1 => "ring 1, the kernel of a 32-bit guest",
        Ring::R2 => "ring 2, which nobody uses",
        Ring::R3 => "ring 3, user programs and 64-bit guest kernels",
    };
    format!("{ring}: {whose}; {meaning}")
}

fn present(entry: Entry) -> String {
    bit(entry, bits::P, "present", "not present: every load faults")
}

fn accessed(entry: Entry) -> String {
    bit(entry, bits::ACCESSED, "accessed: it has been loaded, or was prepared so", "not loaded yet")
}

fn avl(entry: Entry) -> String {
    bit(entry, bits::AVL, "set by software, for its own use", "free for software")
}

fn width(width: CodeWidth) -> &'static str {
    match width {
        CodeWidth::Bits16 => "0, 0: 16-bit code",
        CodeWidth::Bits32 => "0, 1: 32-bit code",
        CodeWidth::Bits64 => "1, 0: 64-bit code",
        CodeWidth::Reserved => "1, 1: reserved; in long mode a load into CS faults",
    }
}

#[cfg(test)]
mod tests {
    use paravane_x86::descriptor::Descriptor;
    use proptest::prelude::*;

    use super::*;

    fn row(low: u64, high: Option<u64>, name: &str) -> Option<String> {
        let rows = rows(Entry { low: Descriptor(low), high });
        rows.into_iter().find(|(row, _)| *row == name).map(|(_, value)| value)
    }

    #[test]
    fn the_first_and_last_byte_are_linear_addresses() {
        for (low, high, covers) in [
            (0x00cf_f300_0000_ffff, None, "first byte 0x00000000, last byte 0xffffffff"),
            (0x1240_f334_5678_0fff, None, "first byte 0x12345678, last byte 0x12346677"),
            // Offsets 0x1000 to 0xffff, upwards of base 0x10000.
            (0x0000_f701_0000_0fff, None, "first byte 0x00011000, last byte 0x0001ffff"),
            (0x00cf_f700_0000_ffff, None, "nothing: no offset is above the limit"),
            (0x00af_fb00_0000_ffff, None, "everything: 64-bit code ignores base and limit"),
            (
                0x8000_8953_1040_0067,
                Some(0xffff_82d0),
                "first byte 0xffff82d080531040, last byte 0xffff82d0805310a7",
            ),
        ] {
            assert_eq!(row(low, high, "covers").as_deref(), Some(covers), "{low:#x}");
        }
    }

    #[test]
    fn a_gate_says_where_it_leads_and_what_its_low_byte_means() {
        let legacy = 0x1234_ec05_0010_5678;
        assert_eq!(row(legacy, None, "offset").as_deref(), Some("0x12345678"));
        assert_eq!(row(legacy, None, "count").as_deref(), Some("5: stack words copied to the new stack"));
        assert_eq!(row(legacy, Some(0xffff_8000), "offset").as_deref(), Some("0xffff800012345678"));
        assert_eq!(row(legacy, Some(0xffff_8000), "count"), None);
        assert!(row(0x1234_8e02_0010_5678, Some(0), "IST").is_some_and(|ist| ist.starts_with("2: ")));
        assert_eq!(row(0x0000_8500_0028_0000, None, "offset"), None);
    }

    proptest! {
        #[test]
        fn any_quadwords_have_rows(low: u64, high: Option<u64>) {
            let entry = Entry { low: Descriptor(low), high };
            prop_assert!(rows(entry).len() >= 4);
        }
    }
}
