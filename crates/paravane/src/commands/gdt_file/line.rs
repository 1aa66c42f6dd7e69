//! One line of a dump, taken apart without judging what it means.

use super::{MAX_BYTES, Problem};
use crate::input::bare_hex;

/// What to do about a line that is not understood.
pub(super) const HINT: &str =
    "readable are gdb's x/gx, QEMU's xp/gx, xxd, hexdump -C, od -t x8, Xen's console and bare quadwords";

/// A line that says something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    /// Its number in the file, from 1.
    pub number: usize,
    /// The line without prefixes and comments.
    text: &'a str,
    /// Its parts.
    pub content: Content<'a>,
}

/// The parts of a line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// `*`: the line above again, up to the next address.
    Repeat,
    /// More than sixteen hexadecimal digits and nothing else.
    Plain,
    /// Groups of digits, perhaps after an address.
    Groups {
        /// The address before them.
        address: Option<Address>,
        /// The groups, and after them perhaps the bytes as text.
        rest: &'a str,
    },
}

/// An address at the start of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As hexadecimal digits.
    pub hexadecimal: u64,
    /// As octal digits, which is how od counts, in seven of them; `None` if they are not.
    pub octal: Option<u64>,
    /// How many digits it has.
    pub digits: usize,
    /// Whether a colon ends it.
    pub colon: bool,
}

/// A group of hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The digits as a number.
    pub value: u64,
    /// How many there are, 1 to 16.
    pub digits: usize,
    /// Whether `0x` precedes them.
    pub prefixed: bool,
}

/// Takes `text` apart into the lines that say something.
pub(super) fn lex(text: &str) -> Result<Vec<Line<'_>>, Problem> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // A line of data has at least one byte, and not every second line repeats the one above.
        if lines.len() > 2 * MAX_BYTES {
            return Err(Problem::TooLarge);
        }
        let stripped = strip(line);
        if !is_noise(stripped) {
            lines.push(Line { number: index + 1, text: stripped, content: content(stripped) });
        }
    }
    if lines.is_empty() { Err(Problem::Empty) } else { Ok(lines) }
}

/// Removes what precedes the data: console prefixes, time stamps, directives.
fn strip(line: &str) -> &str {
    let mut text = line.trim_start();
    if let Some(rest) = text.strip_prefix("(XEN)") {
        text = rest.trim_start();
    }
    // A time stamp has a point or a colon; "[3]" would be an index, and is not skipped unread.
    if let Some((stamp, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']'))
        && stamp.contains(['.', ':'])
    {
        text = rest.trim_start();
    }
    if let Some((_, data)) = text.split_once(".quad") {
        text = data.trim_start();
    }
    text.trim_end_matches(['\r', '\n'])
}

/// Whether a line is empty, a comment, a prompt with the command typed there, or a heading of Xen's.
fn is_noise(text: &str) -> bool {
    let text = text.trim_end();
    text.is_empty()
        || ["#", "//", "/*", "(gdb)", "(qemu)", "crash>", "$ "].iter().any(|prompt| text.starts_with(prompt))
        || text.contains("stack trace from")
}

fn content(text: &str) -> Content<'_> {
    let trimmed = text.trim_end();
    if trimmed == "*" {
        return Content::Repeat;
    }
    if trimmed.len() > 16 && trimmed.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Content::Plain;
    }
    match split_address(text) {
        (None, rest) => Content::Groups { address: None, rest: without_comment(rest) },
        (address, rest) => Content::Groups { address, rest },
    }
}

/// `text` up to a comment. Only for lines without an address: the text column of a dump may hold anything.
fn without_comment(text: &str) -> &str {
    let end = ["/*", "//", "#"].into_iter().filter_map(|comment| text.find(comment)).min();
    end.map_or(text, |end| &text[..end])
}

/// Splits off an address: a number before a colon (with a symbol in between, as gdb writes it), or without a
/// colon one that is not as long as the group after it, as hexdump and od write it.
fn split_address(text: &str) -> (Option<Address>, &str) {
    let end = text.find([' ', '\t', ':']).unwrap_or(text.len());
    let (token, after) = text.split_at(end);
    let Some(group) = group(token) else { return (None, text) };
    let octal = if token.len() == 7 { u64::from_str_radix(token, 8).ok() } else { None };
    let address = |colon| Address { hexadecimal: group.value, octal, digits: group.digits, colon };
    let mut rest = after.trim_start();
    if let Some((_, after)) = rest.strip_prefix('<').and_then(|symbol| symbol.split_once('>')) {
        rest = after;
    }
    if let Some(rest) = rest.strip_prefix(':') {
        return (Some(address(true)), rest);
    }
    let next = after.split_whitespace().next().map(|next| next.trim_end_matches('|').len());
    match next {
        // hexdump and od end with the offset alone. They count in 6 to 8 digits.
        None | Some(0) if !group.prefixed && (6..=8).contains(&group.digits) => (Some(address(false)), ""),
        Some(digits) if !group.prefixed && (6..=8).contains(&group.digits) && digits != group.digits => {
            (Some(address(false)), after)
        }
        _ => (None, text),
    }
}

/// Reads `0x…` or bare digits, as in a list of numbers in C.
pub(super) fn group(token: &str) -> Option<Group> {
    let token = token.trim_end_matches([',', ';']);
    // Zero needs no prefix to be clear.
    if token == "0" {
        return Some(Group { value: 0, digits: 1, prefixed: true });
    }
    let (digits, prefixed) = match token.strip_prefix("0x").or_else(|| token.strip_prefix("0X")) {
        Some(digits) => (digits.trim_end_matches(['u', 'U', 'l', 'L']), true),
        None => (token, false),
    };
    let (value, digits) = bare_hex(digits)?;
    Some(Group { value, digits, prefixed })
}

impl Line<'_> {
    /// The problem that this line is not what it should be.
    pub(super) fn unexpected(&self, expected: impl Into<String>) -> Problem {
        let found: String = self.text.trim_end().chars().take(40).flat_map(char::escape_debug).collect();
        Problem::Line { line: self.number, expected: expected.into(), found }
    }

    /// The bytes of a line that is nothing but digits; `None` if it is not, or if half a byte is left.
    pub(super) fn plain_bytes(&self) -> Option<Vec<u8>> {
        let (digits, rest) = self.text.trim_end().as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        let byte = |pair: &[u8; 2]| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()
        };
        digits.iter().map(byte).collect()
    }
}
