//! From lines to bytes: one reading for all lines, and addresses that follow one another.

use super::{
    Format, MAX_BYTES, Problem,
    line::{Address, Content, Group, Line, group},
};

/// The bytes of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assembled {
    pub format: Format,
    pub address: Option<u64>,
    pub bytes: Vec<u8>,
}

/// What all lines with data have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// The address's kind.
    address: Option<AddressKind>,
    /// Whether groups begin with `0x`.
    prefixed: bool,
    /// Bytes in each group.
    bytes: u8,
}

/// How a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    /// `address:`, as gdb, QEMU, crash and xxd write.
    Colon,
    /// An offset alone, as hexdump and od write.
    Bare,
}

/// A line's data.
struct Row<'a> {
    line: &'a Line<'a>,
    address: Option<Address>,
    groups: Vec<Group>,
    /// What follows the groups: perhaps the bytes as text.
    tail: &'a str,
}

/// Which end of a group comes first in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The last digits: the group is a little-endian number.
    Value,
    /// The first digits.
    Memory,
}

/// Reads `lines` in the one way that fits all of them.
pub(super) fn assemble(lines: &[Line<'_>]) -> Result<Assembled, Problem> {
    let rows: Vec<Row<'_>> = lines.iter().filter_map(row).collect();
    let shape = shape(&rows, lines)?;
    for row in &rows {
        check(row, shape)?;
    }
    if let Some(row) = hidden_address(&rows, shape) {
        return Err(row.line.unexpected("addresses to end with a colon, if the first column is one"));
    }
    let order = order(&rows, shape)?;
    let addressed = shape.address.is_some();
    let format = match order {
        Order::Value => Format::Numbers { bytes: shape.bytes, addressed },
        Order::Memory => Format::MemoryOrder { bytes: shape.bytes },
    };
    let (address, bytes) = match shape.address {
        Some(AddressKind::Bare) => join_in_either_radix(lines, shape, order)?,
        Some(AddressKind::Colon) | None => join(lines, shape, order, |address| Some(address.hexadecimal))?,
    };
    Ok(Assembled { format, address, bytes })
}

/// Joins lines whose offsets are hexadecimal (hexdump) or octal (od), whichever makes them follow one another.
fn join_in_either_radix(
    lines: &[Line<'_>],
    shape: Shape,
    order: Order,
) -> Result<(Option<u64>, Vec<u8>), Problem> {
    let hexadecimal = join(lines, shape, order, |address| Some(address.hexadecimal));
    let octal = join(lines, shape, order, |address| address.octal);
    match (hexadecimal, octal) {
        (Ok(hexadecimal), Ok(octal)) if hexadecimal != octal => {
            let line = lines.iter().find(|line| matches!(line.content, Content::Repeat));
            Err(Problem::Radix { line: line.map_or(1, |line| line.number) })
        }
        (Ok(joined), _) | (Err(_), Ok(joined)) => Ok(joined),
        (Err(problem), Err(_)) => Err(problem),
    }
}

/// The data of a line; `None` if it has none.
fn row<'a>(line: &'a Line<'a>) -> Option<Row<'a>> {
    let Content::Groups { address, rest } = line.content else { return None };
    let (groups, tail) = groups(address, rest);
    // An offset alone ends a dump; anything else without groups is an error, which `check` names.
    if groups.is_empty() && tail.trim().is_empty() && address.is_some() {
        return None;
    }
    Some(Row { line, address, groups, tail })
}

/// The leading groups of `rest`, and what follows them: perhaps the bytes as text.
///
/// hexdump -C encloses that text in bars and od in angles, which are no digits. xxd and crash separate it by two
/// spaces or more from groups that are one space apart, and it may well look like digits.
fn groups(address: Option<Address>, rest: &str) -> (Vec<Group>, &str) {
    let wide_gap_ends = address.is_some_and(|address| address.colon);
    let mut groups: Vec<Group> = Vec::new();
    let mut rest = rest;
    loop {
        let trimmed = rest.trim_start();
        let gap = rest.len() - trimmed.len();
        let end = trimmed.find([' ', '\t']).unwrap_or(trimmed.len());
        let (token, after) = trimmed.split_at(end);
        match group(token) {
            Some(group) if wide_gap_ends && !group.prefixed && gap >= 2 && !groups.is_empty() => {
                return (groups, rest);
            }
            Some(group) => groups.push(group),
            None => return (groups, rest),
        }
        rest = after;
    }
}

/// The shape of the first row, with the width that fits all groups.
fn shape(rows: &[Row<'_>], lines: &[Line<'_>]) -> Result<Shape, Problem> {
    let Some((row, first)) = rows.iter().find_map(|row| Some((row, row.groups.first()?))) else {
        let line = rows.first().map(|row| row.line).or(lines.first()).ok_or(Problem::Empty)?;
        return Err(line.unexpected("groups of hexadecimal digits"));
    };
    let address =
        row.address.map(|address| if address.colon { AddressKind::Colon } else { AddressKind::Bare });
    let uniform = rows.iter().flat_map(|row| &row.groups).all(|group| group.digits == first.digits);
    let bytes = match first.digits {
        2 if uniform || address.is_some() => 1,
        4 if uniform || address.is_some() => 2,
        8 if uniform || address.is_some() => 4,
        16 => 8,
        // Numbers written by people have as many digits as they need.
        _ if first.prefixed && address.is_none() => 8,
        _ => {
            return Err(row.line.unexpected("groups of 2, 4, 8 or 16 hexadecimal digits"));
        }
    };
    Ok(Shape { address, prefixed: first.prefixed, bytes })
}

/// Whether `row` is like the first.
fn check(row: &Row<'_>, shape: Shape) -> Result<(), Problem> {
    let address =
        row.address.map(|address| if address.colon { AddressKind::Colon } else { AddressKind::Bare });
    let any_width = shape.prefixed && shape.address.is_none() && shape.bytes == 8;
    let digits = usize::from(shape.bytes) * 2;
    let alike = |group: &Group| group.prefixed == shape.prefixed && (any_width || group.digits == digits);
    // An offset before each line would make the count odd, and be taken for data.
    let whole = shape.address.is_some() || shape.bytes != 4 || row.groups.len().is_multiple_of(2);
    // Only after an address does a dump have a text column.
    let tail_allowed = shape.address.is_some() || row.tail.trim().is_empty();
    if address == shape.address
        && !row.groups.is_empty()
        && row.groups.iter().all(alike)
        && whole
        && tail_allowed
    {
        return Ok(());
    }
    let prefix = if shape.prefixed { "0x and " } else { "" };
    let place = match shape.address {
        Some(AddressKind::Colon) => "an address, a colon and then ",
        Some(AddressKind::Bare) => "an offset and then ",
        None => "",
    };
    let width = if any_width { "up to 16".to_owned() } else { digits.to_string() };
    Err(row.line.unexpected(format!("{place}groups of {prefix}{width} hexadecimal digits, as above")))
}

/// The first row, if its first group and those of all others count the bytes before them: then they are
/// addresses, and reading them as data would be wrong.
fn hidden_address<'r, 'a>(rows: &'r [Row<'a>], shape: Shape) -> Option<&'r Row<'a>> {
    let counts = |pair: &[Row<'_>]| {
        let first = |row: &Row<'_>| row.groups.first().map(|group| group.value);
        let bytes = (pair[0].groups.len() as u64).saturating_sub(1) * u64::from(shape.bytes);
        bytes > 0 && first(&pair[0]).and_then(|first| first.checked_add(bytes)) == first(&pair[1])
    };
    let all = shape.address.is_none() && rows.len() > 1 && rows.windows(2).all(counts);
    if all { rows.first() } else { None }
}

/// In which order the bytes of all groups are.
fn order(rows: &[Row<'_>], shape: Shape) -> Result<Order, Problem> {
    if shape.prefixed || shape.bytes == 1 {
        return Ok(Order::Value);
    }
    match shape.address {
        Some(AddressKind::Bare) => return Ok(Order::Value),
        // Xen's console, and quadwords in a list. Pairs of bytes alone could be od's or anybody's.
        None if shape.bytes >= 4 => return Ok(Order::Value),
        None | Some(AddressKind::Colon) => {}
    }
    let speaks_for = |order| rows.iter().all(|row| text_agrees(row, shape, order) != Some(false));
    let differs = rows.iter().find(|row| {
        row.groups
            .iter()
            .any(|&group| bytes_of(group, shape, Order::Value) != bytes_of(group, shape, Order::Memory))
    });
    match (speaks_for(Order::Value), speaks_for(Order::Memory), differs) {
        (false, true, _) | (_, _, None) => Ok(Order::Memory),
        (true, false, _) => Ok(Order::Value),
        // Two-byte groups after a colon are xxd's own way; a long address is not an offset of xxd's, but crash's.
        (true, true, Some(row)) => match row.address {
            Some(_) if shape.bytes == 2 => Ok(Order::Memory),
            Some(address) if address.digits > 8 => Ok(Order::Value),
            _ => Err(ambiguous(row)),
        },
        (false, false, Some(row)) => Err(ambiguous(row)),
    }
}

fn ambiguous(row: &Row<'_>) -> Problem {
    let digits = |group: &Group| format!("{:0digits$x}", group.value, digits = group.digits);
    Problem::Ambiguous { line: row.line.number, found: row.groups.first().map(digits).unwrap_or_default() }
}

/// Whether the text column shows the bytes as they are in `order`; `None` without a text column.
///
/// The column begins two spaces after the groups, or after more where the row is short; spaces at its end may
/// have been lost in copying.
fn text_agrees(row: &Row<'_>, shape: Shape, order: Order) -> Option<bool> {
    if row.tail.trim().is_empty() {
        return None;
    }
    let bytes: Vec<u8> = row.groups.iter().flat_map(|&group| bytes_of(group, shape, order)).collect();
    let tail = row.tail.as_bytes();
    let columns = [tail.get(2..), tail.len().checked_sub(bytes.len()).and_then(|start| tail.get(start..))];
    let shown = |byte: u8| if byte == b' ' || byte.is_ascii_graphic() { byte } else { b'.' };
    let shows =
        |text: &[u8]| text.len() <= bytes.len() && bytes.iter().zip(text).all(|(&b, &t)| shown(b) == t);
    Some(columns.into_iter().flatten().any(shows))
}

/// The bytes of a group, in memory order.
fn bytes_of(group: Group, shape: Shape, order: Order) -> Vec<u8> {
    let mut bytes = group.value.to_le_bytes()[..usize::from(shape.bytes)].to_vec();
    if order == Order::Memory {
        bytes.reverse();
    }
    bytes
}

/// The bytes of all lines with the address of the first, where `read` reads addresses.
fn join(
    lines: &[Line<'_>],
    shape: Shape,
    order: Order,
    read: impl Fn(Address) -> Option<u64>,
) -> Result<(Option<u64>, Vec<u8>), Problem> {
    let mut start = None;
    let mut bytes: Vec<u8> = Vec::new();
    let mut last_row: Vec<u8> = Vec::new();
    let mut repeat = None;
    for line in lines {
        let Content::Groups { address: row_address, rest } = line.content else {
            repeat = Some(line.number);
            continue;
        };
        let address = match row_address {
            Some(address) => Some(read(address).ok_or_else(|| line.unexpected("an address"))?),
            None => None,
        };
        if let Some(address) = address {
            let start = *start.get_or_insert(address);
            let expected = start.wrapping_add(bytes.len() as u64);
            match repeat.take() {
                Some(number) => {
                    let gap = address.wrapping_sub(expected);
                    fill(&mut bytes, &last_row, gap, number)?;
                }
                None if address != expected => {
                    return Err(Problem::Address { line: line.number, expected, found: address });
                }
                None => {}
            }
        }
        last_row =
            groups(row_address, rest).0.into_iter().flat_map(|group| bytes_of(group, shape, order)).collect();
        bytes.extend(&last_row);
        if bytes.len() > MAX_BYTES {
            return Err(Problem::TooLarge);
        }
    }
    // The end of the repetition is not known.
    repeat.map_or(Ok((start, bytes)), |line| Err(Problem::Repeat { line }))
}

/// Appends `row` again and again until `gap` more bytes are there.
fn fill(bytes: &mut Vec<u8>, row: &[u8], gap: u64, line: usize) -> Result<(), Problem> {
    let gap = usize::try_from(gap).ok().filter(|gap| *gap <= MAX_BYTES).ok_or(Problem::TooLarge)?;
    if row.is_empty() || !gap.is_multiple_of(row.len()) {
        return Err(Problem::Repeat { line });
    }
    for _ in 0..gap / row.len() {
        bytes.extend(row);
    }
    Ok(())
}
