//! Sizes that a file merely claims cost no memory.
//!
//! The one test here looks at the peak memory of its whole process, so it has the process to itself.
#![forbid(unsafe_code)]

use std::fs;

use paravane_builder::image::payload::{self, Compression, DEFAULT_LIMIT};
use paravane_builder::image::{Image, inspect};
use paravane_builder::testing::bzimage::{bzimage, with_size};
use paravane_builder::testing::elf::{ElfFile, PT_LOAD, Program, RWX, linux};
use paravane_x86::mode::Guest;

/// The peak of this process's resident memory, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux has it");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// Streams whose headers claim 10 GiB or more, with little behind them.
fn boasts() -> Vec<(Compression, Vec<u8>)> {
    let ten_gib = (10_u64 << 30).to_le_bytes();
    // Properties, a dictionary of 4 GiB less 64 KiB, the size; then the same with one of 64 MiB.
    let lzma = |dictionary: [u8; 4]| [&[0x5d][..], &dictionary, &ten_gib, &[0; 64]].concat();
    let mut xz = include_bytes!("data/kernel.bin.xz").to_vec();
    // The dictionary size in the block header, which a checksum follows: 4 GiB less a byte.
    xz[0x12] = 40;
    let mut crc = flate2::Crc::new();
    crc.update(&xz[12..20]);
    xz[20..24].copy_from_slice(&crc.sum().to_le_bytes());
    // Single segment, content size of 8 bytes: the window is as large as the content.
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &ten_gib, &[1, 0, 0]].concat();
    let lz4 = [Compression::Lz4.magic(), &[0xff; 4], &[0; 64]].concat();
    let mut lzo = include_bytes!("data/kernel.bin.lzo").to_vec();
    lzo[0x26..0x2a].copy_from_slice(&[0xff; 4]);
    vec![
        (Compression::Lzma, lzma([0, 0, 0xff, 0xff])),
        (Compression::Lzma, lzma([0, 0, 0, 4])),
        (Compression::Xz, xz),
        (Compression::Zstd, zstd),
        (Compression::Lz4, lz4),
        (Compression::Lzo, lzo),
    ]
}

#[test]
fn claims_of_gigabytes_cost_no_memory() {
    let allowed_kib = peak_kib() + (48 << 10);
    for (format, stream) in boasts() {
        assert!(payload::decompress(format, &stream, DEFAULT_LIMIT).is_err(), "{format}");
        assert!(Image::open(&bzimage(0x20f, "", &with_size(&stream, 0xffff_ffff))).is_err(), "{format}");
    }

    let claim = Program { kind: PT_LOAD, flags: RWX, load_addr: 0x200_0000, ..Program::default() };
    let huge = ElfFile::new(Guest::Bits64).program(Program { memory_len: 10 << 30, ..claim });
    assert!(inspect(&huge.build()).is_err());
    let outside = Program { offset: 0x100, file_len: 10 << 30, memory_len: 10 << 30, ..claim };
    assert!(inspect(&ElfFile::new(Guest::Bits64).program(outside).build()).is_err());
    // Allowed, as zeros take nothing until they are loaded.
    let sparse = linux().program(Program { memory_len: 1 << 30, ..claim });
    assert!(inspect(&sparse.build()).is_ok());

    let peak_kib = peak_kib();
    assert!(peak_kib <= allowed_kib, "{peak_kib} KiB at the peak, {allowed_kib} allowed");
}
