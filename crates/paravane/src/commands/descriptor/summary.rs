//! A descriptor in one line.

use paravane_x86::descriptor::{Descriptor, Kind, SystemType, bits, kind::CodeWidth};

use super::entry::Entry;

/// What `entry` is, in the words of one table cell: `data, writable; DPL 3; flat`.
pub(in crate::commands) fn summary(entry: Entry) -> String {
    if entry.low == Descriptor::NULL {
        return "null descriptor".to_owned();
    }
    let absent = if entry.low.is_present() { "" } else { "; not present" };
    format!("{}; DPL {}; {}{absent}", entry.low.kind(), entry.low.dpl(), extent(entry))
}

/// What the descriptor covers, or where a gate leads.
fn extent(entry: Entry) -> String {
    let low = entry.low;
    match low.kind() {
        Kind::Code(code) if code.width == CodeWidth::Bits64 => "flat".to_owned(),
        Kind::Data(data) if data.expand_down => {
            let valid = valid_offsets(low);
            valid.map_or("no valid offset".to_owned(), |(first, last)| {
                format!("base {:#x}, offsets {first:#x} to {last:#x}", low.base())
            })
        }
        Kind::System(SystemType::TaskGate) => match entry.gate() {
            Some(gate) => format!("to the TSS {}", gate.selector),
            None => "to nothing".to_owned(),
        },
        Kind::System(system) if system.is_gate() => match entry.gate() {
            Some(gate) => format!("to {}:{:#x}", gate.selector, gate.offset),
            None => "to nothing".to_owned(),
        },
        Kind::Code(_) | Kind::Data(_) if low.base() == 0 && low.limit() == u32::MAX => "flat".to_owned(),
        Kind::Code(_) | Kind::Data(_) | Kind::System(_) => {
            format!("base {:#x}, {}", entry.base(), byte_size(u64::from(low.limit()) + 1))
        }
    }
}

/// The first and last offset that a segment's limit allows; `None` for an expand-down segment with none.
pub(in crate::commands) fn valid_offsets(descriptor: Descriptor) -> Option<(u32, u32)> {
    match descriptor.kind() {
        Kind::Data(data) if data.expand_down => {
            let last = if descriptor.has(bits::DB) { u32::MAX } else { 0xffff };
            let first = descriptor.limit().checked_add(1)?;
            (first <= last).then_some((first, last))
        }
        Kind::Data(_) | Kind::Code(_) | Kind::System(_) => Some((0, descriptor.limit())),
    }
}

/// `bytes` in the largest unit that needs no fraction.
pub(in crate::commands) fn byte_size(bytes: u64) -> String {
    let (value, unit) = match bytes.trailing_zeros() {
        30..64 => (bytes >> 30, "GiB"),
        20..30 => (bytes >> 20, "MiB"),
        10..20 => (bytes >> 10, "KiB"),
        _ => (bytes, if bytes == 1 { "byte" } else { "bytes" }),
    };
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_line() {
        for (low, high, line) in [
            (0, None, "null descriptor"),
            (0x00af_fb00_0000_ffff, None, "64-bit code, readable, accessed; DPL 3; flat"),
            (0x00cf_b200_0000_ffff, None, "data, writable; DPL 1; flat"),
            (0x00cf_ba00_0000_67ff, None, "32-bit code, readable; DPL 1; base 0x0, 3944 MiB"),
            (
                0x0040_f612_3456_0fff,
                None,
                "data, writable, expand-down; DPL 3; base 0x123456, offsets 0x1000 to 0xffffffff",
            ),
            (0x00cf_f600_0000_ffff, None, "data, writable, expand-down; DPL 3; no valid offset"),
            (0x0000_0900_0000_0067, None, "TSS, available; DPL 0; base 0x0, 104 bytes; not present"),
            (
                0x8000_8953_1040_0067,
                Some(0xffff_82d0),
                "TSS, available; DPL 0; base 0xffff82d080531040, 104 bytes",
            ),
            (0x1234_ec00_0010_5678, None, "call gate; DPL 3; to 0x0010:0x12345678"),
            (0x0000_8500_0028_0000, None, "task gate; DPL 0; to the TSS 0x0028"),
        ] {
            assert_eq!(summary(Entry { low: Descriptor(low), high }), line, "{low:#x}");
        }
    }

    #[test]
    fn sizes_are_given_without_fractions() {
        for (bytes, text) in [
            (1, "1 byte"),
            (104, "104 bytes"),
            (0x1_0000, "64 KiB"),
            (0x10_0000, "1 MiB"),
            (0xf680_0000, "3944 MiB"),
            (1 << 32, "4 GiB"),
        ] {
            assert_eq!(byte_size(bytes), text);
        }
    }
}
