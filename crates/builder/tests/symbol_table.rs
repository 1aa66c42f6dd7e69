//! A kernel with BSD_SYMTAB finds its symbols behind itself.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use paravane_abi::elfnote::ElfNote;
use paravane_abi::units::GuestVirt;
use paravane_builder::image::problem::Problem;
use paravane_builder::image::symbol_table::NoSymbolTable;
use paravane_builder::image::verdict::Boot;
use paravane_builder::image::{Image, inspect};
use paravane_builder::testing::elf::{ElfFile, SHT_PROGBITS, SHT_STRTAB, SHT_SYMTAB, number_note, text_note};
use paravane_x86::mode::Guest;

/// Where the made kernels are loaded, and their length: no multiple of a word.
const LOADED_AT: u64 = 0x10_0000;
const KERNEL_BYTES: u64 = 0x2345;
/// What they define.
const FUNCTIONS: [(&str, u64); 3] = [("start", 0x10_0000), ("panic", 0x10_0010), ("halt", 0x10_0123)];

/// A kernel that asks for its symbols, and has none yet.
fn kernel(guest: Guest) -> ElfFile {
    let notes = [
        text_note(ElfNote::XenVersion, "xen-3.0"),
        text_note(ElfNote::Loader, "generic"),
        text_note(ElfNote::PaeMode, "yes"),
        text_note(ElfNote::BsdSymtab, "yes"),
    ];
    ElfFile::new(guest).entry(LOADED_AT).load(LOADED_AT, b"code", KERNEL_BYTES).notes(&notes)
}

/// The symbol table of `file` as it lies in memory, from its first byte on, and where that is.
fn loaded(file: &[u8]) -> (u64, Vec<u8>) {
    let image = Image::open(file).unwrap();
    let kernel = image.pv_kernel().unwrap();
    let table = kernel.addresses.symbol_table.as_ref().expect("a symbol table is loaded");
    let start = table.load_addr.0;
    let mut memory = vec![0xaa; usize::try_from(table.load_end.0 - start).unwrap()];
    for (addr, bytes) in image.symbol_table_pieces(table) {
        let at = usize::try_from(addr.0 - start).unwrap();
        memory[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    (start, memory)
}

/// A little-endian number.
fn number(bytes: &[u8], at: u64, len: u64) -> u64 {
    let (at, len) = (usize::try_from(at).unwrap(), usize::try_from(len).unwrap());
    bytes[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Reads names and addresses out of a loaded table as a kernel does: by the headers in it alone.
fn symbols(guest: Guest, memory: &[u8]) -> Vec<(String, u64)> {
    let wide = guest == Guest::Bits64;
    let pick = |in_64: u64, in_32: u64| if wide { in_64 } else { in_32 };
    let word = pick(8, 4);
    let size = number(memory, 0, 4);
    let elf = &memory[4..4 + usize::try_from(size).unwrap()];
    assert_eq!(elf[..4], *b"\x7fELF");
    assert_eq!(number(elf, pick(32, 28), word), 0, "no program headers");
    assert_eq!(number(elf, pick(56, 44), 2), 0, "no program headers");
    assert_eq!(number(elf, pick(62, 50), 2), 0, "no names of sections");
    let headers = number(elf, pick(40, 32), word);
    let header_len = number(elf, pick(58, 46), 2);
    assert_eq!((headers, header_len), (64, pick(64, 40)));
    assert_eq!(number(elf, pick(60, 48), 2), 3);
    let field = |section: u64, in_64, in_32, len| {
        number(elf, headers + section * header_len + pick(in_64, in_32), len)
    };
    let kinds = [0, 1, 2].map(|section| field(section, 4, 4, 4));
    assert_eq!(kinds, [0, SHT_SYMTAB.into(), SHT_STRTAB.into()]);
    let [table, names] = [1, 2].map(|section| (field(section, 24, 16, word), field(section, 32, 20, word)));
    assert_eq!(field(1, 40, 24, 4), 2, "the symbols link to their names");
    assert_eq!(names.0 + names.1, size, "the names come last");

    let entry_len = pick(24, 16);
    let symbol = |index: u64| {
        let at = table.0 + index * entry_len;
        let name = usize::try_from(names.0 + number(elf, at, 4)).unwrap();
        let name = elf[name..].split(|&byte| byte == 0).next().unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), number(elf, at + pick(8, 4), word))
    };
    (0..table.1 / entry_len).map(symbol).collect()
}

#[test]
fn the_symbols_are_found_by_the_headers_in_front_of_them() {
    let expected: Vec<_> =
        [("", 0)].iter().chain(&FUNCTIONS).map(|&(name, at)| (name.to_owned(), at)).collect();
    for guest in [Guest::Bits64, Guest::Bits32] {
        let (start, memory) = loaded(&kernel(guest).symbols(&FUNCTIONS).build());
        assert_eq!(start, 0x10_2348, "{guest}");
        assert_eq!(symbols(guest, &memory), expected, "{guest}");
    }
}

/// Offsets that Xen's loader computes for a 64-bit kernel: 4 of size, 64 of ELF header, three section headers.
#[test]
fn the_symbols_begin_where_xen_puts_them() {
    let (_, memory) = loaded(&kernel(Guest::Bits64).symbols(&FUNCTIONS).build());
    let symbol_bytes = 24 * (1 + FUNCTIONS.len() as u64);
    let names_bytes = 1 + 6 + 6 + 5;
    let names_at = 264 + symbol_bytes;
    assert_eq!(number(&memory, 0, 4), names_at + names_bytes - 4);
    assert_eq!(memory.len() as u64, (names_at + names_bytes).next_multiple_of(8));
    // The section headers of the symbols and of the names, each with its offset at 24, from the ELF header.
    assert_eq!(number(&memory, 4 + 64 + 64 + 24, 8), 264 - 4);
    assert_eq!(number(&memory, 4 + 64 + 128 + 24, 8), names_at - 4);
}

#[test]
fn the_kernel_ends_behind_its_symbols() {
    let file = kernel(Guest::Bits64).symbols(&FUNCTIONS).build();
    let inspection = inspect(&file).unwrap();
    let table = inspection.addresses.symbol_table.as_ref().unwrap();
    assert_eq!(table.symbols, 4);
    assert_eq!(inspection.addresses.pend.0, LOADED_AT + KERNEL_BYTES);
    assert_eq!(inspection.addresses.virt_kend, GuestVirt(table.load_end.0));
    assert_eq!(inspection.problems, []);
}

#[test]
fn a_table_that_nobody_asks_for_is_left_out() {
    for text in ["no", "YES", "yes "] {
        let notes = [
            text_note(ElfNote::XenVersion, "xen-3.0"),
            text_note(ElfNote::Loader, "generic"),
            text_note(ElfNote::BsdSymtab, text),
        ];
        let file =
            ElfFile::new(Guest::Bits64).load(0, b"code", KERNEL_BYTES).notes(&notes).symbols(&FUNCTIONS);
        let inspection = inspect(&file.build()).unwrap();
        assert_eq!(inspection.addresses.symbol_table, None, "{text:?}");
        assert_eq!(inspection.addresses.virt_kend, GuestVirt(KERNEL_BYTES), "{text:?}");
    }
}

#[test]
fn the_key_of_the_legacy_section_asks_whatever_its_value() {
    for text in ["BSD_SYMTAB", "BSD_SYMTAB=yes", "BSD_SYMTAB=no"] {
        let text = format!("XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0x100000,{text}");
        let file = ElfFile::new(Guest::Bits64)
            .entry(LOADED_AT)
            .load(LOADED_AT, b"code", KERNEL_BYTES)
            .section("__xen_guest", SHT_PROGBITS, text.as_bytes())
            .symbols(&FUNCTIONS);
        let (_, memory) = loaded(&file.build());
        assert_eq!(symbols(Guest::Bits64, &memory).len(), 4, "{text}");
    }
}

#[test]
fn a_kernel_without_a_usable_table_boots_without_one() {
    let outside = {
        // The offset of the names' section, in the last but one section header.
        let mut file = kernel(Guest::Bits64).symbols(&FUNCTIONS).build();
        let at = file.len() - 2 * 64 + 24;
        file[at..at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        file
    };
    let cases = [
        (kernel(Guest::Bits64).build(), NoSymbolTable::None),
        (
            kernel(Guest::Bits64).linked_section(".symtab", SHT_SYMTAB, &[0; 24], 0).build(),
            NoSymbolTable::NoNames { symbols: 1, names: 0 },
        ),
        (
            kernel(Guest::Bits64).linked_section(".symtab", SHT_SYMTAB, &[0; 24], 9).build(),
            NoSymbolTable::NoNames { symbols: 1, names: 9 },
        ),
        (
            kernel(Guest::Bits64)
                .linked_section(".symtab", SHT_SYMTAB, &[0; 24], 2)
                .section(".strtab", SHT_PROGBITS, b"\0")
                .build(),
            NoSymbolTable::NoNames { symbols: 1, names: 2 },
        ),
        (outside, NoSymbolTable::Outside { section: 2 }),
    ];
    for (file, expected) in cases {
        let inspection = inspect(&file).unwrap();
        assert_eq!(inspection.verdict.boot, Boot::Pv64, "{expected}");
        assert_eq!(inspection.problems, [Problem::NoSymbolTable(expected)]);
        assert_eq!(inspection.addresses.virt_kend, GuestVirt(LOADED_AT + KERNEL_BYTES), "{expected}");
    }
}

#[test]
fn the_symbols_of_an_image_are_its_functions_whether_it_asks_for_them_or_not() {
    for guest in [Guest::Bits64, Guest::Bits32] {
        let file = ElfFile::new(guest).load(LOADED_AT, b"code", KERNEL_BYTES).symbols(&FUNCTIONS).build();
        let image = Image::open(&file).unwrap();
        let found: Vec<_> = image.symbols().map(|symbol| (symbol.name, symbol.address.0)).collect();
        assert_eq!(found, FUNCTIONS, "{guest}");
    }
    let stripped = kernel(Guest::Bits64).build();
    assert_eq!(Image::open(&stripped).unwrap().symbols().count(), 0);
}

/// As in Xen, where the check is made with the end of the symbols.
#[test]
fn init_p2m_may_not_lie_in_the_symbols() {
    let base = 0xffff_ffff_8000_0000;
    let notes = |init_p2m| {
        [
            text_note(ElfNote::XenVersion, "xen-3.0"),
            text_note(ElfNote::Loader, "generic"),
            text_note(ElfNote::BsdSymtab, "yes"),
            number_note(ElfNote::VirtBase, base),
            number_note(ElfNote::Entry, base),
            number_note(ElfNote::InitP2m, init_p2m),
        ]
    };
    for (init_p2m, boot) in [(base + 0x3000, Boot::Refused), (0x80_0000_0000, Boot::Pv64)] {
        let many: Vec<_> = (0..200).map(|index| ("function", base + index)).collect();
        let file =
            ElfFile::new(Guest::Bits64).load(0, b"code", 0x3000).notes(&notes(init_p2m)).symbols(&many);
        assert_eq!(inspect(&file.build()).unwrap().verdict.boot, boot, "{init_p2m:#x}");
    }
}
