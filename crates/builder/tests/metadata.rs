//! What a kernel says of itself is found in each of its forms, and sloppy forms are reported.
#![forbid(unsafe_code)]

use paravane_abi::elfnote::ElfNote;
use paravane_abi::features::{Feature, FeatureSet};
use paravane_abi::units::GuestVirt;
use paravane_builder::image::metadata::Source;
use paravane_builder::image::parameters::PaeMode;
use paravane_builder::image::problem::{NotePlace, Problem};
use paravane_builder::image::value::{MaskedEntry, Relocation, Value};
use paravane_builder::image::verdict::Boot;
use paravane_builder::image::{Inspection, inspect};
use paravane_builder::testing::elf::{
    ElfFile, LINUX_ENTRY, LINUX_VIRT_BASE, PT_NOTE, Program, SHT_NOTE, SHT_PROGBITS, linux, linux_notes,
    note, number_note, text_note,
};
use paravane_x86::mode::Guest;

/// The text that GNU Mach carries.
const MACH: &[u8] = b"GUEST_OS=GNU Mach,GUEST_VERSION=1.3,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,\
    ELF_PADDR_OFFSET=0xC0000000,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],LOADER=generic,\
    FEATURES=pae_pgdir_above_4gb\0";

/// A 32-bit image at 3 GiB, by virtual addresses in `p_paddr`.
fn mach() -> ElfFile {
    ElfFile::new(Guest::Bits32).entry(0xc000_0000).load(0xc000_0000, b"code", 0x8000)
}

/// A 64-bit image at 1 MiB.
fn unikernel() -> ElfFile {
    ElfFile::new(Guest::Bits64).entry(0x10_0000).load(0x10_0000, b"code", 0x8000)
}

fn inspected(file: &ElfFile) -> Inspection {
    inspect(&file.build()).expect("a sound ELF file")
}

fn minimal_notes() -> Vec<Vec<u8>> {
    vec![text_note(ElfNote::XenVersion, "xen-3.0"), text_note(ElfNote::Loader, "generic")]
}

#[test]
fn linux_notes_become_parameters() {
    let inspection = inspected(&linux());
    let parameters = &inspection.parameters;
    assert_eq!(parameters.source, Some(Source::NoteSegment));
    assert_eq!(parameters.entry, Some(GuestVirt(LINUX_ENTRY)));
    assert_eq!(parameters.hypercall_page, None);
    assert_eq!(parameters.virt_base, Some(GuestVirt(LINUX_VIRT_BASE)));
    assert_eq!(parameters.paddr_offset, Some(0));
    assert_eq!(parameters.xen_version.as_deref(), Some("xen-3.0"));
    assert_eq!(parameters.guest_os.as_deref(), Some("linux"));
    assert_eq!(parameters.guest_version.as_deref(), Some("2.6"));
    assert_eq!(parameters.loader.as_deref(), Some("generic"));
    assert_eq!(parameters.features.required, FeatureSet::of(&[Feature::WritablePageTables]));
    // The string's two, and bits 0, 11 and 15 of the bitmap.
    assert_eq!(parameters.features.supported.bits(), 0x8811);
    assert_eq!(parameters.hv_start_low, Some(GuestVirt(0xffff_8000_0000_0000)));
    assert_eq!(parameters.l1_mfn_valid, [MaskedEntry { mask: 1, value: 1 }]);
    assert!(parameters.suspend_cancel && parameters.mod_start_pfn && !parameters.bsd_symtab);
    assert_eq!(parameters.init_p2m, Some(GuestVirt(0x80_0000_0000)));
    assert_eq!(parameters.phys32_entry, None);
    assert_eq!(inspection.problems, []);
}

#[test]
fn notes_keep_their_bytes_and_are_explained() {
    let inspection = inspected(&linux());
    let features = inspection.notes.iter().find(|note| note.note == Some(ElfNote::Features)).unwrap();
    assert_eq!(features.raw.0, b"!writable_page_tables|pae_pgdir_above_4gb");
    assert!(
        features.explanation.ends_with("Required: writable_page_tables. Supported: pae_pgdir_above_4gb."),
        "{}",
        features.explanation
    );
    for note in &inspection.notes {
        assert!(note.explanation.starts_with(note.note.unwrap().meaning()), "{note:?}");
        assert!(note.explanation.ends_with('.'), "{note:?}");
    }
    let absent: Vec<_> = inspection.absent_notes.iter().map(|note| note.name()).collect();
    assert_eq!(absent, ["INFO", "HYPERCALL_PAGE", "BSD_SYMTAB", "PHYS32_ENTRY", "PHYS32_RELOC"]);
}

#[test]
fn a_note_segment_at_offset_0_is_passed_over_for_the_sections() {
    let file = unikernel().program(Program { kind: PT_NOTE, file_len: 0x100, ..Program::default() }).section(
        ".note.xen",
        SHT_NOTE,
        &minimal_notes().concat(),
    );
    let inspection = inspected(&file);
    assert_eq!(inspection.parameters.source, Some(Source::NoteSection));
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
    assert_eq!(inspection.problems, []);
}

#[test]
fn notes_in_several_sections_add_up() {
    let notes = minimal_notes();
    let file = unikernel().section(".a", SHT_NOTE, &notes[0]).section(".b", SHT_NOTE, &notes[1]);
    assert_eq!(inspected(&file).notes.len(), 2);
}

#[test]
fn sections_do_not_count_beside_segments_with_xen_notes() {
    let file = linux().section(".note.xen", SHT_NOTE, &text_note(ElfNote::GuestOs, "other"));
    let inspection = inspected(&file);
    assert_eq!(inspection.parameters.source, Some(Source::NoteSegment));
    assert_eq!(inspection.parameters.guest_os.as_deref(), Some("linux"));
}

#[test]
fn a_section_of_another_type_holds_no_notes() {
    let file = unikernel().section(".note.xen", SHT_PROGBITS, &minimal_notes().concat());
    assert_eq!(inspected(&file).verdict.boot, Boot::NotForXen);
}

#[test]
fn notes_of_a_foreign_owner_leave_the_legacy_section_to_count() {
    let file = mach()
        .section(".note.Xen", SHT_NOTE, &note("name", ElfNote::GuestOs.number(), b"GNU Mach\0"))
        .section("__xen_guest", SHT_PROGBITS, MACH);
    let inspection = inspected(&file);
    let parameters = &inspection.parameters;
    assert_eq!(parameters.source, Some(Source::LegacySection));
    assert_eq!(parameters.guest_os.as_deref(), Some("GNU Mach"));
    assert_eq!(parameters.virt_base, Some(GuestVirt(0xc000_0000)));
    assert_eq!(parameters.paddr_offset, Some(0xc000_0000));
    assert_eq!(parameters.hypercall_page, Some(GuestVirt(0xc000_2000)));
    assert_eq!(parameters.pae_mode, PaeMode::ExtendedCr3);
    assert!(parameters.features.supported.contains(Feature::PaePgdirAbove4gb));
    assert_eq!(inspection.foreign_notes.len(), 1);
    assert_eq!(inspection.foreign_notes[0].owner, "name");
    // GUEST_VERSION is not the key that Xen reads, which is GUEST_VER.
    let unknown: Vec<_> = inspection.legacy.iter().filter(|entry| entry.note.is_none()).collect();
    assert_eq!(unknown.len(), 1);
    assert_eq!(unknown[0].key, "GUEST_VERSION");
    assert_eq!(inspection.verdict.boot, Boot::Pv32Pae);
}

#[test]
fn a_foreign_note_that_a_segment_and_a_section_hold_is_listed_once() {
    let foreign = note("GNU", 3, b"build id");
    let file = unikernel().notes(std::slice::from_ref(&foreign)).section(".note", SHT_NOTE, &foreign);
    let inspection = inspected(&file);
    assert_eq!(inspection.foreign_notes.len(), 1);
    assert_eq!(inspection.parameters.source, None);
}

#[test]
fn the_legacy_section_defaults_the_offset_to_the_base() {
    let file = mach().section(
        "__xen_guest",
        SHT_PROGBITS,
        b"XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,PAE=yes",
    );
    let inspection = inspected(&file);
    assert_eq!(inspection.addresses.elf_paddr_offset, 0xc000_0000);
    assert_eq!(inspection.addresses.virt_kstart, GuestVirt(0xc000_0000));
    assert_eq!(inspection.parameters.pae_mode, PaeMode::Yes);
    assert_eq!(inspection.verdict.boot, Boot::Pv32Pae);
}

#[test]
fn a_legacy_hypercall_page_without_a_base_counts_from_0() {
    let file = ElfFile::new(Guest::Bits64).load(0, b"code", 0x8000).section(
        "__xen_guest",
        SHT_PROGBITS,
        b"XEN_VER=xen-3.0,LOADER=generic,HYPERCALL_PAGE=3,BSD_SYMTAB",
    );
    let inspection = inspected(&file);
    assert_eq!(inspection.addresses.hypercall_page, Some(GuestVirt(0x3000)));
    assert!(inspection.parameters.bsd_symtab);
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
}

#[test]
fn without_entry_and_base_the_elf_header_and_0_count() {
    let inspection = inspected(&unikernel().notes(&minimal_notes()));
    assert_eq!(inspection.addresses.virt_entry, GuestVirt(0x10_0000));
    assert_eq!(inspection.addresses.virt_base, GuestVirt(0));
    assert_eq!(inspection.addresses.virt_kstart, GuestVirt(0x10_0000));
    assert_eq!(inspection.addresses.virt_kend, GuestVirt(0x10_8000));
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
}

#[test]
fn a_last_note_that_claims_too_much_still_counts_and_is_reported() {
    // GRUB's 32-bit image ends so.
    let mut pae = text_note(ElfNote::PaeMode, "yes");
    pae[4] = 12;
    let mut notes = minimal_notes();
    let offset = notes.concat().len();
    notes.push(pae);
    let file = ElfFile::new(Guest::Bits32).load(0, b"code", 0x8000).notes(&notes);
    let inspection = inspected(&file);
    assert_eq!(inspection.parameters.pae_mode, PaeMode::ExtendedCr3);
    assert_eq!(inspection.verdict.boot, Boot::Pv32Pae);
    let place = NotePlace::Segment(1);
    assert_eq!(inspection.problems, [Problem::NoteCut { place, offset, number: 9, claimed: 12, left: 4 }]);
}

#[test]
fn a_note_segment_outside_the_file_is_reported_and_the_sections_count() {
    let place = Program { kind: PT_NOTE, offset: 0x10_0000, file_len: 0x100, ..Program::default() };
    let file = unikernel().program(place).section(".note.xen", SHT_NOTE, &minimal_notes().concat());
    let inspection = inspected(&file);
    assert_eq!(inspection.parameters.source, Some(Source::NoteSection));
    assert!(
        matches!(inspection.problems[..], [Problem::NotesOutside { place: NotePlace::Segment(1), .. }]),
        "{:?}",
        inspection.problems
    );
    let text = inspection.problems[0].to_string();
    assert!(text.starts_with("note segment 1 does not lie in the ELF file"), "{text}");
}

#[test]
fn an_unknown_note_number_is_listed_and_changes_nothing() {
    let mut notes = linux_notes(LINUX_ENTRY);
    notes.push(note("Xen", 0x4711, b"whatever"));
    let inspection =
        inspected(&ElfFile::new(Guest::Bits64).load(0x100_0000, &[0x90; 0x100], 0x1000).notes(&notes));
    let unknown = inspection.notes.last().unwrap();
    assert_eq!((unknown.number, unknown.note), (0x4711, None));
    assert_eq!(unknown.value, Value::Opaque);
    assert_eq!(unknown.raw.0, b"whatever");
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
}

#[test]
fn numbers_may_be_narrower_than_the_kernel() {
    let mut notes = minimal_notes();
    notes.push(note("Xen", ElfNote::Entry.number(), &0x10_0040_u32.to_le_bytes()));
    notes.push(note("Xen", ElfNote::ModStartPfn.number(), &[1]));
    notes.push(note("Xen", ElfNote::SuspendCancel.number(), &0_u16.to_le_bytes()));
    let parameters = inspected(&unikernel().notes(&notes)).parameters;
    assert_eq!(parameters.entry, Some(GuestVirt(0x10_0040)));
    assert!(parameters.mod_start_pfn && !parameters.suspend_cancel);
}

#[test]
fn of_a_note_given_twice_the_last_counts_but_features_add_up() {
    let mut notes = minimal_notes();
    notes.extend([
        text_note(ElfNote::GuestOs, "first"),
        text_note(ElfNote::GuestOs, "second"),
        text_note(ElfNote::Features, "!auto_translated_physmap"),
        text_note(ElfNote::Features, "hvm_callback_vector"),
    ]);
    let parameters = inspected(&unikernel().notes(&notes)).parameters;
    assert_eq!(parameters.guest_os.as_deref(), Some("second"));
    assert_eq!(parameters.features.required, FeatureSet::of(&[Feature::AutoTranslatedPhysmap]));
    assert!(parameters.features.supported.contains(Feature::HvmCallbackVector));
}

#[test]
fn init_p2m_is_used_only_where_it_can_be() {
    let image = |guest, base: u64, init_p2m: u64| {
        let mut notes = minimal_notes();
        notes.extend([
            text_note(ElfNote::PaeMode, "yes"),
            number_note(ElfNote::VirtBase, base),
            number_note(ElfNote::InitP2m, init_p2m),
            number_note(ElfNote::Entry, base),
        ]);
        inspected(&ElfFile::new(guest).load(0, b"code", 0x8000).notes(&notes))
    };
    let used = image(Guest::Bits64, 0xffff_ffff_8000_0000, 0x80_0000_0000);
    assert_eq!(used.addresses.init_p2m, Some(GuestVirt(0x80_0000_0000)));
    for (guest, base, init_p2m, why) in [
        (Guest::Bits32, 0xc000_0000, 0x1000, "only 64-bit"),
        (Guest::Bits64, 0xffff_ffff_8000_0000, 0x80_0000_0008, "page size"),
        (Guest::Bits64, 0x1000_0000, 0x80_0000_0000, "below VIRT_BASE"),
    ] {
        let ignored = image(guest, base, init_p2m);
        assert_eq!(ignored.addresses.init_p2m, None, "{why}");
        assert!(ignored.verdict.boot.is_runnable(), "{:?}", ignored.verdict);
        assert!(ignored.problems[0].to_string().contains(why), "{:?}", ignored.problems);
    }
}

#[test]
fn pvh_notes_are_read_beside_the_others() {
    let mut notes = linux_notes(LINUX_ENTRY);
    let words = [0x20_0000_u32, 0x100_0000, 0x3fff_ffff];
    notes.extend([
        number_note(ElfNote::Phys32Entry, 0x100_0850),
        note("Xen", ElfNote::Phys32Reloc.number(), &words.map(u32::to_le_bytes).concat()),
    ]);
    let file = ElfFile::new(Guest::Bits64).load(0x100_0000, &[0x90; 0x100], 0x1000).notes(&notes);
    let inspection = inspected(&file);
    assert_eq!(inspection.parameters.phys32_entry, Some(0x100_0850));
    let [align, min, max] = words.map(Some);
    assert_eq!(inspection.parameters.phys32_reloc, Some(Relocation { align, min, max }));
    assert!(inspection.verdict.pvh);
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
    assert!(
        inspection.verdict.summary.ends_with("boots as a PVH guest too."),
        "{}",
        inspection.verdict.summary
    );
}

#[test]
fn an_inspection_is_json_with_names_and_sentences() {
    let json = serde_json::to_value(inspected(&linux())).unwrap();
    assert_eq!(json["verdict"]["boot"], "pv64");
    assert_eq!(json["container"]["kind"], "elf");
    assert_eq!(json["elf"]["guest"], "64");
    assert_eq!(json["elf"]["segments"][0]["access"], "rwx");
    assert_eq!(json["parameters"]["source"], "note-segment");
    assert_eq!(json["parameters"]["virt_base"], 0xffff_ffff_8000_0000_u64);
    assert_eq!(json["parameters"]["features"]["required"][0], "writable_page_tables");
    assert_eq!(json["notes"][0]["note"], "GUEST_OS");
    assert_eq!(json["notes"][0]["value"]["type"], "text");
    assert_eq!(json["notes"][0]["value"]["value"], "linux");
    assert_eq!(json["notes"][0]["raw"], "6c696e757800");
    assert_eq!(json["addresses"]["virt_kstart"], 0xffff_ffff_8100_0000_u64);
}
