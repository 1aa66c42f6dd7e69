//! `paravane decode selector`: what a selector names, in each mode.

use paravane_x86::{
    gdt::{self, ReservedEntry},
    mode::Mode,
    selector::{Selector, Table},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    cli::Values,
    failure::Failure,
    input,
    output::{
        Answer,
        page::{BitDiagram, BitField, Block, Page, Tone},
    },
};

/// What is known about one selector.
#[derive(Debug, Serialize)]
struct Decoded {
    selector: String,
    null: bool,
    index: u16,
    table: Table,
    rpl: u8,
    byte_offset: u16,
    owner: Owner,
    /// The number that comments in old headers give for the entry.
    old_index: Option<u16>,
    /// What the reserved entry holds in each mode; empty for the guest's own entries.
    reserved: Vec<Reserved>,
}

/// Whose entry a selector names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Owner {
    /// Entry 0 of the GDT: no segment.
    Nobody,
    /// GDT pages 0 to 13, or the LDT.
    Guest,
    /// GDT page 14.
    Xen,
    /// Past the hardware limit.
    BeyondLimit,
}

/// What a reserved entry holds in one mode.
#[derive(Debug, Serialize)]
struct Reserved {
    mode: String,
    descriptor: Option<String>,
    access: gdt::Access,
    names: &'static [&'static str],
    purpose: &'static str,
}

/// Decodes each value of `values`.
///
/// # Errors
///
/// If a value is no 16-bit number, or the modes contradict each other.
pub(super) fn decode(values: &Values) -> Result<Answer, Failure> {
    let chosen = values.mode.chosen()?;
    let modes: Vec<Mode> = chosen.map_or_else(|| Mode::ALL.to_vec(), |mode| vec![mode]);
    let words = input::words(&values.values, values.file.as_deref())?;
    if words.is_empty() {
        return Err(Failure::Usage(
            "no selector given: name one, as in `paravane decode selector 0xe033`".to_owned(),
        ));
    }
    let mut pages = Vec::new();
    let mut data = Vec::new();
    for word in words {
        let value = input::number(&word, 16, "selector")?;
        let selector =
            Selector(u16::try_from(value).map_err(|_| Failure::Usage(format!("{word} is too wide")))?);
        pages.push(describe(selector, &modes));
        data.push(decoded(selector, &modes));
    }
    let page = super::join("Selectors", pages);
    Ok(Answer { page, json: json!(data) })
}

/// What is known about one selector, in the mode `chosen` or in all of them.
pub(super) fn answer(selector: Selector, chosen: Option<Mode>) -> Answer {
    let modes: Vec<Mode> = chosen.map_or_else(|| Mode::ALL.to_vec(), |mode| vec![mode]);
    Answer { page: describe(selector, &modes), json: json!(decoded(selector, &modes)) }
}

fn owner(selector: Selector) -> Owner {
    if selector.is_null() {
        return Owner::Nobody;
    }
    match selector.table() {
        Table::Ldt => Owner::Guest,
        Table::Gdt if selector.index() < gdt::FIRST_RESERVED_ENTRY => Owner::Guest,
        Table::Gdt if selector.byte_offset() <= gdt::HARDWARE_LIMIT => Owner::Xen,
        Table::Gdt => Owner::BeyondLimit,
    }
}

fn reserved(selector: Selector, mode: Mode) -> Option<&'static ReservedEntry> {
    match selector.table() {
        Table::Gdt => gdt::reserved_entry(mode, selector.index()),
        Table::Ldt => None,
    }
}

fn decoded(selector: Selector, modes: &[Mode]) -> Decoded {
    let entries = modes.iter().filter_map(|&mode| {
        reserved(selector, mode).map(|entry| Reserved {
            mode: mode.to_string(),
            descriptor: entry.descriptor().map(|descriptor| descriptor.to_string()),
            access: entry.access,
            names: entry.names,
            purpose: entry.purpose,
        })
    });
    let owner = owner(selector);
    Decoded {
        selector: selector.to_string(),
        null: selector.is_null(),
        index: selector.index(),
        table: selector.table(),
        rpl: selector.rpl().into(),
        byte_offset: selector.byte_offset(),
        owner,
        old_index: if owner == Owner::Xen { gdt::old_index(selector.index()) } else { None },
        reserved: entries.collect(),
    }
}

fn describe(selector: Selector, modes: &[Mode]) -> Page {
    let mut page = Page::new(format!("Selector {selector}: {}", headline(selector)));
    page.push(Block::Bits(BitDiagram {
        value: u64::from(selector.0),
        width: 16,
        fields: vec![
            BitField::new(15, 3, "index", Tone::Address),
            BitField::new(2, 2, "TI", Tone::Kind),
            BitField::new(1, 0, "RPL", Tone::Privilege),
        ],
    }));
    page.fields([
        ("index", format!("{} ({:#x})", selector.index(), selector.index())),
        ("table", selector.table().to_string()),
        ("RPL", selector.rpl().to_string()),
        (
            "byte offset",
            format!("{:#x}, page {} of the table", selector.byte_offset(), selector.byte_offset() / 4096),
        ),
        ("owner", ownership(selector).to_owned()),
    ]);
    if owner(selector) == Owner::Xen {
        page.table(
            &["Mode", "Descriptor", "What it is"],
            modes.iter().filter_map(|&mode| {
                let entry = reserved(selector, mode)?;
                let descriptor = entry
                    .descriptor()
                    .map_or_else(|| "differs per CPU".to_owned(), |descriptor| descriptor.to_string());
                Some(vec![mode.to_string(), descriptor, entry.purpose.to_owned()])
            }),
        );
        if let Some(old) = gdt::old_index(selector.index()) {
            page.text(format!(
                "Old texts, and comments in Xen's own headers, call this GDT index {old}: they count from entry {}, \
                 where Xen's entries began before May 2005. The selector itself says {}.",
                gdt::OLD_FIRST_RESERVED_ENTRY,
                selector.index()
            ));
        }
    }
    page.sources([
        "AMD APM vol. 2, \"Segment Selectors\"",
        "xen/include/public/arch-x86/xen.h (FIRST_RESERVED_GDT_ENTRY)",
        "xen/arch/x86/desc.c",
    ]);
    page
}

fn headline(selector: Selector) -> String {
    match owner(selector) {
        Owner::Nobody => "null".to_owned(),
        Owner::BeyondLimit => format!("GDT entry {}, which does not exist", selector.index()),
        Owner::Guest | Owner::Xen => {
            format!("{} entry {}, ring {}", selector.table(), selector.index(), selector.rpl())
        }
    }
}

fn ownership(selector: Selector) -> &'static str {
    match (owner(selector), selector.table()) {
        (Owner::Nobody, _) => {
            "nobody: a null selector names no segment; it may be loaded into DS, ES, FS and GS, not into CS or SS"
        }
        (Owner::Guest, Table::Ldt) => "the guest: its LDT, set by MMUEXT_SET_LDT",
        (Owner::Guest, Table::Gdt) => "the guest: one of entries 0 to 7167, which it fills by set_gdt",
        (Owner::Xen, _) => "Xen: page 14 of the GDT, entries 7168 to 7679, the same in every guest of a mode",
        (Owner::BeyondLimit, _) => {
            "nobody: beyond the hardware limit 0xefff; loading it raises #GP(selector)"
        }
    }
}
