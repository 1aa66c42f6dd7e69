//! Kernel files: any bytes are a kernel, or are refused with a reason; and describing a file gives the same
//! answer as loading it.

use paravane_builder::image::payload::DecompressError;
use paravane_builder::image::{Image, ImageError, inspect};

/// No input of a fuzzer needs more, decompressed.
const LIMIT: u64 = 1 << 20;

/// Opens `data` as a kernel file, both ways.
pub fn check(data: &[u8]) {
    let image = match Image::open_with_limit(data, LIMIT) {
        Ok(image) => image,
        // The other way has no limit of its choice, and would spend the fuzzer's time on the rest.
        Err(ImageError::Decompress(DecompressError::TooBig { .. })) => return,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let Err(error) = inspect(data) {
                assert!(!error.to_string().is_empty());
            }
            return;
        }
    };
    check_opened(&image);
    assert_eq!(inspect(data).ok(), Some(image.inspect()), "describing and loading disagree");
}

/// What holds for every image that could be opened.
fn check_opened(image: &Image<'_>) {
    let elf = image.elf();
    assert_eq!(image.elf_bytes().len() as u64, elf.len);
    for segment in &elf.segments {
        assert_eq!(image.segment_bytes(segment).len() as u64, segment.file_len, "a segment lies in its file");
        assert!(segment.file_len <= segment.memory_len, "a segment's bytes fit its memory");
    }
    let inspection = image.inspect();
    if let Some(table) = &inspection.addresses.symbol_table {
        let mut end = table.load_addr;
        for (addr, bytes) in image.symbol_table_pieces(table) {
            assert!(addr >= end, "the pieces of a symbol table follow each other");
            end.0 = addr.0 + bytes.len() as u64;
        }
        assert!(end <= table.load_end, "a symbol table takes the memory that it says");
    }
    let runs = inspection.verdict.boot.is_runnable();
    assert_eq!(inspection.verdict.obstacles.is_empty(), runs, "what does not boot has a reason");
    match image.pv_kernel() {
        Ok(kernel) => assert!(runs && kernel.guest == elf.guest),
        Err(refusal) => assert!(!runs && !refusal.to_string().is_empty()),
    }
    let extracted = inspect(image.elf_bytes()).expect("what is extracted is a kernel file");
    assert_eq!(extracted.addresses, inspection.addresses);
    assert_eq!(extracted.notes, inspection.notes);
}
