//! A descriptor table for people, as a drawing, and for programs.

use paravane_x86::{
    descriptor::{Descriptor, findings::Severity},
    gdt::{self, ENTRIES_PER_PAGE, ReservedEntry},
    submit::Submission,
};
use serde_json::{Value, json};

use super::{
    super::descriptor::{remarks, submission_json, summary},
    table::{DescriptorTable, Fate, ModeOrigin, Slot},
};
use crate::output::page::{MapDiagram, MapRegion, Page, Tone};

/// The table for people; `file` is where it was read.
pub(super) fn describe(table: &DescriptorTable, file: &str) -> Page {
    let mut page = Page::new(headline(table));
    let from = table.address.map_or(String::new(), |address| format!(", from address {address:#x} on"));
    let mut fields = vec![
        ("read from", format!("{file}: {}{from}", table.format)),
        ("read as", format!("the GDT of a {}, {}", table.mode, origin(table.mode_origin))),
    ];
    if let Some(answer) = set_gdt(table) {
        fields.push(("set_gdt", answer));
    }
    page.fields(fields);
    page.table(&["Entry", "Selector", "Descriptor", "Xen stores", "What it is"], rows(table));
    for (heading, remarks) in [
        ("Refused", refusals(table)),
        ("Not what Xen has there", surprises(table)),
        ("Contradictions", contradictions(table)),
    ] {
        if !remarks.is_empty() {
            page.heading(heading);
            page.list(remarks);
        }
    }
    page.sources([
        "AMD APM vol. 2, \"Segment Descriptors\"",
        "xen/arch/x86/desc.c",
        "xen/arch/x86/pv/descriptor-tables.c",
    ]);
    page
}

fn headline(table: &DescriptorTable) -> String {
    let used = table.slots.iter().filter(|slot| !slot.entry.is_empty()).count();
    let descriptors = if used == 1 { "1 descriptor" } else { &format!("{used} descriptors") };
    let range = format!("GDT entries {} to {}", table.first, table.last());
    let only_reserved = table.first >= gdt::FIRST_RESERVED_ENTRY;
    if only_reserved && !table.slots.iter().any(|slot| matches!(slot.fate, Fate::Unexpected(_))) {
        return format!("{range}: Xen's reserved page in a {}, {descriptors}", table.mode);
    }
    let refused = count(table, |fate| matches!(fate, Fate::Guest(Submission::Refused(_))));
    let changed = table.slots.iter().filter(|slot| changed(slot).is_some()).count();
    let surprises = count(table, |fate| matches!(fate, Fate::Unexpected(_)));
    let mut parts = vec![format!("{range}: {descriptors}")];
    for (number, what) in
        [(changed, "changed by Xen"), (refused, "refused"), (surprises, "not what Xen has there")]
    {
        if number > 0 {
            parts.push(format!("{number} {what}"));
        }
    }
    parts.join(", ")
}

fn count(table: &DescriptorTable, is: impl Fn(&Fate) -> bool) -> usize {
    table.slots.iter().filter(|slot| is(&slot.fate)).count()
}

/// What Xen stores instead, if that differs.
fn changed(slot: &Slot) -> Option<Descriptor> {
    match &slot.fate {
        Fate::Guest(Submission::Accepted { stored, .. }) => {
            Some(*stored).filter(|stored| *stored != slot.entry.low)
        }
        Fate::Guest(Submission::Refused(_)) | Fate::Reserved(_) | Fate::Unexpected(_) | Fate::BeyondLimit => {
            None
        }
    }
}

fn origin(origin: ModeOrigin) -> &'static str {
    match origin {
        ModeOrigin::Asked => "as asked for",
        ModeOrigin::ReservedPage => "recognised by the reserved page in it",
        ModeOrigin::Assumed => "assumed: say --guest 32 for another",
    }
}

/// What becomes of the guest's entries if they are submitted together; `None` if there are none.
fn set_gdt(table: &DescriptorTable) -> Option<String> {
    let guest = count(table, |fate| matches!(fate, Fate::Guest(_)));
    let refused = refused_entries(table);
    let changed = table.slots.iter().any(|slot| changed(slot).is_some());
    match (guest, refused.is_empty(), changed) {
        (0, _, _) => None,
        (_, false, _) => Some(format!("fails with -EINVAL, because of {}", entry_list(&refused))),
        (_, true, true) => Some("succeeds, and changes some descriptors in place".to_owned()),
        (_, true, false) => Some("succeeds, and changes nothing".to_owned()),
    }
}

fn refused_entries(table: &DescriptorTable) -> Vec<u16> {
    let refused = table.slots.iter().filter(|slot| matches!(slot.fate, Fate::Guest(Submission::Refused(_))));
    refused.map(|slot| slot.index).collect()
}

/// `entry 8`, or `entries 8, 10`; long lists are cut.
fn entry_list(indexes: &[u16]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = indexes.iter().take(SHOWN).map(ToString::to_string).collect();
    let more =
        if indexes.len() > SHOWN { format!(" and {} more", indexes.len() - SHOWN) } else { String::new() };
    let noun = if indexes.len() == 1 { "entry" } else { "entries" };
    format!("{noun} {}{more}", shown.join(", "))
}

/// One row for each descriptor, and one for each run of empty entries.
fn rows(table: &DescriptorTable) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for run in runs(table) {
        match run {
            Run::Empty { first, last } => rows.push(vec![
                if first == last { first.to_string() } else { format!("{first}-{last}") },
                String::new(),
                String::new(),
                String::new(),
                match last - first {
                    0 => "empty".to_owned(),
                    more => format!("empty, {} entries", more + 1),
                },
            ]),
            Run::Used(slot) => {
                rows.push(vec![
                    slot.index.to_string(),
                    selector(slot),
                    slot.entry.low.to_string(),
                    stores(slot),
                    what(slot),
                ]);
                if let Some(high) = slot.entry.high {
                    rows.push(vec![
                        (slot.index + 1).to_string(),
                        String::new(),
                        format!("{high:#018x}"),
                        String::new(),
                        "its upper half".to_owned(),
                    ]);
                }
            }
        }
    }
    rows
}

/// Neighbouring entries that are listed together.
enum Run<'a> {
    Empty { first: u16, last: u16 },
    Used(&'a Slot),
}

fn runs(table: &DescriptorTable) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for slot in &table.slots {
        match runs.last_mut() {
            Some(Run::Empty { last, .. }) if slot.is_empty() => *last = slot.index,
            _ if slot.is_empty() => runs.push(Run::Empty { first: slot.index, last: slot.index }),
            _ => runs.push(Run::Used(slot)),
        }
    }
    runs
}

fn selector(slot: &Slot) -> String {
    slot.selector().map(|selector| selector.to_string()).unwrap_or_default()
}

fn stores(slot: &Slot) -> String {
    match &slot.fate {
        Fate::Guest(Submission::Refused(_)) => "refused".to_owned(),
        Fate::Guest(Submission::Accepted { .. }) => {
            changed(slot).map_or("as it is".to_owned(), |stored| stored.to_string())
        }
        Fate::Reserved(_) => "Xen's own".to_owned(),
        Fate::Unexpected(_) => "not Xen's".to_owned(),
        Fate::BeyondLimit => "out of reach".to_owned(),
    }
}

fn what(slot: &Slot) -> String {
    match slot.fate {
        Fate::Reserved(reserved) => match reserved.names.first() {
            Some(name) => format!("{name}: {}", summary(slot.entry)),
            None => summary(slot.entry),
        },
        Fate::Guest(_) | Fate::Unexpected(_) | Fate::BeyondLimit => summary(slot.entry),
    }
}

/// Each reason for a refusal once, with the entries it applies to.
fn refusals(table: &DescriptorTable) -> Vec<String> {
    by_reason(table.slots.iter().filter_map(|slot| match &slot.fate {
        Fate::Guest(Submission::Refused(refusal)) => Some((slot.index, refusal.to_string())),
        Fate::Guest(Submission::Accepted { .. })
        | Fate::Reserved(_)
        | Fate::Unexpected(_)
        | Fate::BeyondLimit => None,
    }))
}

fn contradictions(table: &DescriptorTable) -> Vec<String> {
    let all = table.slots.iter().flat_map(|slot| {
        let remarks = remarks(slot.entry, table.mode, Severity::Contradiction);
        remarks.into_iter().map(|remark| (slot.index, remark))
    });
    by_reason(all)
}

fn surprises(table: &DescriptorTable) -> Vec<String> {
    let unexpected = table.slots.iter().filter_map(|slot| match slot.fate {
        Fate::Unexpected(reserved) => Some(format!("entry {}: {}", slot.index, expected(reserved))),
        Fate::Guest(_) | Fate::Reserved(_) | Fate::BeyondLimit => None,
    });
    unexpected.collect()
}

fn expected(reserved: &ReservedEntry) -> String {
    match reserved.descriptor() {
        Some(Descriptor::NULL) => "Xen has nothing there".to_owned(),
        Some(descriptor) => format!("Xen has {descriptor} there: {}", reserved.purpose),
        None => format!("Xen has there: {}", reserved.purpose),
    }
}

/// Groups remarks that are the same, in the order of their first entries.
fn by_reason(remarks: impl Iterator<Item = (u16, String)>) -> Vec<String> {
    let mut groups: Vec<(String, Vec<u16>)> = Vec::new();
    for (index, remark) in remarks {
        match groups.iter_mut().find(|(reason, _)| *reason == remark) {
            Some((_, indexes)) => indexes.push(index),
            None => groups.push((remark, vec![index])),
        }
    }
    groups.into_iter().map(|(reason, indexes)| format!("{}: {reason}", entry_list(&indexes))).collect()
}

/// The pages of the GDT that the table touches, and below them its descriptors.
pub(super) fn map(table: &DescriptorTable) -> MapDiagram {
    let page_of = |index: u16| index / ENTRIES_PER_PAGE;
    let mut overview: Vec<MapRegion> = Vec::new();
    let mut pages: Vec<u16> = table.slots.iter().map(|slot| page_of(slot.index)).collect();
    pages.dedup();
    // A single page needs no overview.
    if pages.len() == 1 {
        pages.clear();
    }
    for page in pages {
        let used =
            table.slots.iter().filter(|slot| page_of(slot.index) == page && !slot.entry.is_empty()).count();
        let (owner, tone) = match page.cmp(&gdt::FIRST_RESERVED_PAGE) {
            std::cmp::Ordering::Less => ("guest", Tone::Address),
            std::cmp::Ordering::Equal => ("Xen", Tone::Privilege),
            std::cmp::Ordering::Greater => ("beyond the limit", Tone::Reserved),
        };
        overview.push(MapRegion {
            start: format!("{:#x}", u32::from(page) * 4096),
            label: format!("entries {} to {}", page * ENTRIES_PER_PAGE, page * ENTRIES_PER_PAGE + 511),
            contents: format!("page {page}, {owner}: {used} used"),
            tone: if used == 0 { Tone::Reserved } else { tone },
        });
    }
    let detail = runs(table).into_iter().map(|run| match run {
        Run::Empty { first, last } => MapRegion {
            start: first.to_string(),
            label: if first == last { String::new() } else { format!("to {last}") },
            contents: "empty".to_owned(),
            tone: Tone::Reserved,
        },
        Run::Used(slot) => MapRegion {
            start: format!("{} {}", slot.index, selector(slot)),
            label: match changed(slot) {
                Some(stored) => format!("{} (stored as {stored})", what(slot)),
                None => what(slot),
            },
            contents: slot.entry.low.to_string(),
            tone: tone(slot),
        },
    });
    MapDiagram { overview, detail: detail.collect(), detail_title: "Entries".to_owned() }
}

fn tone(slot: &Slot) -> Tone {
    match &slot.fate {
        Fate::Guest(Submission::Accepted { .. }) if changed(slot).is_some() => Tone::Kind,
        Fate::Guest(Submission::Accepted { .. }) => Tone::Flag,
        Fate::Guest(Submission::Refused(_)) | Fate::Unexpected(_) => Tone::Privilege,
        Fate::Reserved(reserved) => match reserved.access {
            gdt::Access::Guest => Tone::Address,
            gdt::Access::XenOnly => Tone::Size,
        },
        Fate::BeyondLimit => Tone::Reserved,
    }
}

/// The table for programs: its place and every entry that is not empty.
pub(super) fn to_json(table: &DescriptorTable) -> Value {
    let entries: Vec<Value> = table
        .slots
        .iter()
        .filter(|slot| !slot.is_empty())
        .map(|slot| {
            json!({
                "index": slot.index,
                "selector": selector(slot),
                "descriptor": slot.entry.low.to_string(),
                "upper_half": slot.entry.high.map(|high| format!("{high:#018x}")),
                "summary": summary(slot.entry),
                "owner": match slot.fate {
                    Fate::Guest(_) => "guest",
                    Fate::Reserved(_) | Fate::Unexpected(_) => "xen",
                    Fate::BeyondLimit => "nobody",
                },
                "as_xen_has_it": match slot.fate {
                    Fate::Reserved(_) => Some(true),
                    Fate::Unexpected(_) => Some(false),
                    Fate::Guest(_) | Fate::BeyondLimit => None,
                },
                "xen": match &slot.fate {
                    Fate::Guest(submission) => Some(submission_json(slot.entry.low, submission)),
                    Fate::Reserved(_) | Fate::Unexpected(_) | Fate::BeyondLimit => None,
                },
                "findings": slot.entry.findings(table.mode),
            })
        })
        .collect();
    json!({
        "format": table.format,
        "address": table.address.map(|address| format!("{address:#x}")),
        "first": table.first,
        "entry_count": table.len,
        "guest": table.mode.guest(),
        "hypervisor": table.mode.hypervisor(),
        "set_gdt_errno": if refused_entries(table).is_empty() { None } else { Some("EINVAL") },
        "entries": entries,
    })
}

#[cfg(test)]
mod tests {
    use paravane_x86::mode::Mode;

    use super::{
        super::table::tests::{reserved_page, table},
        *,
    };

    fn text(table: &DescriptorTable) -> String {
        let page = describe(table, "gdt.bin");
        anstream::adapter::strip_str(&crate::output::text::render(&page, 100)).to_string()
    }

    /// What a Linux guest might submit, with some mistakes.
    fn guest_table() -> Vec<u64> {
        let mut quadwords = vec![0; 32];
        quadwords[1] = 0x00cf_9b00_0000_ffff;
        quadwords[2] = 0x00af_9b00_0000_ffff;
        quadwords[3] = 0x00cf_9300_0000_ffff;
        quadwords[6] = 0x00af_fb00_0000_ffff;
        quadwords[8] = 0x0000_8900_0000_0067;
        quadwords[10] = 0x00ef_fb00_0000_ffff;
        quadwords
    }

    #[test]
    fn the_table_of_a_guest() {
        insta::assert_snapshot!(text(&table(guest_table(), None, None)));
    }

    #[test]
    fn the_reserved_page_of_a_64_bit_guest() {
        insta::assert_snapshot!(text(&table(reserved_page(Mode::Guest64), None, None)));
    }

    #[test]
    fn a_reserved_page_that_is_not_xens() {
        let mut quadwords = reserved_page(Mode::Guest64);
        quadwords[6] = 0;
        insta::assert_snapshot!(text(&table(quadwords, Some(7168), None)));
    }

    #[test]
    fn the_data_for_programs_keeps_its_shape() {
        insta::assert_snapshot!(format!("{:#}", to_json(&table(guest_table()[..3].to_vec(), None, None))));
    }

    #[test]
    fn the_map_has_a_region_for_every_row() {
        let small = table(guest_table(), None, None);
        assert_eq!(map(&small).detail.len(), runs(&small).len());
        assert!(map(&small).overview.is_empty());
        let whole = table(vec![0x00cf_f300_0000_ffff; 513], None, None);
        assert_eq!(map(&whole).overview.len(), 2);
    }
}
