//! Registers and codes that are tables of named bits: their drawing and their rows.

use paravane_x86::bits::{BitField as NamedBits, FieldValue};

use crate::output::page::{BitDiagram, BitField, Page, Tone};

/// Draws `value` with the fields of `table`, which are in order from the low end and may leave gaps.
pub(super) fn diagram(table: &[NamedBits], value: u64, width: u8) -> BitDiagram {
    let mut fields = Vec::new();
    let mut next = 0;
    for named in table.iter().filter(|named| named.high < width) {
        fields.extend(gap(next, named.low));
        let tone = if named.high == named.low { Tone::Flag } else { Tone::Privilege };
        fields.push(BitField::new(named.high, named.low, named.name, tone));
        next = named.high + 1;
    }
    fields.extend(gap(next, width));
    fields.reverse();
    BitDiagram { value, width, fields }
}

/// Reserved bits from `low` up to `end`, cut where a drawing begins a new row.
fn gap(low: u8, end: u8) -> Vec<BitField> {
    let cuts = if low < 32 && end > 32 { vec![(low, 32), (32, end)] } else { vec![(low, end)] };
    let cuts = cuts.into_iter().filter(|(low, end)| low < end);
    cuts.map(|(low, end)| BitField::new(end - 1, low, "0", Tone::Reserved)).collect()
}

/// The narrowest usual width that shows all of `value`.
pub(super) fn width(value: u64) -> u8 {
    if value >> 32 == 0 { 32 } else { 64 }
}

/// Adds what is set as a table, and what is clear as a line.
pub(super) fn describe(page: &mut Page, fields: &[FieldValue]) {
    let (set, clear): (Vec<&FieldValue>, Vec<&FieldValue>) =
        fields.iter().partition(|field| field.value != 0);
    if !set.is_empty() {
        page.table(
            &["Bit", "Name", "Value", "Meaning, and what differs for a PV guest"],
            set.into_iter().map(row),
        );
    }
    let clear: Vec<&str> = clear.into_iter().map(|field| field.field.name).collect();
    if !clear.is_empty() {
        page.text(format!("Clear: {}.", clear.join(", ")));
    }
}

fn row(field: &FieldValue) -> Vec<String> {
    let bits = field.field;
    let place =
        if bits.high == bits.low { bits.low.to_string() } else { format!("{}..{}", bits.high, bits.low) };
    let pv = if bits.pv.is_empty() { String::new() } else { format!(" PV: {}", bits.pv) };
    vec![place, bits.name.to_owned(), field.value.to_string(), format!("{}{pv}", bits.meaning)]
}

#[cfg(test)]
mod tests {
    use paravane_x86::{
        fault::PAGE_FAULT_CODE,
        flags::{CR0, CR4, RFLAGS},
    };

    use super::*;

    #[test]
    fn every_bit_of_every_table_is_drawn_once() {
        for table in [RFLAGS, CR0, CR4, PAGE_FAULT_CODE] {
            for width in [32, 64] {
                let diagram = diagram(table, u64::MAX, width);
                let mut next = width;
                for field in &diagram.fields {
                    assert_eq!(field.high + 1, next);
                    assert_eq!(field.high / 32, field.low / 32);
                    next = field.low;
                }
                assert_eq!(next, 0);
            }
        }
    }
}
