//! A descriptor table in a file: raw, or as one of many programs print memory.
//!
//! ```text
//! 0x401000 <gdt>:  0x0000000000000000  0x00af9b000000ffff     gdb x/gx (also x/bx, x/hx, x/wx), QEMU's xp
//! 00000008: ffff 0000 009b af00                               xxd
//! 00000008  ff ff 00 00 00 9b af 00  |........|               hexdump -C (also plain hexdump, od -t x8 …)
//! (XEN)    0000000000000000 00af9b000000ffff                  memory on Xen's console
//! 0x00af9b000000ffff                                          quadwords, as in a source file
//! ffff0000009baf00ffff00000093cf00                            xxd -p
//! ```
//!
//! The lines are taken apart first ([`line`]); then the shape of the first line with data decides how all are
//! read, and every other line must have the same shape. Groups of digits with `0x`, and those of programs
//! that print numbers, are little-endian values; the groups of xxd are bytes in memory order. Where xxd can
//! mean either (`-g 4` and `-e` look alike) its text column decides, and if that cannot, the reading is
//! refused rather than guessed. Addresses must follow one another, `*` repeats the line above.
//!
//! Nothing that is read can make this panic, loop, or hold more than a full table.

mod assemble;
mod line;

use core::fmt;

use serde::Serialize;

use self::line::Line;

/// The largest descriptor table: 8192 entries.
const MAX_BYTES: usize = 8192 * 8;
/// More text than any program needs to print that much; a longer file is no dump of a table.
const MAX_TEXT: usize = 64 * MAX_BYTES;

/// A table as read from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// How it was written.
    pub format: Format,
    /// The address of the first byte, where the dump says it.
    pub address: Option<u64>,
    /// The descriptors.
    pub quadwords: Vec<u64>,
}

/// How a table was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Format {
    /// The bytes themselves.
    Binary,
    /// Hexadecimal digits without spaces, bytes in memory order.
    PlainHex,
    /// Little-endian numbers.
    Numbers {
        /// Bytes in each number: 1, 2, 4 or 8.
        bytes: u8,
        /// Whether each line begins with an address.
        addressed: bool,
    },
    /// Groups of bytes in memory order, after an address.
    MemoryOrder {
        /// Bytes in each group: 2, 4 or 8.
        bytes: u8,
    },
}

/// Why a file is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing but white space and comments.
    #[error("looked for descriptors, found nothing: is it the right file?")]
    Empty,
    /// A line that is not like the others, or like nothing known.
    #[error("line {line}: looked for {expected}, found \"{found}\": {}", line::HINT)]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What would have been right.
        expected: String,
        /// What is there, shortened.
        found: String,
    },
    /// Digits whose byte order cannot be told.
    #[error("line {line}: cannot tell in which order the bytes of \"{found}\" are: dump again with xxd -g 1")]
    Ambiguous {
        /// Its number, from 1.
        line: usize,
        /// The first group.
        found: String,
    },
    /// An address that does not follow the line before.
    #[error(
        "line {line}: looked for address {expected:#x} after the line before, found {found:#x}: the dump has a hole \
         or an overlap"
    )]
    Address {
        /// Its number, from 1.
        line: usize,
        /// The address after the bytes so far.
        expected: u64,
        /// The address that is there.
        found: u64,
    },
    /// A `*` without lines around it.
    #[error("line {line}: \"*\" repeats the line above up to the next address, and one of them is missing")]
    Repeat {
        /// Its number, from 1.
        line: usize,
    },
    /// A repetition whose length depends on how offsets count.
    #[error(
        "line {line}: cannot tell how often \"*\" repeats the line above, because the offsets may be hexadecimal \
         (hexdump) or octal (od): dump again with od -v, or hexdump -v"
    )]
    Radix {
        /// Its number, from 1.
        line: usize,
    },
    /// A program or a kernel.
    #[error(
        "looked for a descriptor table, found an ELF file: cut out the table with objcopy, or print it with gdb"
    )]
    Elf,
    /// Not whole quadwords.
    #[error("looked for whole descriptors of 8 bytes, found {0} bytes: the table is cut off, or not a table")]
    Partial(usize),
    /// More than a table can have.
    #[error("looked for a table of at most 8192 descriptors (64 KiB), found more: cut out the table first")]
    TooLarge,
}

/// Reads a descriptor table in any of the known forms.
///
/// # Errors
///
/// A [`Problem`] that names the line, if `contents` is in none of them.
pub fn parse(contents: &[u8]) -> Result<Dump, Problem> {
    if contents.is_empty() {
        return Err(Problem::Empty);
    }
    if contents.starts_with(b"\x7fELF") {
        return Err(Problem::Elf);
    }
    let Some(text) = as_text(contents) else {
        return finish(Format::Binary, None, contents.to_vec());
    };
    if text.len() > MAX_TEXT {
        return Err(Problem::TooLarge);
    }
    let lines = line::lex(text)?;
    if lines.iter().any(|line| matches!(line.content, line::Content::Plain)) {
        return plain(&lines);
    }
    let assembled = assemble::assemble(&lines)?;
    finish(assembled.format, assembled.address, assembled.bytes)
}

/// `contents` as text, if no byte of it speaks against that.
fn as_text(contents: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(contents).ok()?;
    let printable = text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | '\x1b') || !c.is_control());
    printable.then_some(text)
}

/// Digits without spaces, line after line.
fn plain(lines: &[Line<'_>]) -> Result<Dump, Problem> {
    let mut bytes = Vec::new();
    for line in lines {
        match line.plain_bytes() {
            Some(more) => bytes.extend(more),
            None => return Err(line.unexpected("pairs of hexadecimal digits without spaces")),
        }
        if bytes.len() > MAX_BYTES {
            return Err(Problem::TooLarge);
        }
    }
    finish(Format::PlainHex, None, bytes)
}

fn finish(format: Format, address: Option<u64>, bytes: Vec<u8>) -> Result<Dump, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(Problem::TooLarge);
    }
    let (quadwords, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Problem::Partial(bytes.len()));
    }
    let quadwords: Vec<u64> = quadwords.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    if quadwords.is_empty() {
        return Err(Problem::Empty);
    }
    Ok(Dump { format, address, quadwords })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Binary => f.write_str("binary"),
            Self::PlainHex => f.write_str("hexadecimal digits without spaces, bytes in memory order"),
            Self::Numbers { bytes, addressed: true } => {
                write!(f, "{bytes}-byte numbers after an address, as gdb, QEMU, hexdump and od print")
            }
            Self::Numbers { bytes, addressed: false } => write!(f, "{bytes}-byte numbers"),
            Self::MemoryOrder { bytes } => write!(f, "{bytes}-byte groups in memory order, as xxd prints"),
        }
    }
}

#[cfg(test)]
mod tests;
