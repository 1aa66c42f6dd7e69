//! `paravane decode descriptor`: a segment descriptor, its bits, and its fate in a PV guest.

mod diagram;
mod entry;
mod fields;
mod known;
mod summary;
mod verdict;

use paravane_x86::{
    descriptor::{
        Fields, Kind,
        findings::{Finding, Severity},
    },
    mode::Mode,
};
use serde::Serialize;
use serde_json::{Value, json};

pub(super) use self::{
    diagram::diagrams,
    entry::{Entry, Pairing, group, is_wide},
    fields::rows as field_rows,
    known::{Form as KnownForm, Known, form as known_form, known},
    summary::{byte_size, summary},
    verdict::{Verdict, submission_json, verdict},
};
use crate::{
    cli::decode::DescriptorArgs,
    failure::Failure,
    input,
    output::{
        Answer,
        page::{Block, Page},
    },
};

/// The most descriptors in one answer: a full table.
const MAX_DESCRIPTORS: usize = 8192;

/// What is known about one descriptor, for programs.
#[derive(Debug, Serialize)]
struct Decoded {
    descriptor: String,
    /// The second quadword of a 16-byte descriptor.
    upper_half: Option<String>,
    /// The bytes in memory order.
    bytes: String,
    summary: String,
    kind: Kind,
    fields: Fields,
    /// With all 64 bits of a wide descriptor.
    base: String,
    /// The limit scaled to bytes.
    limit_bytes: String,
    /// Of gates, which have no base and no limit.
    gate: Option<Target>,
    /// Xen's own descriptors that are the same.
    known: Vec<Known>,
    findings: Vec<Finding>,
    guests: Vec<Value>,
}

/// Where a gate leads, for programs.
#[derive(Debug, Serialize)]
struct Target {
    selector: String,
    offset: String,
    parameter_count: u8,
    ist: u8,
}

/// Decodes each descriptor of `args`.
///
/// # Errors
///
/// If a value is no quadword, there are too many, or the modes contradict each other.
pub(super) fn decode(args: &DescriptorArgs) -> Result<Answer, Failure> {
    let modes = modes(args.values.mode.chosen()?);
    let words = input::words(&args.values.values, args.values.file.as_deref())?;
    let quadwords = input::quadwords(&words, "descriptor")?;
    if quadwords.len() > MAX_DESCRIPTORS {
        return Err(Failure::Usage(format!(
            "looked for at most {MAX_DESCRIPTORS} descriptors, a full table, and found {}: use `paravane decode gdt` \
             for tables",
            quadwords.len()
        )));
    }
    let pairing = if args.wide { Pairing::Forced } else { Pairing::WherePlausible };
    if args.wide && quadwords.len() < 2 {
        return Err(Failure::Usage(
            "--wide reads 16-byte descriptors, and one quadword is half of one: give both, the lower first"
                .to_owned(),
        ));
    }
    let entries = group(&quadwords, modes[0], pairing);
    let pages = entries.iter().map(|&entry| describe(entry, &modes)).collect();
    let json: Vec<Value> = entries.iter().map(|&entry| decoded(entry, &modes)).collect();
    Ok(Answer { page: super::join("Descriptors", pages), json: json!(json) })
}

/// The modes of interest: the one asked for, or both kinds of guest that today's Xen runs.
fn modes(chosen: Option<Mode>) -> Vec<Mode> {
    chosen.map_or_else(|| vec![Mode::Guest64, Mode::Guest32On64], |mode| vec![mode])
}

/// Everything there is to say about `entry`, in each of `modes`.
pub(super) fn describe(entry: Entry, modes: &[Mode]) -> Page {
    let size = if entry.high.is_some() { "16-byte descriptor" } else { "Descriptor" };
    let mut page = Page::new(format!("{size} {}: {}", entry.low, summary(entry)));
    if entry.is_empty() {
        describe_null(&mut page);
        return page;
    }
    let verdicts: Vec<Verdict> = modes.iter().map(|&mode| verdict(mode, entry)).collect();
    page.fields(answers(entry, modes, &verdicts));
    for bits in diagrams(entry) {
        page.push(Block::Bits(bits));
    }
    let notes = remarks(entry, modes[0], Severity::Note).into_iter().map(|note| ("note", note));
    page.fields(field_rows(entry).into_iter().chain([("bytes", memory_bytes(entry))]).chain(notes));
    describe_fates(&mut page, modes, &verdicts);
    page.sources([
        "AMD APM vol. 2, \"Segment Descriptors\"",
        "Intel SDM vol. 2, \"MOV\" and \"JMP\"",
        "xen/arch/x86/pv/descriptor-tables.c (check_descriptor)",
        "xen/arch/x86/desc.c",
    ]);
    page
}

/// What most people want to know: the fate in each mode, whether it is one of Xen's own, and what is wrong.
fn answers(entry: Entry, modes: &[Mode], verdicts: &[Verdict]) -> Vec<(String, String)> {
    let named = |name: &str, text: String| (name.to_owned(), text);
    let fates = verdicts.iter().map(|verdict| (short_name(verdict.mode(), modes), verdict.headline()));
    let known = known(entry.low).into_iter().map(|known| named("known as", known.to_string()));
    let wrong = remarks(entry, modes[0], Severity::Contradiction);
    fates.chain(known).chain(wrong.into_iter().map(|text| named("contradiction", text))).collect()
}

/// The findings of one severity about `entry` as `mode` reads it, in words.
pub(super) fn remarks(entry: Entry, mode: Mode, severity: Severity) -> Vec<String> {
    let found = entry.findings(mode).into_iter().filter(|finding| finding.severity() == severity);
    found.map(|finding| finding.to_string()).collect()
}

/// One section for each mode, or for neighbours that fare the same.
fn describe_fates(page: &mut Page, modes: &[Mode], verdicts: &[Verdict]) {
    let mut sections: Vec<(Vec<String>, Vec<Block>)> = Vec::new();
    for verdict in verdicts {
        let mut section = Page::new("");
        verdict.describe(&mut section);
        match sections.last_mut() {
            Some((names, blocks)) if *blocks == section.blocks => {
                names.push(short_name(verdict.mode(), modes));
            }
            _ => sections.push((vec![short_name(verdict.mode(), modes)], section.blocks)),
        }
    }
    for (names, blocks) in sections {
        page.heading(format!("{}: what Xen stores, and what may load it", names.join(" and ")));
        page.blocks.extend(blocks);
    }
}

fn describe_null(page: &mut Page) {
    page.text(
        "Entry 0 of the GDT holds it by rule, and every unused entry holds it too. Xen accepts it anywhere, since it \
         is not present.",
    );
    page.table(
        &["Load into", "By a null selector (0 to 3)", "By the selector of another zero entry"],
        [
            vec!["CS, SS".to_owned(), "no, #GP(0)".to_owned(), "no, #GP(selector)".to_owned()],
            vec![
                "DS, ES, FS, GS".to_owned(),
                "yes; every access through it faults".to_owned(),
                "no, #GP(selector): system type 0 is not a segment".to_owned(),
            ],
        ],
    );
    page.sources([
        "AMD APM vol. 2, \"Null Selector\"",
        "xen/arch/x86/pv/descriptor-tables.c (check_descriptor)",
    ]);
}

pub(super) fn decoded(entry: Entry, modes: &[Mode]) -> Value {
    let low = entry.low;
    let decoded = Decoded {
        descriptor: low.to_string(),
        upper_half: entry.high.map(|high| format!("{high:#018x}")),
        bytes: memory_bytes(entry),
        summary: summary(entry),
        kind: low.kind(),
        fields: low.fields(),
        base: format!("{:#x}", entry.base()),
        limit_bytes: format!("{:#x}", low.limit()),
        gate: entry.gate().map(|gate| Target {
            selector: gate.selector.to_string(),
            offset: format!("{:#x}", gate.offset),
            parameter_count: gate.parameter_count(),
            ist: gate.ist(),
        }),
        known: known(low),
        findings: entry.findings(modes[0]),
        guests: modes.iter().map(|&mode| verdict(mode, entry).to_json()).collect(),
    };
    json!(decoded)
}

/// The bytes in memory order, as a dump shows them.
pub(super) fn memory_bytes(entry: Entry) -> String {
    let quadwords = [Some(entry.low.0), entry.high];
    let bytes = quadwords.into_iter().flatten().flat_map(u64::to_le_bytes);
    bytes.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// A mode's name beside its answer: the guest alone where only one hypervisor is in question.
fn short_name(mode: Mode, modes: &[Mode]) -> String {
    if modes.len() > 1 { mode.guest().to_string() } else { mode.to_string() }
}

#[cfg(test)]
mod tests {
    use paravane_x86::descriptor::Descriptor;

    use super::*;

    fn text(quadwords: &[u64], modes: &[Mode]) -> String {
        let entries = group(quadwords, modes[0], Pairing::WherePlausible);
        let pages = entries.into_iter().map(|entry| describe(entry, modes)).collect();
        let page = crate::commands::join("Descriptors", pages);
        anstream::adapter::strip_str(&crate::output::text::render(&page, 100)).to_string()
    }

    #[test]
    fn a_flat_data_segment_of_ring_1() {
        insta::assert_snapshot!(text(&[0x00cf_b200_0000_ffff], &modes(None)));
    }

    #[test]
    fn the_null_descriptor() {
        insta::assert_snapshot!(text(&[0], &modes(None)));
    }

    #[test]
    fn code_with_l_and_d() {
        insta::assert_snapshot!(text(&[0x00ef_fa00_0000_ffff], &[Mode::Guest64]));
    }

    #[test]
    fn a_tss_in_two_quadwords() {
        insta::assert_snapshot!(text(&[0x8000_8953_1040_0067, 0xffff_82d0], &[Mode::Guest64]));
    }

    #[test]
    fn a_call_gate_of_a_32_bit_guest() {
        insta::assert_snapshot!(text(&[0x1234_ec05_0010_5678], &[Mode::Guest32On64]));
    }

    #[test]
    fn an_expand_down_segment_of_the_historical_hypervisor() {
        insta::assert_snapshot!(text(&[0x00c0_b600_1000_0000], &[Mode::Guest32On32Pae]));
    }

    #[test]
    fn the_data_for_programs_keeps_its_shape() {
        let entry = Entry { low: Descriptor(0x00cf_b200_0000_ffff), high: None };
        let json = decoded(entry, &modes(None));
        insta::assert_snapshot!(format!("{json:#}"));
    }

    #[test]
    fn bytes_are_in_memory_order() {
        let entry = Entry { low: Descriptor(0x00cf_b200_0000_ffff), high: None };
        assert_eq!(memory_bytes(entry), "ff ff 00 00 00 b2 cf 00");
    }
}
