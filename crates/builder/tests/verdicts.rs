//! Each way not to boot is told apart, with its reason and, for Linux, the configuration symbol.
#![forbid(unsafe_code)]

use paravane_abi::elfnote::ElfNote;
use paravane_builder::image::verdict::{Boot, Reason, Verdict};
use paravane_builder::image::{Image, inspect};
use paravane_builder::testing::bzimage::bzimage;
use paravane_builder::testing::elf::{
    ElfFile, LINUX_ENTRY, LINUX_LOAD_ADDR, SHT_PROGBITS, linux_notes, note, number_note, text_note,
};
use paravane_x86::mode::Guest;

fn image(guest: Guest, notes: &[Vec<u8>]) -> ElfFile {
    ElfFile::new(guest).entry(LINUX_LOAD_ADDR).load(LINUX_LOAD_ADDR, b"code", 0x8000).notes(notes)
}

fn verdict(file: &ElfFile) -> Verdict {
    inspect(&file.build()).expect("a sound ELF file").verdict
}

/// The verdict on a 64-bit image with the given notes beside `XEN_VERSION` and `LOADER`.
fn with(notes: &[Vec<u8>]) -> Verdict {
    let common = [text_note(ElfNote::XenVersion, "xen-3.0"), text_note(ElfNote::Loader, "generic")];
    verdict(&image(Guest::Bits64, &[&common, notes].concat()))
}

fn reasons(verdict: &Verdict) -> String {
    verdict.obstacles.iter().map(|obstacle| obstacle.reason.to_string()).collect::<Vec<_>>().join("; ")
}

fn advice(verdict: &Verdict) -> String {
    verdict.obstacles.iter().filter_map(|obstacle| obstacle.advice.clone()).collect::<Vec<_>>().join(" ")
}

/// Linux's notes without one of them.
fn linux_without(kind: ElfNote) -> Vec<Vec<u8>> {
    let mut notes = linux_notes(LINUX_ENTRY);
    notes.retain(|note| note[8..12] != kind.number().to_le_bytes());
    notes
}

#[test]
fn a_kernel_that_boots_has_grounds_and_no_obstacles() {
    let verdict = with(&[]);
    assert_eq!(verdict.boot, Boot::Pv64);
    assert!(verdict.boot.is_runnable());
    assert_eq!(verdict.obstacles, []);
    assert_eq!(
        verdict.grounds,
        [
            "It describes itself to Xen by notes in PT_NOTE segments.",
            "It is built for the interface \"xen-3.0\".",
            "It is made for the loader \"generic\".",
            "It is a 64-bit ELF file.",
        ]
    );
    assert_eq!(verdict.summary, "The kernel boots as a 64-bit PV guest.");
}

#[test]
fn the_interface_and_the_loader_must_be_the_right_ones() {
    let generic = text_note(ElfNote::Loader, "generic");
    let xen = text_note(ElfNote::XenVersion, "xen-3.0");
    for (notes, expected) in [
        (vec![generic.clone()], "XEN_VERSION is missing"),
        (vec![generic, text_note(ElfNote::XenVersion, "xen-2.0")], "XEN_VERSION is \"xen-2.0\""),
        (vec![xen.clone()], "LOADER is missing"),
        (vec![xen.clone(), text_note(ElfNote::Loader, "special")], "LOADER is \"special\""),
        (vec![xen, text_note(ElfNote::GuestOs, "GNU/linux")], "LOADER is missing"),
    ] {
        let verdict = verdict(&image(Guest::Bits64, &notes));
        assert_eq!(verdict.boot, Boot::Refused);
        assert!(reasons(&verdict).contains(expected), "{}", reasons(&verdict));
        assert_eq!(verdict.obstacles.len(), 1);
    }
}

#[test]
fn the_interface_and_the_loader_may_have_suffixes_and_linux_needs_no_loader() {
    let suffixed =
        [text_note(ElfNote::XenVersion, "xen-3.0-x86_64"), text_note(ElfNote::Loader, "generic-or-so")];
    assert_eq!(verdict(&image(Guest::Bits64, &suffixed)).boot, Boot::Pv64);
    let linux = verdict(&image(Guest::Bits64, &linux_without(ElfNote::Loader)));
    assert_eq!(linux.boot, Boot::Pv64);
    assert!(linux.grounds.contains(&"It is linux, which needs no LOADER.".to_owned()), "{:?}", linux.grounds);
}

#[test]
fn required_features_may_be_impossible() {
    let dom0 = with(&[text_note(ElfNote::Features, "!dom0")]);
    assert_eq!(dom0.boot, Boot::Refused);
    assert_eq!(dom0.obstacles[0].reason, Reason::RequiresDom0);
    assert_eq!(with(&[text_note(ElfNote::Features, "dom0")]).boot, Boot::Pv64);

    let unknown = with(&[text_note(ElfNote::Features, "!time_travel|!writable_page_tables|teleport")]);
    assert_eq!(unknown.boot, Boot::Refused);
    assert_eq!(unknown.obstacles[0].reason, Reason::UnknownRequired { names: vec!["time_travel".into()] });
}

#[test]
fn addresses_that_contradict_each_other_are_refused() {
    let high = 0xffff_ffff_8000_0000;
    for (notes, expected) in [
        (vec![number_note(ElfNote::PaddrOffset, 0)], "there is no VIRT_BASE"),
        (vec![number_note(ElfNote::Entry, 0x1234)], "the entry point 0x1234 (from ENTRY) lies outside"),
        (
            vec![number_note(ElfNote::VirtBase, high)],
            "the entry point 0x1000000 (from the ELF header, as ENTRY is missing) lies outside",
        ),
        (
            vec![
                number_note(ElfNote::VirtBase, 0x1000_0000),
                number_note(ElfNote::PaddrOffset, 0x180_0000),
                number_note(ElfNote::Entry, 0xf80_0000),
            ],
            "the kernel begins at 0xf800000, below VIRT_BASE 0x10000000",
        ),
        (vec![number_note(ElfNote::InitP2m, 0x100_1000)], "INIT_P2M 0x1001000 lies inside the kernel"),
        (vec![number_note(ElfNote::HypercallPage, 0x1000)], "HYPERCALL_PAGE 0x1000 lies outside"),
        (
            vec![number_note(ElfNote::HypercallPage, 0x100_1008)],
            "HYPERCALL_PAGE 0x1001008 is not a multiple of the page size",
        ),
        (
            vec![number_note(ElfNote::VirtBase, 0x10), number_note(ElfNote::Entry, 0x100_0010)],
            "VIRT_BASE 0x10 is not a multiple",
        ),
        (
            vec![
                number_note(ElfNote::VirtBase, u64::MAX - 0xfff),
                number_note(ElfNote::PaddrOffset, 0xfff_f000),
            ],
            "the kernel begins at 0xfffffffff1000000, below VIRT_BASE 0xfffffffffffff000",
        ),
    ] {
        let verdict = with(&notes);
        assert_eq!(verdict.boot, Boot::Refused, "{expected}");
        assert!(reasons(&verdict).contains(expected), "{}", reasons(&verdict));
    }
}

#[test]
fn a_kernel_must_end_within_its_address_space() {
    let low = |base| [number_note(ElfNote::VirtBase, base), text_note(ElfNote::PaeMode, "yes")];
    let common = [text_note(ElfNote::XenVersion, "xen-3.0"), text_note(ElfNote::Loader, "generic")];
    let wide = verdict(&image(Guest::Bits64, &[&common[..], &low(u64::MAX - 0x100_0fff)].concat()));
    assert!(reasons(&wide).contains("beyond the last address"), "{}", reasons(&wide));
    let narrow = verdict(&image(Guest::Bits32, &[&common[..], &low(0xff00_0000)].concat()));
    assert!(reasons(&narrow).contains("beyond the last address"), "{}", reasons(&narrow));
}

#[test]
fn an_unreadable_note_is_an_obstacle() {
    let verdict = with(&[note("Xen", ElfNote::VirtBase.number(), &[0; 3])]);
    assert_eq!(verdict.boot, Boot::Refused);
    let text = reasons(&verdict);
    assert!(
        text.contains("VIRT_BASE has an unusable value: a number has 1, 2, 4 or 8 bytes, not 3"),
        "{text}"
    );
}

#[test]
fn a_32_bit_kernel_is_told_apart_by_its_page_tables() {
    let common = [text_note(ElfNote::XenVersion, "xen-3.0"), text_note(ElfNote::Loader, "generic")];
    for (mode, expected) in [
        (Some("yes"), Boot::Pv32Pae),
        (Some("bimodal"), Boot::Pv32Pae),
        (Some("yes,bimodal"), Boot::Pv32Pae),
        (Some("no"), Boot::Pv32NonPae),
        (Some("yes[extended-cr3]"), Boot::Pv32NonPae),
        (None, Boot::Pv32NonPae),
    ] {
        let notes: Vec<_> =
            common.iter().cloned().chain(mode.map(|mode| text_note(ElfNote::PaeMode, mode))).collect();
        let verdict = verdict(&image(Guest::Bits32, &notes));
        assert_eq!(verdict.boot, expected, "{mode:?}");
    }
}

#[test]
fn a_32_bit_linux_without_pae_is_advised_of_the_symbol() {
    let mut notes = vec![
        text_note(ElfNote::GuestOs, "linux"),
        text_note(ElfNote::XenVersion, "xen-3.0"),
        number_note(ElfNote::Entry, LINUX_LOAD_ADDR),
    ];
    let verdict = verdict(&image(Guest::Bits32, &notes));
    assert_eq!(verdict.boot, Boot::Pv32NonPae);
    assert!(advice(&verdict).contains("CONFIG_X86_PAE"), "{}", advice(&verdict));
    notes.push(text_note(ElfNote::PaeMode, "yes"));
    assert_eq!(self::verdict(&image(Guest::Bits32, &notes)).boot, Boot::Pv32Pae);
}

#[test]
fn pvh_alone_is_not_pv() {
    let verdict = verdict(&image(Guest::Bits64, &[number_note(ElfNote::Phys32Entry, 0x100_0000)]));
    assert_eq!(verdict.boot, Boot::PvhOnly);
    assert!(verdict.pvh && !verdict.boot.is_runnable());
    assert!(reasons(&verdict).contains("XEN_VERSION is missing"), "{}", reasons(&verdict));
}

#[test]
fn linux_notes_without_entry_mean_that_pv_is_not_built_in() {
    // So in Debian's 5.10 kernels for 686-pae: all notes of a PV kernel but that one.
    let mut notes = linux_without(ElfNote::Entry);
    notes.push(number_note(ElfNote::Phys32Entry, LINUX_LOAD_ADDR));
    for (guest, version, expected) in [
        (Guest::Bits64, "6.1.0", "CONFIG_XEN_PV=y"),
        (Guest::Bits32, "5.10.0-32-686-pae (gcc)", "32-bit Linux is no PV kernel since 5.9"),
        (Guest::Bits32, "4.19.0", "CONFIG_X86_PAE=y"),
        (Guest::Bits32, "", "32-bit Linux from 5.9 on is no PV kernel"),
    ] {
        let kernel = bzimage(0x20f, version, &image(guest, &notes).build());
        let verdict = inspect(&kernel).unwrap().verdict;
        assert_eq!(verdict.boot, Boot::PvhOnly);
        assert_eq!(verdict.obstacles[0].reason, Reason::LinuxWithoutPvEntry);
        assert!(advice(&verdict).contains(expected), "{version}: {}", advice(&verdict));
    }
}

#[test]
fn a_linux_without_notes_is_recognised_and_advised() {
    let plain = ElfFile::new(Guest::Bits64)
        .load(LINUX_LOAD_ADDR, b"...Linux version 6.12.0 (gcc)\0", 0x1000)
        .section(".text", SHT_PROGBITS, b"");
    for file in [bzimage(0x20f, "6.12.0 (gcc)", &plain.build()), plain.build()] {
        let inspection = inspect(&file).unwrap();
        assert_eq!(inspection.linux.unwrap().release, "6.12.0");
        assert_eq!(inspection.verdict.boot, Boot::NotForXen);
        assert!(reasons(&inspection.verdict).contains("no ELF notes of owner Xen"));
        assert!(advice(&inspection.verdict).contains("CONFIG_XEN_PV=y"), "{}", advice(&inspection.verdict));
    }
}

#[test]
fn an_image_that_is_not_for_xen_and_not_linux_is_no_error() {
    let verdict = verdict(&image(Guest::Bits64, &[note("GNU", 3, b"build id")]));
    assert_eq!(verdict.boot, Boot::NotForXen);
    assert_eq!(verdict.obstacles.len(), 1);
    assert!(!advice(&verdict).contains("CONFIG_"), "{}", advice(&verdict));
    assert_eq!(verdict.summary, "The kernel is not made for Xen.");
}

#[test]
fn what_is_missing_may_have_been_lost_with_notes_that_are_cut() {
    let mut cut = text_note(ElfNote::XenVersion, "xen-3.0");
    cut[0] = 200;
    let verdict = verdict(&image(Guest::Bits64, &[text_note(ElfNote::Loader, "generic"), cut]));
    assert_eq!(verdict.boot, Boot::Refused);
    assert_eq!(verdict.obstacles.last().unwrap().reason, Reason::NotesLost);
}

#[test]
fn only_a_kernel_that_boots_is_handed_to_the_builder() {
    let file = image(Guest::Bits64, &linux_notes(LINUX_ENTRY)).build();
    let opened = Image::open(&file).unwrap();
    let kernel = opened.pv_kernel().unwrap();
    assert_eq!(kernel.guest, Guest::Bits64);
    assert_eq!(kernel.addresses.virt_entry.0, LINUX_ENTRY);
    assert_eq!(kernel.addresses.pfn_of(kernel.addresses.virt_kstart).unwrap().0, LINUX_LOAD_ADDR >> 12);

    let file = image(Guest::Bits64, &linux_without(ElfNote::XenVersion)).build();
    let error = Image::open(&file).unwrap().pv_kernel().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot be loaded. XEN_VERSION is missing"), "{text}");
}
