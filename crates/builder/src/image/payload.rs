//! The compressed part of a kernel file, and its bounded decompression.
//!
//! Linux's build offers seven ways to compress a kernel. Each is recognised by its first bytes, as the Xen
//! tools and the kernel's own boot code do. Two things make the payload of a bzImage differ from a plain
//! compressed file:
//!
//! * the size of the decompressed data follows the stream as a little-endian `u32`. A gzip stream ends with
//!   that number anyway; the build appends it to all others. An LZ4 reader would take it for the next
//!   block's length, so it is cut off before the decoder sees it;
//! * the decompressed data is the ELF file *and what follows it* (relocations), so the size covers both.
//!
//! Output is produced in small pieces and counted, and decoding stops at the first byte beyond the limit or
//! beyond the size that the file itself claims. Memory thus follows the data that really came out, never a
//! number in a header.
//!
//! Sources: Linux `arch/x86/boot/compressed/Makefile`, `scripts/Makefile.lib` (the build's commands); Xen
//! `tools/libs/guest/xg_dom_bzimageloader.c`, `xg_dom_decompress*.c`.

use std::io::{self, Read};

use serde::Serialize;
use thiserror::Error;

use super::{lz4, lzo};

/// How much a kernel may decompress to unless the caller says otherwise: 1 GiB, as in Xen's tools.
pub const DEFAULT_LIMIT: u64 = 1 << 30;

/// The largest dictionary, in KiB, that an LZMA or xz stream may ask for. Kernels use 32 to 128 MiB.
const LZMA_MEMORY_KIB: u32 = 512 << 10;

/// Bytes decoded at a time. Also what [`Contents`](super::contents) looks at to plan what it keeps.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// A compression format of Linux's build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip: DEFLATE with a checksum and a size at the end.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The old "LZMA alone" format, without a checksum.
    Lzma,
    /// xz, usually with the filter for x86 branches.
    Xz,
    /// The stream of the `lzop` program.
    Lzo,
    /// The LZ4 "legacy" frame, as `lz4 -l` writes it.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Every format, in the order in which Linux's configuration lists them.
    pub const ALL: [Self; 7] =
        [Self::Gzip, Self::Bzip2, Self::Lzma, Self::Xz, Self::Lzo, Self::Lz4, Self::Zstd];

    /// The format that a stream with these first bytes has.
    pub fn recognise(stream: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| stream.starts_with(format.magic()))
    }

    /// The bytes with which a stream begins.
    pub fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b",
            Self::Bzip2 => b"BZh",
            // The properties that every encoder uses by default, and a dictionary of a multiple of 64 KiB.
            Self::Lzma => b"\x5d\x00\x00",
            Self::Xz => b"\xfd7zXZ\0",
            Self::Lzo => lzo::MAGIC,
            Self::Lz4 => lz4::MAGIC,
            Self::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }

    /// The name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The number of bytes that Linux's build appends to a stream of this format in a bzImage.
    pub(crate) fn appended_len(self) -> usize {
        match self {
            Self::Gzip => 0,
            Self::Bzip2 | Self::Lzma | Self::Xz | Self::Lzo | Self::Lz4 | Self::Zstd => 4,
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Why a compressed stream yields no kernel.
#[derive(Debug, Error)]
pub enum DecompressError {
    /// The decoder gave up.
    #[error(
        "the {format} stream is damaged or cut short: after {produced} bytes of output the decoder says \
         \"{reason}\"; fetch or build the file again"
    )]
    Damaged {
        /// The format of the stream.
        format: Compression,
        /// Bytes that were decoded before.
        produced: u64,
        /// What the decoder said.
        reason: io::Error,
    },
    /// The stream holds more than the caller allows.
    #[error(
        "the {format} stream holds more than the {limit} bytes allowed for a kernel; it is no kernel, or \
         the limit must be raised"
    )]
    TooBig {
        /// The format of the stream.
        format: Compression,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// The stream holds more or less than the bytes behind it say.
    #[error(
        "the {format} stream holds {} bytes, but the size recorded behind it is {claimed}; \
         the file is damaged or cut short: fetch or build it again",
        if *produced > u64::from(*claimed) { String::from("more") } else { produced.to_string() }
    )]
    WrongSize {
        /// The format of the stream.
        format: Compression,
        /// The size recorded in the last four bytes of the payload.
        claimed: u32,
        /// Bytes that were decoded; if more than `claimed`, decoding was stopped there.
        produced: u64,
    },
}

/// A compressed stream and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    /// The format.
    pub(crate) format: Compression,
    /// The stream itself, without an appended size.
    pub(crate) bytes: &'a [u8],
    /// How much it must decompress to, where the file says so.
    pub(crate) claimed_len: Option<u32>,
}

/// Decompresses a whole stream into memory.
///
/// `bytes` may be followed by other data, except for LZ4, whose legacy frame has no end mark.
///
/// # Errors
///
/// See [`DecompressError`]. At most `limit` bytes of output are ever held.
pub fn decompress(format: Compression, bytes: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
    let mut output = Vec::new();
    let stream = Stream { format, bytes, claimed_len: None };
    stream.decode(limit, |piece| output.extend_from_slice(piece))?;
    Ok(output)
}

/// How many times smaller than its contents a compressed kernel is at most, as far as memory is reserved for it.
const PLAUSIBLE_RATIO: u64 = 16;

impl Stream<'_> {
    /// How much memory to reserve for the contents, so that they need not be moved while they grow: what the file
    /// claims, within reason. What is reserved and not written costs the host nothing.
    pub(crate) fn plausible_len(&self, limit: u64) -> usize {
        let most = (self.bytes.len() as u64).saturating_mul(PLAUSIBLE_RATIO).min(limit);
        usize::try_from(self.claimed_len.map_or(0, |len| u64::from(len).min(most))).unwrap_or(0)
    }

    /// Hands the decompressed data to `sink` in pieces, the first of which is [`PIECE_BYTES`] long unless
    /// the data is shorter, and checks its total size.
    pub(crate) fn decode(&self, limit: u64, mut sink: impl FnMut(&[u8])) -> Result<u64, DecompressError> {
        let format = self.format;
        let mut produced = 0_u64;
        let damaged = |produced, reason| DecompressError::Damaged { format, produced, reason };
        let mut reader = reader(format, self.bytes).map_err(|reason| damaged(0, reason))?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let len = fill(&mut reader, &mut piece).map_err(|reason| damaged(produced, reason))?;
            produced += len as u64;
            if let Some(claimed) = self.claimed_len
                && produced > u64::from(claimed)
            {
                return Err(DecompressError::WrongSize { format, claimed, produced });
            }
            if produced > limit {
                return Err(DecompressError::TooBig { format, limit });
            }
            sink(&piece[..len]);
            if len < piece.len() {
                break;
            }
        }
        match self.claimed_len {
            Some(claimed) if u64::from(claimed) != produced => {
                Err(DecompressError::WrongSize { format, claimed, produced })
            }
            Some(_) | None => Ok(produced),
        }
    }
}

/// A decoder of `bytes`.
fn reader<'a>(format: Compression, bytes: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match format {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(bytes)),
        Compression::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(bytes)),
        Compression::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(bytes, LZMA_MEMORY_KIB, None)?),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(bytes, false, LZMA_MEMORY_KIB)),
        Compression::Lzo => Box::new(lzo::reader(bytes)?),
        Compression::Lz4 => Box::new(lz4::reader(bytes)?),
        Compression::Zstd => {
            Box::new(CheckedZstd(ruzstd::decoding::StreamingDecoder::new(bytes).map_err(io::Error::other)?))
        }
    })
}

/// Reads until `buffer` is full or the data ends; returns how much was read.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A Zstandard decoder that compares the frame's checksum, which the library computes but does not check.
struct CheckedZstd<'a>(ruzstd::decoding::StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>);

impl Read for CheckedZstd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buffer)?;
        let decoder = &self.0.decoder;
        if len == 0
            && !buffer.is_empty()
            && let Some(recorded) = decoder.get_checksum_from_data()
            && decoder.get_calculated_checksum() != Some(recorded)
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame's checksum does not match"));
        }
        Ok(len)
    }
}
