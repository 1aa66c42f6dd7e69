//! No input makes the image side panic, and inspecting parts of a file finds what the whole file holds.
#![forbid(unsafe_code)]

use paravane_builder::image::notes::RawNotes;
use paravane_builder::image::payload::{self, Compression};
use paravane_builder::image::problem::NotePlace;
use paravane_builder::image::{Image, inspect, legacy};
use paravane_builder::testing::bzimage::{bzimage, with_size};
use paravane_builder::testing::elf::{ElfFile, SHT_NOTE, SHT_PROGBITS, linux, linux_notes};
use paravane_x86::mode::Guest;
use proptest::prelude::*;
use proptest::sample::Index;

const LIMIT: u64 = 1 << 20;

/// Everything that takes bytes from outside.
fn feed(bytes: &[u8]) {
    let whole = Image::open_with_limit(bytes, LIMIT);
    let parts = inspect(bytes);
    if let Ok(image) = &whole {
        assert!(image.elf_bytes().len() as u64 == image.elf().len);
        for segment in &image.elf().segments {
            assert_eq!(image.segment_bytes(segment).len() as u64, segment.file_len);
        }
        let inspection = image.inspect();
        assert!(serde_json::to_string(&inspection).is_ok());
        assert_eq!(inspection.verdict.obstacles.is_empty(), inspection.verdict.boot.is_runnable());
        assert_eq!(image.pv_kernel().is_ok(), inspection.verdict.boot.is_runnable());
        assert_eq!(Some(inspection), parts.ok());
    }
    assert!(RawNotes::new(bytes, NotePlace::Segment(0)).count() <= bytes.len());
    assert!(legacy::parse(bytes).0.len() <= bytes.len());
}

/// Images of all kinds, valid ones.
fn images() -> Vec<Vec<u8>> {
    let narrow = ElfFile::new(Guest::Bits32)
        .load(0, b"code", 0x8000)
        .section(".note", SHT_NOTE, &linux_notes(0).concat())
        .section("__xen_guest", SHT_PROGBITS, b"XEN_VER=xen-3.0,LOADER=generic,PAE=yes");
    let stream = |bytes: &[u8]| with_size(bytes, include_bytes!("data/kernel.bin").len());
    vec![
        linux().build(),
        narrow.build(),
        bzimage(0x20f, "6.1.0", &linux().build()),
        bzimage(0x20f, "6.1.0", include_bytes!("data/kernel.bin.gz")),
        bzimage(0x20f, "6.1.0", &stream(include_bytes!("data/kernel.bin.lzma"))),
        bzimage(0x20f, "6.1.0", &stream(include_bytes!("data/kernel.bin.xz"))),
        bzimage(0x20f, "6.1.0", &stream(include_bytes!("data/kernel.bin.lzo"))),
        bzimage(0x20f, "6.1.0", &stream(include_bytes!("data/kernel.bin.lz4"))),
        bzimage(0x20f, "6.1.0", &stream(include_bytes!("data/kernel.bin.zst"))),
        include_bytes!("data/kernel.bin.bz2").to_vec(),
    ]
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutation = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x80), Just(0x7f)];
    let changes = prop::collection::vec((any::<Index>(), mutation), 1..12);
    // Half of the changes fall into the headers, where they matter most.
    (prop::sample::select(images()), changes, 0..200_usize, any::<Index>(), any::<bool>()).prop_map(
        |(mut image, changes, head, cut, is_cut)| {
            for (number, (place, byte)) in changes.into_iter().enumerate() {
                let range = if number % 2 == 0 { image.len() } else { image.len().min(head + 64) };
                image[place.index(range)] = byte;
            }
            if is_cut {
                image.truncate(cut.index(image.len()));
            }
            image
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        feed(&bytes);
    }

    #[test]
    fn mutated_images_are_harmless(image in mutated()) {
        feed(&image);
    }

    #[test]
    fn arbitrary_streams_stay_within_their_limit(
        format in prop::sample::select(&Compression::ALL[..]),
        bytes in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        let stream = [format.magic(), &bytes].concat();
        if let Ok(output) = payload::decompress(format, &stream, LIMIT) {
            prop_assert!(output.len() as u64 <= LIMIT);
        }
    }
}
