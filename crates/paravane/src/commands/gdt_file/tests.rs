use proptest::prelude::*;

use super::*;

/// A table with everything that makes formats hard to tell apart: zeros, text, repetition.
const TABLE: [u64; 10] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0x8000_8953_1040_0067,
    0xffff_82d0,
];

fn read(text: &str) -> (Vec<u64>, Format) {
    let dump = parse(text.as_bytes()).unwrap_or_else(|problem| panic!("{problem}\n{text}"));
    (dump.quadwords, dump.format)
}

fn numbers(bytes: u8) -> Format {
    Format::Numbers { bytes, addressed: true }
}

#[test]
fn what_gdb_prints() {
    let quadwords = "\
0x401000:\t0x0000000000000000\t0x00af9b000000ffff
0x401010:\t0x00cf93000000ffff\t0x0000000000000000
0x401020:\t0x00cffb000000ffff\t0x00cff3000000ffff
0x401030:\t0x00affb000000ffff\t0x0000000000000000
0x401040:\t0x8000895310400067\t0x00000000ffff82d0
";
    assert_eq!(read(quadwords), (TABLE.to_vec(), numbers(8)));
    assert_eq!(parse(quadwords.as_bytes()).unwrap().address, Some(0x40_1000));
    for (text, bytes) in [
        ("(gdb) x/2gx &gdt\n0x401008 <boot_gdt+8>:\t0x00af9b000000ffff\t0x00cf93000000ffff\n", 8),
        ("0x401008 <gdt+8>:\t0x0000ffff\t0x00af9b00\t0x0000ffff\t0x00cf9300\n", 4),
        ("0x401008:\t0xffff\t0x0000\t0x9b00\t0x00af\t0xffff\t0x0000\t0x9300\t0x00cf\n", 2),
        (
            "0x401008 <gdt+8>:\t0xff\t0xff\t0x00\t0x00\t0x00\t0x9b\t0xaf\t0x00\n\
             0x401010 <gdt+16>:\t0xff\t0xff\t0x00\t0x00\t0x00\t0x93\t0xcf\t0x00\n",
            1,
        ),
    ] {
        assert_eq!(read(text), (TABLE[1..3].to_vec(), numbers(bytes)), "{text}");
    }
}

#[test]
fn what_qemu_prints() {
    let text = "(qemu) xp /2gx 0x1008\r\n0000000000001008: 0x00af9b000000ffff 0x00cf93000000ffff\r\n";
    assert_eq!(read(text), (TABLE[1..3].to_vec(), numbers(8)));
}

#[test]
fn what_xxd_prints() {
    let plain = "\
00000000: 0000 0000 0000 0000 ffff 0000 009b af00  ................
00000010: ffff 0000 0093 cf00 0000 0000 0000 0000  ................
00000020: ffff 0000 00fb cf00 ffff 0000 00f3 cf00  ................
00000030: ffff 0000 00fb af00 0000 0000 0000 0000  ................
00000040: 6700 4010 5389 0080 d082 ffff 0000 0000  g.@.S...........
";
    assert_eq!(read(plain), (TABLE.to_vec(), Format::MemoryOrder { bytes: 2 }));
    let single = "00000008: ff ff 00 00 00 9b af 00 ff ff 00 00 00 93 cf 00  ................\n";
    assert_eq!(read(single), (TABLE[1..3].to_vec(), numbers(1)));
    let digits = "0000000000000000ffff0000009baf00ffff00000093cf00000000000000\n\
                  0000ffff000000fbcf00ffff000000f3cf00ffff000000fbaf0000000000\n\
                  00000000670040105389\n0080d082ffff00000000\n";
    assert_eq!(read(digits), (TABLE.to_vec(), Format::PlainHex));
}

#[test]
fn the_text_column_tells_the_byte_order_of_wide_groups() {
    for (text, format) in [
        (
            "00000040: 67004010 53890080 d082ffff 00000000  g.@.S...........\n",
            Format::MemoryOrder { bytes: 4 },
        ),
        ("00000040: 10400067 80008953 ffff82d0 00000000  g.@.S...........\n", numbers(4)),
        ("00000040: 6700401053890080 d082ffff00000000  g.@.S...........\n", Format::MemoryOrder { bytes: 8 }),
        ("00000040: 8000895310400067 00000000ffff82d0  g.@.S...........\n", numbers(8)),
        // crash: a long address and three spaces.
        ("ffff82d080531040:  8000895310400067 00000000ffff82d0   g.@.S...........\n", numbers(8)),
    ] {
        assert_eq!(read(text), (TABLE[8..].to_vec(), format), "{text}");
    }
    // Nothing but dots: both readings are possible.
    let ambiguous = "00000000: 00000000 00000000 0000ffff 00af9b00  ................\n";
    assert_eq!(
        parse(ambiguous.as_bytes()),
        Err(Problem::Ambiguous { line: 1, found: "00000000".to_owned() })
    );
    // From crash it is a number all the same, because offsets of xxd have eight digits.
    let crash = "ffff82d080531000:  0000000000000000 00af9b000000ffff   ................\n";
    assert_eq!(read(crash), (TABLE[..2].to_vec(), numbers(8)));
}

#[test]
fn a_text_column_that_looks_like_digits_is_text() {
    let text = "00000000: 6161616161616161 6161616161616161  aaaaaaaaaaaaaaaa\n";
    assert_eq!(read(text).0, vec![0x6161_6161_6161_6161; 2]);
    let text = "00000000: 6161 6161 6161 6161  aaaaaaaa\n";
    assert_eq!(read(text).0, vec![0x6161_6161_6161_6161]);
    let text = "00000000: 2323 2323 2323 2323  ########\n";
    assert_eq!(read(text).0, vec![0x2323_2323_2323_2323]);
    // The same with the spaces at the end lost.
    let text = "00000000: 6120 2020 2020 2020  a\n";
    assert_eq!(read(text).0, vec![0x2020_2020_2020_2061]);
}

#[test]
fn what_hexdump_and_od_print() {
    let canonical = "\
00000000  00 00 00 00 00 00 00 00  ff ff 00 00 00 9b af 00  |................|
00000010  ff ff 00 00 00 93 cf 00  00 00 00 00 00 00 00 00  |................|
00000020  ff ff 00 00 00 fb cf 00  ff ff 00 00 00 f3 cf 00  |................|
00000030  ff ff 00 00 00 fb af 00  00 00 00 00 00 00 00 00  |................|
00000040  67 00 40 10 53 89 00 80  d0 82 ff ff 00 00 00 00  |g.@.S...........|
00000050
";
    assert_eq!(read(canonical), (TABLE.to_vec(), numbers(1)));
    let words = "0000000 0000 0000 0000 0000 ffff 0000 9b00 00af\n0000010\n";
    assert_eq!(read(words), (TABLE[..2].to_vec(), numbers(2)));
    // od counts in octal.
    let octal =
        "0000000 0000000000000000 00af9b000000ffff\n0000020 00cf93000000ffff 0000000000000000\n0000040\n";
    assert_eq!(read(octal), (TABLE[..4].to_vec(), numbers(8)));
    let text = "000000 00 00 00 00 00 00 00 00 ff ff 00 00 00 9b af 00  >................<\n000010\n";
    assert_eq!(read(text), (TABLE[..2].to_vec(), numbers(1)));
}

#[test]
fn a_star_repeats_the_line_above() {
    let text = "00000000  ff ff 00 00 00 fb af 00\n00000008  00 00 00 00 00 00 00 00\n*\n00000020\n";
    assert_eq!(read(text).0, [0x00af_fb00_0000_ffff, 0, 0, 0]);
    // Two rows show that the offsets are octal; one does not.
    let octal =
        "0000000 0000000000000000 00af9b000000ffff\n0000020 0000000000000000 0000000000000000\n*\n0000060\n";
    assert_eq!(read(octal).0, [0, 0x00af_9b00_0000_ffff, 0, 0, 0, 0]);
    let either = "0000000 00af9b000000ffff 0000000000000000\n*\n0000060\n";
    assert_eq!(parse(either.as_bytes()), Err(Problem::Radix { line: 2 }));
    // hexdump -C has eight digits, and od has not.
    let canonical =
        "00000000  ff ff 00 00 00 fb af 00  00 00 00 00 00 00 00 00  |................|\n*\n00000020\n";
    assert_eq!(read(canonical).0.len(), 4);
}

#[test]
fn what_xens_console_prints() {
    let text = "\
(XEN) [2026-08-20 09:15:07] Xen stack trace from rsp=ffff82d080530008:
(XEN)    00af9b000000ffff 00cf93000000ffff
";
    assert_eq!(read(text), (TABLE[1..3].to_vec(), Format::Numbers { bytes: 8, addressed: false }));
    let compat = "(XEN)   0000ffff 00af9b00 0000ffff 00cf9300\n";
    assert_eq!(read(compat), (TABLE[1..3].to_vec(), Format::Numbers { bytes: 4, addressed: false }));
}

#[test]
fn lists_of_quadwords() {
    for text in [
        "0x00af9b000000ffff\n0x00cf93000000ffff\n",
        "0xaf9b000000ffff\n0xcf93000000ffff",
        "00af9b000000ffff 00cf93000000ffff",
        "# a comment\n    .quad 0x00af9b000000ffff /* 0xe008 - ring 0 code */\n    .quad 0x00cf93000000ffff\n",
        "0x00af9b000000ffffULL,\n0x00cf93000000ffffULL, // data\n",
        "ff ff 00 00 00 9b af 00\nff ff 00 00 00 93 cf 00\n",
        "0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00\n",
    ] {
        assert_eq!(read(text).0, TABLE[1..3], "{text}");
    }
    assert_eq!(read(".quad 0\n.quad 0x00af9b000000ffff").0, TABLE[..2]);
}

#[test]
fn bytes_that_are_no_text_are_the_table() {
    let bytes: Vec<u8> = TABLE.iter().flat_map(|quadword| quadword.to_le_bytes()).collect();
    let dump = Dump { format: Format::Binary, address: None, quadwords: TABLE.to_vec() };
    assert_eq!(parse(&bytes), Ok(dump));
    assert_eq!(parse(&bytes[..bytes.len() - 3]), Err(Problem::Partial(77)));
    assert_eq!(parse(&[0; MAX_BYTES + 8]), Err(Problem::TooLarge));
    for line in ["0\n", "* ", "*\n"] {
        assert_eq!(parse(line.repeat(MAX_TEXT / 2 + 1).as_bytes()), Err(Problem::TooLarge), "{line:?}");
    }
    assert_eq!(parse("*\n".repeat(2 * MAX_BYTES + 2).as_bytes()), Err(Problem::TooLarge));
    assert_eq!(parse(&[0; MAX_BYTES]).map(|dump| dump.quadwords.len()), Ok(8192));
}

#[test]
fn what_is_no_table_is_refused_with_its_line() {
    for (text, part) in [
        ("", "found nothing"),
        ("\u{7f}ELF\u{2}\u{1}\u{1}\u{0}", "found an ELF file"),
        ("\n  \n# only a comment\n", "found nothing"),
        ("hello world\n", "line 1: looked for groups of hexadecimal digits, found \"hello world\""),
        ("0x401000:\t0x00af9b000000ffff\nerror: cannot access memory\n", "line 2: "),
        (
            "0x401000:\t0x00af9b000000ffff\n0x401018:\t0x00af9b000000ffff\n",
            "line 2: looked for address 0x401008",
        ),
        ("0x401000:\t0x00af9b000000ffff\n0x401008:\t0x00af9b00\n", "line 2: "),
        ("*\n00000010  00 00 00 00 00 00 00 00\n", "line 1: \"*\""),
        ("00000000  00 00 00 00 00 00 00 00\n*\n", "line 2: \"*\""),
        ("00000000  00 00 00 00 00 00 00 00\n*\nfffffff0\n", "at most 8192"),
        ("ffff 0000 9b00 00af\n", "line 1: cannot tell"),
        ("0000000 000000 000000 000000 000000 177777 000000 115400 000257\n", "line 1: "),
        ("00 01 02\n", "found 3 bytes"),
        ("00000000 00000000 0000ffff\n", "line 1: "),
        (
            "ffff82d080530000 0000000000000000 00af9b000000ffff\nffff82d080530010 00cf93000000ffff 0000000000000000\n",
            "line 1: looked for addresses to end with a colon",
        ),
        ("0x00af9b000000ffff -- code\n", "line 1: "),
    ] {
        let message = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(message.contains(part), "{text:?}: {message}");
        assert!(!message.contains('\n'), "{message:?}");
    }
}

/// Prints `quadwords` as one of the programs does.
fn print(quadwords: &[u64], style: u8) -> String {
    let bytes: Vec<u8> = quadwords.iter().flat_map(|quadword| quadword.to_le_bytes()).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    let shown = |bytes: &[u8]| {
        let character =
            |&byte: &u8| if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '.' };
        bytes.iter().map(character).collect::<String>()
    };
    let line = |(index, chunk): (usize, &[u8])| {
        let offset = index * 16;
        let words: Vec<u64> =
            chunk.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        match style {
            0 => words.iter().fold(format!("{offset:#x}:"), |line, word| format!("{line}\t{word:#018x}")),
            1 => words.iter().fold(format!("{offset:016x}:"), |line, word| format!("{line} {word:#018x}")),
            2 => format!("{offset:08x}: {} {}", hex(chunk), shown(chunk)),
            3 => format!("{offset:08x}  {} |{}|", hex(chunk), shown(chunk)),
            4 => words.iter().fold(format!("{offset:07o}"), |line, word| format!("{line} {word:016x}")),
            _ => words.iter().fold("(XEN)   ".to_owned(), |line, word| format!("{line} {word:016x}")),
        }
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

proptest! {
    #[test]
    fn any_bytes_are_a_table_or_a_problem(contents: Vec<u8>) {
        drop(parse(&contents));
    }

    #[test]
    fn any_text_of_a_dumps_characters_is_a_table_or_a_problem(text in "[0-9a-fx:*#|<> \n\t/.]{0,200}") {
        if let Ok(dump) = parse(text.as_bytes()) {
            prop_assert!(!dump.quadwords.is_empty() && dump.quadwords.len() <= 8192);
        }
    }

    #[test]
    fn what_a_program_prints_reads_back(quadwords in prop::collection::vec(any::<u64>(), 1..40), style in 0u8..6) {
        let text = print(&quadwords, style);
        // A column of a list can count like addresses by chance, in no list this short and random.
        prop_assert_eq!(parse(text.as_bytes()).map(|dump| dump.quadwords), Ok(quadwords), "{}", text);
    }
}
