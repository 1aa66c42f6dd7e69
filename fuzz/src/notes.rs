//! What a kernel tells its loader: ELF notes, and the older text of a `__xen_guest` section.
//!
//! The input is put into a sound ELF file, so that fuzzing spends itself on the metadata. Its first byte says
//! where: a note segment of a 64-bit or of a 32-bit kernel, a note section, or the text section.

use paravane_builder::image::notes::RawNotes;
use paravane_builder::image::problem::NotePlace;
use paravane_builder::image::{Image, legacy};
use paravane_builder::testing::elf::{ElfFile, LINUX_LOAD_ADDR, SHT_NOTE, SHT_PROGBITS};
use paravane_x86::mode::Guest;

use crate::image;

/// Reads `data` as metadata, alone and in a kernel.
pub fn check(data: &[u8]) {
    let Some((place, metadata)) = data.split_first() else { return };
    let notes = RawNotes::new(metadata, NotePlace::Segment(0));
    let len: usize = notes.map(|note| 12 + note.owner.len() + note.value.len()).sum();
    assert!(len <= metadata.len(), "notes are in their segment, and each but once");
    assert!(legacy::parse(metadata).0.len() <= metadata.len());

    let kernel = |guest| ElfFile::new(guest).entry(LINUX_LOAD_ADDR).load(LINUX_LOAD_ADDR, b"code", 0x1000);
    let metadata_of = |guest| kernel(guest).notes(&[metadata.to_vec()]);
    let file = match place % 4 {
        0 => metadata_of(Guest::Bits64),
        1 => metadata_of(Guest::Bits32),
        2 => kernel(Guest::Bits64).section(".note.Xen", SHT_NOTE, metadata),
        _ => kernel(Guest::Bits32).section("__xen_guest", SHT_PROGBITS, metadata),
    };
    let file = file.build();
    assert!(Image::open(&file).is_ok(), "whatever its notes say, the file is sound");
    image::check(&file);
}
