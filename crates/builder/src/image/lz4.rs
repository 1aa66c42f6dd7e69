//! The LZ4 "legacy" frame, which `lz4 -l` writes and Linux's build uses.
//!
//! After the magic number comes a row of blocks: a little-endian `u32` with the compressed length, then
//! that many bytes, which decompress to at most 8 MiB without reference to other blocks. Nothing marks the
//! end and nothing is checksummed, so the bytes that a bzImage appends must not be part of the stream.
//!
//! Source: `doc/lz4_Frame_format.md` of the LZ4 library, "Legacy frame".

use std::io;

use super::blocks::{BlockReader, Blocks, damaged, take};

/// The frame's first bytes; may also stand between blocks, where another frame begins.
pub(super) const MAGIC: &[u8] = b"\x02\x21\x4c\x18";

/// What a block decompresses to at most.
const BLOCK_MAX_BYTES: usize = 8 << 20;

/// A reader of the frame in `stream`.
pub(super) fn reader(mut stream: &[u8]) -> io::Result<BlockReader<Frame<'_>>> {
    if take(&mut stream, MAGIC.len(), "the magic number")? != MAGIC {
        return Err(damaged("the magic number of a legacy frame is missing"));
    }
    Ok(BlockReader::new(Frame { rest: stream }))
}

/// The blocks not yet read.
pub(super) struct Frame<'a> {
    rest: &'a [u8],
}

impl Blocks for Frame<'_> {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        if self.rest.is_empty() {
            return Ok(false);
        }
        let mut field = take(&mut self.rest, 4, "a block's length")?;
        if field == MAGIC {
            field = take(&mut self.rest, 4, "a block's length")?;
        }
        let len = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
        let packed = take(&mut self.rest, len as usize, "a block")?;
        block.resize(BLOCK_MAX_BYTES, 0);
        let unpacked = lz4_flex::block::decompress_into(packed, block).map_err(io::Error::other)?;
        block.truncate(unpacked);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for block in blocks {
            let packed = lz4_flex::block::compress(block);
            frame.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            frame.extend_from_slice(&packed);
        }
        frame
    }

    fn unpack(stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        reader(stream)?.read_to_end(&mut output)?;
        Ok(output)
    }

    #[test]
    fn blocks_follow_each_other() {
        assert_eq!(unpack(&frame(&[b"one, ", b"", b"two"])).unwrap(), b"one, two");
    }

    #[test]
    fn a_second_frame_may_follow() {
        let both = [frame(&[b"one, "]), frame(&[b"two"])].concat();
        assert_eq!(unpack(&both).unwrap(), b"one, two");
    }

    #[test]
    fn a_cut_block_is_refused() {
        let whole = frame(&[b"a block of some length"]);
        for len in MAGIC.len() + 1..whole.len() {
            assert!(unpack(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_block_that_claims_gigabytes_is_refused() {
        let stream = [MAGIC, &[0xff; 4], b"short"].concat();
        let error = unpack(&stream).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }
}
