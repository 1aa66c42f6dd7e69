//! Compressed kernels: every decoder ends, within the limit it is given, on any bytes.
//!
//! The first byte of the input chooses the format; the rest is the stream.

use paravane_builder::image::payload::{Compression, DecompressError, decompress};

/// No input of a fuzzer needs more, decompressed.
const LIMIT: u64 = 1 << 20;

/// Decompresses `data`.
pub fn check(data: &[u8]) {
    let Some((format, stream)) = data.split_first() else { return };
    let format = Compression::ALL[usize::from(*format) % Compression::ALL.len()];
    match decompress(format, stream, LIMIT) {
        Ok(output) => assert!(output.len() as u64 <= LIMIT),
        Err(DecompressError::Damaged { produced, .. }) => assert!(produced <= LIMIT),
        Err(DecompressError::TooBig { limit, .. }) => assert_eq!(limit, LIMIT),
        Err(DecompressError::WrongSize { .. }) => unreachable!("no size was claimed"),
    }
}
