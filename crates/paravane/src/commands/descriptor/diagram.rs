//! The bits of a descriptor, named by what its type makes of them.

use paravane_x86::descriptor::{Descriptor, Kind, SystemType};

use super::entry::Entry;
use crate::output::page::{BitDiagram, BitField, Tone};

/// The diagrams of `entry`: one, or two for a 16-byte descriptor, the lower half first.
pub(in crate::commands) fn diagrams(entry: Entry) -> Vec<BitDiagram> {
    let low = BitDiagram { value: entry.low.0, width: 64, fields: low_fields(entry) };
    let high =
        entry.high.map(|value| BitDiagram { value, width: 64, fields: high_fields(entry.low).to_vec() });
    [low].into_iter().chain(high).collect()
}

fn low_fields(entry: Entry) -> Vec<BitField> {
    match entry.low.kind() {
        Kind::Code(_) => segment("D", "L", &[("X", 43), ("C", 42), ("R", 41), ("A", 40)]),
        Kind::Data(_) => segment("B", "0", &[("X", 43), ("E", 42), ("W", 41), ("A", 40)]),
        Kind::System(system) if system.is_gate() => gate(entry, system),
        Kind::System(_) => segment("0", "0", &[]),
    }
}

/// The layout of code, data, TSS and LDT; without type flags the type is one number.
fn segment(size_name: &str, long_name: &str, type_flags: &[(&str, u8)]) -> Vec<BitField> {
    let mut fields = vec![
        BitField::new(63, 56, "base 31:24", Tone::Address),
        BitField::flag(55, "G"),
        flag_or_zero(54, size_name),
        flag_or_zero(53, long_name),
        BitField::flag(52, "AVL"),
        BitField::new(51, 48, "limit 19:16", Tone::Size),
    ];
    fields.extend(access());
    if type_flags.is_empty() {
        fields.push(BitField::new(43, 40, "type", Tone::Kind));
    }
    fields.extend(type_flags.iter().map(|&(name, bit)| BitField::new(bit, bit, name, Tone::Kind)));
    fields.extend([
        BitField::new(39, 32, "base 23:16", Tone::Address),
        BitField::new(31, 16, "base 15:0", Tone::Address),
        BitField::new(15, 0, "limit 15:0", Tone::Size),
    ]);
    fields
}

fn gate(entry: Entry, system: SystemType) -> Vec<BitField> {
    let unused = |high, low| BitField::new(high, low, "0", Tone::Reserved);
    let offset = |high, low, name: &str| BitField::new(high, low, name, Tone::Address);
    let (high_offset, low_offset) = match system {
        SystemType::TaskGate => (unused(63, 48), unused(15, 0)),
        SystemType::CallGate16 | SystemType::InterruptGate16 | SystemType::TrapGate16 => {
            (unused(63, 48), offset(15, 0, "offset 15:0"))
        }
        SystemType::CallGate
        | SystemType::InterruptGate
        | SystemType::TrapGate
        | SystemType::Reserved0
        | SystemType::Tss16Available
        | SystemType::Ldt
        | SystemType::Tss16Busy
        | SystemType::Reserved8
        | SystemType::TssAvailable
        | SystemType::Reserved10
        | SystemType::TssBusy
        | SystemType::Reserved13 => (offset(63, 48, "offset 31:16"), offset(15, 0, "offset 15:0")),
    };
    let mut fields = vec![high_offset];
    fields.extend(access());
    fields.push(BitField::new(43, 40, "type", Tone::Kind));
    match (low_byte(system), entry.high) {
        (LowByte::Count, None) => {
            fields.extend([unused(39, 37), BitField::new(36, 32, "count", Tone::Size)]);
        }
        (LowByte::Ist, Some(_)) => {
            fields.extend([unused(39, 35), BitField::new(34, 32, "IST", Tone::Kind)]);
        }
        (LowByte::Count, Some(_)) | (LowByte::Ist, None) | (LowByte::Nothing, _) => {
            fields.push(unused(39, 32));
        }
    }
    fields.extend([BitField::new(31, 16, "selector", Tone::Kind), low_offset]);
    fields
}

/// What a gate keeps in bits 39..32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum LowByte {
    /// The number of stack words to copy, in the 8-byte form.
    Count,
    /// The interrupt stack table index, in the 16-byte form.
    Ist,
    /// Nothing.
    Nothing,
}

/// What a gate of type `system` keeps in bits 39..32; other types keep part of their base there.
pub(in crate::commands) fn low_byte(system: SystemType) -> LowByte {
    match system {
        SystemType::CallGate | SystemType::CallGate16 => LowByte::Count,
        SystemType::InterruptGate | SystemType::TrapGate => LowByte::Ist,
        SystemType::TaskGate
        | SystemType::InterruptGate16
        | SystemType::TrapGate16
        | SystemType::Reserved0
        | SystemType::Tss16Available
        | SystemType::Ldt
        | SystemType::Tss16Busy
        | SystemType::Reserved8
        | SystemType::TssAvailable
        | SystemType::Reserved10
        | SystemType::TssBusy
        | SystemType::Reserved13 => LowByte::Nothing,
    }
}

fn access() -> [BitField; 3] {
    [
        BitField::flag(47, "P"),
        BitField::new(46, 45, "DPL", Tone::Privilege),
        BitField::new(44, 44, "S", Tone::Kind),
    ]
}

fn flag_or_zero(bit: u8, name: &str) -> BitField {
    let tone = if name == "0" { Tone::Reserved } else { Tone::Flag };
    BitField::new(bit, bit, name, tone)
}

fn high_fields(low: Descriptor) -> [BitField; 4] {
    let contents = match low.kind() {
        Kind::System(system) if system.is_gate() => "offset 63:32",
        Kind::System(_) | Kind::Code(_) | Kind::Data(_) => "base 63:32",
    };
    [
        BitField::new(63, 45, "0", Tone::Reserved),
        BitField::new(44, 40, "S, type: 0", Tone::Reserved),
        BitField::new(39, 32, "0", Tone::Reserved),
        BitField::new(31, 0, contents, Tone::Address),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bits that no field covers, and those that more than one does.
    fn misses(diagram: &BitDiagram) -> Vec<u8> {
        let covered = |bit: u8| diagram.fields.iter().filter(|f| (f.low..=f.high).contains(&bit)).count();
        (0..diagram.width).filter(|&bit| covered(bit) != 1).collect()
    }

    #[test]
    fn every_type_has_every_bit_in_one_field() {
        for access in 0..=0xffu64 {
            for high in [None, Some(0x1234)] {
                for diagram in diagrams(Entry { low: Descriptor(access << 40), high }) {
                    assert!(misses(&diagram).is_empty(), "{access:#x} {high:?}");
                    assert!(diagram.fields.iter().all(|field| field.high / 32 == field.low / 32));
                    assert!(diagram.fields.is_sorted_by(|a, b| a.low > b.high));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_fields_together_are_the_value(raw: u64, high: Option<u64>) {
            for diagram in diagrams(Entry { low: Descriptor(raw), high }) {
                let sum = diagram.fields.iter().fold(0, |sum, f| sum | diagram.field_value(f) << f.low);
                prop_assert_eq!(sum, diagram.value);
            }
        }
    }
}
