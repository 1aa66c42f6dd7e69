//! `paravane explain elf-notes`: how a kernel image tells the domain builder what it needs.

use paravane_abi::{
    elfnote::{ElfNote, LEGACY_KEYS, LEGACY_SECTION, NOTE_OWNER, NoteCarrier, NoteValue},
    features::{Feature, Reported},
};

use crate::output::page::Page;

/// The page.
pub(super) fn page() -> Page {
    let mut page = Page::new("ELF notes of a Xen PV kernel");
    page.text(format!(
        "A PV kernel tells the domain builder what it needs by ELF notes whose owner is \"{NOTE_OWNER}\". The builder \
         reads them from PT_NOTE program headers; if it finds none, from SHT_NOTE sections; if none there either, from \
         the text of a section {LEGACY_SECTION}. An image can do without most of them; the last column says what happens \
         then. Types that are not in this table are skipped."
    ));
    page.heading("Notes of a kernel image");
    image_notes(&mut page);
    page.text(
        "Numbers may be 1, 2, 4 or 8 bytes wide, by the size of the note's descriptor. Strings end with a NUL.",
    );
    page.heading("Derived addresses");
    derived(&mut page);
    page.heading("Features");
    features(&mut page);
    page.heading(format!("The legacy section {LEGACY_SECTION}"));
    page.text(
        "Kernels from before the notes carry one NUL-terminated text of KEY=value pairs, separated by commas. A key \
         means what its note means, except as said here:",
    );
    page.table(
        &["Key", "Note", "Difference"],
        LEGACY_KEYS.iter().map(|row| vec![row.key.to_owned(), row.note.to_string(), or_dash(row.quirk)]),
    );
    page.heading("Notes that are not read from a kernel image");
    page.table(
        &["Type", "Name", "Meaning"],
        ElfNote::ALL
            .iter()
            .filter(|note| note.facts().carrier != NoteCarrier::Image)
            .map(|note| vec![format!("{:#x}", note.number()), note.to_string(), note.meaning().to_owned()]),
    );
    super::see_also(&mut page, &["inspect KERNEL", "explain start-of-day"]);
    page.sources([
        "xen/include/public/elfnote.h",
        "xen/include/public/features.h",
        "xen/common/libelf/libelf-dominfo.c",
    ]);
    page
}

fn image_notes(page: &mut Page) {
    page.table(
        &["Type", "Name", "Value", "Meaning", "If absent"],
        ElfNote::ALL.iter().filter(|note| note.facts().carrier == NoteCarrier::Image).map(|note| {
            vec![
                note.number().to_string(),
                note.to_string(),
                value_name(note.facts().value).to_owned(),
                note.meaning().to_owned(),
                note.facts().absent.to_owned(),
            ]
        }),
    );
}

fn value_name(value: NoteValue) -> &'static str {
    match value {
        NoteValue::String => "string",
        NoteValue::Address => "address",
        NoteValue::Offset => "offset",
        NoteValue::Flag => "flag",
        NoteValue::FeatureWords => "words",
        NoteValue::MaskValuePairs => "pairs",
        NoteValue::Relocation => "words",
        NoteValue::Structure => "struct",
    }
}

/// How the builder gets from the notes and the program headers to the addresses it loads at.
fn derived(page: &mut Page) {
    page.fields([
        (
            "pstart, pend",
            "the lowest p_paddr, and the highest p_paddr + p_memsz, of the PT_LOAD segments".to_owned(),
        ),
        ("virt_offset", format!("{} - {}", ElfNote::VirtBase, ElfNote::PaddrOffset)),
        ("virt_kstart, virt_kend", "pstart + virt_offset, pend + virt_offset".to_owned()),
        ("virt_entry", format!("{}, else {}; never offset", ElfNote::Entry, ElfNote::Entry.facts().absent)),
    ]);
    page.text(format!(
        "{base} <= virt_kstart <= virt_entry <= virt_kend must hold. {offset} without {base} is an error, and so is an \
         {p2m} inside the kernel.",
        base = ElfNote::VirtBase,
        offset = ElfNote::PaddrOffset,
        p2m = ElfNote::InitP2m,
    ));
}

fn features(page: &mut Page) {
    page.text(format!(
        "{} is a list of names separated by '|', {} a bitmap; both say what the kernel can work with, and a leading '!' \
         what it cannot do without. A required name that the builder does not know refuses the image; an unknown \
         optional one is ignored. The builder does not compare the list with what the hypervisor offers, so Linux's \
         \"!{}\" is harmless. What the hypervisor offers, a guest asks by xen_version(XENVER_get_features):",
        ElfNote::Features,
        ElfNote::SupportedFeatures,
        Feature::WritablePageTables,
    ));
    page.table(
        &["Bit", "Name", "In string", "Offered", "Meaning"],
        Feature::ALL.iter().map(|feature| {
            let facts = feature.facts();
            let mut meaning = feature.meaning().to_owned();
            if !facts.linux.is_empty() {
                meaning.push_str(&format!(" Linux {}.", facts.linux));
            }
            vec![
                feature.number().to_string(),
                feature.to_string(),
                if facts.in_string { "yes" } else { "-" }.to_owned(),
                reported(facts.reported).to_owned(),
                meaning,
            ]
        }),
    );
}

fn reported(reported: Reported) -> &'static str {
    match reported {
        Reported::Yes => "yes",
        Reported::RecentlyYes => "after Xen 4.17",
        Reported::WithExtendedCr3 => "with assist pae_extended_cr3",
        Reported::Dom0 => "dom0 only",
        Reported::Translated | Reported::No => "no",
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
