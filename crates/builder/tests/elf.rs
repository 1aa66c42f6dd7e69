//! Headers and segments are checked before anything is loaded by them.
#![forbid(unsafe_code)]

use paravane_builder::image::elf::{ElfError, LoadAddr, Table};
use paravane_builder::image::{Image, ImageError};
use paravane_builder::testing::elf::{ElfFile, PT_LOAD, Program, RWX, linux};
use paravane_x86::mode::Guest;

fn refusal(file: &[u8]) -> ElfError {
    match Image::open(file) {
        Err(ImageError::Elf(error)) => error,
        other => panic!("an ELF error was expected: {other:?}"),
    }
}

fn load(load_addr: u64, memory_len: u64) -> Program {
    Program { kind: PT_LOAD, flags: RWX, load_addr, memory_len, ..Program::default() }
}

/// Both classes with room for one more segment.
fn both() -> [ElfFile; 2] {
    [Guest::Bits64, Guest::Bits32].map(|guest| ElfFile::new(guest).load(0x10_0000, b"code", 0x2000))
}

#[test]
fn segments_come_in_the_order_of_their_addresses_and_empty_space_costs_nothing() {
    let file =
        ElfFile::new(Guest::Bits64).load(0x20_0000, b"second", 0x1000).load(0x10_0000, b"first", 8).build();
    let image = Image::open(&file).unwrap();
    let addresses: Vec<_> = image.elf().segments.iter().map(|segment| segment.load_addr.0).collect();
    assert_eq!(addresses, [0x10_0000, 0x20_0000]);
    assert_eq!(image.elf().load_range(), LoadAddr(0x10_0000)..LoadAddr(0x20_1000));
}

#[test]
fn segments_may_touch_and_those_that_allow_nothing_are_not_loaded() {
    for file in both() {
        let forbidden = Program { flags: 0, ..load(0x10_0000, 0x2000) };
        let file = file.program(load(0x10_2000, 0x1000)).program(forbidden).build();
        assert_eq!(Image::open(&file).unwrap().elf().segments.len(), 2);
    }
}

#[test]
fn overlapping_segments_are_refused() {
    for file in both() {
        let error = refusal(&file.program(load(0x10_1fff, 0x1000)).build());
        let (end, start) = (LoadAddr(0x10_2000), LoadAddr(0x10_1fff));
        assert_eq!(error, ElfError::SegmentsOverlap { first: 0, second: 1, end, start });
    }
}

#[test]
fn a_segment_outside_the_file_is_refused() {
    for file in both() {
        let outside = Program { offset: 0x100, file_len: 0x100_0000, ..load(0x20_0000, 0x100_0000) };
        let error = refusal(&file.program(outside).build());
        assert!(matches!(error, ElfError::SegmentOutside { index: 1, offset: 0x100, len: 0x100_0000, .. }));
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}

#[test]
fn a_segment_whose_end_overflows_is_refused() {
    let wrapping = Program { offset: u64::MAX - 1, file_len: 16, ..load(0x20_0000, 16) };
    let error = refusal(&both()[0].clone().program(wrapping).build());
    assert!(matches!(error, ElfError::SegmentOutside { index: 1, .. }), "{error}");
}

#[test]
fn huge_segments_are_refused() {
    for (addr, len) in
        [(0x20_0000, 10 << 30), (0x20_0000, u64::MAX), (8 << 30, 0x1000), (u64::MAX - 0xfff, 0x2000)]
    {
        let error = refusal(&both()[0].clone().program(load(addr, len)).build());
        assert!(matches!(error, ElfError::TooLarge { index: 1, .. }), "{error}");
    }
}

#[test]
fn a_segment_with_more_in_the_file_than_in_memory_is_refused() {
    for file in both() {
        let shrinking = Program { offset: 0x34, file_len: 8, ..load(0x20_0000, 4) };
        let error = refusal(&file.program(shrinking).build());
        assert_eq!(error, ElfError::SegmentShrinks { index: 1, file_len: 8, memory_len: 4 });
    }
}

#[test]
fn an_elf_file_without_segments_is_no_kernel() {
    assert_eq!(refusal(&ElfFile::new(Guest::Bits64).build()), ElfError::NothingToLoad);
}

#[test]
fn other_machines_are_refused_by_name() {
    for (guest, machine, expected) in [
        (Guest::Bits64, 183, "AArch64"),
        (Guest::Bits64, 3, "machine 3 (i386) with 64-bit fields"),
        (Guest::Bits32, 62, "machine 62 (x86-64) with 32-bit fields"),
        (Guest::Bits32, 40, "Arm"),
        (Guest::Bits64, 9999, "9999"),
    ] {
        let file = ElfFile::new(guest).machine(machine).load(0, b"code", 4).build();
        let error = refusal(&file);
        assert!(matches!(error, ElfError::WrongMachine { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn big_endian_files_are_refused() {
    let mut file = linux().build();
    file[5] = 2;
    assert!(matches!(refusal(&file), ElfError::WrongMachine { .. }));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let file = linux().build();
    for len in 4..file.len() {
        let error = refusal(&file[..len]);
        let text = error.to_string();
        assert!(text.contains("cut short"), "{len} of {} bytes: {text}", file.len());
    }
}

#[test]
fn table_entries_of_a_wrong_length_are_refused() {
    for (at, table) in [(54, Table::Program), (58, Table::Section)] {
        let mut file = linux().build();
        file[at] = 8;
        let error = refusal(&file);
        assert!(
            matches!(error, ElfError::EntryLength { table: found, found: 8, .. } if found == table),
            "{error}"
        );
    }
}

#[test]
fn tables_that_lie_nowhere_are_refused() {
    for (at, table) in [(32, Table::Program), (40, Table::Section)] {
        let mut file = linux().build();
        file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = refusal(&file);
        assert!(matches!(error, ElfError::TableOutside { table: found, .. } if found == table), "{error}");
    }
}
