//! The stream of the `lzop` program, which Linux's build uses for `KERNEL_LZO`.
//!
//! All numbers are big-endian. A header: magic, versions, method, flags, mode, time, file name, checksum.
//! Then blocks: decompressed length, compressed length, checksums as the flags say, data; a decompressed
//! length of 0 ends the stream. A block that does not shrink is stored as it is. The blocks hold LZO1X, for
//! which [`decode`] is the decoder.
//!
//! There is no maintained Rust crate for LZO, hence this file. It decodes only.
//!
//! Sources: Linux `Documentation/staging/lzo.rst` (LZO1X), `lib/decompress_unlzo.c` (the header as the
//! kernel reads it); `lzop`'s own `lzop(1)`.

use std::io;

use super::blocks::{BlockReader, Blocks, damaged, take};

/// The stream's first bytes.
pub(super) const MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// The largest block that `lzop` writes, decompressed: 64 MiB. Its default is 256 KiB.
const BLOCK_MAX_BYTES: u32 = 64 << 20;

/// From this version on the header has more fields.
const VERSION_WITH_LEVEL: u16 = 0x0940;

/// Header flags: which checksums a block carries, and which optional fields the header has.
mod flag {
    pub(super) const ADLER32_DATA: u32 = 1 << 0;
    pub(super) const ADLER32_PACKED: u32 = 1 << 1;
    pub(super) const EXTRA_FIELD: u32 = 1 << 6;
    pub(super) const CRC32_DATA: u32 = 1 << 8;
    pub(super) const CRC32_PACKED: u32 = 1 << 9;
    pub(super) const MULTIPART: u32 = 1 << 10;
    pub(super) const FILTER: u32 = 1 << 11;
}

/// A reader of the LZOP stream in `stream`.
pub(super) fn reader(mut stream: &[u8]) -> io::Result<BlockReader<Stream<'_>>> {
    let rest = &mut stream;
    if take(rest, MAGIC.len(), "the magic number")? != MAGIC {
        return Err(damaged("the magic number of an lzop stream is missing"));
    }
    let version = be16(rest, "the version")?;
    take(rest, 2, "the library's version")?;
    if version >= VERSION_WITH_LEVEL {
        take(rest, 2, "the version needed")?;
    }
    let method = take(rest, 1, "the method")?[0];
    if !(1..=3).contains(&method) {
        return Err(damaged(format!("method {method} is none of the LZO1X methods 1 to 3")));
    }
    if version >= VERSION_WITH_LEVEL {
        take(rest, 1, "the level")?;
    }
    let flags = be32(rest, "the flags")?;
    if flags & (flag::FILTER | flag::MULTIPART) != 0 {
        return Err(damaged(format!(
            "flags {flags:#x} ask for a filter or several parts; kernels use neither"
        )));
    }
    take(rest, 8, "mode and time")?;
    if version >= VERSION_WITH_LEVEL {
        take(rest, 4, "the time's upper half")?;
    }
    let name_len = take(rest, 1, "the name's length")?[0];
    take(rest, usize::from(name_len), "the name")?;
    take(rest, 4, "the header's checksum")?;
    if flags & flag::EXTRA_FIELD != 0 {
        let len = be32(rest, "the extra field's length")?;
        take(rest, len as usize, "the extra field")?;
        take(rest, 4, "the extra field's checksum")?;
    }
    Ok(BlockReader::new(Stream { rest: stream, flags }))
}

/// The blocks not yet read.
pub(super) struct Stream<'a> {
    rest: &'a [u8],
    flags: u32,
}

impl Stream<'_> {
    /// The checksum that follows if `flag` is set.
    fn checksum(&mut self, flag: u32) -> io::Result<Option<u32>> {
        if self.flags & flag == 0 { Ok(None) } else { be32(&mut self.rest, "a checksum").map(Some) }
    }
}

impl Blocks for Stream<'_> {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        let len = be32(&mut self.rest, "a block's length")?;
        if len == 0 {
            return Ok(false);
        }
        let packed_len = be32(&mut self.rest, "a block's compressed length")?;
        if len > BLOCK_MAX_BYTES || packed_len > len {
            return Err(damaged(format!("a block claims {packed_len} bytes for {len}")));
        }
        let data_adler = self.checksum(flag::ADLER32_DATA)?;
        let data_crc = self.checksum(flag::CRC32_DATA)?;
        let stored = packed_len == len;
        let (packed_adler, packed_crc) = if stored {
            (None, None)
        } else {
            (self.checksum(flag::ADLER32_PACKED)?, self.checksum(flag::CRC32_PACKED)?)
        };
        let packed = take(&mut self.rest, packed_len as usize, "a block")?;
        verify(packed, packed_adler, packed_crc)?;
        block.clear();
        if stored {
            block.extend_from_slice(packed);
        } else {
            decode(packed, block, len as usize)?;
        }
        if block.len() != len as usize {
            return Err(damaged(format!("a block of {len} bytes decodes to {}", block.len())));
        }
        verify(block, data_adler, data_crc)?;
        Ok(true)
    }
}

/// Decodes one LZO1X block into `output`, which must be empty and grows to at most `max_len` bytes.
///
/// The data is a row of instructions. Each copies a match, `length` bytes from `distance` back in the
/// output, and then up to three literals, whose count sits in two bits of the instruction; or it copies a
/// longer run of literals. What an instruction below 16 means depends on how many literals came before it.
pub(super) fn decode(packed: &[u8], output: &mut Vec<u8>, max_len: usize) -> io::Result<()> {
    let mut input = Input { rest: packed };
    let mut literals_before = match packed.first() {
        // The block begins with literals only: one byte counts them. (17 is a match, so never a count.)
        Some(&count @ 18..) => {
            input.byte()?;
            input.literals(usize::from(count) - 17, output, max_len)?
        }
        Some(_) | None => 0,
    };
    loop {
        let opcode = input.byte()?;
        let op = usize::from(opcode);
        let (distance, length, trailing) = match opcode {
            0..16 if literals_before == 0 => {
                let count = 3 + input.length(op, 15)?;
                literals_before = input.literals(count, output, max_len)?;
                continue;
            }
            0..16 => {
                let high = usize::from(input.byte()?) << 2;
                let (base, length) = if literals_before < MANY { (1, 2) } else { (0x801, 3) };
                (base + high + (op >> 2), length, op & 3)
            }
            16..32 => {
                let length = 2 + input.length(op & 7, 7)?;
                let (offset, trailing) = input.offset()?;
                let distance = ((op & 8) << 11) + offset;
                if distance == 0 {
                    return if length == 3 { Ok(()) } else { Err(damaged("a malformed end mark")) };
                }
                (distance + 0x4000, length, trailing)
            }
            32..64 => {
                let length = 2 + input.length(op & 31, 31)?;
                let (offset, trailing) = input.offset()?;
                (offset + 1, length, trailing)
            }
            64.. => {
                let high = usize::from(input.byte()?) << 3;
                (1 + high + ((op >> 2) & 7), (op >> 5) + 1, op & 3)
            }
        };
        copy_match(output, distance, length, max_len)?;
        literals_before = input.literals(trailing, output, max_len)?;
    }
}

/// Four literals or more before an instruction are all the same to it.
const MANY: usize = 4;

/// The compressed bytes not yet read.
struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> io::Result<u8> {
        Ok(take(&mut self.rest, 1, "an instruction")?[0])
    }

    /// A length whose first bits are `short`: if those are 0, it is `base` plus 255 for each zero byte
    /// that follows plus the first byte that is not zero.
    fn length(&mut self, short: usize, base: usize) -> io::Result<usize> {
        if short != 0 {
            return Ok(short);
        }
        let zeros = self.rest.iter().take_while(|&&byte| byte == 0).count();
        take(&mut self.rest, zeros, "a length")?;
        // Cannot overflow: `zeros` counts bytes that lie in memory, and 255 times those is below 2^63.
        Ok(base + 255 * zeros + usize::from(self.byte()?))
    }

    /// The 16 bits behind a match of the longer forms: offset, and the number of literals that follow.
    fn offset(&mut self) -> io::Result<(usize, usize)> {
        let bytes = take(&mut self.rest, 2, "a match's offset")?;
        let word = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        Ok((word >> 2, word & 3))
    }

    /// Copies `count` literals to `output`; returns the count as the next instruction regards it.
    fn literals(&mut self, count: usize, output: &mut Vec<u8>, max_len: usize) -> io::Result<usize> {
        if count > max_len - output.len() {
            return Err(damaged("a run of literals overruns the block"));
        }
        output.extend_from_slice(take(&mut self.rest, count, "a run of literals")?);
        Ok(count.min(MANY))
    }
}

/// Appends `length` bytes that begin `distance` before the end of `output`. They may overlap what they
/// produce: distance 1 repeats the last byte.
fn copy_match(output: &mut Vec<u8>, distance: usize, length: usize, max_len: usize) -> io::Result<()> {
    let Some(start) = output.len().checked_sub(distance) else {
        return Err(damaged("a match reaches back before the block"));
    };
    if length > max_len - output.len() {
        return Err(damaged("a match overruns the block"));
    }
    if distance >= length {
        output.extend_from_within(start..start + length);
    } else {
        for at in start..start + length {
            output.push(output[at]);
        }
    }
    Ok(())
}

/// Compares `data` with the checksums that are there.
fn verify(data: &[u8], adler: Option<u32>, crc: Option<u32>) -> io::Result<()> {
    let crc_matches = crc.is_none_or(|recorded| {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        crc.sum() == recorded
    });
    if crc_matches && adler.is_none_or(|recorded| adler32(data) == recorded) {
        Ok(())
    } else {
        Err(damaged("a block's checksum does not match"))
    }
}

/// The Adler-32 checksum (RFC 1950, "Appendix: Adler-32").
fn adler32(data: &[u8]) -> u32 {
    /// The largest count of bytes after which neither sum can have exceeded 32 bits.
    const RUN: usize = 5552;
    const MODULUS: u32 = 65521;
    let (mut low, mut high) = (1_u32, 0_u32);
    for run in data.chunks(RUN) {
        for &byte in run {
            low += u32::from(byte);
            high += low;
        }
        low %= MODULUS;
        high %= MODULUS;
    }
    high << 16 | low
}

fn be16(rest: &mut &[u8], what: &str) -> io::Result<u16> {
    take(rest, 2, what).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn be32(rest: &mut &[u8], what: &str) -> io::Result<u32> {
    take(rest, 4, what).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instruction that ends a block.
    const END: [u8; 3] = [0x11, 0, 0];

    fn unpack(instructions: &[&[u8]]) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        decode(&instructions.concat(), &mut output, 1 << 20)?;
        Ok(output)
    }

    /// Literals 0, 1, 2 … and the instruction that copies them as a block's first.
    fn literals(count: usize) -> (Vec<u8>, Vec<u8>) {
        let data: Vec<u8> = (0..count).map(|at| at.to_le_bytes()[0]).collect();
        // A run is 3 longer than its length, which here is 15, plus 255 for each zero, plus a last byte
        // that is not zero.
        let (zeros, last) = ((count - 19) / 255, (count - 19) % 255 + 1);
        let instruction = [vec![0; 1 + zeros], vec![u8::try_from(last).unwrap()], data.clone()].concat();
        (instruction, data)
    }

    #[test]
    fn every_kind_of_match_has_its_distance_and_length() {
        for (instruction, distance, length) in [
            // Right behind a long run of literals: 3 bytes from 2049 on.
            (&[0b0000_0100, 2][..], 0x801 + 1 + (2 << 2), 3),
            // 3 to 8 bytes within 2 KiB.
            (&[0b0101_1000, 5], 1 + 6 + (5 << 3), 3),
            (&[0b1110_0000, 0xff], 1 + (0xff << 3), 8),
            // Any length within 16 KiB, short and long form.
            (&[0b0010_0011, 0b1000, 1], 1 + 2 + (1 << 6), 5),
            (&[0b0010_0000, 0, 7, 0, 0], 1, 2 + 31 + 255 + 7),
            // Any length within 48 KiB, short and long form.
            (&[0b0001_0001, 4, 0], 0x4000 + 1, 3),
            (&[0b0001_1010, 4, 0], 0x4000 + 0x4000 + 1, 4),
            (&[0b0001_0000, 3, 4, 0], 0x4000 + 1, 2 + 7 + 3),
        ] {
            let (run, mut expected) = literals(40_000);
            let output = unpack(&[&run, instruction, &END]).unwrap();
            for _ in 0..length {
                expected.push(expected[expected.len() - distance]);
            }
            assert!(output == expected, "{instruction:02x?}");
        }
    }

    #[test]
    fn a_short_instruction_behind_few_literals_copies_two_bytes() {
        // Two literals trail the first match; the second is 2 bytes, 1 + 1 + (3 << 2) back.
        let (run, mut expected) = literals(100);
        let output = unpack(&[&run, &[0b0101_1010, 0], b"xy", &[0b0000_0100, 3], &END]).unwrap();
        expected.extend_from_within(100 - 7..100 - 4);
        expected.extend_from_slice(b"xy");
        expected.extend_from_within(105 - 14..105 - 12);
        assert_eq!(output, expected);
    }

    #[test]
    fn a_block_may_begin_with_a_few_literals() {
        assert_eq!(unpack(&[&[17 + 2], b"ab", &END]).unwrap(), b"ab");
        assert_eq!(unpack(&[&[17 + 5], b"abcde", &END]).unwrap(), b"abcde");
        assert_eq!(unpack(&[&END]).unwrap(), b"");
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let (run, _) = literals(100);
        for (instructions, expected) in [
            (vec![&run[..], &[0b0010_0011, 0xff, 0xff], &END], "before the block"),
            (vec![&run, &[0x12, 0, 0]], "malformed end mark"),
            (vec![&run], "an instruction needs 1 bytes"),
            (vec![&run[..50]], "a run of literals needs 100 bytes"),
            (vec![&run, &[0b0010_0000, 0, 0]], "an instruction needs 1 bytes"),
            (vec![&run, &[0b0010_0011, 0]], "a match's offset needs 2 bytes"),
        ] {
            let error = unpack(&instructions).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn nothing_is_written_beyond_the_blocks_length() {
        let (run, _) = literals(100);
        let long = [&run[..], &[0b0010_0000, 0, 0, 7, 0, 0], &END].concat();
        for max_len in [0, 99, 100, 500] {
            let mut output = Vec::new();
            assert!(decode(&long, &mut output, max_len).is_err());
            assert!(output.len() <= max_len);
        }
    }

    #[test]
    fn the_checksum_is_adler_32() {
        // The example of everyone who describes it.
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
        assert_eq!(adler32(&[0xff; 100_000]), naive_adler32(&[0xff; 100_000]));
    }

    /// The definition, without care for speed.
    fn naive_adler32(data: &[u8]) -> u32 {
        let (low, high) = data.iter().fold((1, 0), |(low, high), &byte| {
            let low = (low + u64::from(byte)) % 65521;
            (low, (high + low) % 65521)
        });
        u32::try_from(high << 16 | low).unwrap()
    }
}
