//! `paravane decode error-code`: what an exception pushed below its frame.
//!
//! The number alone does not say which exception it belongs to, so both readings are given unless one is asked
//! for: that of a page fault, and that of the exceptions about selectors.

use paravane_x86::{
    bits::{self, FieldValue},
    fault::{ErrorCode, ErrorTable, Exception, PAGE_FAULT_CODE, SelectorErrorCode, describe_page_fault},
    gdt,
    mode::Mode,
};
use serde_json::{Value, json};

use super::bit_table;
use crate::{
    cli::decode::ErrorCodeArgs,
    failure::Failure,
    input,
    output::{
        Answer,
        page::{BitDiagram, BitField, Block, Page, Tone},
    },
};

/// The readings to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Of #PF.
    PageFault,
    /// Of #TS, #NP, #SS and #GP.
    Selector,
    /// Both.
    Both,
}

/// Decodes each value of `args`.
///
/// # Errors
///
/// If a value is no 32-bit number.
pub(super) fn decode(args: &ErrorCodeArgs) -> Result<Answer, Failure> {
    let reading = match (args.page_fault, args.selector) {
        (true, _) => Reading::PageFault,
        (false, true) => Reading::Selector,
        (false, false) => Reading::Both,
    };
    let values = input::numbers(&args.bits.values, args.bits.file.as_deref(), 32, "error code")?;
    let codes: Vec<u32> = values.into_iter().filter_map(|value| u32::try_from(value).ok()).collect();
    let pages = codes.iter().map(|&code| describe(code, reading)).collect();
    let json: Vec<Value> = codes.iter().map(|&code| to_json(code, reading)).collect();
    Ok(Answer { page: super::join("Error codes", pages), json: json!(json) })
}

fn describe(code: u32, reading: Reading) -> Page {
    let page_fault = describe_page_fault(code);
    let selector = SelectorErrorCode::from_bits(code);
    let mut page = Page::new(match reading {
        Reading::PageFault => format!("Page-fault error code {code:#x}: {page_fault}"),
        Reading::Selector => format!("Selector error code {code:#x}: {selector}"),
        Reading::Both => {
            format!("Error code {code:#x}: of #PF, {page_fault}; of #GP and its like, {selector}")
        }
    });
    if reading != Reading::Selector {
        page.heading(format!("As #PF pushes it: {page_fault}"));
        page.push(Block::Bits(bit_table::diagram(PAGE_FAULT_CODE, u64::from(code), 32)));
        bit_table::describe(&mut page, &page_fault_fields(code));
        page.text("CR2 holds the address; a PV guest reads it in vcpu_info.arch.cr2.");
        if let Some(reserved) = reserved_bits(code) {
            page.text(format!("Reserved bits are set ({reserved:#x}), so this is hardly a page fault's."));
        }
    }
    if reading != Reading::PageFault {
        describe_selector(&mut page, code, selector);
    }
    page.sources([
        "AMD APM vol. 2, \"Error Codes\"",
        "Intel SDM vol. 3A, \"Error Code\"",
        "xen/arch/x86/pv/traps.c",
    ]);
    page
}

fn page_fault_fields(code: u32) -> Vec<FieldValue> {
    bits::decode(PAGE_FAULT_CODE, u64::from(code)).collect()
}

fn reserved_bits(code: u32) -> Option<u64> {
    Some(bits::unnamed(PAGE_FAULT_CODE, u64::from(code))).filter(|&reserved| reserved != 0)
}

fn describe_selector(page: &mut Page, code: u32, selector: SelectorErrorCode) {
    let exceptions: Vec<&str> = Exception::ALL
        .iter()
        .filter(|exception| exception.facts().error_code == ErrorCode::Selector)
        .map(|exception| exception.name())
        .collect();
    page.heading(format!("As {} push it: {selector}", exceptions.join(", ")));
    page.push(Block::Bits(selector_diagram(code)));
    let mut rows = vec![
        ("index", format!("{} ({:#x})", selector.index, selector.index)),
        ("table", table_text(selector.table).to_owned()),
        (
            "EXT",
            if selector.external {
                "1: an event from outside, or a fault while one was delivered".to_owned()
            } else {
                "0: the program itself".to_owned()
            },
        ),
    ];
    rows.extend(blame(selector).map(|blame| ("to blame", blame)));
    if code >> 16 != 0 {
        rows.push(("note", format!("reserved bits are set ({:#x}): hardly such a code", code & 0xffff_0000)));
    }
    page.fields(rows);
}

fn selector_diagram(code: u32) -> BitDiagram {
    BitDiagram {
        value: u64::from(code),
        width: 32,
        fields: vec![
            BitField::new(31, 16, "reserved", Tone::Reserved),
            BitField::new(15, 3, "index", Tone::Address),
            BitField::new(2, 2, "TI", Tone::Kind),
            BitField::new(1, 1, "IDT", Tone::Kind),
            BitField::flag(0, "EXT"),
        ],
    }
}

fn table_text(table: ErrorTable) -> &'static str {
    match table {
        ErrorTable::Gdt => "GDT (IDT = 0, TI = 0)",
        ErrorTable::Ldt => "LDT (IDT = 0, TI = 1)",
        ErrorTable::Idt => "IDT (IDT = 1)",
    }
}

/// What the index names.
fn blame(selector: SelectorErrorCode) -> Option<String> {
    match selector.table {
        ErrorTable::Gdt if selector.index == 0 => {
            Some("no selector, or the null selector: most #GP push 0".to_owned())
        }
        ErrorTable::Gdt if selector.index < gdt::FIRST_RESERVED_ENTRY => Some(format!(
            "selector {:#06x} with any RPL: one of the guest's own entries, filled by set_gdt",
            selector.index << 3
        )),
        ErrorTable::Gdt => {
            let purpose = |mode| gdt::reserved_entry(mode, selector.index).map(|entry| entry.purpose);
            let (guest64, guest32) = (purpose(Mode::Guest64), purpose(Mode::Guest32On64));
            let what = match (guest64, guest32) {
                (Some(guest64), Some(guest32)) if guest64 != guest32 => {
                    format!("in a 64-bit guest {guest64}; in a 32-bit guest {guest32}")
                }
                (Some(purpose), _) | (None, Some(purpose)) => purpose.to_owned(),
                (None, None) => "nothing, beyond the hardware limit".to_owned(),
            };
            Some(format!("selector {:#06x} with any RPL, one of Xen's: {what}", selector.index << 3))
        }
        ErrorTable::Ldt => Some(format!(
            "selector {:#06x} with any RPL: the LDT, set by MMUEXT_SET_LDT",
            selector.index << 3 | 4
        )),
        ErrorTable::Idt => Some(vector_text(selector)),
    }
}

/// What happened at an entry of the IDT. Under Xen every `INT n` of a guest is refused this way, but for a few
/// vectors.
fn vector_text(selector: SelectorErrorCode) -> String {
    let Ok(vector) = u8::try_from(selector.index) else {
        return "no vector: there are only 256".to_owned();
    };
    let exception = Exception::from_number(vector);
    let name = exception.map_or(String::new(), |exception| format!(" ({})", exception.facts().title));
    if selector.external {
        return format!("vector {vector:#04x}{name}: the CPU failed to deliver it");
    }
    format!(
        "vector {vector:#04x}{name}: INT {vector:#x} was executed and the gate's DPL forbids it. Xen then delivers the \
         guest's trap-table entry {vector:#x}, if its DPL allows the caller"
    )
}

fn to_json(code: u32, reading: Reading) -> Value {
    let selector = SelectorErrorCode::from_bits(code);
    let page_fault = json!({
        "text": describe_page_fault(code),
        "fields": page_fault_fields(code),
        "reserved_bits_set": format!("{:#x}", reserved_bits(code).unwrap_or(0)),
    });
    let selector = json!({ "text": selector.to_string(), "fields": selector, "to_blame": blame(selector) });
    json!({
        "error_code": format!("{code:#x}"),
        "page_fault": if reading == Reading::Selector { None } else { Some(page_fault) },
        "selector": if reading == Reading::PageFault { None } else { Some(selector) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(code: u32, reading: Reading) -> String {
        let rendered = crate::output::text::render(&describe(code, reading), 100);
        anstream::adapter::strip_str(&rendered).to_string()
    }

    #[test]
    fn both_readings_of_a_write() {
        insta::assert_snapshot!(text(7, Reading::Both));
    }

    #[test]
    fn the_one_reading_that_was_asked_for() {
        assert!(!text(7, Reading::PageFault).contains("TI"));
        assert!(!text(7, Reading::Selector).contains("#PF"));
    }

    #[test]
    fn what_is_to_blame_is_named() {
        for (code, part) in [
            (0, "no selector"),
            (0x10, "selector 0x0010 with any RPL: one of the guest's own"),
            (0xe030, "in a 64-bit guest 64-bit code in ring 3"),
            (0xe048, "the TSS, 16 bytes"),
            (0xfff8, "beyond the hardware limit"),
            (0xc, "selector 0x000c with any RPL: the LDT"),
            (0x402, "vector 0x80: INT 0x80 was executed"),
            (0x1a, "vector 0x03 (Breakpoint): INT"),
            (0x1b, "vector 0x03 (Breakpoint): the CPU failed to deliver it"),
            (0xfffa, "there are only 256"),
        ] {
            let blamed = blame(SelectorErrorCode::from_bits(code)).unwrap();
            assert!(blamed.contains(part), "{code:#x}: {blamed}");
        }
    }
}
