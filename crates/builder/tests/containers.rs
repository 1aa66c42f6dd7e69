//! Files of each kind are unpacked, and damaged ones are refused with a reason.
#![forbid(unsafe_code)]

use std::io::Write;

use paravane_abi::elfnote::ElfNote;
use paravane_builder::image::bzimage::{BootProtocol, BzImageError};
use paravane_builder::image::container::{Container, ContainerError};
use paravane_builder::image::elf::ElfError;
use paravane_builder::image::payload::{self, Compression, DEFAULT_LIMIT, DecompressError};
use paravane_builder::image::verdict::Boot;
use paravane_builder::image::{Image, ImageError, inspect};
use paravane_builder::testing::bzimage::{bzimage, with_size};
use paravane_builder::testing::elf::{ElfFile, linux, linux_notes, text_note};
use paravane_x86::mode::Guest;

const KERNEL: &[u8] = include_bytes!("data/kernel.bin");
/// What follows the ELF file in [`KERNEL`].
const TRAILING_LEN: usize = 64;

/// [`KERNEL`], compressed by the tools that Linux's build uses.
const STREAMS: [(Compression, &[u8]); 7] = [
    (Compression::Gzip, include_bytes!("data/kernel.bin.gz")),
    (Compression::Bzip2, include_bytes!("data/kernel.bin.bz2")),
    (Compression::Lzma, include_bytes!("data/kernel.bin.lzma")),
    (Compression::Xz, include_bytes!("data/kernel.bin.xz")),
    (Compression::Lzo, include_bytes!("data/kernel.bin.lzo")),
    (Compression::Lz4, include_bytes!("data/kernel.bin.lz4")),
    (Compression::Zstd, include_bytes!("data/kernel.bin.zst")),
];

/// A bzImage as Linux's build makes it of one of [`STREAMS`].
fn packed(format: Compression, stream: &[u8]) -> Vec<u8> {
    let payload = if format == Compression::Gzip { stream.to_vec() } else { with_size(stream, KERNEL.len()) };
    bzimage(0x20f, "6.1.0-test (me@here) #1", &payload)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[test]
fn every_compression_of_linux_is_unpacked() {
    for (format, stream) in STREAMS {
        assert_eq!(Compression::recognise(stream), Some(format));
        let unpacked = payload::decompress(format, stream, DEFAULT_LIMIT).unwrap();
        assert!(unpacked == KERNEL, "{format} yields other bytes");
    }
}

#[test]
fn every_form_of_lzo_is_unpacked() {
    let lzo = |stream| payload::decompress(Compression::Lzo, stream, DEFAULT_LIMIT).unwrap();
    for stream in [
        &include_bytes!("data/fast-crc32.lzo")[..],
        include_bytes!("data/unchecked.lzo"),
        include_bytes!("data/checked-twice.lzo"),
    ] {
        assert!(lzo(stream) == KERNEL);
    }
    let text = b"the quick brown fox\n".iter().copied().cycle().take(700_000).collect::<Vec<u8>>();
    assert!(lzo(include_bytes!("data/blocks.lzo")) == text);
    assert!(lzo(include_bytes!("data/stored.lzo")) == include_bytes!("data/kernel.bin.xz"));
}

#[test]
fn a_bzimage_of_every_compression_yields_its_elf_file() {
    for (format, stream) in STREAMS {
        let file = packed(format, stream);
        let image = Image::open(&file).unwrap();
        let Container::BzImage(header) = image.container() else {
            panic!("{:?} is no bzImage", image.container());
        };
        assert_eq!(header.compression, Some(format));
        assert_eq!(header.claimed_len, Some(u32::try_from(KERNEL.len()).unwrap()));
        assert_eq!(header.protocol.to_string(), "2.15");
        assert_eq!(header.kernel_version.as_deref(), Some("6.1.0-test (me@here) #1"));
        assert!(image.elf_bytes() == &KERNEL[..KERNEL.len() - TRAILING_LEN]);

        let inspection = inspect(&file).unwrap();
        assert_eq!(inspection, image.inspect());
        assert_eq!(inspection.verdict.boot, Boot::Pv64);
        assert_eq!(inspection.elf.trailing_len, TRAILING_LEN as u64);
        assert_eq!(inspection.linux.unwrap().release, "6.1.0-test");
    }
}

#[test]
fn a_compressed_elf_file_needs_no_bzimage_around_it() {
    for (format, stream) in STREAMS {
        let image = Image::open(stream).unwrap();
        assert_eq!(*image.container(), Container::Compressed { compression: format });
        assert_eq!(inspect(stream).unwrap().verdict.boot, Boot::Pv64);
    }
}

#[test]
fn a_bzimage_may_carry_its_elf_file_uncompressed() {
    let kernel = linux().build();
    let file = bzimage(0x208, "", &kernel);
    let image = Image::open(&file).unwrap();
    assert_eq!(image.elf_bytes(), kernel);
    let Container::BzImage(header) = image.container() else { panic!("no bzImage") };
    assert_eq!((header.compression, header.claimed_len), (None, None));
}

#[test]
fn an_elf_file_is_an_image_and_its_segments_are_at_hand() {
    let kernel = linux().build();
    let image = Image::open(&kernel).unwrap();
    assert_eq!(*image.container(), Container::Elf);
    assert_eq!(image.elf_bytes(), kernel);
    let bytes: Vec<_> = image.elf().segments.iter().map(|segment| image.segment_bytes(segment)).collect();
    assert_eq!(bytes, [&[0x90; 0x100][..], b"data"]);
}

#[test]
fn a_stream_that_is_cut_anywhere_is_refused() {
    for (format, stream) in STREAMS {
        let file = packed(format, stream);
        let payload_start = file.windows(8).position(|window| *window == stream[..8]).unwrap();
        // The size stays behind the shortened stream, as if the middle had been lost.
        for len in (0..stream.len()).step_by(stream.len() / 61) {
            let payload = with_size(&stream[..len], KERNEL.len());
            let cut = bzimage(0x20f, "", &payload);
            assert!(Image::open(&cut).is_err(), "{format} cut to {len} bytes");
            // And here the file simply ends.
            assert!(Image::open(&file[..payload_start + len]).is_err(), "{format}, file cut to {len}");
        }
    }
}

#[test]
fn a_checksummed_stream_with_a_flipped_bit_is_refused_or_harmless() {
    let more_lzo = [&include_bytes!("data/fast-crc32.lzo")[..], include_bytes!("data/checked-twice.lzo")]
        .map(|stream| (Compression::Lzo, stream));
    for (format, stream) in STREAMS.into_iter().chain(more_lzo) {
        let checked = match format {
            Compression::Gzip
            | Compression::Bzip2
            | Compression::Xz
            | Compression::Lzo
            | Compression::Zstd => true,
            Compression::Lzma | Compression::Lz4 => false,
        };
        for at in (0..stream.len()).step_by(29).filter(|_| checked) {
            let mut stream = stream.to_vec();
            stream[at] ^= 1 << (at % 8);
            if let Ok(unpacked) = payload::decompress(format, &stream, DEFAULT_LIMIT) {
                assert!(unpacked == KERNEL, "{format}: a flipped bit in byte {at} went unnoticed");
            }
        }
    }
}

#[test]
fn a_size_that_is_not_that_of_the_stream_is_refused() {
    let len = KERNEL.len();
    for (format, stream) in STREAMS.into_iter().filter(|(format, _)| *format != Compression::Gzip) {
        for wrong in [len - 1, len + 1, 0, 3_000_000_000] {
            let error = Image::open(&bzimage(0x20f, "", &with_size(stream, wrong))).unwrap_err();
            let ImageError::Decompress(DecompressError::WrongSize { claimed, .. }) = error else {
                panic!("{format}: {error}");
            };
            assert_eq!(claimed as usize, wrong);
        }
    }
}

#[test]
fn a_stream_that_holds_more_than_the_limit_is_refused() {
    let limit = 1 << 20;
    let bomb = gzip(&vec![0; 5 << 20]);
    let error = payload::decompress(Compression::Gzip, &bomb, limit).unwrap_err();
    assert!(matches!(error, DecompressError::TooBig { limit: 0x10_0000, .. }), "{error}");
    let error = Image::open_with_limit(&bomb, limit).unwrap_err();
    assert!(error.to_string().contains("more than the 1048576 bytes"), "{error}");
}

#[test]
fn a_bzimage_from_before_the_payload_fields_is_refused() {
    let error = Image::open(&bzimage(0x207, "", b"")).unwrap_err();
    let expected = BzImageError::TooOld { found: BootProtocol(0x207) };
    assert!(matches!(&error, ImageError::Container(ContainerError::BzImage(found)) if *found == expected));
    let text = error.to_string();
    assert!(text.contains("2.07") && text.contains("2.08") && text.contains("vmlinux"), "{text}");
}

#[test]
fn a_bzimage_that_is_cut_short_or_holds_the_unknown_is_refused() {
    let file = packed(STREAMS[3].0, STREAMS[3].1);
    let refusal = |file: &[u8]| match Image::open(file) {
        Err(ImageError::Container(ContainerError::BzImage(error))) => error,
        other => panic!("a bzImage error was expected: {other:?}"),
    };
    assert!(matches!(refusal(&file[..0x220]), BzImageError::HeaderCut { needed: 0x24c, found: 0x220 }));
    assert!(matches!(refusal(&file[..0x1000]), BzImageError::PayloadOutside { .. }));
    let unknown = refusal(&bzimage(0x20f, "", b"neither this nor that"));
    assert_eq!(unknown, BzImageError::UnknownPayload { first: b"neither ".to_vec() });
    assert!(matches!(refusal(&bzimage(0x20f, "", b"")), BzImageError::UnknownPayload { .. }));
}

#[test]
fn a_file_that_is_no_kernel_is_called_what_it_is() {
    for (file, expected) in [
        (&b""[..], "is empty"),
        (b"MZ and so on", "EFI program without Linux's boot header"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello", "5 bytes that begin with [68, 65, 6c, 6c, 6f]"),
    ] {
        let error = Image::open(file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_initramfs_given_as_a_kernel_is_recognised() {
    let error = Image::open(&gzip(b"070701 and the rest of a cpio archive")).unwrap_err();
    assert!(matches!(error, ImageError::Elf(ElfError::NotElf { .. })));
    assert!(error.to_string().contains("initramfs"), "{error}");
    let error = Image::open(&gzip(&[b'a'; 1000])).unwrap_err();
    assert!(error.to_string().contains("1000 bytes that begin with [61, 61"), "{error}");
}

#[test]
fn what_follows_a_file_without_a_size_is_not_part_of_it() {
    // A plain gzip file may be followed by anything, such as a signature.
    let file = [STREAMS[0].1, b"signature"].concat();
    assert!(Image::open(&file).unwrap().elf_bytes() == &KERNEL[..KERNEL.len() - TRAILING_LEN]);
}

#[test]
fn notes_are_found_wherever_they_lie_in_a_large_compressed_file() {
    // Inspection keeps parts only; the notes lie in the first piece, across a boundary, and far behind.
    for padding in [0, 0xff00, 0xffff, 0x3_0000] {
        let noise: Vec<u8> = (0..padding).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
        let load = 0x100_0000_u64;
        let kernel = ElfFile::new(Guest::Bits64)
            .entry(load)
            .load(load, &noise, 0x10_0000)
            .notes(&linux_notes(0xffff_ffff_8100_0000))
            .build();
        let file = gzip(&[&kernel[..], &[0xaa; 100_000]].concat());
        let inspection = inspect(&file).unwrap();
        assert_eq!(inspection.notes.len(), 15);
        assert_eq!(inspection.elf.trailing_len, 100_000);
        assert_eq!(inspection, Image::open(&file).unwrap().inspect());
    }
}

#[test]
fn a_compressed_linux_is_searched_for_its_banner_where_its_notes_do_not_tell_enough() {
    let notes = [text_note(ElfNote::GuestOs, "linux")];
    let kernel =
        ElfFile::new(Guest::Bits64).load(0, b"Linux version 6.1.0 (gcc)", 0x1000).notes(&notes).build();
    let inspection = inspect(&gzip(&kernel)).unwrap();
    assert_eq!(inspection.linux.as_ref().unwrap().release, "6.1.0");
    assert_eq!(inspection.verdict.boot, Boot::Refused);
}
