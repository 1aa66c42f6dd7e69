//! `paravane inspect`: does this kernel boot as a PV guest, and what does it ask for?

use std::path::Path;

use paravane_abi::{elfnote::ElfNote, features::FeatureSet};
use paravane_builder::image::{
    self, Image, Inspection, addresses::Addresses, bzimage::BzImage, container::Container, metadata::Note,
};
use serde_json::json;

use crate::{
    cli::Inspect,
    failure::Failure,
    output::{self, Answer, page::Page},
};

/// Inspects a kernel, or extracts the ELF file in it.
///
/// # Errors
///
/// If the file cannot be read, is no kernel or is damaged, or if the output cannot be written. A sound kernel that
/// does not boot is no failure.
pub(super) fn run(arguments: &Inspect) -> Result<(), Failure> {
    let path = arguments.kernel.as_path();
    let file = read(path)?;
    let no_kernel = |error: image::ImageError| Failure::Data(format!("{}: {error}", path.display()));
    if let Some(target) = &arguments.extract {
        let image = Image::open(&file).map_err(no_kernel)?;
        return output::write_file(target, image.elf_bytes());
    }
    let inspection = image::inspect(&file).map_err(no_kernel)?;
    let mut page = page(&inspection);
    if arguments.notes {
        all_notes(&mut page, &inspection);
    } else {
        notes(&mut page, &inspection);
    }
    problems(&mut page, &inspection);
    page.sources(["xen/include/public/elfnote.h", "xen/common/libelf/libelf-dominfo.c"]);
    output::emit(&Answer { page, json: json!(inspection) }, arguments.output.into())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let named = if path == Path::new("-") { Path::new("/dev/stdin") } else { path };
    Ok(image::read_file(named)?)
}

/// The verdict, its reasons and the outline of the file.
fn page(inspection: &Inspection) -> Page {
    let verdict = &inspection.verdict;
    let mut page = Page::new(&verdict.summary);
    if !verdict.obstacles.is_empty() {
        page.heading("Why not");
        page.list(verdict.obstacles.iter().map(|obstacle| match &obstacle.advice {
            Some(advice) => format!("{}. {advice}", super::capitalized(&obstacle.reason.to_string())),
            None => format!("{}.", super::capitalized(&obstacle.reason.to_string())),
        }));
    }
    if !verdict.grounds.is_empty() {
        page.heading("Grounds");
        page.list(&verdict.grounds);
    }
    page.heading("File");
    page.fields(file(inspection));
    page.table(
        &["Segment", "Access", "File offset", "File bytes", "Load address", "Memory bytes", "Appears at"],
        inspection.elf.segments.iter().map(|segment| {
            vec![
                segment.index.to_string(),
                segment.access.to_string(),
                format!("{:#x}", segment.file_offset),
                format!("{:#x}", segment.file_len),
                segment.load_addr.to_string(),
                format!("{:#x}", segment.memory_len),
                inspection.addresses.virt_of(segment.load_addr).to_string(),
            ]
        }),
    );
    if inspection.parameters.source.is_some() {
        page.heading("As a PV guest");
        page.fields(as_guest(inspection));
    }
    page
}

fn file(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let mut fields = vec![("Container", container(&inspection.container))];
    if let Container::BzImage(BzImage { kernel_version: Some(version), .. }) = &inspection.container {
        fields.push(("Version", version.clone()));
    } else if let Some(linux) = &inspection.linux {
        fields.push(("Version", format!("Linux {}", linux.release)));
    }
    let elf = &inspection.elf;
    let trailing = match elf.trailing_len {
        0 => String::new(),
        bytes => format!("; {bytes} bytes follow it, which are not loaded"),
    };
    fields.push(("ELF", format!("{}, {} bytes{trailing}", elf.guest, elf.len)));
    fields.push(("Entry point", format!("{} (e_entry)", elf.entry)));
    fields
}

fn container(container: &Container) -> String {
    match container {
        Container::Elf => "none: the file is the ELF file".to_owned(),
        Container::Compressed { compression } => format!("ELF file compressed by {compression}"),
        Container::BzImage(image) => {
            let payload = match (image.compression, image.claimed_len) {
                (None, _) => "not compressed".to_owned(),
                (Some(compression), None) => compression.to_string(),
                (Some(compression), Some(bytes)) => format!("{compression}, {bytes} bytes when unpacked"),
            };
            format!(
                "bzImage, boot protocol {}; payload of {} bytes at {:#x}: {payload}",
                image.protocol, image.payload_len, image.payload_offset
            )
        }
    }
}

fn as_guest(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let (parameters, addresses) = (&inspection.parameters, &inspection.addresses);
    let none = |note: ElfNote| format!("none: {}", note.facts().absent);
    let mut fields = vec![
        ("Entered at", addresses.virt_entry.to_string()),
        (
            "Kernel",
            format!(
                "{} to {}; load addresses {} to {}",
                addresses.virt_kstart, addresses.virt_kend, addresses.pstart, addresses.pend
            ),
        ),
        ("Mapping", mapping(addresses)),
        (
            "Hypercall page",
            addresses.hypercall_page.map_or_else(|| none(ElfNote::HypercallPage), |page| page.to_string()),
        ),
        (
            "p2m list",
            addresses.init_p2m.map_or_else(
                || format!("no address of its own: {}", ElfNote::InitP2m.facts().absent),
                |address| address.to_string(),
            ),
        ),
        ("Symbol table", symbol_table(inspection)),
        ("Supports", set(parameters.features.supported)),
        ("Requires", set(parameters.features.required)),
    ];
    if !parameters.features.unknown_optional.is_empty() {
        fields.push(("Unknown features", parameters.features.unknown_optional.join(", ")));
    }
    fields
}

fn symbol_table(inspection: &Inspection) -> String {
    let addresses = &inspection.addresses;
    match &addresses.symbol_table {
        Some(table) => format!(
            "{} symbols, loaded behind the kernel: {} to {}",
            table.symbols,
            addresses.virt_of(table.load_addr),
            addresses.virt_of(table.load_end)
        ),
        None if inspection.parameters.bsd_symtab => "asked for, but the file has none to load".to_owned(),
        None => "not asked for".to_owned(),
    }
}

fn mapping(addresses: &Addresses) -> String {
    let base = format!("pseudo-physical frame 0 appears at {}", addresses.virt_base);
    match addresses.elf_paddr_offset {
        0 => base,
        offset => format!("{base}; it has the load address {offset:#x}"),
    }
}

fn set(features: FeatureSet) -> String {
    if features.is_empty() { "no feature".to_owned() } else { features.to_string().replace('|', ", ") }
}

/// The notes, or the text that stands for them, each with what it means.
fn notes(page: &mut Page, inspection: &Inspection) {
    if !inspection.notes.is_empty() {
        page.heading("Notes");
        page.table(
            &["Type", "Name", "Value and meaning"],
            inspection.notes.iter().map(|note| {
                vec![note.number.to_string(), name(note), format!("{}. {}", note.value, note.explanation)]
            }),
        );
    }
    legacy(page, inspection);
}

fn name(note: &Note) -> String {
    note.note.map_or_else(|| "unknown".to_owned(), |known| known.to_string())
}

fn legacy(page: &mut Page, inspection: &Inspection) {
    if !inspection.legacy.is_empty() {
        page.heading("Entries of __xen_guest");
        page.table(
            &["Key", "Value and meaning"],
            inspection
                .legacy
                .iter()
                .map(|entry| vec![entry.key.clone(), format!("\"{}\". {}", entry.text, entry.explanation)]),
        );
    }
}

/// The notes with their bytes, those that are absent, and those of other owners.
fn all_notes(page: &mut Page, inspection: &Inspection) {
    for note in &inspection.notes {
        page.heading(format!("Note {}: {}", note.number, name(note)));
        page.fields([
            ("Value", note.value.to_string()),
            ("Meaning", note.explanation.clone()),
            ("Bytes", in_groups(&note.raw.to_string())),
        ]);
    }
    legacy(page, inspection);
    if !inspection.absent_notes.is_empty() {
        page.heading("Notes that are absent");
        page.table(
            &["Type", "Name", "So the loader assumes"],
            inspection.absent_notes.iter().map(|note| {
                vec![note.number().to_string(), note.to_string(), note.facts().absent.to_owned()]
            }),
        );
    }
    if !inspection.foreign_notes.is_empty() {
        page.heading("Notes of other owners, which do not count");
        page.table(
            &["Owner", "Type", "Bytes"],
            inspection
                .foreign_notes
                .iter()
                .map(|note| vec![note.owner.clone(), format!("{:#x}", note.number), note.len.to_string()]),
        );
    }
}

/// Hexadecimal digits in bytes.
fn in_groups(digits: &str) -> String {
    if digits.is_empty() {
        return "none".to_owned();
    }
    let digits: Vec<char> = digits.chars().collect();
    digits.chunks(2).map(|pair| pair.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
}

fn problems(page: &mut Page, inspection: &Inspection) {
    if !inspection.problems.is_empty() {
        page.heading("Problems");
        page.list(
            inspection
                .problems
                .iter()
                .map(|problem| format!("{}.", super::capitalized(&problem.to_string()))),
        );
    }
}
