//! Streams that are a row of separately compressed blocks.
//!
//! The LZ4 legacy frame and the LZOP stream both are: a header, then blocks that decompress on their own.
//! Each format says how to get its next block; [`BlockReader`] turns that into a [`Read`].

use std::io::{self, Read};

/// A source of decompressed blocks.
pub(super) trait Blocks {
    /// Replaces `block` by the next block's decompressed data; `false` at the end of the stream.
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<bool>;
}

/// Reads the blocks of `B` one after the other.
pub(super) struct BlockReader<B> {
    blocks: B,
    block: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<B: Blocks> BlockReader<B> {
    pub(super) fn new(blocks: B) -> Self {
        Self { blocks, block: Vec::new(), read: 0, ended: false }
    }
}

impl<B: Blocks> Read for BlockReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A block may be empty, and an empty read would mean the end.
        while self.read == self.block.len() && !self.ended {
            self.read = 0;
            self.ended = !self.blocks.next(&mut self.block)?;
            if self.ended {
                self.block.clear();
            }
        }
        let len = buffer.len().min(self.block.len() - self.read);
        buffer[..len].copy_from_slice(&self.block[self.read..self.read + len]);
        self.read += len;
        Ok(len)
    }
}

/// Takes `len` bytes off the front of `rest`, or says what was cut.
pub(super) fn take<'a>(rest: &mut &'a [u8], len: usize, what: &str) -> io::Result<&'a [u8]> {
    let Some((front, back)) = rest.split_at_checked(len) else {
        return Err(damaged(format!("{what} needs {len} bytes, the stream has {} left", rest.len())));
    };
    *rest = back;
    Ok(front)
}

/// The error of a stream that breaks its format.
pub(super) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
